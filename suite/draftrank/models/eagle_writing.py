"""EAGLE heads written as other programs open them: vLLM, SGLang (SpecForge) and the package `speculators`.

What is written is read back by `eagle_layouts`. A head that a program would compute otherwise is refused.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from draftrank.errors import BuildError
from draftrank.models.eagle_head import STATES, PublishedHead
from draftrank.models.eagle_layouts import AUX_LAYERS, CONFIG
from draftrank.models.eagle_vocabulary import maps_of

HeadLayout = Literal["vllm", "sglang", "speculators"]
WEIGHTS = "model.safetensors"
_ARCHITECTURES = {
    ("eagle3", "vllm"): "LlamaForCausalLMEagle3",
    ("eagle3", "sglang"): "LlamaForCausalLMEagle3",
    ("eagle3", "speculators"): "Eagle3Speculator",
    ("eagle", "vllm"): "EagleLlamaForCausalLM",
    ("eagle", "sglang"): "LlamaForCausalLMEagle",
}
_O_BIAS = "layer.self_attn.o_proj.bias"


def write_published_head(
    head: PublishedHead,
    layout: HeadLayout,
    folder: Path,
    *,
    target: str = "",
    target_architectures: Sequence[str] = (),
    speculative_tokens: int = 3,
) -> list[Path]:
    """Writes `config.json` and `model.safetensors`; returns them.

    Args:
        head: the head.
        layout: who shall open it. vLLM and SGLang read the names of the original EAGLE repositories.
        folder: where to write; made if it is not there.
        target: the target as `speculators` finds it, a repository or a folder; that layout alone names it.
        target_architectures: `architectures` of its configuration, for the same layout.
        speculative_tokens: the number of draft tokens per step that this layout recommends.

    Raises:
        BuildError: the program has no such head, or would compute it otherwise.
    """
    _require_expressible(head, layout)
    weights = _stored(head, layout)
    if layout == "speculators":
        config = _speculators_config(head, target, target_architectures, speculative_tokens)
    else:
        config = _llama_config(head, layout, biased="fc.bias" in weights)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
    _save(weights, folder / WEIGHTS)
    return [folder / CONFIG, folder / WEIGHTS]


def _require_expressible(head: PublishedHead, layout: HeadLayout) -> None:
    eagle3 = head.architecture == "eagle3"
    if layout == "speculators" and not eagle3:
        raise BuildError(
            "the package speculators has EAGLE-3 heads only (as of 0.9): write this one for vLLM or SGLang"
        )
    if layout == "sglang" and eagle3:
        if head.norm_before_residual:
            raise BuildError(
                "SGLang begins the residual of an EAGLE-3 head before its norm, and this head after it"
            )
        if head.config["attention_bias"]:
            raise BuildError("SGLang's EAGLE-3 heads have no biases in the attention, and this head has")
        if head.aux_layers is not None and len(head.aux_layers) != STATES:
            raise BuildError(
                f"SGLang's EAGLE-3 heads read {STATES} hidden states, and this head {len(head.aux_layers)}"
            )
    if layout == "speculators" and head.target_hidden_size != head.config["hidden_size"]:
        raise BuildError(
            f"heads of the package speculators are as wide as their target, and this head is {head.config['hidden_size']} "
            f"wide for a target of {head.target_hidden_size}"
        )
    bias = head.tensors.get("fc.bias")
    if layout != "sglang" and bias is not None and bool(bias.any()):
        raise BuildError(
            f"fc has a bias in this head, and none in {'vLLM' if layout == 'vllm' else 'speculators'}"
        )


def _stored(head: PublishedHead, layout: HeadLayout) -> dict[str, Tensor]:
    """Weights and maps by the names that the program knows."""
    hidden = head.config["hidden_size"]
    weights = dict(head.tensors)
    if layout != "sglang":
        weights.pop("fc.bias", None)
    elif head.architecture == "eagle":
        # SGLang's fusion has a bias always, at random where the file has none.
        weights.setdefault("fc.bias", torch.zeros(hidden, dtype=weights["fc.weight"].dtype))
    if head.config["attention_bias"]:
        # Llama's layer has this bias whenever it has the others.
        weights.setdefault(_O_BIAS, torch.zeros(hidden, dtype=weights["fc.weight"].dtype))
    layer = "midlayer." if head.architecture == "eagle3" and layout != "speculators" else "layers.0."
    renamed = {
        layer + name.removeprefix("layer.") if name.startswith("layer.") else name: tensor
        for name, tensor in weights.items()
    }
    if head.token_ids is None:
        return renamed
    return renamed | maps_of(head.token_ids, head.config["vocab_size"])


def _llama_config(head: PublishedHead, layout: HeadLayout, *, biased: bool) -> dict[str, Any]:
    """One that vLLM, SGLang and llama.cpp's converter read alike, with RoPE in the fields that all of them know."""
    rope = {key: value for key, value in head.config["rope_parameters"].items() if key != "rope_theta"}
    config = {
        **{key: value for key, value in head.config.items() if key != "rope_parameters"},
        "architectures": [_ARCHITECTURES[head.architecture, layout]],
        "model_type": "llama",
        "rope_theta": head.config["rope_parameters"]["rope_theta"],
        "rope_scaling": None if rope["rope_type"] == "default" else rope,
        "torch_dtype": _dtype(head),
        "bias": biased,
    }
    if head.target_hidden_size != head.config["hidden_size"]:
        config["target_hidden_size"] = head.target_hidden_size
    if head.architecture == "eagle":
        return config
    # Without a head of its own SGLang takes the target's where this is null.
    config["draft_vocab_size"] = head.said_tokens if "lm_head.weight" in head.tensors else None
    config["norm_before_residual"] = head.norm_before_residual
    if head.aux_layers is not None:
        config[AUX_LAYERS] = list(head.aux_layers)  # vLLM, llama.cpp
        config["eagle_config"] = {  # SGLang, which adds one
            "use_aux_hidden_state": True,
            AUX_LAYERS: [layer - 1 for layer in head.aux_layers],
        }
    return config


def _speculators_config(
    head: PublishedHead, target: str, architectures: Sequence[str], tokens: int
) -> dict[str, Any]:
    return {
        "architectures": [_ARCHITECTURES["eagle3", "speculators"]],
        "speculators_model_type": "eagle3",
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": tokens}],
            "verifier": {"name_or_path": target or None, "architectures": list(architectures)},
        },
        "draft_vocab_size": head.said_tokens,
        "norm_before_residual": head.norm_before_residual,
        "norm_before_fc": False,
        "fc_norm": False,
        "norm_output": False,
        AUX_LAYERS: None if head.aux_layers is None else list(head.aux_layers),
        "torch_dtype": _dtype(head),
        "transformer_layer_config": {
            **head.config,
            "model_type": "llama",
            "rope_theta": head.config["rope_parameters"]["rope_theta"],
        },
    }


def _dtype(head: PublishedHead) -> str:
    return str(head.tensors["fc.weight"].dtype).removeprefix("torch.")


def _save(weights: dict[str, Tensor], file: Path) -> None:
    from safetensors.torch import save_file

    apart = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}
    save_file(apart, file, metadata={"format": "pt"})
