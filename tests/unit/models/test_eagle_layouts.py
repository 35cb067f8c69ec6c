from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig

from draftrank.errors import IncompatibleDraftError, InvalidInputError, MissingDataError
from draftrank.models.eagle_head import check_against, weight_shapes
from draftrank.models.eagle_layouts import read_published_head
from eagle_heads import (
    EAGLE3_CONFIG,
    EAGLE_CONFIG,
    HIDDEN,
    IDS,
    VOCABULARY,
    eagle3_weights,
    eagle_weights,
    save_head,
)

SPECULATORS_CONFIG: dict[str, Any] = {
    "architectures": ["Eagle3Speculator"],
    "speculators_model_type": "eagle3",
    "speculators_config": {"algorithm": "eagle3"},
    "draft_vocab_size": len(IDS),
    "norm_before_residual": True,
    "eagle_aux_hidden_state_layer_ids": [1, 4, 6],
    "transformer_layer_config": {
        **{
            key: value
            for key, value in EAGLE3_CONFIG.items()
            if not key.startswith(("rope", "draft", "arch"))
        },
        "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
    },
}
TARGET = LlamaConfig(hidden_size=HIDDEN, vocab_size=VOCABULARY, num_hidden_layers=8, num_attention_heads=4)

Change = Callable[[dict[str, Any], dict[str, Tensor]], None]


def problems_of(folder: Path) -> str:
    with pytest.raises(InvalidInputError) as raised:
        read_published_head(folder)
    assert all(one.file and one.fix for one in raised.value.problems)
    return str(raised.value)


@pytest.mark.parametrize(
    ("config", "layer", "prefix"),
    [
        (EAGLE3_CONFIG, "midlayer", ""),
        (EAGLE3_CONFIG, "midlayer", "model."),
        (EAGLE3_CONFIG, "layers.0", "model."),
        ({**EAGLE3_CONFIG, "architectures": ["LlamaForCausalLM"]}, "midlayer", ""),
        (SPECULATORS_CONFIG, "layers.0", ""),
    ],
    ids=["specforge", "prefixed", "sglang", "original", "speculators"],
)
def test_the_layouts_of_eagle3_are_read_into_one_form(
    config: dict[str, Any], layer: str, prefix: str, tmp_path: Path
) -> None:
    weights = eagle3_weights(layer, prefix=prefix)

    head = read_published_head(save_head(tmp_path, config, weights))

    assert head.architecture == "eagle3"
    assert head.token_ids is not None
    assert torch.equal(head.token_ids, IDS)
    assert head.token_ids.dtype == torch.int64
    assert set(head.tensors) == set(weight_shapes(head, HIDDEN)) - {
        "embed_tokens.weight",
        "fc.bias",
        *(f"layer.self_attn.{part}_proj.bias" for part in "qkvo"),
    }
    expected = {name.replace(f"{prefix}{layer}.", "layer."): tensor for name, tensor in weights.items()}
    for name, tensor in head.tensors.items():
        assert torch.equal(tensor, expected.get(name, weights.get(f"{prefix}{name}")))  # type: ignore[arg-type]
    assert head.config["rope_parameters"] == {"rope_type": "default", "rope_theta": 500_000.0}
    assert head.config["rms_norm_eps"] == 1e-5
    assert head.norm_before_residual == (config is SPECULATORS_CONFIG)
    assert head.aux_layers == ((1, 4, 6) if config is SPECULATORS_CONFIG else None)
    assert head.layers_of(8) == ((1, 4, 6) if config is SPECULATORS_CONFIG else (2, 4, 5))
    LlamaConfig(**head.config)
    check_against(head, TARGET)


@pytest.mark.parametrize(
    ("config", "layer", "bias"),
    [
        (EAGLE_CONFIG, "layers.0", True),
        ({**EAGLE_CONFIG, "architectures": ["EagleLlamaForCausalLM"], "bias": False}, "layers.0", False),
        ({"model_type": "eagle", "model": EAGLE_CONFIG}, "model.layers.0", True),
    ],
    ids=["original", "vllm", "vllm-nested"],
)
def test_a_first_eagle_head_is_read(config: dict[str, Any], layer: str, bias: bool, tmp_path: Path) -> None:
    weights = eagle_weights(layer, bias=bias)

    head = read_published_head(save_head(tmp_path, config, weights))

    assert head.architecture == "eagle"
    assert head.token_ids is None
    assert head.aux_layers is None
    assert {name.replace("layer.", f"{layer}.") for name in head.tensors} == set(weights)
    assert head.config["head_dim"] == HIDDEN // EAGLE_CONFIG["num_attention_heads"]
    assert head.config["rope_parameters"] == {"rope_type": "default", "rope_theta": 10_000.0}
    check_against(head, TARGET)


def test_a_first_eagle_head_in_the_form_of_the_package_is_read(tmp_path: Path) -> None:
    config = {
        "speculators_model_type": "eagle",
        "fusion_bias": False,
        "layernorms": False,
        "transformer_layer_config": EAGLE_CONFIG,
    }
    weights = eagle_weights("transformer", bias=False)
    weights["fusion_fc.weight"] = weights.pop("fc.weight")

    head = read_published_head(save_head(tmp_path, config, weights))

    assert torch.equal(head.tensors["fc.weight"], weights["fusion_fc.weight"])
    assert "layer.self_attn.q_proj.weight" in head.tensors


def test_eagle_config_counts_the_layers_whose_output_is_read(tmp_path: Path) -> None:
    config = {**EAGLE3_CONFIG, "eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 3, 4]}}

    assert read_published_head(save_head(tmp_path, config, eagle3_weights())).aux_layers == (2, 4, 5)

    both = {**config, "eagle_aux_hidden_state_layer_ids": [2, 4, 5]}
    assert read_published_head(save_head(tmp_path, both, eagle3_weights())).aux_layers == (2, 4, 5)
    other = {**config, "eagle_aux_hidden_state_layer_ids": [1, 3, 4]}
    assert "means the inputs of layers [2, 4, 5]" in problems_of(save_head(tmp_path, other, eagle3_weights()))


def test_scaled_rope_is_read_from_the_older_fields(tmp_path: Path) -> None:
    scaling = {"type": "linear", "factor": 4.0}

    head = read_published_head(
        save_head(tmp_path, {**EAGLE3_CONFIG, "rope_scaling": scaling}, eagle3_weights())
    )

    assert head.config["rope_parameters"] == {"rope_type": "linear", "rope_theta": 500_000.0, "factor": 4.0}


@pytest.mark.parametrize("kept", [("d2t",), ("t2d",), ()])
def test_a_vocabulary_needs_one_of_its_maps(kept: tuple[str, ...], tmp_path: Path) -> None:
    weights = {name: one for name, one in eagle3_weights().items() if name not in {"d2t", "t2d"} - set(kept)}
    folder = save_head(tmp_path, EAGLE3_CONFIG, weights)

    if kept:
        assert torch.equal(read_published_head(folder).token_ids, IDS)  # type: ignore[arg-type]
    else:
        assert "d2t: is missing, and the head says 10 of 40 tokens" in problems_of(folder)


def test_maps_of_the_whole_vocabulary_are_no_vocabulary_of_its_own(tmp_path: Path) -> None:
    weights = eagle3_weights()
    weights["lm_head.weight"] = torch.randn(VOCABULARY, HIDDEN)
    weights["d2t"] = torch.zeros(VOCABULARY, dtype=torch.int64)
    weights["t2d"] = torch.ones(VOCABULARY, dtype=torch.bool)

    head = read_published_head(
        save_head(tmp_path, {**EAGLE3_CONFIG, "draft_vocab_size": VOCABULARY}, weights)
    )

    assert head.token_ids is None
    assert head.said_tokens == VOCABULARY


def without(name: str) -> Change:
    return lambda _config, weights: weights.__delitem__(name)


def weight(name: str, change: Callable[[Tensor], Tensor]) -> Change:
    return lambda _config, weights: weights.update({name: change(weights[name])})


def extra(name: str) -> Change:
    return lambda _config, weights: weights.update({name: torch.ones(HIDDEN)})


def stated(**fields: Any) -> Change:
    return lambda config, _weights: config.update(fields)


def _swapped(d2t: Tensor) -> Tensor:
    ids = d2t + torch.arange(len(d2t))
    ids[[3, 4]] = ids[[4, 3]]
    return ids - torch.arange(len(d2t))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (without("fc.weight"), "has no fc.weight, so it is no EAGLE head"),
        (without("midlayer.mlp.up_proj.weight"), "layer.mlp.up_proj.weight: is missing"),
        (without("lm_head.weight"), "lm_head.weight: is missing"),
        (without("norm.weight"), "norm.weight: is missing"),
        (weight("fc.weight", lambda one: one[:, :-1]), "has the shape [16, 47], and by config.json it is [16, 48]"),
        (weight("midlayer.self_attn.k_proj.weight", lambda one: one[:, :16]), "k_proj.weight: has the shape [12, 16]"),
        (weight("norm.weight", lambda one: one * torch.nan), "norm.weight: has entries that are no finite numbers"),
        (weight("norm.weight", lambda one: one.to(torch.int8)), "norm.weight: is torch.int8"),
        (weight("d2t", lambda one: one + 1), "d2t: row 9 is the target's id 40, outside its 40 tokens"),
        (weight("d2t", lambda one: one.roll(1)), "d2t: "),
        (weight("d2t", lambda one: one + torch.arange(10)), "d2t: holds the target's ids themselves"),
        (weight("d2t", _swapped), "row 3 is the target's id 9 and row 4 is 4: ids must ascend"),
        (weight("d2t", lambda one: one[:-1]), "d2t: has 9 rows, and draft_vocab_size is 10"),
        (weight("d2t", lambda one: one.float()), "d2t: is torch.float32 [10], not integers"),
        (weight("t2d", lambda one: one.roll(1)), "where t2d marks"),
        (weight("t2d", lambda one: one[:-1]), "t2d: is torch.bool [39], not bool [40]"),
        (stated(draft_vocab_size=9), "d2t: has 10 rows, and draft_vocab_size is 9"),
        (stated(vocab_size=41), "t2d: is torch.bool [40], not bool [41]"),
        (stated(hidden_size=0), "hidden_size: is 0, not a positive number"),
        (stated(num_attention_heads=None), "num_attention_heads: is None"),
        (stated(num_key_value_heads=2.5), "num_key_value_heads: is 2.5, not a positive number"),
        (stated(head_dim=8), "q_proj.weight: has the shape [24, 32], and by config.json it is [32, 32]"),
        (stated(target_hidden_size=24), "fc.weight: has the shape [16, 48], and by config.json it is [16, 72]"),
        (stated(attention_bias=True), "layer.self_attn.q_proj.bias: is missing"),
        (stated(rope_scaling={"type": "su", "factor": 2.0}), "rope_scaling: 'su' is no RoPE scaling of Llama"),
        (stated(eagle_aux_hidden_state_layer_ids=[1, "4"]), "is [1, '4'], not a list of layers"),
        (stated(eagle_aux_hidden_state_layer_ids=[1, 4]), "fc.weight: has the shape [16, 48], and by config.json"),
        (stated(num_hidden_layers=2), "has 2 layers, and only heads of one layer are run"),
        (stated(model_type="qwen3"), "has a layer of qwen3, not of Llama"),
        (stated(layer_types=["sliding_attention"]), "has a sliding window"),
        (stated(rope_scaling={"rope_type": "default", "partial_rotary_factor": 0.5}), "rotates a part of each"),
        (stated(quantization_config={"quant_method": "fp8"}), "quantization_config: is quantized"),
        (stated(fc_norm=True), "fc_norm: is a later variant of EAGLE"),
        (stated(eagle_config={"norm_before_fc": True}), "norm_before_fc: is a later variant of EAGLE"),
        (stated(eagle_config={"use_aux_hidden_state": False}), "without auxiliary hidden states"),
        (extra("layers.1.mlp.up_proj.weight"), "belongs to a second layer"),
        (extra("midlayer.self_attn.q_norm.weight"), "norms its queries and keys, as Qwen 3 does"),
        (extra("midlayer.mlp.experts.0.up_proj.weight"), "has a mixture of experts"),
        (extra("midlayer.self_attn.kv_a_proj_with_mqa.weight"), "has multi-head latent attention"),
        (extra("midlayer.mlp.up_proj.bias"), "up_proj.bias: has no place in an EAGLE-3 head of one Llama layer"),
        (extra("model.norm.weight"), "is the same weight as"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_head_is_said(change: Change, sentence: str, tmp_path: Path) -> None:
    config, weights = dict(EAGLE3_CONFIG), eagle3_weights()
    change(config, weights)

    assert sentence in problems_of(save_head(tmp_path, config, weights))


def test_all_wrong_weights_are_named_at_once(tmp_path: Path) -> None:
    weights = eagle3_weights()
    del weights["norm.weight"]
    weights["d2t"] += 1
    weights["fc.weight"] = weights["fc.weight"].T

    with pytest.raises(InvalidInputError) as raised:
        read_published_head(save_head(tmp_path, EAGLE3_CONFIG, weights))

    assert {one.field for one in raised.value.problems} == {"norm.weight", "d2t", "fc.weight"}


@pytest.mark.parametrize(
    ("config", "name", "kind"),
    [
        ({"medusa_num_heads": 4}, "0.0.linear.weight", "is a Medusa head"),
        ({}, "medusa_head.0.0.linear.weight", "is a weight of a Medusa head"),
        ({"architectures": ["DeepSeekMTPModel"]}, "eh_proj.weight", "is an MTP module"),
        ({"model_type": "qwen3_next_mtp"}, "mtp.fc.weight", "is an MTP module"),
        ({"model_type": "llama"}, "model.layers.61.eh_proj.weight", "is a weight of an MTP module"),
        ({"num_nextn_predict_layers": 1}, "fc.weight", "is an MTP module"),
        ({"architectures": ["DFlashDraftModel"]}, "fc.weight", "is a DFlash draft"),
        ({"architectures": ["Qwen3DSparkModel"]}, "fc.weight", "is a DSpark draft"),
        ({"architectures": ["PEagleDraftModel"]}, "fc.weight", "is a P-EAGLE head"),
        ({"speculators_model_type": "peagle"}, "fc.weight", "is a P-EAGLE head"),
        ({"speculators_model_type": "xpress"}, "fc.weight", "is a draft of the kind 'xpress'"),
        ({"model_type": "mlp_speculator"}, "speculator.emb.0.weight", "is an MLP speculator"),
        ({"model_type": "hydra"}, "hydra_head.0.weight", "is a Hydra head"),
    ],
)
def test_heads_of_other_kinds_are_refused_by_their_names(
    config: dict[str, Any], name: str, kind: str, tmp_path: Path
) -> None:
    said = problems_of(save_head(tmp_path, config, {name: torch.ones(2, 2)}))

    assert kind in said
    assert "can be measured in a serving engine" in said


def test_pickles_are_refused_with_the_way_to_convert_them(tmp_path: Path) -> None:
    folder = save_head(tmp_path, EAGLE3_CONFIG, eagle3_weights())
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")

    with pytest.raises(InvalidInputError, match=r"pytorch_model\.bin: is a pickle.*save_file\(torch\.load"):
        read_published_head(folder)

    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(MissingDataError, match=r"holds no \*\.safetensors file"):
        read_published_head(folder)
    (folder / "config.json").unlink()
    with pytest.raises(MissingDataError, match=r"has no config\.json"):
        read_published_head(folder)


def test_a_weight_in_two_files_is_refused(tmp_path: Path) -> None:
    folder = save_head(tmp_path, EAGLE3_CONFIG, eagle3_weights())
    (folder / "other.safetensors").write_bytes((folder / "model.safetensors").read_bytes())

    assert "is in model.safetensors too" in problems_of(folder)


def test_broken_files_are_named(tmp_path: Path) -> None:
    folder = save_head(tmp_path, EAGLE3_CONFIG, eagle3_weights())
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(InvalidInputError, match=r"model\.safetensors: cannot be read"):
        read_published_head(folder)

    (folder / "config.json").write_text("{")
    with pytest.raises(InvalidInputError, match=r"config\.json: is not JSON"):
        read_published_head(folder)


def test_weights_the_package_never_loaded_are_the_targets(tmp_path: Path) -> None:
    weights = {
        **eagle3_weights("layers.0"),
        "embed_tokens.weight": torch.full((VOCABULARY, HIDDEN), torch.nan),
    }

    head = read_published_head(save_head(tmp_path, SPECULATORS_CONFIG, weights))

    assert "embed_tokens.weight" not in head.tensors


def test_the_residual_of_the_package_form_must_be_stated(tmp_path: Path) -> None:
    config = {key: value for key, value in SPECULATORS_CONFIG.items() if key != "norm_before_residual"}

    said = problems_of(save_head(tmp_path, config, eagle3_weights("layers.0")))

    assert "norm_before_residual: is absent: the package speculators takes false, vLLM true" in said


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"hidden_size": 24}, "reads hidden states of width 16, and the target's are 24 wide"),
        ({"vocab_size": 41}, "its vocab_size is 40, and the target has 41 tokens"),
        ({"num_hidden_layers": 5}, r"reads the inputs of layers \[1, 4, 6\], and the target has 5 layers"),
    ],
)
def test_a_head_of_another_target_is_refused(fields: dict[str, int], sentence: str, tmp_path: Path) -> None:
    head = read_published_head(save_head(tmp_path, SPECULATORS_CONFIG, eagle3_weights("layers.0")))
    target = LlamaConfig(**{**TARGET.to_dict(), **fields})

    with pytest.raises(IncompatibleDraftError, match=sentence):
        check_against(head, target)


def test_a_head_of_another_width_needs_its_own_embedding(tmp_path: Path) -> None:
    weights = eagle3_weights("layers.0")
    weights["fc.weight"] = torch.randn(HIDDEN, 3 * 32)
    config = {**SPECULATORS_CONFIG, "target_hidden_size": 32}
    wide = LlamaConfig(**{**TARGET.to_dict(), "hidden_size": 32})

    head = read_published_head(save_head(tmp_path, config, weights))
    with pytest.raises(IncompatibleDraftError, match=r"16 wide and has no embed_tokens\.weight"):
        check_against(head, wide)

    weights["embed_tokens.weight"] = torch.randn(VOCABULARY, HIDDEN)
    check_against(read_published_head(save_head(tmp_path, config, weights)), wide)
