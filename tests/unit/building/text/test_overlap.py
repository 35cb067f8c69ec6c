"""Training text that holds a task's prompts is found, and other text is not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from draftrank.building.text.conversation_row import ANSWER, PROMPT, TEMPLATE
from draftrank.building.text.overlap import GRAM_WORDS, PromptIndex, corpus_overlaps, grams_of, words_of
from models import small_tokenizer
from overlap_texts import LONG, corpus_of, tasks

ALPHABET = ["red", "blue", "green", "tall", "small"]


def found(index_of, *parts):
    tokenizer = small_tokenizer(None)
    overlaps = corpus_overlaps(corpus_of(tokenizer, *parts), tokenizer, PromptIndex.of(tasks(*index_of)))
    return [overlap.prompt for overlap in overlaps]


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


@given(st.lists(st.sampled_from(ALPHABET), max_size=40), st.lists(st.sampled_from(ALPHABET), max_size=40))
def test_what_is_found_is_what_a_search_by_hand_finds(prompt, text):
    index = PromptIndex.of(tasks(" ".join(prompt) or "x"))
    runs = {tuple(prompt[start : start + GRAM_WORDS]) for start in range(len(prompt) - GRAM_WORDS + 1)}
    shared = [
        tuple(text[start : start + GRAM_WORDS])
        for start in range(len(text) - GRAM_WORDS + 1)
        if tuple(text[start : start + GRAM_WORDS]) in runs
    ]
    assert [overlap.words for overlap in index.in_texts([" ".join(text)])] == [
        " ".join(run) for run in shared
    ]


def test_words_are_those_of_any_script():
    assert words_of("Größe: ÄPFEL, 3 кота") == ("grösse", "äpfel", "3", "кота")
    assert list(grams_of(("a",) * (GRAM_WORDS - 1))) == []
