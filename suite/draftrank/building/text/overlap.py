"""Whether the text a draft was made with holds the prompts it is measured on.

Two signs are looked for, as is usual for language models (Brown et al. 2020, arXiv:2005.14165, appendix C):
a user's message that is a prompt word for word, and any 13 words in a row that a prompt has too. Words are
compared without case and punctuation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
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
"""So many shared words in a row are no accident."""

_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Overlap:
    """One prompt that a text holds."""

    task: str
    prompt: str
    """The prompt's id."""
    words: str
    """What both have."""


@dataclass(slots=True)
class PromptIndex:
    """Prompts, to be found in text."""

    messages: dict[tuple[str, ...], tuple[str, str]] = field(default_factory=dict)
    grams: dict[tuple[str, ...], tuple[str, str]] = field(default_factory=dict)

    @classmethod
    def of(cls, tasks: Iterable[TaskPrompts]) -> PromptIndex:
        """Of every turn of every prompt."""
        index = cls()
        for task in tasks:
            for prompt in task.prompts:
                for turn in prompt.turns:
                    words = words_of(turn)
                    index.messages.setdefault(words, (task.task.id, prompt.id))
                    for gram in grams_of(words):
                        index.grams.setdefault(gram, (task.task.id, prompt.id))
        return index

    def in_messages(self, messages: Iterable[str]) -> Iterator[Overlap]:
        """Prompts that a user said word for word."""
        return self._found(self.messages, (words_of(message) for message in messages))

    def in_texts(self, texts: Iterable[str]) -> Iterator[Overlap]:
        """Prompts that share `GRAM_WORDS` words in a row."""
        return self._found(self.grams, (gram for text in texts for gram in grams_of(words_of(text))))

    @staticmethod
    def _found(
        known: dict[tuple[str, ...], tuple[str, str]], candidates: Iterable[tuple[str, ...]]
    ) -> Iterator[Overlap]:
        for words in candidates:
            if words in known:
                yield Overlap(*known[words], " ".join(words))


def words_of(text: str) -> tuple[str, ...]:
    """A text's words, without case and punctuation."""
    return tuple(_WORD.findall(text.casefold()))


def grams_of(words: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Every `GRAM_WORDS` words in a row."""
    return zip(*(words[start:] for start in range(GRAM_WORDS)), strict=False)


def corpus_overlaps(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, index: PromptIndex
) -> tuple[Overlap, ...]:
    """The prompts that a corpus holds, each once, in the order of their ids."""
    messages, texts = said_in(corpus, tokenizer)
    return each_once([*index.in_messages(messages), *index.in_texts(texts)])


def said_in(corpus: Corpus, tokenizer: PreTrainedTokenizerBase) -> tuple[list[str], list[str]]:
    """The users' messages of a corpus, and its rows, as text."""
    texts = tokenizer.batch_decode(corpus.tokens.tolist(), skip_special_tokens=True)
    return tokenizer.batch_decode(list(_messages(corpus)), skip_special_tokens=True), texts


def each_once(found: Sequence[Overlap]) -> tuple[Overlap, ...]:
    """The first overlap of each prompt, in the order of the prompts' ids."""
    once = {(overlap.task, overlap.prompt): overlap for overlap in reversed(found)}
    return tuple(once[key] for key in sorted(once))


def recorded_corpora(folder: Path) -> tuple[str, ...]:
    """Keys of the corpora that a built draft has read."""
    return tuple(json.loads((folder / FACTS).read_text("utf-8")).get("corpora", ()))


def _messages(corpus: Corpus) -> Iterator[list[int]]:
    for tokens, roles in zip(corpus.tokens.tolist(), corpus.roles.tolist(), strict=True):
        for role, spoken in groupby(zip(roles, tokens, strict=True), key=lambda pair: pair[0]):
            if role == PROMPT:
                yield [token for _, token in spoken]
