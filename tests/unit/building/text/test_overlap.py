"""Training text that holds a task's prompts is found, and other text is not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftrank.building.text.conversation_row import ANSWER, PROMPT, TEMPLATE
from draftrank.building.text.overlap import (
    GRAM_WORDS,
    MIN_RUN_WORDS,
    MIN_SHARE,
    PromptIndex,
    corpus_overlaps,
    grams_of,
    words_of,
)
from draftrank.catalog.prompts import Prompt
from models import small_tokenizer
from overlap_texts import LONG, corpus_of, tasks

ALPHABET = ["red", "blue", "green", "tall", "small"]


def found(index_of, *parts):
    tokenizer = small_tokenizer(None)
    overlaps = corpus_overlaps(corpus_of(tokenizer, *parts), tokenizer, PromptIndex.of(tasks(*index_of)))
    return [overlap.prompt for overlap in overlaps if overlap.held]


def test_a_message_that_is_a_prompt_is_found_however_it_is_written():
    parts = [(TEMPLATE, "user\n"), (PROMPT, "name TWO rivers"), (TEMPLATE, "\nassistant\n"), (ANSWER, "no")]
    assert found(["Name three rivers.", "Name two rivers!"], *parts) == ["001"]


def test_a_short_prompt_within_other_words_is_no_overlap():
    assert found(["Name two rivers"], (PROMPT, "Name two rivers of Asia"), (ANSWER, "Name two rivers")) == []


def test_thirteen_words_in_a_row_are_found_anywhere():
    words = LONG.split()
    assert len(words) > GRAM_WORDS
    quoted = " ".join(words[2 : 2 + GRAM_WORDS])
    assert found(["x", LONG], (PROMPT, "Go on"), (ANSWER, f"Once {quoted} and so on")) == ["001"]
    short = " ".join(words[2 : 1 + GRAM_WORDS])
    assert found(["x", LONG], (PROMPT, "Go on"), (ANSWER, f"Once {short} instead")) == []


def numbered(count, start=0):
    """So many words, all different."""
    return [f"w{number}" for number in range(start, start + count)]


@pytest.mark.parametrize(
    ("prompt", "shared", "held"),
    [
        (numbered(21), numbered(13), True),  # 62 % of the prompt
        (numbered(22), numbered(13), False),  # 59 %: a common expression
        (numbered(40), [*numbered(13), "so", *numbered(13, 20)], True),  # 65 % in two places
        (numbered(60), [*numbered(13), "so", *numbered(13, 20)], False),
        (numbered(500), numbered(49, 100), False),
        (numbered(500), numbered(50, 100), True),  # copied, however long the prompt is
    ],
)
def test_a_phrase_is_no_prompt(prompt, shared, held):
    tokenizer = small_tokenizer(None)
    index = PromptIndex.of(tasks("x", " ".join(prompt)))
    for role in (PROMPT, ANSWER):
        parts = [(TEMPLATE, "user\n"), (role, f"He said {' '.join(shared)} and more")]
        (found,) = corpus_overlaps(corpus_of(tokenizer, *parts), tokenizer, index)
        assert (found.prompt, found.held) == ("001", held)
        assert found.words in " ".join(prompt)
        assert found.words in " ".join(shared)


@given(st.lists(st.sampled_from(ALPHABET), max_size=60), st.lists(st.sampled_from(ALPHABET), max_size=60))
def test_what_is_found_is_what_a_search_by_hand_finds(prompt, text):
    index = PromptIndex.of(tasks(" ".join(prompt) or "?"))
    assert index.grams == {
        tuple(prompt[place : place + GRAM_WORDS]) for place in range(len(prompt) - GRAM_WORDS + 1)
    }
    joined = f" {' '.join(text)} "
    shared = [
        (start, stop)
        for start in range(len(prompt))
        for stop in range(start + GRAM_WORDS, len(prompt) + 1)
        if all(
            f" {' '.join(prompt[at : at + GRAM_WORDS])} " in joined
            for at in range(start, stop - GRAM_WORDS + 1)
        )
    ]
    overlaps = index.overlaps((), {gram for gram in grams_of(text) if gram in index.grams})
    assert len(overlaps) == bool(shared)
    if shared:
        covered = {place for start, stop in shared for place in range(start, stop)}
        longest = max(stop - start for start, stop in shared)
        assert len(overlaps[0].words.split()) == longest
        assert overlaps[0].held == (len(covered) / len(prompt) >= MIN_SHARE or longest >= MIN_RUN_WORDS)


def test_of_a_prompt_of_several_turns_the_worst_counts():
    (task,) = tasks("x")
    prompt = Prompt("000", (" ".join(numbered(40)), " ".join(numbered(20))))
    index = PromptIndex.of([replace(task, prompts=(prompt,))])
    (found,) = index.overlaps((), {tuple(numbered(13))})
    assert found.held


def test_words_are_those_of_any_script():
    assert words_of("Größe: ÄPFEL, 3 кота") == ("grösse", "äpfel", "3", "кота")
    assert list(grams_of(("a",) * (GRAM_WORDS - 1))) == []
