"""EAGLE-3 heads as recipes declare them."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoConfig, AutoModelForCausalLM

from draftrank.building.steps.eagle_head import EagleHead
from draftrank.building.surgery.eagle_head import new_eagle3_head, published_of
from draftrank.errors import BuildError
from draftrank.kinds import DRAFTS, load_kind
from draftrank.models.eagle_writing import write_published_head
from draftrank.models.loading import load_model

DATA = {"kind": "self_generated", "tokens": 1_000, "sequence_tokens": 64}
TRAINED = [
    {"kind": "trim_vocabulary", "keep_tokens": 40, "data": DATA},
    {"kind": "distill", "data": DATA, "batch_sequences": 4, "ttt_steps": 2, "cache_target_states": True},
    {"kind": "quantize", "scheme": "dynamic_int8"},
]


def declared(kind, **fields):
    return load_kind(DRAFTS[kind]).model_validate_json(json.dumps({"kind": kind, **fields}))


def eagle(**fields):
    return {"kind": "eagle", **fields}


def test_a_head_alone_and_behind_copying_are_built_once():
    alone = declared("eagle", aux_hidden_states=[1, 2], steps=TRAINED)
    behind = declared("cascade", steps=[{"kind": "eagle_head", "aux_hidden_states": [1, 2]}, *TRAINED])
    assert alone.build_steps == behind.build_steps
    assert alone.techniques[0] == "EAGLE-3 head"
    assert "EAGLE-3" in alone.sentence()


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_a_head_is_built_trained_and_opened(build, architecture):
    draft = eagle(aux_hidden_states=[1, 2], steps=TRAINED)
    built = build(draft=draft, architecture=architecture)
    head = load_model(built.folder, "fp32", "cpu")
    assert head.config.model_type == "llama"
    assert head.feature_fusion.layers == (0, 1)
    again = build(draft=draft, architecture=architecture, cache="again")
    assert again.weights_sha256 == built.weights_sha256


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"aux_hidden_states": [2, 1]}, "ascending"),
        ({"aux_hidden_states": [0, 1]}, "greater than or equal to 1"),
        ({"aux_hidden_states": []}, "at least 1"),
        ({"architecture": "medusa"}, "eagle3"),
        ({"source": {"kind": "local", "path": "head"}}, "add `licence`"),
        (
            {"source": {"kind": "local", "path": "head"}, "licence": "MIT", "aux_hidden_states": [1]},
            "remove aux_hidden_states",
        ),
        ({"licence": "MIT"}, "add `source`"),
    ],
)
def test_what_cannot_be_declared(fields, says):
    with pytest.raises(ValidationError, match=says):
        declared("eagle", **fields)


def test_a_draft_model_is_no_head():
    with pytest.raises(ValidationError, match="write `kind: eagle`"):
        declared("draft_model", steps=[{"kind": "eagle_head"}])


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"aux_hidden_states": [1, 9]}, "aux_hidden_states names 9: write at most"),
        ({}, "name them in aux_hidden_states"),
    ],
)
def test_layers_that_are_not_there(build, fields, says):
    with pytest.raises(BuildError, match=says):
        build(draft=eagle(**fields))


@pytest.mark.parametrize("name", ["deepseek_v4", "gemma3n_text", "hy_v4", "qwen4_exp_text"])
def test_a_target_with_several_states_of_each_token_is_refused_before_the_build(build, monkeypatch, name):
    monkeypatch.setattr(EagleHead, "apply", lambda *_: pytest.fail("applied"))
    says = rf"step 1 \(eagle_head\) cannot be done: the layers of {name} carry several states.*: use a draft that"
    with pytest.raises(BuildError, match=says):
        build(draft=eagle(aux_hidden_states=[1, 2]), architecture=name)


def test_a_published_head_enters(build, make_target, tmp_path):
    """From files as they are published, to a draft that proposes."""
    _, folder = make_target("llama")
    config = AutoConfig.from_pretrained(folder.path)
    model, form = new_eagle3_head(AutoModelForCausalLM.from_pretrained(folder.path), (0, 1, 2))
    write_published_head(published_of(model, form), "vllm", tmp_path / "published")
    source = {"kind": "local", "path": "published"}
    built = build(draft=eagle(source=source, licence="MIT"))
    head = load_model(built.folder, "fp32", "cpu")
    assert head.config.vocab_size == config.vocab_size
    for name, value in model.state_dict().items():
        assert torch.equal(head.state_dict()[name], value)


def test_other_folders_are_refused(build, make_target, tmp_path):
    _, folder = make_target("llama")
    shutil.copytree(folder.path, tmp_path / "published")
    with pytest.raises(BuildError, match=r"eagle_head\) failed: .*config.json: num_hidden_layers"):
        build(draft=eagle(source={"kind": "local", "path": "published"}, licence="MIT"))
