"""Heads of the package `speculators` here, and heads of ours there. The package lives in an environment of its own, since
it asks for an older transformers: `DRAFTRANK_TEST_SPECULATORS` names its Python."""

from __future__ import annotations

import json
import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from draftrank.models.eagle_head import PublishedHead
from draftrank.models.eagle_layouts import read_published_head
from draftrank.models.eagle_writing import write_published_head
from eagle_heads import (
    EAGLE3_CONFIG,
    HIDDEN,
    IDS,
    VOCABULARY,
    eagle3_forward,
    eagle3_weights,
    save_head,
)

SCRIPT = Path(__file__).parents[2] / "speculators_heads.py"
LAYER: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-5,
    "vocab_size": 50,
    "max_position_embeddings": 128,
    "rope_parameters": {"rope_type": "default", "rope_theta": 50_000.0},
}


@cache
def python_of_the_package() -> str | None:
    """The Python that `DRAFTRANK_TEST_SPECULATORS` names, if it imports the package."""
    named = os.environ.get("DRAFTRANK_TEST_SPECULATORS")
    if named is None:
        return None
    found = subprocess.run(
        [named, "-c", "import speculators.models.eagle3"], check=False, capture_output=True
    )
    return named if found.returncode == 0 else None


@pytest.fixture(autouse=True)
def _package() -> None:
    if python_of_the_package() is None:
        pytest.skip(
            "needs the package speculators: python -m venv env; env/bin/pip install torch speculators==0.9.0; "
            "export DRAFTRANK_TEST_SPECULATORS=env/bin/python"
        )


def run(mode: str, folder: Path, *more: str) -> dict[str, Tensor]:
    """What the package computed, float64."""
    python = python_of_the_package()
    assert python is not None
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {
        "HF_HUB_OFFLINE": "1"
    }
    done = subprocess.run(
        [python, str(SCRIPT), mode, str(folder), *more],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return {key: one.double() for key, one in load_file(folder / "computed.safetensors").items()}


def require_equal(head: PublishedHead, computed: dict[str, Tensor]) -> None:
    hidden, logits = eagle3_forward(
        {name: tensor.double() for name, tensor in head.tensors.items()},
        head.config,
        computed["embedded"],
        computed["states"],
        norm_before_residual=head.norm_before_residual,
    )
    torch.testing.assert_close(hidden, computed["hidden"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits, computed["logits"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("ids", "aux", "changes", "norm_before_residual", "own_embedding"),
    [
        ([0, 3, 4, 17, 29, 49], [1, 4, 6], {}, True, False),
        ([], None, {"attention_bias": True}, False, True),
    ],
    ids=["own-vocabulary", "own-embedding-and-biases"],
)
def test_a_head_that_the_package_saved_is_read_and_computed_alike(
    ids: list[int],
    aux: list[int] | None,
    changes: dict[str, Any],
    norm_before_residual: bool,
    own_embedding: bool,
    tmp_path: Path,
) -> None:
    options = {
        "ids": ids,
        "aux_layers": aux,
        "norm_before_residual": norm_before_residual,
        "own_embedding": own_embedding,
        "layer": {**LAYER, **changes},
    }

    computed = run("make", tmp_path, json.dumps(options))
    head = read_published_head(tmp_path / "head")

    assert head.token_ids is None if not ids else head.token_ids.tolist() == ids  # type: ignore[union-attr]
    assert head.aux_layers == (tuple(aux) if aux else None)
    assert head.norm_before_residual == norm_before_residual
    assert ("embed_tokens.weight" in head.tensors) == own_embedding
    assert head.config["rope_parameters"] == LAYER["rope_parameters"]
    assert head.config["attention_bias"] == changes.get("attention_bias", False)
    require_equal(head, computed)


@pytest.mark.parametrize("norm_before_residual", [False, True])
def test_the_package_opens_and_computes_what_is_written(norm_before_residual: bool, tmp_path: Path) -> None:
    config = {**EAGLE3_CONFIG, "norm_before_residual": norm_before_residual}
    head = read_published_head(save_head(tmp_path / "read", config, eagle3_weights()))
    target = LlamaConfig(
        hidden_size=HIDDEN, vocab_size=VOCABULARY, num_hidden_layers=8, num_attention_heads=4
    )
    LlamaForCausalLM(target).save_pretrained(tmp_path / "target")  # the package opens it too
    write_published_head(
        head,
        "speculators",
        tmp_path / "head",
        target=str(tmp_path / "target"),
        target_architectures=["LlamaForCausalLM"],
        speculative_tokens=4,
    )

    computed = run("compute", tmp_path)

    assert computed["logits"].shape[-1] == len(IDS)
    assert computed["states"].shape[-1] == 3 * HIDDEN
    require_equal(head, computed)
