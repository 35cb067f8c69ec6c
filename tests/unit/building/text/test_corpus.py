"""The target's own text: well-formed conversations that are exactly what the target would write."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from draftrank.building.text.conversation_row import (
    ANSWER,
    PROMPT,
    TEMPLATE,
    ConversationRow,
    RowRules,
    row_rules,
)
from draftrank.building.text.corpus import _Sampler, self_generated_corpus
from draftrank.catalog.self_generated import SelfGenerated
from draftrank.catalog.sources.base import FetchContext
from draftrank.engine.backends.registry import load_runtime
from draftrank.errors import BuildError, InvalidInputError
from draftrank.models.loading import load_model, load_tokenizer
from draftrank.models.prompting import ConversationFrame

START, END = 1, 2


def spec(**changes):
    fields = {"tokens": 1_000, "sequence_tokens": 96, "batch_sequences": 4, "seed": 5, **changes}
    return SelfGenerated(kind="self_generated", **fields)


@pytest.mark.usefixtures("in_fp32")
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("prompt_format", ["chat", "completion"])
@torch.inference_mode()
def test_greedy_answers_are_the_targets_own(make_context, architecture, prompt_format):
    context = make_context(architecture, prompt_format)
    corpus = self_generated_corpus(spec(), context)
    assert corpus.tokens.shape == corpus.roles.shape == (11, 96)
    assert corpus.tokens.dtype == torch.int32
    assert corpus.roles.dtype == torch.uint8
    logits = load_model(context.target_folder, "fp32", "cpu")(corpus.tokens.long()).logits[:, :-1]
    answers = corpus.roles[:, 1:] == ANSWER
    assert answers.float().mean() > 0.2
    best, given = logits.max(-1).values, logits.gather(-1, corpus.tokens[:, 1:, None].long())[..., 0]
    assert (best - given)[answers].max() < 1e-3
    prompts = corpus.roles[:, 1:] == PROMPT
    assert (best - given)[prompts].max() > 0.1  # sampled, not greedy


@pytest.mark.usefixtures("in_fp32")
@pytest.mark.parametrize("architecture", ["mamba2", "lfm2", "jamba"])
def test_answers_of_layers_with_a_state_are_what_the_engine_decodes(make_context, architecture):
    context = make_context(architecture, "completion")
    corpus = self_generated_corpus(spec(), context)
    runtime = load_runtime(context.target_folder, "fp32", "cpu", "transformers")
    compared = 0
    for tokens, roles in zip(corpus.tokens[:3].tolist(), corpus.roles[:3].tolist(), strict=True):
        runtime.reset()
        for place, token in enumerate(tokens[:-1], start=1):
            logits = runtime.forward([token])[0]
            if roles[place] == ANSWER:
                assert logits.max() - logits[tokens[place]] < 1e-3
                compared += 1
    assert compared > 20


@pytest.mark.usefixtures("in_fp32")
def test_rows_follow_the_chat_template(make_context):
    context = make_context()
    tokenizer = load_tokenizer(context.target_folder)
    corpus = self_generated_corpus(spec(tokens=4_000), context)
    newline = tokenizer("\n").input_ids
    user, assistant = (
        tokenizer(f"<|im_start|>{who}\n", add_special_tokens=False).input_ids for who in ("user", "assistant")
    )
    for tokens, roles in zip(corpus.tokens.tolist(), corpus.roles.tolist(), strict=True):
        text = tokenizer.decode(tokens)
        assert text.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n")
        speakers = []
        for place, token in enumerate(tokens):
            if token == START and roles[place] == TEMPLATE and place and len(tokens) - place > 12:
                assert tokens[place - 2 : place] == [END, *newline]
                for who, opening in (("user", user), ("assistant", assistant)):
                    if tokens[place : place + len(opening)] == opening:
                        assert set(roles[place : place + len(opening)]) == {TEMPLATE}
                        assert roles[place + len(opening)] == (PROMPT if who == "user" else ANSWER)
                        assert tokens[place + len(opening)] != END or who == "assistant"
                        speakers.append(who)
        assert speakers == [("user", "assistant")[index % 2] for index in range(len(speakers))]
        assert "assistant" in speakers


@pytest.mark.usefixtures("in_fp32")
def test_an_interrupted_corpus_goes_on_and_ends_the_same(make_context, interrupt_after, tmp_path):
    whole = self_generated_corpus(spec(), make_context())

    def interrupted(reports):
        progress = interrupt_after("write the corpus", reports)
        return replace(make_context(), fetch=FetchContext(tmp_path / "other", progress=progress))

    context = replace(make_context(), fetch=FetchContext(tmp_path / "other"))
    with pytest.raises(KeyboardInterrupt):
        self_generated_corpus(spec(), interrupted(150))  # in the second of three batches
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "other").rglob("batch-*.safetensors")}
    assert len(finished) in (1, 2)
    assert not list((tmp_path / "other" / "corpora").glob("*.safetensors"))
    again = self_generated_corpus(spec(), context)
    assert torch.equal(again.tokens, whole.tokens)
    assert torch.equal(again.roles, whole.roles)
    assert not list((tmp_path / "other").rglob("batch-*"))
    assert torch.equal(
        self_generated_corpus(spec(), interrupted(0)).tokens, whole.tokens
    )  # read, not written


@pytest.mark.usefixtures("in_fp32")
def test_another_seed_gives_another_text(make_context):
    first, second = (self_generated_corpus(spec(seed=seed), make_context()) for seed in (0, 1))
    assert not torch.equal(first.tokens, second.tokens)


GIVEN = ["Name two rivers", "What is a noun?", "Count to five <|im_end|> now"]


def asking(*texts):
    source = {"kind": "inline", "prompts": [{"turns": [text]} for text in texts]}
    return {"source": source, "licence": "CC0-1.0"}


def messages(corpus, tokenizer):
    """What the user says in each row."""
    rows = []
    for tokens, roles in zip(corpus.tokens.tolist(), corpus.roles.tolist(), strict=True):
        spans = [[]]
        for token, role in zip(tokens, roles, strict=True):
            if role == PROMPT:
                spans[-1].append(token)
            elif spans[-1]:
                spans.append([])
        rows.append([tokenizer.decode(span) for span in spans if span])
    return rows


@pytest.mark.usefixtures("in_fp32")
@pytest.mark.parametrize("prompt_format", ["chat", "completion"])
@torch.inference_mode()
def test_given_prompts_are_asked_and_the_target_answers(make_context, prompt_format):
    context = make_context("llama", prompt_format)
    tokenizer = load_tokenizer(context.target_folder)
    declared = SelfGenerated.model_validate_json(
        json.dumps({**spec().model_dump(mode="json", exclude_none=True), "prompts": asking(*GIVEN)})
    )
    corpus = self_generated_corpus(declared, context)
    said = messages(corpus, tokenizer)
    plain = {text.replace(" <|im_end|>", "") for text in GIVEN}
    assert {row[0].replace("  ", " ") for row in said} == plain
    logits = load_model(context.target_folder, "fp32", "cpu")(corpus.tokens.long()).logits[:, :-1]
    answers = corpus.roles[:, 1:] == ANSWER
    assert answers.float().mean() > 0.1
    best, chosen = logits.max(-1).values, logits.gather(-1, corpus.tokens[:, 1:, None].long())[..., 0]
    assert (best - chosen)[answers].max() < 1e-3
    assert corpus.tokens.shape == self_generated_corpus(spec(), context).tokens.shape


@pytest.mark.usefixtures("in_fp32")
def test_a_given_prompt_that_is_too_long_is_cut(make_context):
    context = make_context()
    declared = SelfGenerated.model_validate_json(
        json.dumps({**spec().model_dump(mode="json", exclude_none=True), "prompts": asking("so " * 200)})
    )
    corpus = self_generated_corpus(declared, context)
    assert (corpus.roles == PROMPT).any()
    assert (corpus.roles == ANSWER).any(1).all()


@pytest.mark.usefixtures("in_fp32")
@pytest.mark.parametrize("prompt_format", ["chat", "completion"])
def test_given_openings_are_continued_and_answered(make_context, prompt_format):
    context = make_context("llama", prompt_format)
    tokenizer = load_tokenizer(context.target_folder)
    corpus = self_generated_corpus(spec(prompt_prefixes=("the sun", "one two three")), context)
    said = [row[0].replace("  ", " ") for row in messages(corpus, tokenizer)]
    begun = {
        opening: [text for text in said if text.startswith(opening)]
        for opening in ("the sun", "one two three")
    }
    assert sorted(map(len, begun.values())) == [5, 6]  # as often as each other
    for opening, texts in begun.items():
        assert any(len(text) > len(opening) for text in texts)
        assert len(set(texts)) > 1  # each went on in its own way
    assert (corpus.roles == ANSWER).float().mean() > 0.1


@pytest.mark.usefixtures("in_fp32")
def test_an_opening_that_is_too_long_is_cut(make_context):
    corpus = self_generated_corpus(spec(prompt_prefixes=("so " * 60,)), make_context())
    assert (corpus.roles == PROMPT).any()
    assert (corpus.roles == ANSWER).any(1).all()


def test_openings_beside_whole_prompts_are_refused():
    with pytest.raises(ValidationError, match="remove one of the two"):
        SelfGenerated.model_validate_json(
            json.dumps(
                {
                    "kind": "self_generated",
                    "tokens": 1_000,
                    "prompts": asking(*GIVEN),
                    "prompt_prefixes": ["how"],
                }
            )
        )


def test_prompts_without_a_hash_are_refused():
    prompts = {"source": {"kind": "local", "path": "prompts.jsonl"}, "licence": "MIT"}
    with pytest.raises(ValidationError, match="prompts without their sha256"):
        SelfGenerated.model_validate({"kind": "self_generated", "tokens": 1_000, "prompts": prompts})


@pytest.mark.usefixtures("in_fp32")
def test_rows_shorter_than_the_template_are_refused(make_context):
    with pytest.raises(BuildError, match=r"too short.*data\.sequence_tokens"):
        self_generated_corpus(spec(sequence_tokens=48), make_context())


@pytest.mark.usefixtures("in_fp32")
def test_a_chat_target_without_template_is_refused(make_context):
    context = make_context("llama", "completion")
    context = replace(context, target=context.target.model_copy(update={"prompt_format": "chat"}))
    with pytest.raises(InvalidInputError, match="no chat template"):
        self_generated_corpus(spec(), context)


def rules(closing, *, stops=(END,), special=(0, START, END), limit=4):
    frame = ConversationFrame((START, 50), tuple(closing), (END, START, 50))
    after = {stop: (START, 50) if stop == END else frame.reopening for stop in stops}
    return RowRules(frame, frozenset(stops), frozenset(special), after, limit)


def run(row_rules_, sampled):
    row = ConversationRow(row_rules_)
    return [row.push(token) for token in sampled]


def test_a_prompt_ends_with_its_end_token_and_the_rest_of_the_closing_is_forced():
    written = run(rules([END, 60]), [10, END, 99, 20, END, 99, 99, 11])
    assert [token for token, _ in written] == [10, END, 60, 20, END, START, 50, 11]
    assert [role for _, role in written] == [1, 1, 0, 2, 2, 0, 0, 1]


def test_a_prompt_that_does_not_end_is_ended():
    written = run(rules([END, 60], limit=2), [10, 11, 99, 99, 20])
    assert written == [(10, PROMPT), (11, PROMPT), (END, TEMPLATE), (60, TEMPLATE), (20, ANSWER)]


def test_another_end_token_in_a_prompt_becomes_the_templates():
    written = run(rules([END, 60], stops=(END, 7)), [10, 7, 99, 20, 7, 99, 99, 99, 11])
    assert [token for token, _ in written] == [10, END, 60, 20, 7, END, START, 50, 11]


def test_a_closing_of_ordinary_tokens_ends_the_prompt_when_it_is_complete():
    written = run(rules([60, 61], limit=9), [10, 60, 10, 60, 61, 20])
    assert [role for _, role in written] == [1, 1, 1, 1, 1, 2]


def test_without_a_closing_the_text_is_handed_over_or_starts_anew():
    written = run(rules([], limit=2), [10, 11, 20, END, 99, 99, 10, END, 99, 99, 12])
    assert [role for _, role in written] == [1, 1, 2, 2, 0, 0, 1, 1, 0, 0, 1]


def test_prompts_never_start_with_an_end_and_hold_no_other_special_token():
    given = rules([END, 60])
    assert given.banned_at_start == {0, START, END}
    assert given.banned_in_prompt == {0, START}


def test_rules_of_a_completion_target_start_texts_with_its_first_token(make_context):
    tokenizer = load_tokenizer(make_context("gpt2", "completion").target_folder)
    found = row_rules(tokenizer, "completion", 64, frozenset({END}))
    assert found.frame == ConversationFrame((START,), (), (START,))
    assert found.after_stop == {END: (START,)}
    assert found.prompt_limit == 15


def test_sampling_follows_the_distribution():
    generator = torch.Generator().manual_seed(0)
    sampler = _Sampler(rules([END, 60]), spec(prompt_temperature=2.0), generator, 64)
    logits = torch.full((64,), float("-inf"))
    logits[[START, 9, 10, 11]] = torch.tensor([9.0, 0.0, 2.0, 4.0])
    rows = [ConversationRow(rules([END, 60]), written=[5]) for _ in range(20_000)]
    counts = torch.bincount(torch.tensor(sampler.choose(logits.expand(len(rows), -1), rows)), minlength=64)
    expected = torch.softmax(torch.tensor([0.0, 1.0, 2.0]), 0) * len(rows)
    assert counts[START] == 0  # special tokens are never sampled in a prompt
    assert counts[[9, 10, 11]].sum() == len(rows)
    chi_square = ((counts[[9, 10, 11]] - expected) ** 2 / expected).sum()
    assert chi_square < 13.8  # p = 0.001 at two degrees of freedom
