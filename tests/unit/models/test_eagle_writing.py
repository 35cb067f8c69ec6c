from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from draftrank.errors import BuildError
from draftrank.models.eagle_head import PublishedHead, weight_shapes
from draftrank.models.eagle_layouts import read_published_head
from draftrank.models.eagle_writing import HeadLayout, write_published_head
from eagle_heads import (
    EAGLE3_CONFIG,
    EAGLE_CONFIG,
    HIDDEN,
    eagle3_weights,
    eagle_weights,
    save_head,
)


@st.composite
def heads(draw: st.DrawFn) -> PublishedHead:
    """Heads of any shape that every layout of their architecture can hold."""
    eagle3 = draw(st.booleans())
    pairs = draw(st.integers(1, 3))
    vocabulary = draw(st.integers(4, 30))
    ids = None
    if eagle3 and draw(st.booleans()):
        ids = torch.tensor(
            sorted(draw(st.sets(st.integers(0, vocabulary - 1), min_size=1, max_size=vocabulary - 1)))
        )
    scaling = draw(
        st.sampled_from(
            (
                {"rope_type": "default"},
                {"rope_type": "linear", "factor": 4.0},
                {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 32,
                },
            )
        )
    )
    config: dict[str, Any] = {
        "hidden_size": draw(st.sampled_from((8, 12))),
        "intermediate_size": draw(st.integers(1, 20)),
        "num_hidden_layers": 1,
        "num_attention_heads": pairs * draw(st.integers(1, 3)),
        "num_key_value_heads": pairs,
        "head_dim": draw(st.sampled_from((4, 6))),
        "hidden_act": "silu",
        "rms_norm_eps": draw(st.sampled_from((1e-5, 1e-6))),
        "max_position_embeddings": draw(st.integers(64, 4096)),
        "rope_parameters": {**scaling, "rope_theta": draw(st.sampled_from((10_000.0, 500_000.0)))},
        "attention_bias": not eagle3 and draw(st.booleans()),
        "vocab_size": vocabulary,
        "tie_word_embeddings": False,
    }
    aux = st.none() | st.tuples(*[st.integers(0, 90)] * 3)
    empty = PublishedHead(
        architecture="eagle3" if eagle3 else "eagle",
        config=config,
        aux_layers=draw(aux) if eagle3 else None,
        norm_before_residual=False,
        token_ids=ids,
        tensors={},
    )
    shapes = weight_shapes(empty, config["hidden_size"])
    left_out = {"fc.bias"} if eagle3 or draw(st.booleans()) else set()
    if not config["attention_bias"]:
        left_out |= {name for name in shapes if name.endswith("_proj.bias")}
    left_out |= {name for name in ("embed_tokens.weight",) if draw(st.booleans())}
    left_out |= {name for name in ("lm_head.weight",) if ids is None and draw(st.booleans())}
    dtype = draw(st.sampled_from((torch.float32, torch.bfloat16, torch.float16)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    tensors = {
        name: torch.randn(shape, generator=generator).to(dtype)
        for name, shape in shapes.items()
        if name not in left_out
    }
    return replace(empty, tensors=tensors)


def layouts_of(head: PublishedHead) -> list[HeadLayout]:
    """Those that hold a head of `heads`."""
    if head.architecture == "eagle3":
        return ["vllm", "sglang", "speculators"]
    return ["sglang"] if "fc.bias" in head.tensors else ["vllm", "sglang"]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(head=heads())
def test_what_is_written_is_read_again(head: PublishedHead, tmp_path: Path) -> None:
    for layout in layouts_of(head):
        write_published_head(head, layout, tmp_path / layout, target="someone/target")

        read = read_published_head(tmp_path / layout)

        assert read.architecture == head.architecture
        assert read.config == head.config
        assert read.aux_layers == head.aux_layers
        assert read.norm_before_residual == head.norm_before_residual
        assert (read.token_ids is None) == (head.token_ids is None)
        assert read.token_ids is None or torch.equal(read.token_ids, head.token_ids)  # type: ignore[arg-type]
        added = set(read.tensors) - set(head.tensors)
        assert added <= {"fc.bias"} if layout == "sglang" else not added
        assert not any(read.tensors[name].any() for name in added)
        for name, tensor in head.tensors.items():
            assert torch.equal(read.tensors[name], tensor)
            assert read.tensors[name].dtype == tensor.dtype


def read_eagle3(folder: Path, **fields: Any) -> PublishedHead:
    return read_published_head(save_head(folder, {**EAGLE3_CONFIG, **fields}, eagle3_weights()))


def test_vllm_and_sglang_read_the_names_of_the_original_repositories(tmp_path: Path) -> None:
    head = read_eagle3(tmp_path / "read", eagle_aux_hidden_state_layer_ids=[2, 15, 27])

    for layout in ("vllm", "sglang"):
        write_published_head(head, layout, tmp_path / layout)
        stored = load_file(tmp_path / layout / "model.safetensors")
        original = eagle3_weights()
        assert set(stored) == set(original)
        assert all(torch.equal(stored[name], original[name]) for name in stored)
        config = json.loads((tmp_path / layout / "config.json").read_text())
        assert config["architectures"] == ["LlamaForCausalLMEagle3"]
        assert config["eagle_aux_hidden_state_layer_ids"] == [2, 15, 27]
        assert config["eagle_config"]["eagle_aux_hidden_state_layer_ids"] == [1, 14, 26]
        assert config["rope_theta"] == 500_000.0
        assert config["draft_vocab_size"] == 10


def test_sglangs_first_eagle_heads_always_have_a_bias_in_the_fusion(tmp_path: Path) -> None:
    head = read_published_head(save_head(tmp_path / "read", EAGLE_CONFIG, eagle_weights(bias=False)))

    write_published_head(head, "sglang", tmp_path / "sglang")

    assert torch.equal(load_file(tmp_path / "sglang" / "model.safetensors")["fc.bias"], torch.zeros(HIDDEN))
    config = json.loads((tmp_path / "sglang" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLMEagle"]
    assert config["bias"] is True


def with_biases(head: PublishedHead) -> PublishedHead:
    shapes = weight_shapes(head, HIDDEN)
    biases: dict[str, Tensor] = {
        name: torch.ones(shapes[name]) for name in (f"layer.self_attn.{part}_proj.bias" for part in "qkv")
    }
    config = {**head.config, "attention_bias": True}
    return replace(head, config=config, tensors={**head.tensors, **biases})


def test_a_missing_bias_after_the_attention_is_written_as_zeros(tmp_path: Path) -> None:
    head = with_biases(read_eagle3(tmp_path / "read"))

    write_published_head(head, "vllm", tmp_path / "vllm")

    stored = load_file(tmp_path / "vllm" / "model.safetensors")
    assert torch.equal(stored["midlayer.self_attn.o_proj.bias"], torch.zeros(HIDDEN))
    assert torch.equal(stored["midlayer.self_attn.q_proj.bias"], torch.ones(24))


def test_a_head_that_a_program_would_compute_otherwise_is_refused(tmp_path: Path) -> None:
    eagle3 = read_eagle3(tmp_path / "eagle3")
    eagle = read_published_head(save_head(tmp_path / "eagle", EAGLE_CONFIG, eagle_weights()))
    residual = read_eagle3(tmp_path / "residual", norm_before_residual=True)
    four = read_published_head(
        save_head(
            tmp_path / "four",
            {**EAGLE3_CONFIG, "eagle_aux_hidden_state_layer_ids": [1, 2, 3, 4]},
            eagle3_weights(states=4),
        )
    )

    for head, layout, reason in (
        (eagle, "speculators", "has EAGLE-3 heads only"),
        (eagle, "vllm", "fc has a bias in this head, and none in vLLM"),
        (residual, "sglang", "begins the residual of an EAGLE-3 head before its norm"),
        (with_biases(eagle3), "sglang", "no biases in the attention"),
        (four, "sglang", "read 3 hidden states, and this head 4"),
    ):
        with pytest.raises(BuildError, match=reason):
            write_published_head(head, layout, tmp_path / "written")  # type: ignore[arg-type]
    assert not (tmp_path / "written").exists()
    for head in (residual, four, with_biases(eagle3)):
        write_published_head(head, "vllm", tmp_path / "written")
        read = read_published_head(tmp_path / "written")
        assert (read.aux_layers, read.norm_before_residual) == (head.aux_layers, head.norm_before_residual)
