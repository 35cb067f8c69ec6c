"""Small random models of the real architectures, and a runtime that can be inspected exactly."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from families import MORE_FAMILIES

SPECIAL = ("<|pad|>", "<|im_start|>", "<|im_end|>")
ARCHITECTURES = ("llama", "gemma3", "gpt2")
"""Those that can be cut by layer."""
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_LATENT = {
    "kv_lora_rank": 8,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
_TWO_SLIDE = {
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
}
FAMILIES: dict[str, dict] = {
    "cohere": {},
    "cohere2": _TWO_SLIDE,
    "deepseek_v3": {
        "num_key_value_heads": 4,
        "moe_intermediate_size": 24,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        **_LATENT,
    },
    "falcon": {"alibi": False},
    "gemma2": {"sliding_window": 8, "head_dim": 8, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8},
    "glm4": {"head_dim": 8},
    "gpt_neox": {},
    "gpt_oss": {"sliding_window": 8, "head_dim": 8, **_EXPERTS},
    "gptj": {"rotary_dim": 4},
    "granite": {},
    "mistral": {"sliding_window": 8},
    "mixtral": {"sliding_window": 8, **_EXPERTS},
    "olmo2": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.3},
    "phi": {},
    "phi3": {"sliding_window": 8},
    "qwen2": {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1},
    "qwen3_moe": {
        "sliding_window": 8,
        "use_sliding_window": True,
        "head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
    },
    "smollm3": {},
    "starcoder2": {"sliding_window": 8},
}
"""Settings of other architectures, by `model_type`."""
READS_NO_TREES: dict[str, dict] = {
    "bloom": {},
    "falcon-alibi": {"alibi": True},
    "gpt_neo": {"window_size": 8, "attention_types": [[["global", "local", "local"], 1]]},
    "llama4_text": {
        "head_dim": 8,
        "intermediate_size_mlp": 48,
        "attention_chunk_size": 16,
        "layer_types": ["chunked_attention", "chunked_attention", "full_attention"],
        **_EXPERTS,
    },
    "mpt": {},
}
"""The same of those whose layers cannot be told where a token stands in a tree."""
_MAMBA2 = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
}
_LINEAR_AND_FULL = {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
WITH_STATE: dict[str, dict] = {
    "bamba": {"attn_layer_indices": [1], **_MAMBA2},
    "deepseek_v4": {
        "head_dim": 16,
        "qk_rope_head_dim": 8,
        "q_lora_rank": 16,
        "sliding_window": 8,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
    },
    "falcon_h1": {**_MAMBA2, "mamba_d_ssm": 64, "head_dim": 8},
    "granitemoehybrid": {
        **_LINEAR_AND_FULL,
        **_MAMBA2,
        "shared_intermediate_size": 24,
        **_EXPERTS,
    },
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "num_experts": 4,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
    },
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"]},
    "mamba": {"state_size": 8, "time_step_rank": 4},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 2, "expand": 2, "chunk_size": 16},
    "qwen3_next": {
        **_LINEAR_AND_FULL,
        "head_dim": 8,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 24,
    },
}
"""The same of those whose layers keep a state from which no token can be taken back."""
NOT_SUPPORTED: dict[str, dict] = {
    "recurrent_gemma": {"lru_width": 32, "attention_window_size": 8},
    "rwkv": {},
    "xlstm": {"num_heads": 4, "qk_dim_factor": 0.5, "v_dim_factor": 1.0},
}
"""The same of those that keep their state outside of a cache."""
_OTHERS = {**MORE_FAMILIES, **FAMILIES, **READS_NO_TREES, **WITH_STATE, **NOT_SUPPORTED}
EVERY_FAMILY = (*ARCHITECTURES, *_OTHERS)
"""All of which `small_model` makes a model."""


def small_model(
    architecture: str, *, seed: int = 0, layers: int = 3, vocabulary: int = 61, window: int = 256
) -> PreTrainedModel:
    """A random model, fp32, with weights large enough that its output is not degenerate."""
    torch.manual_seed(seed)
    common = {"vocab_size": vocabulary, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if architecture == "llama":
        model: PreTrainedModel = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=layers,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=window,
                initializer_range=0.3,
                **common,
            )
        )
    elif architecture == "gemma3":
        model = Gemma3ForCausalLM(
            Gemma3TextConfig(
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=layers,
                num_attention_heads=4,
                num_key_value_heads=1,
                head_dim=8,
                max_position_embeddings=window,
                sliding_window=8,
                layer_types=["full_attention" if i % 3 == 2 else "sliding_attention" for i in range(layers)],
                initializer_range=0.3,
                **common,
            )
        )
    elif architecture in _OTHERS:
        family = CONFIG_MAPPING[architecture.split("-")[0]]
        shape = {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": window,
            "max_seq_len": window,
            "initializer_range": 0.3,
        }
        # Names that a family does not have would be kept in its configuration.
        renamed = {family.attribute_map.get(name, name): value for name, value in shape.items()}
        known = {name: value for name, value in renamed.items() if hasattr(family, name)}
        model = AutoModelForCausalLM.from_config(family(**{**common, **known, **_OTHERS[architecture]}))
    else:
        model = GPT2LMHeadModel(
            GPT2Config(
                n_embd=32, n_layer=layers, n_head=4, n_positions=window, initializer_range=0.3, **common
            )
        )
    return model.eval().requires_grad_(False)


def small_tokenizer(template: str | None = None) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with a few merges; `template` is its chat template, if any."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *letters))}
    for left, right in [("a", "b"), ("Ġ", "a"), ("ab", "ab")]:  # so that text can be split in several ways
        vocabulary[left + right] = len(vocabulary)
    merges = [("a", "b"), ("Ġ", "a"), ("ab", "ab")]
    backend = Tokenizer(tokenizer_models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=SPECIAL[0], bos_token=SPECIAL[1], eos_token=SPECIAL[2]
    )
    tokenizer.chat_template = template
    return tokenizer


def save_small_target(folder: Path, architecture: str = "llama", **shape: int) -> Path:
    """A random model with its tokenizer in the hub's layout."""
    tokenizer = small_tokenizer()
    model = small_model(architecture, vocabulary=len(tokenizer), **shape)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
