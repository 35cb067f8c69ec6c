from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from draftrank.building.export.eagle_gguf import write_eagle3_gguf
from draftrank.errors import BuildError
from draftrank.models.eagle_head import PublishedHead, weight_shapes
from gguf_files import VOCABULARY, llama3_divisors, write_target_file

HIDDEN, DEPTH = 64, 30
IDS = torch.tensor([0, 2, 3, 5, 8, 13, 21, 34, 55, 69])


def tiny_head(**changes: Any) -> PublishedHead:
    """An EAGLE-3 head for the target of `write_target_file`."""
    config = {
        "hidden_size": HIDDEN,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 128,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0},
        "attention_bias": False,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
        **changes,
    }
    head = PublishedHead("eagle3", config, None, False, IDS, {})
    generator = torch.Generator().manual_seed(4)
    tensors = {
        name: torch.randn(shape, generator=generator)
        for name, shape in weight_shapes(head, HIDDEN).items()
        if not name.endswith("bias") and name != "embed_tokens.weight"
    }
    return replace(head, tensors=tensors)


@pytest.fixture
def target_file(tmp_path: Path) -> Path:
    return write_target_file(tmp_path / "target.gguf", "llama", DEPTH)


def written(head: PublishedHead, target_file: Path, weights: Any = "f32") -> gguf.GGUFReader:
    final = target_file.with_name("head.gguf")
    write_eagle3_gguf(head, target_file, "tiny", final, weights)
    return gguf.GGUFReader(final)


def stated(reader: gguf.GGUFReader) -> dict[str, Any]:
    return {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}


def test_the_file_states_what_llama_cpp_reads(target_file: Path) -> None:
    fields = stated(written(tiny_head(), target_file))

    assert fields["general.architecture"] == "eagle3"
    assert {
        key.removeprefix("eagle3."): value for key, value in fields.items() if key.startswith("eagle3.")
    } == {
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": 8,
        "attention.layer_norm_rms_epsilon": pytest.approx(1e-5),
        "attention.value_length": 8,
        "block_count": 1,
        "context_length": 128,
        "embedding_length": HIDDEN,
        "feed_forward_length": 32,
        "norm_before_residual": False,
        "rope.dimension_count": 8,
        "rope.freq_base": pytest.approx(100_000.0),
        "target_hidden_size": HIDDEN,
        "target_layers": [2, 15, 27],
        "vocab_size": VOCABULARY,
    }
    of_target = stated(gguf.GGUFReader(target_file))
    tokenizer = {key: value for key, value in of_target.items() if key.startswith("tokenizer.")}
    assert tokenizer
    assert {key: fields[key] for key in tokenizer} == tokenizer


def test_a_head_is_one_layer_though_its_config_may_not_say_so(target_file: Path) -> None:
    head = tiny_head()
    config = {name: value for name, value in head.config.items() if name != "num_hidden_layers"}
    assert stated(written(replace(head, config=config), target_file))["eagle3.block_count"] == 1


def test_layers_and_residual_are_the_heads_own(target_file: Path) -> None:
    head = replace(tiny_head(), aux_layers=(1, 14, 26), norm_before_residual=True)

    fields = stated(written(head, target_file))

    assert fields["eagle3.target_layers"] == [1, 14, 26]
    assert fields["eagle3.norm_before_residual"] is True


def test_weights_are_where_llama_cpp_looks_for_them(target_file: Path) -> None:
    head = tiny_head()

    tensors = {one.name: one for one in written(head, target_file).tensors}

    plain = {
        "fc.weight": "fc.weight",
        "layer.input_layernorm.weight": "blk.0.attn_norm.weight",
        "layer.hidden_norm.weight": "blk.0.attn_norm_2.weight",
        "layer.self_attn.v_proj.weight": "blk.0.attn_v.weight",
        "layer.self_attn.o_proj.weight": "blk.0.attn_output.weight",
        "layer.post_attention_layernorm.weight": "blk.0.ffn_norm.weight",
        "layer.mlp.gate_proj.weight": "blk.0.ffn_gate.weight",
        "layer.mlp.up_proj.weight": "blk.0.ffn_up.weight",
        "layer.mlp.down_proj.weight": "blk.0.ffn_down.weight",
        "norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    assert set(tensors) == {*plain.values(), "blk.0.attn_q.weight", "blk.0.attn_k.weight", "d2t"}
    for name, place in plain.items():
        assert np.array_equal(tensors[place].data, head.tensors[name].numpy())
    for part, heads in (("q", 4), ("k", 2)):
        original = head.tensors[f"layer.self_attn.{part}_proj.weight"].numpy()
        stored = tensors[f"blk.0.attn_{part}.weight"].data
        for number in range(heads):
            for pair in range(4):  # channels that rotate together: pair and pair + 4 there, neighbours here
                assert np.array_equal(stored[8 * number + 2 * pair], original[8 * number + pair])
                assert np.array_equal(stored[8 * number + 2 * pair + 1], original[8 * number + pair + 4])
    assert tensors["d2t"].tensor_type == gguf.GGMLQuantizationType.I64
    assert tensors["d2t"].data.tolist() == IDS.tolist()


def test_the_whole_vocabulary_needs_no_map_and_an_own_embedding_is_kept(target_file: Path) -> None:
    head = replace(tiny_head(), token_ids=None)
    head.tensors["lm_head.weight"] = torch.randn(VOCABULARY, HIDDEN)
    head.tensors["embed_tokens.weight"] = torch.randn(VOCABULARY, HIDDEN)

    tensors = {one.name: one for one in written(head, target_file).tensors}

    assert "d2t" not in tensors
    assert np.array_equal(tensors["token_embd.weight"].data, head.tensors["embed_tokens.weight"].numpy())


def test_matrices_are_quantized_and_norms_are_not(target_file: Path) -> None:
    tensors = {one.name: one.tensor_type.name for one in written(tiny_head(), target_file, "q8_0").tensors}

    assert tensors["blk.0.attn_q.weight"] == tensors["output.weight"] == "Q8_0"
    assert tensors["output_norm.weight"] == tensors["blk.0.attn_norm_2.weight"] == "F32"
    assert tensors["d2t"] == "I64"


def test_llama_3s_rope_scaling_is_written_as_divisors(target_file: Path) -> None:
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }

    tensors = {one.name: one for one in written(tiny_head(rope_parameters=scaling), target_file).tensors}

    expected = llama3_divisors(8, 500_000.0, 8.0, 32)
    np.testing.assert_allclose(tensors["rope_freqs.weight"].data, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda head: replace(head, architecture="eagle"), "none of the first EAGLE"),
        (lambda head: replace(head, aux_layers=(1, 2, 3, 4)), "read 3 hidden states, and this head 4"),
        (
            lambda head: replace(head, tensors={**head.tensors, "fc.bias": torch.ones(HIDDEN)}),
            "have no biases, and this head has",
        ),
        (
            lambda head: replace(head, config={**head.config, "vocab_size": VOCABULARY + 1}),
            r"target\.gguf has 70 tokens, and the head's target 71",
        ),
        (
            lambda head: replace(head, tensors={**head.tensors, "fc.weight": torch.randn(HIDDEN, 96)}),
            r"target\.gguf is a target 64 wide, and the head reads states of 32",
        ),
        (
            lambda head: replace(head, config={**head.config, "hidden_act": "gelu"}),
            "knows silu in these models",
        ),
    ],
)
def test_a_head_that_llama_cpp_does_not_run_is_refused(change: Any, reason: str, target_file: Path) -> None:
    with pytest.raises(BuildError, match=reason):
        written(change(tiny_head()), target_file)
