"""Kept hashes find in a text that is gone what a look at the text itself finds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from draftrank.building.text.conversation_row import ANSWER, PROMPT
from draftrank.building.text.overlap import PromptIndex, corpus_overlaps
from draftrank.building.text.text_hashes import TextHashes
from draftrank.errors import MissingDataError
from examples import examples
from models import small_tokenizer
from overlap_texts import LONG, corpus_of, tasks

TOKENIZER = small_tokenizer(None)
words = st.lists(st.sampled_from(["red", "blue", "tall"]), min_size=1, max_size=20).map(" ".join)


@given(st.lists(words, min_size=1, max_size=4), words, words)
@example(["x", LONG], "Go on", f"Once {LONG} and so on")
@example([f"{LONG} {LONG[::-1]}"], "Go on", f"Once {LONG} and so on")
@example(["Name two rivers!"], "name TWO rivers", "no")
@example(["Name two rivers!"], "name TWO rivers of Asia", "Name two rivers")
@examples(50)
def test_they_find_what_the_text_itself_shows(prompts, question, answer):
    corpus = corpus_of(TOKENIZER, (PROMPT, question), (ANSWER, f" {answer}"))
    index = PromptIndex.of(tasks(*prompts))
    found = TextHashes.of(corpus, TOKENIZER).overlaps(index)
    expected = corpus_overlaps(corpus, TOKENIZER, index)
    assert found == expected


@given(st.sets(st.integers(0, 2**48 - 1), min_size=1, max_size=50))
@example({0, 2**32 - 1, 2**32, 2**48 - 1})
@examples(20)
def test_what_is_written_is_read(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("kept") / "text" / "a.safetensors"
    TextHashes(np.array(sorted(values), dtype=np.uint64)).write(path)
    assert TextHashes.read(path).values.tolist() == sorted(values)
    assert path.stat().st_size < 4 * 65_536 + 4 * len(values) + 300


def test_files_that_are_not_as_they_were_written_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    with pytest.raises(MissingDataError, match="no hashes of it are kept"):
        TextHashes.read(path)
    TextHashes(np.arange(9, dtype=np.uint64)).write(path)
    whole = path.read_bytes()
    for damaged in (whole[:-4], b"", whole.replace(b'"low"', b'"lax"')):
        path.write_bytes(damaged)
        with pytest.raises(MissingDataError, match=r"a\.safetensors are of no use"):
            TextHashes.read(path)
    TextHashes(np.array([], dtype=np.uint64)).write(path)  # it would let everything pass
    with pytest.raises(MissingDataError, match="do not fit together"):
        TextHashes.read(path)
    path.write_bytes(whole)
    monkeypatch.setattr("draftrank.building.text.text_hashes.MAX_BYTES", 100)
    with pytest.raises(MissingDataError, match="larger than what is kept"):
        TextHashes.read(path)
    with pytest.raises(ValueError, match="9 hashes take more"):
        TextHashes(np.arange(9, dtype=np.uint64)).write(path)
