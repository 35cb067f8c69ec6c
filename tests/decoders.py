"""Random models of the families that hand-written kernels know, with everything that distinguishes a family at work."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SLIDING, FULL = "sliding_attention", "full_attention"


def _of_layers(layers: int) -> dict[str, dict]:
    """What is different from transformers' defaults, by family."""
    some_slide = {
        "sliding_window": 8,
        "layer_types": [FULL if i % 3 == 2 else SLIDING for i in range(layers)],
    }
    capped = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
    return {
        "llama": {},
        "gemma3": {"head_dim": 8, "num_key_value_heads": 1, **some_slide},
        "mistral": {"sliding_window": 8},
        "qwen2": {**some_slide, "use_sliding_window": True},
        "qwen3": {"head_dim": 8, "attention_bias": True},
        "gemma": {"head_dim": 8},
        "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 8, **some_slide, **capped},
        "phi3": {
            "original_max_position_embeddings": 128,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.5,
                "short_factor": [1.0, 1.5],
                "long_factor": [2.0, 4.0],
            },
        },
        "granite": {
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.2,
            "residual_multiplier": 0.6,
            "logits_scaling": 1.5,
            "attention_bias": True,
            "mlp_bias": True,
        },
        "olmo2": {},
        "smollm3": {
            "no_rope_layers": [int(i % 3 != 1) for i in range(layers)],
            "use_sliding_window": True,
            "sliding_window": 8,
            "attention_bias": True,
        },
    }


FAMILIES = tuple(_of_layers(0))


def decoder(
    name: str, *, seed: int = 0, layers: int = 3, window: int = 256, **others: object
) -> PreTrainedModel:
    """A model of 61 tokens, fp32, whose norms and biases are random as well; `others` are settings of its configuration."""
    torch.manual_seed(seed)
    settings = {
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": window,
        "initializer_range": 0.3,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        **_of_layers(layers)[name],
        **others,
    }
    config = CONFIG_MAPPING["gemma3_text" if name == "gemma3" else name](**settings)
    made = AutoModelForCausalLM.from_config(config)
    chance = torch.Generator().manual_seed(seed)
    for parameter in made.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=chance)
    return made.eval().requires_grad_(False)
