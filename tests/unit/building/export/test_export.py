"""What leaves the cache is what was built, and says where it cannot be opened."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM

from draftrank.building.export.folder import abilities, copy_folder
from draftrank.building.export.gguf import write_gguf
from draftrank.building.pipeline import build_draft
from draftrank.errors import BuildError, InvalidInputError
from draftrank.models.quiet import quiet_gguf, quiet_transformers
from gguf_files import small_gguf_model, write_target_file

IDS = torch.arange(3, 43).reshape(2, 20)
DROP = {"kind": "drop_layers", "keep": 2, "select": "ends"}


@pytest.mark.parametrize(
    ("steps", "opens", "vllm", "gguf"),
    [
        ([DROP], True, True, True),
        ([{"kind": "tie_layers", "blocks": 2}], True, False, True),
        ([DROP, {"kind": "quantize", "scheme": "dynamic_int8"}], False, False, True),
        ([{"kind": "trim_vocabulary", "keep_tokens": 40}], False, False, False),
        ([{"kind": "factorize_head", "rank": 8}], False, False, False),
    ],
)
def test_what_a_form_can_do_is_said(make_target, make_recipe, tmp_path, steps, opens, vllm, gguf):
    target, folder = make_target()
    built = build_draft(make_recipe(*steps), target, folder, cache=tmp_path)
    can = abilities(built.folder)
    assert (can.transformers is None, can.vllm is None, can.gguf is None) == (opens, vllm, gguf)


def test_a_copy_goes_into_an_empty_folder_only(make_target, make_recipe, tmp_path):
    target, folder = make_target()
    built = build_draft(make_recipe(DROP), target, folder, cache=tmp_path)
    files = copy_folder(built.folder, tmp_path / "out")
    assert {path.name for path in files} >= {"model.safetensors", "config.json", "tokenizer.json"}
    with torch.inference_mode():
        first, second = (
            AutoModelForCausalLM.from_pretrained(place) for place in (built.folder, tmp_path / "out")
        )
        assert torch.equal(first(IDS).logits, second(IDS).logits)
    with pytest.raises(InvalidInputError, match="is not empty"):
        copy_folder(built.folder, tmp_path / "out")


@pytest.mark.parametrize(("architecture", "layers"), [("llama", 2), ("gemma3", 6)])
def test_the_gguf_file_holds_the_same_model(tmp_path, architecture, layers):
    """Read back by transformers' own reader, which knows nothing of the writer."""
    # that reader takes Gemma's heads to have the size of the published models'
    size = 256 if architecture == "gemma3" else 16
    model = small_gguf_model(architecture, layers, num_key_value_heads=1, head_dim=size)
    described = write_target_file(tmp_path / "target.gguf", architecture, 30)
    write_gguf(model, described, "draft", tmp_path / "draft.gguf")
    with quiet_gguf(), quiet_transformers():
        opened = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="draft.gguf", dtype=torch.float32)
    assert opened.config.num_hidden_layers == layers
    assert opened.config.num_key_value_heads == 1
    with torch.inference_mode():
        found, expected = opened(IDS).logits, model(IDS).logits
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02 * float(expected.std()))


def meta_divisors(size, base, factor, low, high, original):
    """As in the released code of Llama 3.1: what it divides each frequency by."""
    found = []
    for pair in range(size // 2):
        frequency = base ** (-2 * pair / size)
        wavelength = 2 * math.pi / frequency
        if wavelength < original / high:
            scaled = frequency
        elif wavelength > original / low:
            scaled = frequency / factor
        else:
            smooth = (original / wavelength - low) / (high - low)
            scaled = (1 - smooth) * frequency / factor + smooth * frequency
        found.append(frequency / scaled)
    return found


def stated(path, prefix):
    return {
        key.removeprefix(prefix): field.contents()
        for key, field in GGUFReader(path).fields.items()
        if key.startswith(prefix)
    }


ROPE = {"rope_theta": 50_000.0}


def test_rope_scaling_is_stated_as_llama_cpp_reads_it(tmp_path):
    described = write_target_file(tmp_path / "target.gguf", "llama", 30)

    def written(**parameters):
        model = small_gguf_model("llama", 2, rope_parameters={**ROPE, **parameters})
        write_gguf(model, described, "draft", tmp_path / "draft.gguf")
        tensors = {tensor.name: tensor.data for tensor in GGUFReader(tmp_path / "draft.gguf").tensors}
        return stated(tmp_path / "draft.gguf", "llama.rope."), tensors.get("rope_freqs.weight")

    plain = {"freq_base": 50_000.0, "dimension_count": 16}
    assert written(rope_type="default") == (plain, None)
    linear = {**plain, "scaling.type": "linear", "scaling.factor": 4.0}
    assert written(rope_type="linear", factor=4.0) == (linear, None)
    yarn, _ = written(rope_type="yarn", factor=4.0, original_max_position_embeddings=32, attention_factor=0.5)
    # llama.cpp multiplies what is stated by 1 + 0.1 ln(factor)
    assert yarn.pop("scaling.attn_factor") * (1 + 0.1 * math.log(4)) == pytest.approx(0.5)
    assert yarn == {
        **plain,
        "scaling.type": "yarn",
        "scaling.factor": 4.0,
        "scaling.original_context_length": 32,
    }
    keys, divisors = written(
        rope_type="llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=64,
    )
    assert keys == plain
    assert divisors.dtype == np.float32
    np.testing.assert_allclose(divisors, meta_divisors(16, 50_000.0, 8, 1, 4, 64), rtol=1e-5)


def test_constants_are_the_drafts_own(tmp_path):
    """The target's file states others, which describe the target."""
    described = write_target_file(tmp_path / "target.gguf", "gemma3", 30)
    model = small_gguf_model("gemma3", 6, layer_types=["full_attention"] * 6, rms_norm_eps=0.25)
    write_gguf(model, described, "draft", tmp_path / "draft.gguf")
    found = stated(tmp_path / "draft.gguf", "gemma3.")
    assert "attention.sliding_window" not in found
    assert (found["attention.layer_norm_rms_epsilon"], found["context_length"]) == (0.25, 128)
    assert (found["rope.freq_base"], found["rope.freq_base_swa"]) == (1_000_000.0, 10_000.0)


@pytest.mark.parametrize(
    ("architecture", "changes", "reason"),
    [
        ("llama", {"rope_parameters": {**ROPE, "rope_type": "dynamic", "factor": 2.0}}, "type 'dynamic'"),
        (
            "llama",
            {
                "rope_parameters": {
                    **ROPE,
                    "rope_type": "yarn",
                    "factor": 2.0,
                    "original_max_position_embeddings": 64,
                    "beta_fast": 16.0,
                }
            },
            "beta_fast 32 in these models, not 16",
        ),
        (
            "llama",
            {"rope_parameters": {**ROPE, "rope_type": "default", "partial_rotary_factor": 0.5}},
            "part",
        ),
        ("llama", {"hidden_act": "gelu"}, "silu in these models, not gelu"),
        ("llama", {"model_type": "granite"}, "a granite model is no llama model"),
        (
            "gemma3",
            {
                "rope_parameters": {
                    "full_attention": {**ROPE, "rope_type": "dynamic", "factor": 2.0},
                    "sliding_attention": {**ROPE, "rope_type": "default"},
                }
            },
            "linearly and in full attention only",
        ),
        ("gemma3", {"attn_logit_softcapping": 30.0}, "not capped"),
    ],
)
def test_models_that_llama_cpp_computes_in_another_way_are_refused(tmp_path, architecture, changes, reason):
    described = write_target_file(tmp_path / "target.gguf", architecture, 30)
    model = small_gguf_model(architecture, 6)
    for name, value in changes.items():
        object.__setattr__(model.config, name, value)
    with pytest.raises(BuildError, match=reason):
        write_gguf(model, described, "draft", tmp_path / "draft.gguf")


def test_what_gguf_cannot_express_is_said(tmp_path):
    described = write_target_file(tmp_path / "target.gguf", "gemma3", 30)
    model = small_gguf_model("gemma3", 6)
    model.config.layer_types = ["full_attention", *model.config.layer_types[1:]]
    with pytest.raises(BuildError, match="keep layers in whole periods"):
        write_gguf(model, described, "draft", tmp_path / "draft.gguf")
    scaled = small_gguf_model("gemma3", 6)
    scaled.config.query_pre_attn_scalar = 256
    with pytest.raises(BuildError, match="head size 16, this one by that of 256"):
        write_gguf(scaled, described, "draft", tmp_path / "draft.gguf")
    other = write_target_file(tmp_path / "other.gguf", "qwen2", 30)
    with pytest.raises(BuildError, match="architecture qwen2 are not written yet"):
        write_gguf(small_gguf_model("llama", 2), other, "draft", tmp_path / "draft.gguf")
