"""What the target reads: exactly its template, and its own answers exactly as it gave them."""

from __future__ import annotations

from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.utils import chat_template_utils

from draftrank.errors import InvalidInputError
from draftrank.models.prompting import SEPARATOR, conversation_frame, render_turns

START, END = 1, 2
LLAMA2 = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '<|im_start|>[INST] ' + message['content'] | trim + ' [/INST]' }}{% else %}"
    "{{ ' ' + message['content'] | trim + ' <|im_end|>' }}{% endif %}{% endfor %}"
)
DATED = (
    "{%- if strftime_now is defined %}{%- set today = strftime_now('%d %b %Y') %}{%- endif %}"
    "{%- macro weekday() %}{{ strftime_now('%A') }}{%- endmacro %}{{ today + weekday() }}"
    "{% for message in messages %}{{ '<|im_start|>' + message['content'] + '<|im_end|>' }}{% endfor %}"
)
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
answer_ids = st.lists(st.integers(3, 260), max_size=8)
conversations = st.lists(texts, min_size=1, max_size=4).flatmap(
    lambda turns: st.tuples(
        st.just(turns),
        st.lists(
            st.tuples(answer_ids, st.booleans()).map(lambda pair: pair[0] + [END] * pair[1]),
            min_size=len(turns) - 1,
            max_size=len(turns) - 1,
        ),
    )
)


def messages(turns, system_prompt=None):
    system = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
    return system + [{"role": "user", "content": turn} for turn in turns]


@given(turn=texts, system_prompt=st.none() | texts)
def test_the_first_turn_is_the_chat_template(make_tokenizer, turn, system_prompt):
    tokenizer = make_tokenizer()
    expected = tokenizer.apply_chat_template(
        messages([turn], system_prompt), add_generation_prompt=True, return_dict=False
    )
    assert render_turns(tokenizer, "chat", [turn], [], system_prompt) == expected


@pytest.mark.parametrize("prompt_format", ["chat", "completion"])
@given(conversation=conversations, system_prompt=st.none() | texts)
def test_later_turns_begin_with_the_earlier_ones_and_their_answers(
    make_tokenizer, prompt_format, conversation, system_prompt
):
    tokenizer = make_tokenizer()
    turns, answers = conversation
    for number, answer in enumerate(answers, start=1):
        before = render_turns(tokenizer, prompt_format, turns[:number], answers[: number - 1], system_prompt)
        after = render_turns(tokenizer, prompt_format, turns[: number + 1], answers[:number], system_prompt)
        kept = answer[:-1] if prompt_format == "completion" and answer[-1:] == [END] else answer
        assert after[: len(before) + len(kept)] == before + kept


@given(conversation=conversations)
def test_around_the_answers_stands_the_templates_text_with_one_end_each(make_tokenizer, conversation):
    tokenizer = make_tokenizer()
    turns, answers = conversation
    ids = render_turns(tokenizer, "chat", turns, answers)
    expected: list[int] = []
    text = "<|im_start|>system\nBe kind.<|im_end|>\n"
    for turn, answer in zip(turns, [*answers, None], strict=True):
        text += f"<|im_start|>user\n{turn}<|im_end|>\n<|im_start|>assistant\n"
        expected += tokenizer(text, add_special_tokens=False).input_ids
        if answer is not None:
            expected += answer if answer[-1:] == [END] else [*answer, END]
            text = "\n"
    assert ids == expected


def test_an_answer_is_not_tokenized_again(make_tokenizer):
    tokenizer = make_tokenizer()
    a, b = (tokenizer.convert_tokens_to_ids(letter) for letter in "ab")
    assert tokenizer("ab", add_special_tokens=False).input_ids != [a, b]
    ids = render_turns(tokenizer, "chat", ["x", "y"], [[a, b, END]])
    assert any(ids[place : place + 3] == [a, b, END] for place in range(len(ids)))


def test_an_end_token_without_a_name_is_not_doubled_either(make_tokenizer):
    tokenizer = make_tokenizer()
    tokenizer.eos_token = "<|pad|>"
    assert END not in tokenizer.all_special_ids
    ids = render_turns(tokenizer, "chat", ["x", "y"], [[10, END]])
    assert ids == render_turns(tokenizer, "chat", ["x", "y"], [[10]])


def test_a_template_with_spaces_around_answers(make_tokenizer):
    tokenizer = make_tokenizer(LLAMA2)
    answer = tokenizer(" fine", add_special_tokens=False).input_ids
    for ending in ([END], []):
        ids = render_turns(tokenizer, "chat", ["How?", "Why?"], [answer + ending])
        space = "" if ending else " "
        assert tokenizer.decode(ids) == (
            f"<|im_start|>[INST] How? [/INST] fine{space}<|im_end|><|im_start|>[INST] Why? [/INST]"
        )


def test_plain_text_is_joined_with_blank_lines(make_tokenizer):
    tokenizer = make_tokenizer(None)
    answer = tokenizer("fine", add_special_tokens=False).input_ids
    ids = render_turns(tokenizer, "completion", ["How?", "Why?"], [[*answer, END]], "Be kind.")
    assert tokenizer.decode(ids) == "Be kind.\n\nHow?fine\n\nWhy?"


def test_a_target_without_template_is_told_to_use_completion(make_tokenizer):
    with pytest.raises(InvalidInputError, match=r"no chat template.*prompt_format: completion"):
        render_turns(make_tokenizer(None), "chat", ["x"], [])


def test_a_template_that_refuses_a_system_prompt_says_so(make_tokenizer):
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}x"
    with pytest.raises(InvalidInputError, match=r"refuses the conversation: no system.*system prompt"):
        render_turns(make_tokenizer(template), "chat", ["x"], [], "Be kind.")


@pytest.mark.parametrize(
    "template", ["{{ messages + 1 }}", "{{ 1 // 0 }}", "{% for x in", "{{ messages[7].content }}"]
)
def test_a_template_that_fails_is_named(make_tokenizer, template):
    with pytest.raises(InvalidInputError, match="prompt_format: the target's chat template refuses") as found:
        render_turns(make_tokenizer(template), "chat", ["x"], [])
    assert "system prompt" not in str(found.value)


def test_a_template_that_hides_answers_is_refused(make_tokenizer):
    template = "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(InvalidInputError, match="does not show each message"):
        render_turns(make_tokenizer(template), "chat", ["x", "y"], [[3]])


@pytest.mark.parametrize(("turns", "answers"), [([], []), (["x"], [[3]]), (["x", "y"], [])])
def test_answers_must_fit_the_turns(make_tokenizer, turns, answers):
    with pytest.raises(ValueError, match="one answer for every turn but the last"):
        render_turns(make_tokenizer(), "chat", turns, answers)


def test_the_frame_holds_the_templates_text(make_tokenizer):
    tokenizer = make_tokenizer()
    frame = conversation_frame(tokenizer)
    assert tokenizer.decode(frame.opening) == "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n"
    assert tokenizer.decode(frame.closing) == "<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(frame.reopening) == "<|im_end|>\n<|im_start|>user\n"
    spaced = conversation_frame(make_tokenizer(LLAMA2))
    assert tokenizer.decode(spaced.opening) == "<|im_start|>[INST]"
    assert tokenizer.decode(spaced.closing) == " [/INST]"
    assert tokenizer.decode(spaced.reopening) == " <|im_end|><|im_start|>[INST]"


def test_a_template_that_writes_the_date_writes_the_same_on_every_day(make_tokenizer, monkeypatch):
    tokenizer = make_tokenizer(DATED)
    found = []
    for day in (datetime(2026, 11, 1), datetime(2031, 7, 4)):

        class Then(datetime):
            @classmethod
            def now(cls, day=day):
                return day

        monkeypatch.setattr(chat_template_utils, "datetime", Then)
        assert day.strftime("%d %b %Y%A") in tokenizer.apply_chat_template(messages(["x"]), tokenize=False)
        found.append(tokenizer.decode(render_turns(tokenizer, "chat", ["x", "y"], [[7, END]])))
    assert found[0] == found[1]
    assert found[0].startswith("01 Jan 2026Thursday<|im_start|>x<|im_end|>")


def test_an_end_that_is_no_special_token_is_left_out_like_one_that_is(make_tokenizer):
    """A configuration may name an ordinary token as the end: here the letter `z`."""
    tokenizer = make_tokenizer(None)
    (end,) = tokenizer("z").input_ids
    turns, answer = ["How?", "Why?"], tokenizer("so").input_ids
    expected = tokenizer("How?" + "so" + SEPARATOR + "Why?").input_ids
    assert render_turns(tokenizer, "completion", turns, [[*answer, end]], None, frozenset({end})) == expected
    assert end in render_turns(tokenizer, "completion", turns, [[*answer, end]], None)
    chat = make_tokenizer()
    chat.chat_template = chat.chat_template.replace("<|im_end|>", "z")
    plain = render_turns(chat, "chat", turns, [answer], None, frozenset({end}))
    assert render_turns(chat, "chat", turns, [[*answer, end]], None, frozenset({end})) == plain
