"""One row of a self-generated corpus: what is forced, what is sampled, and when the speaker changes.

The target plays both sides. The template's tokens are put in its mouth; the user's message is sampled
until it ends it (or has written enough) unless it, or its opening, is given, the answer until it ends that; then the next
user message begins, so that every row is full to its last token and none is padded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from draftrank.errors import BuildError
from draftrank.models.prompting import (
    ConversationFrame,
    PromptFormat,
    conversation_frame,
    special_ids,
    without_repeated_end,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATE, PROMPT, ANSWER = 0, 1, 2
"""Roles of a token: put there by the template; written as the user (or, without a chat template, as
the start of a text); written as the answer (or as the rest of that text)."""

_PROMPT_SHARE = {"chat": 2, "completion": 4}
"""A prompt takes at most this fraction (one over it) of a row."""


@dataclass(frozen=True, slots=True)
class RowRules:
    """What all rows of a corpus have in common."""

    frame: ConversationFrame
    """The template's tokens."""
    stop_ids: frozenset[int]
    """Tokens with which the target ends a text."""
    special_ids: frozenset[int]
    """Tokens that no user writes."""
    after_stop: dict[int, tuple[int, ...]]
    """For each stop token: the template's tokens between an answer it ended and the next prompt."""
    prompt_limit: int
    """Most tokens of a prompt."""

    @property
    def end_of_prompt(self) -> tuple[int, ...]:
        """What ends a prompt when it is sampled: the closing's first token where that is a special
        one, else the whole closing."""
        closing = self.frame.closing
        return closing[:1] if closing and closing[0] in self.special_ids else closing

    @property
    def banned_in_prompt(self) -> frozenset[int]:
        """Tokens that are never sampled within a prompt."""
        return self.special_ids - self.stop_ids - set(self.end_of_prompt)

    @property
    def banned_at_start(self) -> frozenset[int]:
        """Tokens that are never sampled as a prompt's first: none is empty."""
        return self.special_ids | self.stop_ids


@dataclass(slots=True)
class ConversationRow:
    """The state of one row while it is written."""

    rules: RowRules
    role: int = PROMPT
    """Whose token is sampled next."""
    forced: deque[tuple[int, int]] = field(default_factory=deque)
    """Tokens that come before that, with their roles."""
    written: list[int] = field(default_factory=list)
    """The prompt so far."""
    given: Iterator[Sequence[int]] | None = None
    """What the user says, message by message, without end; None: sampled."""
    continued: bool = False
    """Whether what is given only opens the message, and the rest is sampled."""

    def __post_init__(self) -> None:
        if self.role == PROMPT:
            self._give_prompt()

    def push(self, sampled: int) -> tuple[int, int]:
        """Takes what the target would write next; returns the token that stands there and its role.

        `sampled` is ignored while tokens are forced.
        """
        if self.forced:
            return self.forced.popleft()
        return self._push_prompt(sampled) if self.role == PROMPT else self._push_answer(sampled)

    def _push_prompt(self, token: int) -> tuple[int, int]:
        rules, closing = self.rules, self.rules.frame.closing
        self.written.append(token)
        end = rules.end_of_prompt
        if end and tuple(self.written[-len(end) :]) == end:
            self._answer_next(closing[len(end) :])
        elif token in rules.stop_ids and closing:
            self._answer_next(closing[1:])
            return closing[0], TEMPLATE
        elif token in rules.stop_ids:
            self._prompt_next(rules.after_stop[token])
        elif len(self.written) >= rules.prompt_limit:
            self._answer_next(closing)
        return token, PROMPT

    def _push_answer(self, token: int) -> tuple[int, int]:
        if token in self.rules.stop_ids:
            self._prompt_next(self.rules.after_stop[token])
        return token, ANSWER

    def _answer_next(self, forced: tuple[int, ...]) -> None:
        self.role = ANSWER
        self.forced.extend((token, TEMPLATE) for token in forced)
        self.written.clear()

    def _prompt_next(self, forced: tuple[int, ...]) -> None:
        self.role = PROMPT
        self.forced.extend((token, TEMPLATE) for token in forced)
        self.written.clear()
        self._give_prompt()

    def _give_prompt(self) -> None:
        if self.given is None:
            return
        prompt = next(self.given)[: self.rules.prompt_limit - self.continued]
        self.forced.extend((token, PROMPT) for token in prompt)
        if self.continued:
            self.written.extend(prompt)
        else:
            self._answer_next(self.rules.frame.closing)


def row_rules(
    tokenizer: PreTrainedTokenizerBase,
    prompt_format: PromptFormat,
    sequence_tokens: int,
    stop_ids: frozenset[int],
) -> RowRules:
    """The rules for a target that ends its texts with `stop_ids`.

    Raises:
        InvalidInputError: a chat target without a usable chat template.
        BuildError: rows are too short for the template.
    """
    if prompt_format == "chat":
        frame = conversation_frame(tokenizer)
    else:
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        opening = (0 if start is None else int(start),)
        frame = ConversationFrame(opening, (), opening)
    room = sequence_tokens - len(frame.opening) - len(frame.closing)
    if room < sequence_tokens // 4:
        raise BuildError(
            f"rows of {sequence_tokens} tokens are too short: the template alone takes "
            f"{sequence_tokens - room}; raise data.sequence_tokens"
        )
    return RowRules(
        frame,
        stop_ids,
        special_ids(tokenizer),
        {
            stop: tuple(without_repeated_end(tokenizer, [stop], list(frame.reopening), stop_ids))
            for stop in stop_ids
        },
        max(1, room // _PROMPT_SHARE[prompt_format]),
    )
