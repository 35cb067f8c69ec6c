"""Settings of tiny models of further decoder families, by `model_type`; see `models.small_model`.

A name may have a suffix after a dash for another variant of one family.
"""

from __future__ import annotations

from typing import Any

_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_ROUTED = {**_EXPERTS, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
_LATENT = {
    "kv_lora_rank": 8,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
_MAMBA = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
}
_GATED_DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
_TWO_SLIDE = {
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
}

MORE_FAMILIES: dict[str, dict[str, Any]] = {
    "afmoe": {**_ROUTED, "head_dim": 8, "num_dense_layers": 1, "num_shared_experts": 1, "sliding_window": 8},
    "apertus": {},
    "arcee": {},
    "bamba": {**_MAMBA, "attn_layer_indices": [1]},
    "biogpt": {},
    "bitnet": {},
    "codegen": {"rotary_dim": 4, "n_ctx": 256},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 48, "hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {**_ROUTED, **_LATENT, "topk_method": "greedy"},
    "dots1": {**_ROUTED, "head_dim": 8, "n_shared_experts": 1, "layer_types": ["full_attention"] * 3},
    "ernie4_5": {"head_dim": 8},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 24},
    "exaone4": {"head_dim": 8, **_TWO_SLIDE},
    "falcon_h1": {**_MAMBA, "mamba_d_ssm": 64, "mamba_expand": 2},
    "falcon_mamba": {"state_size": 8},
    "flex_olmo": {**_EXPERTS},
    "gemma": {"head_dim": 8},
    "glm": {"head_dim": 8},
    "glm4_moe": {**_ROUTED, "head_dim": 8},
    "gpt_bigcode": {"n_inner": 48},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "granitemoehybrid": {
        **_MAMBA,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 24,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    },
    "granitemoeshared": {"num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 24},
    "helium": {"head_dim": 8},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8, "num_experts": 4, "moe_topk": 2},
    "jais2": {"head_dim": 8},
    "jamba": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "mamba_d_state": 8,
        "attn_layer_period": 3,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "use_mamba_kernels": False,
    },
    "jetmoe": {"kv_channels": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    "mamba": {"state_size": 8},
    "minimax": {
        "head_dim": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "block_size": 16,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    },
    "minimax_m2": {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    "ministral": {"head_dim": 8, **_TWO_SLIDE},
    "ministral3": {"head_dim": 8},
    "nanochat": {},
    "nemotron": {"head_dim": 8},
    "olmo": {},
    "olmo3": _TWO_SLIDE,
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "persimmon": {},
    "phimoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {
        **_EXPERTS,
        "shared_expert_intermediate_size": 24,
        "decoder_sparse_step": 2,
    },
    "qwen3": {"head_dim": 8},
    "qwen3_next": {**_EXPERTS, **_GATED_DELTA, "head_dim": 8, "shared_expert_intermediate_size": 24},
    "seed_oss": {"head_dim": 8},
    "stablelm": {},
    "vaultgemma": {"head_dim": 8, "query_pre_attn_scalar": 8, **_TWO_SLIDE},
    "xglm": {"ffn_dim": 48},
    "zamba2": {
        "mamba_d_state": 8,
        "mamba_ngroups": 1,
        "n_mamba_heads": 8,
        "chunk_size": 16,
        "mamba_headdim": 8,
        "adapter_rank": 4,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention"],
        "use_mamba_kernels": False,
        "num_key_value_heads": 4,
    },
}
"""Those that `models` does not name."""
