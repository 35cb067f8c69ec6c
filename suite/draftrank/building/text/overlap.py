"""Whether the text a draft was made with holds the prompts it is measured on.

A text holds a prompt where a user's message is the prompt, word for word, or where runs of at least 13 shared words cover 60 % of
it. 13 and 60 % are the thresholds by which Qwen2 and Qwen2.5 removed training text (arXiv:2407.10671 and arXiv:2412.15115, for
the longest common subsequence of tokens, as a share of the shorter text), because 13 words alone may be a common expression.
Brown et al. (2020, arXiv:2005.14165, appendix C) counted any 13 words, to leave single examples out of a comparison, where a
false alarm costs little; here it costs a draft. Of a long prompt 50 words in a row are enough (Lee et al. 2022, arXiv:2107.06499,
removed repeats of 50 tokens). What shares less shares a phrase. Words are compared without case and punctuation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from draftrank.building.text.conversation_row import PROMPT
from draftrank.building.text.corpus import Corpus
from draftrank.catalog.prompts import TaskPrompts
from draftrank.models.cache import FACTS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GRAM_WORDS = 13
"""Minimum of shared words in a row that are looked at."""
MIN_SHARE = 0.6
"""Share of a prompt's words from which on shared runs are the prompt and no phrase."""
MIN_RUN_WORDS = 50
"""So many shared words in a row are no phrase, whatever their share of the prompt."""

_WORD = re.compile(r"\w+")
Words = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Overlap:
    """What one prompt and a text share."""

    task: str
    prompt: str
    """The prompt's id."""
    words: str
    """The most words in a row that both have."""
    held: bool
    """Whether it is enough to say that the text holds the prompt; else it is a phrase that both have."""


@dataclass(slots=True)
class PromptIndex:
    """Prompts, to be found in text."""

    turns: list[tuple[str, str, Words]] = field(default_factory=list)
    """Task, prompt and words of every turn that has any."""

    @classmethod
    def of(cls, tasks: Iterable[TaskPrompts]) -> PromptIndex:
        """Of every turn of every prompt."""
        turns = (
            (task.task.id, prompt.id, words_of(turn))
            for task in tasks
            for prompt in task.prompts
            for turn in prompt.turns
        )
        return cls([turn for turn in turns if turn[-1]])

    @property
    def messages(self) -> set[Words]:
        """What a user's message must not be."""
        return {words for _, _, words in self.turns}

    @property
    def grams(self) -> set[Words]:
        """Every `GRAM_WORDS` words in a row of a prompt."""
        return {gram for _, _, words in self.turns for gram in grams_of(words)}

    def overlaps(self, messages: Collection[Words], grams: Collection[Words]) -> tuple[Overlap, ...]:
        """What prompts share with a text, each prompt once, in the order of their ids.

        Args:
            messages: those of `messages` that are a user's message in the text.
            grams: those of `grams` that the text has.
        """
        found: dict[tuple[str, str], tuple[bool, int, str]] = {}
        for task, prompt, words in self.turns:
            runs = [range(len(words))] if words in messages else shared_runs(words, grams)
            if runs:
                longest = max(runs, key=len)
                share = len(set().union(*runs)) / len(words)
                held = share >= MIN_SHARE or len(longest) >= MIN_RUN_WORDS
                one = (held, len(longest), " ".join(words[longest.start : longest.stop]))
                found[task, prompt] = max(found.get((task, prompt), one), one)
        return tuple(Overlap(*key, words, held) for key, (held, _, words) in sorted(found.items()))


def shared_runs(words: Words, grams: Collection[Words]) -> list[range]:
    """Where words in a row are those of grams: the longest ranges of which every gram is one, in order."""
    runs: list[range] = []
    for start, gram in enumerate(grams_of(words)):
        if gram in grams:
            stop = start + GRAM_WORDS
            goes_on = bool(runs) and runs[-1].stop == stop - 1
            runs.append(range(runs.pop().start if goes_on else start, stop))
    return runs


def words_of(text: str) -> Words:
    """A text's words, without case and punctuation."""
    return tuple(_WORD.findall(text.casefold()))


def grams_of(words: Sequence[str]) -> Iterator[Words]:
    """Every `GRAM_WORDS` words in a row."""
    return zip(*(words[start:] for start in range(GRAM_WORDS)), strict=False)


def corpus_overlaps(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, index: PromptIndex
) -> tuple[Overlap, ...]:
    """What prompts share with a corpus; see `PromptIndex.overlaps`."""
    messages, texts = said_in(corpus, tokenizer)
    return index.overlaps(
        index.messages.intersection(map(words_of, messages)),
        index.grams.intersection(gram for text in texts for gram in grams_of(words_of(text))),
    )


def said_in(corpus: Corpus, tokenizer: PreTrainedTokenizerBase) -> tuple[list[str], list[str]]:
    """The users' messages of a corpus, and its rows, as text."""
    texts = tokenizer.batch_decode(corpus.tokens.tolist(), skip_special_tokens=True)
    return tokenizer.batch_decode(list(_messages(corpus)), skip_special_tokens=True), texts


def recorded_corpora(folder: Path) -> tuple[str, ...]:
    """Keys of the corpora that a built draft has read."""
    return tuple(json.loads((folder / FACTS).read_text("utf-8")).get("corpora", ()))


def _messages(corpus: Corpus) -> Iterator[list[int]]:
    for tokens, roles in zip(corpus.tokens.tolist(), corpus.roles.tolist(), strict=True):
        for role, spoken in groupby(zip(roles, tokens, strict=True), key=lambda pair: pair[0]):
            if role == PROMPT:
                yield [token for _, token in spoken]
