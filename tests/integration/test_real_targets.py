"""The declared wheel targets, for real: fetched, converted, decoded. Skipped where they cannot be had."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from draftrank.building.pipeline import build_draft
from draftrank.catalog.recipe import Recipe
from draftrank.catalog.sources.base import FetchContext
from draftrank.catalog.workspace import Workspace
from draftrank.engine.backends.transformers.runtime import TransformersRuntime
from draftrank.engine.loop import Request, autoregressive, speculative
from draftrank.engine.proposers.draft_model import ModelProposer
from draftrank.engine.proposers.early_exit import EarlyExitProposer
from draftrank.engine.proposers.ngram import NgramProposer
from draftrank.errors import MissingDataError
from draftrank.models.loading import load_model, load_tokenizer
from draftrank.models.prompting import render_turns
from draftrank.models.stop_tokens import read_stop_tokens, stop_token_warnings
from draftrank.models.target_folder import ensure_target

pytestmark = pytest.mark.real_model
ROOT = Path(__file__).parents[2]
PARAMETERS = {"smollm2-135m-instruct": 134_515_008, "gemma-3-270m": 268_098_176}
STOPS = {"smollm2-135m-instruct": {2}, "gemma-3-270m": {1}}


def prepared(target_id):
    workspace = Workspace.open(ROOT)
    target = workspace.target(target_id)
    try:
        return target, ensure_target(target, workspace.fetch_context())
    except MissingDataError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    "target_id", ["smollm2-135m-instruct", pytest.param("gemma-3-270m", marks=pytest.mark.nightly)]
)
def test_a_wheel_target_decodes_as_transformers_does_and_speculation_changes_nothing(target_id):
    target, folder = prepared(target_id)
    assert folder.parameters == PARAMETERS[target_id]
    runtime = TransformersRuntime(load_model(folder.path, "fp32", "cpu"))
    tokenizer = load_tokenizer(folder.path)
    turns = ["List the numbers from one to twelve in words, then list them again in the same order."]
    prompt = tuple(render_turns(tokenizer, target.prompt_format, turns, [], None))
    stops = read_stop_tokens(folder.path, tokenizer)
    assert stops == STOPS[target_id]
    assert stop_token_warnings(folder.path, tokenizer, target.prompt_format) == ()
    request = Request(prompt, 32, stops)
    plain = autoregressive(runtime, request)
    ids = torch.tensor([prompt])
    theirs = runtime.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=32, do_sample=False
    )
    assert tuple(theirs[0, len(prompt) :].tolist()) == plain.token_ids
    found = speculative(runtime, NgramProposer(1, 3), request, 4)
    assert found.token_ids == plain.token_ids
    assert found.acceptance_length > 1.2  # the second list repeats the first
    exit_ = speculative(runtime, EarlyExitProposer(runtime.first_layers(4)), request, 2)
    assert exit_.token_ids == plain.token_ids


TEXT = {"kind": "self_generated", "tokens": 1_000, "sequence_tokens": 64, "batch_sequences": 16}
HYBRIDS = {
    "cut": [
        {"kind": "drop_layers", "keep": 6, "select": "block_influence"},
        {"kind": "prune_ffn", "keep_channels": 512},
        {"kind": "prune_heads", "keep_heads_per_group": 2},
        {"kind": "prune_hidden", "keep_channels": 384},
        {"kind": "trim_vocabulary", "keep_tokens": 4_096},
        {"kind": "factorize_head", "rank": 64},
        {"kind": "sparsify", "method": "sparsegpt", "pattern": "2:4"},
        {"kind": "distill", "data": TEXT, "batch_sequences": 4},
        {"kind": "quantize", "scheme": "dynamic_int8"},
    ],
    "thin": [
        {"kind": "drop_layers", "keep": 6, "select": "angular"},
        {"kind": "merge_layers", "keep": 5, "group": 2},
        {"kind": "factorize", "keep_parameters": 0.5},
        {"kind": "tie_layers", "blocks": 3},
    ],
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Shared, so that the calibration text is written once per target."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.nightly
@pytest.mark.parametrize(("hybrid", "target_id"), zip(HYBRIDS, PARAMETERS, strict=True))
def test_every_family_of_steps_makes_a_draft_of_a_real_target(target_id, hybrid, cache):
    target, folder = prepared(target_id)
    fields = {
        "schema_version": 1,
        "id": hybrid,
        "target": target_id,
        "title": hybrid,
        "authors": [{"name": "A"}],
        "draft": {"kind": "draft_model", "calibration": TEXT, "steps": HYBRIDS[hybrid]},
        "speculate": {"num_speculative_tokens": 3},
    }
    recipe = Recipe.model_validate_json(json.dumps(fields))
    built = build_draft(recipe, target, folder, FetchContext(cache))
    assert 0 < built.parameters < folder.parameters
    runtime = TransformersRuntime(load_model(folder.path, "fp32", "cpu"))
    draft = TransformersRuntime(load_model(built.folder, "fp32", "cpu"))
    tokenizer = load_tokenizer(folder.path)
    prompt = tuple(render_turns(tokenizer, target.prompt_format, ["Name three rivers."], [], None))
    request = Request(prompt, 24, read_stop_tokens(folder.path, load_tokenizer(folder.path)))
    plain = autoregressive(runtime, request)
    assert speculative(runtime, ModelProposer(draft), request, 3).token_ids == plain.token_ids


def test_every_task_of_the_long_suite_has_prompts_of_about_1000_and_4000_tokens():
    target, folder = prepared("smollm2-135m-instruct")
    workspace = Workspace.open(ROOT)
    tasks, skipped = workspace.prompts(workspace.suite("long"))
    if skipped:
        pytest.skip("; ".join(skipped.values()))
    tokenizer = load_tokenizer(folder.path)
    for entry in tasks:
        tokens = [
            len(render_turns(tokenizer, target.prompt_format, prompt.turns, [], None))
            for prompt in entry.prompts
        ]
        assert all(850 <= length <= 1_250 for length in tokens[:8]), (entry.task.id, tokens)
        assert all(3_300 <= length <= 4_800 for length in tokens[8:]), (entry.task.id, tokens)
        assert len(tokens) == 16
