"""What an engine is told of a draft, and what a record says of the differences."""

from __future__ import annotations

import json

import pytest

from draftrank.catalog.recipe import Recipe
from draftrank.catalog.workspace import Workspace
from draftrank.serving.base import Speculation
from draftrank.workflows.parity import _differences, _speculation
from workspaces import REPOSITORY

TARGET = "smollm2-135m-instruct"


def recipe(name: str):
    return Workspace.open(REPOSITORY).recipe(TARGET, name)


@pytest.mark.parametrize(("kind", "method"), [("draft_model", "draft_model"), ("eagle", "eagle3")])
def test_the_kind_of_draft_is_told(tmp_path, kind, method):
    steps = [{"kind": "quantize", "scheme": "dynamic_int8"}]
    fields = recipe("ngram").model_dump(mode="json", exclude_none=True) | {
        "draft": {"kind": kind, "steps": steps}
    }
    found = Recipe.model_validate_json(json.dumps(fields))
    assert _speculation(found, tmp_path, 4) == Speculation(method, 4, tmp_path)


def test_ngrams_are_settings_alone():
    assert _speculation(recipe("ngram"), None, 4) == Speculation("ngram", 4, None, 3, 2)


def test_what_other_engines_lack_is_told():
    quick = " ".join(_differences(recipe("depth2-vocab8k-distilled-quick"), "vllm"))
    assert "ends a chain below a confidence of 0.5" in quick
    assert "float16" in " ".join(_differences(recipe("depth4-distilled"), "llama.cpp"))
    assert "turned into int8" in " ".join(_differences(recipe("int8-dynamic"), "vllm"))
    assert "lossy rule" in " ".join(_differences(recipe("depth4-distilled-typical"), "vllm"))
    by_match = list(_differences(recipe("ngram-by-match"), "transformers"))
    assert "whatever matches" in by_match[0]
    assert "earliest match" in by_match[1]
    assert not list(_differences(recipe("depth4-distilled"), "vllm"))
