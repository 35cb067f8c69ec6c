"""From the turns of a conversation to the token ids that a target reads.

An answer is spliced in as the very tokens the target emitted: decoding them to text and tokenizing
that again can give other tokens, and then every later turn would start from another context than the
one that was measured. So a later turn's ids always begin with the former turn's ids and its answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Literal

from draftrank.errors import InvalidInputError
from draftrank.models.model_files import reason_in_one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PromptFormat = Literal["chat", "completion"]
SEPARATOR = "\n\n"
"""Between turns and answers in the `completion` format."""
TEMPLATE_DATE = datetime(2026, 1, 1, 12)
"""What chat templates that write the date are told is now: prompts are the same tokens on every day."""
_DATE_CODES = "aAdbBmyYjHIMSpfcxXDFTRGuUVWwZzehn"


def render_turns(
    tokenizer: PreTrainedTokenizerBase,
    prompt_format: PromptFormat,
    turns: Sequence[str],
    answers: Sequence[Sequence[int]],
    system_prompt: str | None = None,
    stop_tokens: frozenset[int] = frozenset(),
) -> list[int]:
    """Token ids of a conversation up to where the target's next answer begins.

    Args:
        tokenizer: the target's.
        prompt_format: `chat` renders the tokenizer's chat template; `completion` joins plain text.
        turns: user messages, the last of which is to be answered.
        answers: ids of the target's answers to all turns but the last, end tokens included.
        system_prompt: system message; None leaves it to the template.
        stop_tokens: ids that end the target's answers, beside the tokenizer's special ones.

    Raises:
        InvalidInputError: the tokenizer has no chat template, or one that cannot render this.
    """
    if not turns or len(answers) != len(turns) - 1:
        raise ValueError("there must be one answer for every turn but the last")
    if prompt_format == "completion":
        return _render_plain(tokenizer, turns, answers, system_prompt, stop_tokens)
    ids = _encode(tokenizer, _render_chat(tokenizer, turns[:1], (), system_prompt))
    for number, answer in enumerate(answers, start=1):
        ids += answer
        between = _text_after_answer(tokenizer, turns[: number + 1], system_prompt)
        ids += without_repeated_end(tokenizer, answer, _encode(tokenizer, between), stop_tokens)
    return ids


@dataclass(frozen=True, slots=True)
class ConversationFrame:
    """The template's own tokens around what user and target write."""

    opening: tuple[int, ...]
    """From the start of the text to where the first user message begins."""
    closing: tuple[int, ...]
    """From the end of a user message to where the answer begins."""
    reopening: tuple[int, ...]
    """From the end of an answer to where the next user message begins."""
    lead: str = ""
    """Space that stands before a user message and belongs to its first word."""


def conversation_frame(tokenizer: PreTrainedTokenizerBase) -> ConversationFrame:
    """Reads the frame off the tokenizer's chat template.

    Raises:
        InvalidInputError: the tokenizer has no chat template, or one that cannot render a conversation.
    """
    first, answer, second = (_sentinel(part, ()) for part in ("first", "answer", "second"))
    opening, closing = _split(_render_chat(tokenizer, (first,), (), None), first)
    _, rest = _split(_render_chat(tokenizer, (first, second), (answer,), None), answer)
    reopening, _ = _split(rest, second)
    # A space at the end belongs to the word that follows it, in every tokenizer in use.
    return ConversationFrame(
        tuple(_encode(tokenizer, opening.rstrip(" "))),
        tuple(_encode(tokenizer, closing)),
        tuple(_encode(tokenizer, reopening.rstrip(" "))),
        opening[len(opening.rstrip(" ")) :],
    )


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids that never stand for text: the tokenizer's named special tokens, and those it has added as
    special without a name (as Gemma's end of turn)."""
    added = tokenizer.added_tokens_decoder.items()
    return frozenset(tokenizer.all_special_ids) | {index for index, token in added if token.special}


def without_repeated_end(
    tokenizer: PreTrainedTokenizerBase,
    answer: Sequence[int],
    following: list[int],
    stop_tokens: frozenset[int],
) -> list[int]:
    """The template's tokens after an answer, without the end token that the answer already ends with."""
    if answer and answer[-1] in following and answer[-1] in special_ids(tokenizer) | stop_tokens:
        place = following.index(answer[-1])
        if not tokenizer.decode(following[:place]).strip():
            return following[place + 1 :]
    return following


def _render_plain(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[str],
    answers: Sequence[Sequence[int]],
    system_prompt: str | None,
    stop_tokens: frozenset[int],
) -> list[int]:
    first = turns[0] if system_prompt is None else system_prompt + SEPARATOR + turns[0]
    ids: list[int] = list(tokenizer(first, add_special_tokens=True).input_ids)
    for answer, turn in zip(answers, turns[1:], strict=True):
        ended = bool(answer) and answer[-1] in special_ids(tokenizer) | stop_tokens
        ids += answer[:-1] if ended else answer  # an end token would tell the target to forget the turns
        ids += _encode(tokenizer, SEPARATOR + turn)
    return ids


def _text_after_answer(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[str], system_prompt: str | None
) -> str:
    """What the template writes from the end of the last answer to where the next one begins."""
    sentinel = _sentinel("answer", (*turns, system_prompt or ""))
    text = _render_chat(tokenizer, turns, ("…",) * (len(turns) - 2) + (sentinel,), system_prompt)
    return _split(text, sentinel)[1]


def _render_chat(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[str],
    answers: Sequence[str],
    system_prompt: str | None,
) -> str:
    if not tokenizer.chat_template:
        raise InvalidInputError.single(
            "the target's tokenizer has no chat template",
            field="prompt_format",
            fix="write `prompt_format: completion` in its target.yaml",
        )
    messages = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
    for index, turn in enumerate(turns):
        messages.append({"role": "user", "content": turn})
        if index < len(answers):
            messages.append({"role": "assistant", "content": answers[index]})
    try:
        text: str = tokenizer.apply_chat_template(
            messages,
            chat_template=_with_date(tokenizer.get_chat_template()),
            tokenize=False,
            add_generation_prompt=True,
        )
    except Exception as error:  # a template is a program, whose own errors are Python's
        without = "" if system_prompt is None else "leave the task's system prompt out, or "
        raise InvalidInputError.single(
            f"the target's chat template refuses the conversation: {reason_in_one_line(error)}",
            field="prompt_format",
            fix=f"{without}write `prompt_format: completion` in its target.yaml",
        ) from error
    return text


def _with_date(template: str) -> str:
    """The template with `strftime_now` as a macro that writes `TEMPLATE_DATE`; transformers' function writes today's."""
    if "strftime_now" not in template:
        return template
    codes = [f"%{flag}{code}" for code in _DATE_CODES for flag in ("-", "")]
    replaced = "".join(f"|replace({code!r},{TEMPLATE_DATE.strftime(code)!r})" for code in codes)
    return f"{{%- macro strftime_now(format) -%}}{{{{ format{replaced} }}}}{{%- endmacro -%}}{template}"


def _sentinel(part: str, texts: Sequence[str]) -> str:
    """A word that none of the texts contains."""
    word = f"x{hashlib.sha256(part.encode()).hexdigest()[:16]}x"
    while any(word in text for text in texts):
        word = f"x{hashlib.sha256(word.encode()).hexdigest()[:16]}x"
    return word


def _split(text: str, sentinel: str) -> tuple[str, str]:
    before, found, after = text.partition(sentinel)
    if not found or sentinel in after:
        raise InvalidInputError.single(
            "the target's chat template does not show each message once, as it is",
            field="prompt_format",
            fix="write `prompt_format: completion` in its target.yaml",
        )
    return before, after


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return list(ids)
