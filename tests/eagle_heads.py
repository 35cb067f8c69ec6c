"""Tiny EAGLE heads as other programs publish them, and what they compute by their papers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY = 16, 24, 4, 2, 6, 40
IDS = torch.tensor([0, 1, 3, 4, 9, 17, 18, 30, 31, 39])
EAGLE3_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLMEagle3"],
    "attention_bias": False,
    "bos_token_id": 1,
    "draft_vocab_size": len(IDS),
    "head_dim": HEAD_DIM,
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "max_position_embeddings": 64,
    "model_type": "llama",
    "num_attention_heads": HEADS,
    "num_hidden_layers": 1,
    "num_key_value_heads": KV_HEADS,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 500_000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "vocab_size": VOCABULARY,
}
"""As SpecForge writes it."""
EAGLE_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "bias": True,
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "max_position_embeddings": 64,
    "model_type": "llama",
    "num_attention_heads": HEADS,
    "num_hidden_layers": 1,
    "num_key_value_heads": KV_HEADS,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "vocab_size": VOCABULARY,
}
"""As the first EAGLE's repositories have it: no head_dim, no RoPE base."""


def eagle3_weights(
    layer: str = "midlayer", *, prefix: str = "", seed: int = 0, states: int = 3
) -> dict[str, Tensor]:
    """Random weights of an EAGLE-3 head by its stored names, with both maps."""
    made = _layer(f"{prefix}{layer}", 2 * HIDDEN, HEAD_DIM, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    difference = IDS - torch.arange(len(IDS))
    marked = torch.zeros(VOCABULARY, dtype=torch.bool)
    marked[IDS] = True
    return {
        **made,
        f"{prefix}{layer}.input_layernorm.weight": _around_one(generator),
        f"{prefix}{layer}.hidden_norm.weight": _around_one(generator),
        f"{prefix}fc.weight": _matrix(generator, HIDDEN, states * HIDDEN),
        f"{prefix}norm.weight": _around_one(generator),
        "lm_head.weight": _matrix(generator, len(IDS), HIDDEN),
        "d2t": difference,
        "t2d": marked,
    }


def eagle_weights(layer: str = "layers.0", *, bias: bool = True, seed: int = 0) -> dict[str, Tensor]:
    """Random weights of a first EAGLE's head by its stored names."""
    generator = torch.Generator().manual_seed(seed + 1)
    made = {
        **_layer(layer, HIDDEN, HIDDEN // HEADS, seed),
        "fc.weight": _matrix(generator, HIDDEN, 2 * HIDDEN),
        "embed_tokens.weight": _matrix(generator, VOCABULARY, HIDDEN),
    }
    return {**made, "fc.bias": torch.randn(HIDDEN, generator=generator)} if bias else made


def save_head(folder: Path, config: dict[str, Any], weights: dict[str, Tensor]) -> Path:
    """Writes a folder as it is published; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    save_file(
        {name: tensor.contiguous().clone() for name, tensor in weights.items()}, folder / "model.safetensors"
    )
    return folder


def eagle3_forward(
    weights: dict[str, Tensor],
    config: dict[str, Any],
    embedded: Tensor,
    states: Tensor,
    *,
    norm_before_residual: bool = False,
) -> tuple[Tensor, Tensor]:
    """An EAGLE-3 head by its paper: state before the last norm, and logits of its own vocabulary.

    Args:
        weights: by canonical name, float64.
        config: fields of a Llama layer, RoPE without scaling.
        embedded: [tokens, hidden], of the tokens one ahead of the states.
        states: [tokens, 3 · hidden] of the target.
        norm_before_residual: where the residual begins.
    """
    fused = states @ weights["fc.weight"].T + weights.get("fc.bias", torch.zeros(1))
    normed = _rms(fused, weights["layer.hidden_norm.weight"], config)
    read = torch.cat([_rms(embedded, weights["layer.input_layernorm.weight"], config), normed], -1)
    state = _layer_forward(weights, config, read, normed if norm_before_residual else fused)
    return state, _rms(state, weights["norm.weight"], config) @ weights["lm_head.weight"].T


def _layer_forward(
    weights: dict[str, Tensor], config: dict[str, Any], read: Tensor, residual: Tensor
) -> Tensor:
    """One Llama layer after its first norm: [tokens, inputs] to [tokens, hidden]."""
    size, heads, pairs = config["head_dim"], config["num_attention_heads"], config["num_key_value_heads"]

    def projected(part: str, states: Tensor) -> Tensor:
        name = f"layer.self_attn.{part}_proj"
        return states @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", torch.zeros(1))

    queries = _rotated(projected("q", read).unflatten(-1, (heads, size)), config)
    keys = _rotated(projected("k", read).unflatten(-1, (pairs, size)), config)
    values = projected("v", read).unflatten(-1, (pairs, size))
    attended = torch.empty_like(queries)
    for head in range(heads):
        group = head * pairs // heads
        for token in range(len(read)):
            scores = keys[: token + 1, group] @ queries[token, head] / size**0.5
            attended[token, head] = scores.softmax(0) @ values[: token + 1, group]
    state = residual + projected("o", attended.flatten(1))
    normed = _rms(state, weights["layer.post_attention_layernorm.weight"], config)
    gate = functional.silu(normed @ weights["layer.mlp.gate_proj.weight"].T)
    inner = gate * (normed @ weights["layer.mlp.up_proj.weight"].T)
    return state + inner @ weights["layer.mlp.down_proj.weight"].T


def _rotated(channels: Tensor, config: dict[str, Any]) -> Tensor:
    """[tokens, heads, size] rotated by each token's position, counted from 0."""
    half = channels.shape[-1] // 2
    base = config["rope_parameters"]["rope_theta"]
    frequencies = base ** -(torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(len(channels), dtype=torch.float64)[:, None, None] * frequencies
    first, second = channels[..., :half], channels[..., half:]
    cosine, sine = angles.cos(), angles.sin()
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)


def _rms(states: Tensor, weight: Tensor, config: dict[str, Any]) -> Tensor:
    return weight * states / (states.pow(2).mean(-1, keepdim=True) + config["rms_norm_eps"]).sqrt()


def _layer(name: str, inputs: int, size: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "self_attn.q_proj": (HEADS * size, inputs),
        "self_attn.k_proj": (KV_HEADS * size, inputs),
        "self_attn.v_proj": (KV_HEADS * size, inputs),
        "self_attn.o_proj": (HIDDEN, HEADS * size),
        "mlp.gate_proj": (INNER, HIDDEN),
        "mlp.up_proj": (INNER, HIDDEN),
        "mlp.down_proj": (HIDDEN, INNER),
    }
    made = {f"{name}.{part}.weight": _matrix(generator, *shape) for part, shape in shapes.items()}
    return {**made, f"{name}.post_attention_layernorm.weight": _around_one(generator)}


def _matrix(generator: torch.Generator, rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=generator) / columns**0.5


def _around_one(generator: torch.Generator) -> Tensor:
    return 1.0 + 0.3 * torch.randn(HIDDEN, generator=generator)
