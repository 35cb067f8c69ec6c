"""Drafts that do not come from the target's weights."""

from __future__ import annotations

import shutil

import pytest
import torch

from draftrank.building.pipeline import build_draft
from draftrank.catalog.sources.base import FetchContext
from draftrank.errors import BuildError
from draftrank.models.loading import load_model
from models import save_small_target, small_model, small_tokenizer

IDS = torch.arange(3, 43).reshape(2, 20)


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
@torch.inference_mode()
def test_random_weights_come_from_their_seed(make_target, make_recipe, tmp_path, architecture):
    target, folder = make_target(architecture)

    def logits(seed, cache):
        torch.manual_seed(len(cache))  # whatever was drawn before
        built = build_draft(
            make_recipe({"kind": "random", "seed": seed}), target, folder, cache=tmp_path / cache
        )
        return load_model(built.folder, "fp32", "cpu")(IDS).logits

    first = logits(5, "a")
    assert torch.equal(first, logits(5, "bcd"))
    assert not torch.equal(first, logits(6, "a"))
    assert not torch.equal(first, load_model(folder.path, "fp32", "cpu")(IDS).logits)


def test_a_ready_made_model_is_taken(make_target, make_recipe, tmp_path, make_tokenizer):
    target, folder = make_target()
    other = small_model("llama", seed=7, layers=2, vocabulary=len(make_tokenizer()))
    other.save_pretrained(tmp_path / "other")
    make_tokenizer().save_pretrained(tmp_path / "other")
    fetch = FetchContext(tmp_path / "cache", (tmp_path,))
    step = {"kind": "pretrained", "licence": "MIT", "source": {"kind": "local", "path": "other"}}
    built = build_draft(make_recipe(step), target, folder, cache=tmp_path / "cache", fetch=fetch)
    with torch.inference_mode():
        assert torch.equal(load_model(built.folder, "fp32", "cpu")(IDS).logits, other(IDS).logits)
    shutil.rmtree(tmp_path / "other")
    missing = make_recipe(
        {"kind": "pretrained", "licence": "MIT", "source": {"kind": "local", "path": "nowhere"}}
    )
    with pytest.raises(BuildError, match="nowhere is not here"):
        build_draft(missing, target, folder, cache=tmp_path / "cache", fetch=fetch)


def test_a_model_with_other_tokens_is_refused(make_target, make_recipe, tmp_path):
    target, folder = make_target()
    tokenizer = small_tokenizer()
    tokenizer.add_tokens(["extra"])
    save_small_target(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    fetch = FetchContext(tmp_path / "cache", (tmp_path,))
    step = {"kind": "pretrained", "licence": "MIT", "source": {"kind": "local", "path": "other"}}
    with pytest.raises(BuildError, match="differs from the target's in 1 tokens, first 'extra'"):
        build_draft(make_recipe(step), target, folder, cache=tmp_path / "cache", fetch=fetch)


def test_a_model_that_is_larger_than_the_target_is_refused_before_it_is_loaded(
    make_target, make_recipe, tmp_path, make_tokenizer, monkeypatch
):
    target, folder = make_target()
    small_model("llama", layers=9, vocabulary=len(make_tokenizer())).save_pretrained(tmp_path / "other")
    make_tokenizer().save_pretrained(tmp_path / "other")
    recipe = make_recipe(
        {"kind": "pretrained", "licence": "MIT", "source": {"kind": "local", "path": "other"}}
    )
    monkeypatch.setattr("draftrank.building.origins.load_model", None)
    with pytest.raises(BuildError, match="larger than its target"):
        build_draft(
            recipe,
            target,
            folder,
            cache=tmp_path / "cache",
            fetch=FetchContext(tmp_path / "cache", (tmp_path,)),
        )


def test_a_model_as_large_as_the_target_is_taken_though_its_file_holds_more_than_parameters(
    make_target, make_recipe, tmp_path
):
    target, folder = make_target("deepseek_v3")  # its routers' biases are buffers
    shutil.copytree(folder.path, tmp_path / "other")
    step = {"kind": "pretrained", "licence": "MIT", "source": {"kind": "local", "path": "other"}}
    fetch = FetchContext(tmp_path / "cache", (tmp_path,))
    built = build_draft(make_recipe(step), target, folder, cache=tmp_path / "cache", fetch=fetch)
    assert built.parameters == folder.parameters
