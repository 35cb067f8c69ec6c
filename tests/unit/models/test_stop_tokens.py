"""Every end token that a target's files name ends an output, and what is doubtful about them is told."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftrank.building.text.corpus import corpus_key
from draftrank.models.stop_tokens import read_stop_tokens, stop_token_warnings
from models import small_tokenizer

SIZE = 262
named = st.none() | st.integers(0, SIZE - 1) | st.lists(st.integers(0, SIZE - 1), max_size=3)


def write(folder, generation=None, config=None, text=None, **more):
    """A target's configurations, with ids where they are not None; its tokenizer names 2."""
    folder.mkdir(exist_ok=True)
    content = {"vocab_size": SIZE, **({} if config is None else {"eos_token_id": config}), **more}
    if text is not None:
        del content["vocab_size"]
        content["text_config"] = {"vocab_size": SIZE, "eos_token_id": text}
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "generation_config.json").unlink(missing_ok=True)
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    return folder


def as_set(ids):
    return set(ids) if isinstance(ids, list) else set() if ids is None else {ids}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("target")


@given(generation=named, config=named, text=named)
def test_every_place_that_names_an_end_token_counts(folder, generation, config, text):
    found = read_stop_tokens(write(folder, generation, config, text), small_tokenizer())
    assert found == {2} | as_set(generation) | as_set(config) | as_set(text)


@pytest.mark.parametrize(
    ("places", "told"),
    [
        ({"config": 0}, ["config.json: 0 (<|pad|>); the tokenizer: 2 (<|im_end|>)"]),
        ({"text": 9}, ["text_config in config.json: 9 (", "; the tokenizer: 2 (<|im_end|>)"]),
        ({"generation": 2, "config": [2, 0]}, ["generation_config.json: 2 (<|im_end|>); config.json: 0 ("]),
        ({"generation": [0, 2], "config": 0}, None),  # the first place names all that others name
        ({"generation": 2, "config": 2}, None),
        ({}, None),
    ],
)
def test_places_that_disagree_are_told(folder, places, told):
    warnings = stop_token_warnings(write(folder, **places), small_tokenizer(), "completion")
    if told is None:
        assert warnings == ()
    else:
        (warning,) = warnings
        assert all(part in warning for part in told)


@pytest.mark.parametrize("wrong", [SIZE, -1, "2", True, 1.5])
def test_ids_that_are_no_tokens_are_ignored_and_told(folder, wrong):
    write(folder, config=[wrong, 2])
    assert read_stop_tokens(folder, small_tokenizer()) == {2}
    (warning,) = stop_token_warnings(folder, small_tokenizer(), "completion")
    assert f"the end token {wrong!r}, which is none of its 262 tokens" in warning


def test_a_target_without_any_end_token_is_told_of(folder):
    tokenizer = small_tokenizer()
    tokenizer.eos_token = None
    write(folder)
    assert read_stop_tokens(folder, tokenizer) == frozenset()
    (warning,) = stop_token_warnings(folder, tokenizer, "completion")
    assert "every output runs to its limit" in warning


def test_the_end_of_an_answer_that_no_file_names_is_told(folder, make_tokenizer):
    tokenizer = make_tokenizer()  # its template writes <|im_end|> after each message
    write(folder, config=0)
    tokenizer.eos_token = "<|pad|>"
    (warning,) = stop_token_warnings(folder, tokenizer, "chat")
    assert "ends an answer with 2 (<|im_end|>)" in warning
    assert read_stop_tokens(folder, tokenizer) == {0}
    assert stop_token_warnings(folder, tokenizer, "completion") == ()
    tokenizer.eos_token = "<|im_end|>"
    assert stop_token_warnings(write(folder), tokenizer, "chat") == ()


def test_a_corpus_knows_what_ends_its_texts(make_context, make_recipe, tmp_path):
    """A corpus written under another configuration is another corpus; an unchanged one is found again."""
    from dataclasses import replace
    from shutil import copytree

    context = make_context()
    spec = make_recipe({"kind": "drop_layers", "keep": [0]}).draft.calibration_text
    before = corpus_key(spec, context)
    other = replace(context, target_folder=copytree(context.target_folder, tmp_path / "other"))
    assert corpus_key(spec, other) == before
    path = other.target_folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [2, 9]}))
    assert corpus_key(spec, other) != before
