"""What an engine is told of a draft, and what a record says of the differences."""

from __future__ import annotations

from draftrank.catalog.workspace import Workspace
from draftrank.serving.base import Speculation
from draftrank.workflows.speculation import differences, speculation_of
from workspaces import REPOSITORY

TARGET = "smollm2-135m-instruct"


def recipe(name: str):
    return Workspace.open(REPOSITORY).recipe(TARGET, name)


def test_a_model_is_given_by_the_kind_of_draft_that_it_is(tmp_path):
    assert speculation_of(recipe("depth4-distilled"), tmp_path, 3) == Speculation("draft_model", 3, tmp_path)


def test_ngrams_are_settings_alone():
    assert speculation_of(recipe("ngram"), None, 4) == Speculation("ngram", 4, None, 3, 2)


def test_what_other_engines_lack_is_told():
    quick = " ".join(differences(recipe("depth2-vocab8k-distilled-quick"), "vllm"))
    assert "ends a chain below a confidence of 0.5" in quick
    assert "float16" in " ".join(differences(recipe("depth4-distilled"), "llama.cpp"))
    assert "its plain weights are written" in " ".join(differences(recipe("int8-dynamic"), "vllm"))
    assert "lossy rule" in " ".join(differences(recipe("depth4-distilled-typical"), "vllm"))
    by_match = list(differences(recipe("ngram-by-match"), "transformers"))
    assert "whatever matches" in by_match[0]
    assert "earliest match" in by_match[1]
    assert not list(differences(recipe("depth4-distilled"), "vllm"))
