"""Settings of tiny models of decoder families, by `model_type`; see `models.small_model`.

A name may have a suffix after a dash for another variant of one family.
"""

from __future__ import annotations

from typing import Any

_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_ROUTED = {**_EXPERTS, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
_LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_LATENT = {
    "kv_lora_rank": 8,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
_TWO_SLIDE = {
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
}
_MAMBA2 = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
}
_LINEAR_AND_FULL = {"layer_types": ["linear_attention", "linear_attention", "full_attention"]}
_LINEAR_HEADS = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_INDEXED = {"index_topk": 8, "index_head_dim": 16, "index_n_heads": 16}
_SLIDING = {"head_dim": 8, "sliding_window": 8}
_SHARED_EXPERT = {**_EXPERTS, "shared_expert_intermediate_size": 24}
_FEW_ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_GEMMA4 = {**_TWO_SLIDE, "head_dim": 8, "global_head_dim": 8, "num_kv_shared_layers": 0}

FAMILIES: dict[str, dict[str, Any]] = {
    "cohere": {},
    "cohere2": _TWO_SLIDE,
    "deepseek_v3": {
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
    "gpt_oss": {"sliding_window": 8, "head_dim": 8, **_LOCAL_EXPERTS},
    "gptj": {"rotary_dim": 4},
    "granite": {},
    "mistral": {"sliding_window": 8},
    "mixtral": {"sliding_window": 8, **_LOCAL_EXPERTS},
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
READS_NO_TREES: dict[str, dict[str, Any]] = {
    "bloom": {},
    "falcon-alibi": {"alibi": True},
    "gpt_neo": {"window_size": 8, "attention_types": [[["global", "local", "local"], 1]]},
    "llama4_text": {
        "head_dim": 8,
        "intermediate_size_mlp": 48,
        "attention_chunk_size": 16,
        "layer_types": ["chunked_attention", "chunked_attention", "full_attention"],
        **_LOCAL_EXPERTS,
    },
    "mpt": {},
}
"""The same of those whose layers cannot be told where a token stands in a tree."""
WITH_STATE: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [2], **_MAMBA2},
    "deepseek_v32": {
        "moe_intermediate_size": 24,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        **_INDEXED,
        **_LATENT,
    },
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
        **_LOCAL_EXPERTS,
    },
    "jamba": {
        "attn_layer_period": 3,
        "attn_layer_offset": 2,
        "num_experts": 4,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
    },
    "lfm2": {"layer_types": ["conv", "conv", "full_attention"]},
    "mamba": {"state_size": 8, "time_step_rank": 4},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 2, "expand": 2, "chunk_size": 16},
    "qwen3_next": {
        **_LINEAR_AND_FULL,
        **_LINEAR_HEADS,
        "head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 24,
    },
}
"""The same of those whose layers keep a state from which no token can be taken back."""
NOT_SUPPORTED: dict[str, dict[str, Any]] = {
    "minimax": {
        "head_dim": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "block_size": 16,
        **_LINEAR_AND_FULL,
    },
    "recurrent_gemma": {"lru_width": 32, "attention_window_size": 8},
    "rwkv": {},
    "xlstm": {"num_heads": 4, "qk_dim_factor": 0.5, "v_dim_factor": 1.0},
}
"""The same of those that keep their state outside of a cache."""
MORE_FAMILIES: dict[str, dict[str, Any]] = {
    "afmoe": {**_ROUTED, "head_dim": 8, "num_dense_layers": 1, "num_shared_experts": 1, "sliding_window": 8},
    "apertus": {},
    "arcee": {},
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
    "falcon_mamba": {"state_size": 8},
    "flex_olmo": {**_EXPERTS},
    "gemma": {"head_dim": 8},
    "glm": {"head_dim": 8},
    "glm4_moe": {**_ROUTED, "head_dim": 8},
    "gpt_bigcode": {"n_inner": 48},
    "granitemoe": {**_LOCAL_EXPERTS},
    "granitemoeshared": {**_LOCAL_EXPERTS, "shared_intermediate_size": 24},
    "helium": {"head_dim": 8},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8, "num_experts": 4, "moe_topk": 2},
    "jais2": {"head_dim": 8},
    "jetmoe": {"kv_channels": 8, **_LOCAL_EXPERTS},
    "minimax_m2": {"head_dim": 8, **_LOCAL_EXPERTS},
    "ministral": {"head_dim": 8, **_TWO_SLIDE},
    "ministral3": {"head_dim": 8},
    "nanochat": {},
    "nemotron": {"head_dim": 8},
    "olmo": {},
    "olmo3": _TWO_SLIDE,
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "persimmon": {},
    "phimoe": {**_LOCAL_EXPERTS},
    "qwen2_moe": {
        **_EXPERTS,
        "shared_expert_intermediate_size": 24,
        "decoder_sparse_step": 2,
    },
    "qwen3": {"head_dim": 8},
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
"""Families that only discovery and the table of architectures run."""
ON_THE_PAGE: dict[str, dict[str, Any]] = {
    "aria_text": {"head_dim": 8, "moe_num_experts": 4},
    "axk1": {**_ROUTED, **_LATENT},
    "axk2": {**_ROUTED, **_LATENT},
    "bailing_hybrid": {**_ROUTED, **_LATENT, **_LINEAR_AND_FULL, "head_dim": 8},
    "beam": {**_EXPERTS, **_SLIDING, "n_group": 1, "topk_group": 1},
    "cohere2_moe": {"num_experts": 4, **_SLIDING},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}},
    },
    "ctrl": {"dff": 48},
    "cwm": _SLIDING,
    "diffllama": {"head_dim": 8},
    "doge": {"num_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
    "dots3_note_text": {
        **_ROUTED,
        **_LATENT,
        **_INDEXED,
        "head_dim": 16,
        "sliding_window": 8,
        "shared_experts_intermediate_size": 24,
        **{f"swa_{name}": size for name, size in _LATENT.items()},
        "swa_num_attention_heads": 4,
        "swa_head_dim": 16,
    },
    "exaone_moe": {**_EXPERTS, "sliding_window": 8},
    "flint": {**_SHARED_EXPERT, **_SLIDING},
    "gemma3n_text": {
        **_TWO_SLIDE,
        "head_dim": 8,
        "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 262,
        "laurel_rank": 4,
        "altup_num_inputs": 2,
        "activation_sparsity_pattern": [0.0] * 3,
        "intermediate_size": [48] * 3,
    },
    "gemma4_text": {**_GEMMA4, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 262},
    "gemma4_unified_text": _GEMMA4,
    "glm4_moe_lite": {**_ROUTED, **_LATENT},
    "glm_moe_dsa": {**_ROUTED, **_LATENT, **_INDEXED},
    "gpt_neox_japanese": {},
    "granite_swa": {"sliding_window": 8},
    "granitemoe_swa": {"num_local_experts": 4, "sliding_window": 8},
    "hy_v3": {**_EXPERTS, "head_dim": 8},
    "hyperclovax": {"head_dim": 8},
    "internlm3": {"head_dim": 8},
    "iquestcoder": {"head_dim": 8},
    "kimi_linear": {
        **_LATENT,
        **_LINEAR_AND_FULL,
        **_LOCAL_EXPERTS,
        "moe_intermediate_size": 24,
        "linear_head_dim": 8,
        "linear_num_heads": 4,
    },
    "kolibri1": {**_SHARED_EXPERT, **_SLIDING},
    "laguna": {**_SHARED_EXPERT, **_SLIDING},
    "lfm2_moe": {**_EXPERTS, "layer_types": ["conv", "conv", "full_attention"], "num_dense_layers": 1},
    "lfm3": _SLIDING,
    "longcat_flash": {
        **_LATENT,
        "n_routed_experts": 4,
        "moe_topk": 2,
        "expert_ffn_hidden_size": 24,
        "ffn_hidden_size": 48,
        "zero_expert_num": 1,
        "head_dim": 8,
        "num_hidden_layers": 6,
    },
    "mellum": {**_EXPERTS, **_SLIDING},
    "mimo_v2_flash": {**_FEW_ROUTED, **_SLIDING, "v_head_dim": 8},
    "minicpm3": _LATENT,
    "nemotron_h": {
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "ssm_state_size": 8,
        "n_groups": 1,
        "chunk_size": 16,
        "head_dim": 8,
        "layers_block_type": ["mamba", "attention", "mlp"],
    },
    "olmo_hybrid": {**_LINEAR_AND_FULL, **_LINEAR_HEADS},
    "qwen3_5_text": {**_LINEAR_AND_FULL, **_LINEAR_HEADS, "head_dim": 8},
    "qwen3_5_moe_text": {**_LINEAR_AND_FULL, **_LINEAR_HEADS, **_SHARED_EXPERT, "head_dim": 8},
    "qwen4_exp_text": {
        **_LINEAR_AND_FULL,
        **_LINEAR_HEADS,
        **_SHARED_EXPERT,
        "head_dim": 8,
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
        "hc_count": 2,
        "hc_lowrank": 8,
    },
    "solar_open": {**_FEW_ROUTED, "head_dim": 8},
    "youtu": _LATENT,
}
"""Families that only the table of architectures runs."""
