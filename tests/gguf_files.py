"""Small GGUF files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel

VOCABULARY = 70


def small_gguf_model(architecture: str, layers: int, *, seed: int = 3, **more: Any) -> PreTrainedModel:
    """A random model of a shape that GGUF can express."""
    torch.manual_seed(seed)
    shape = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
        **more,
    }
    if architecture == "llama":
        model: PreTrainedModel = LlamaForCausalLM(LlamaConfig(**shape))
    else:
        kinds = ["full_attention" if (i + 1) % 6 == 0 else "sliding_attention" for i in range(layers)]
        shape = {
            "layer_types": kinds,
            "sliding_window": 8,
            "query_pre_attn_scalar": shape["head_dim"],
            **shape,
        }
        model = Gemma3ForCausalLM(Gemma3TextConfig(**shape))
    return model.eval().requires_grad_(False)


def llama3_divisors(size: int, base: float, factor: float, original: int) -> np.ndarray[Any, Any]:
    """What the released code of Llama 3.1 divides the frequencies of heads of a size by, float32 [size / 2]; between waves
    of a quarter and of the whole of the original context it goes over from 1 to the factor."""
    frequencies = base ** -(np.arange(0, size, 2) / size)
    smooth = np.clip((original * frequencies / (2 * np.pi) - 1) / 3, 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def write_target_file(path: Path, architecture: str, layers: int) -> Path:
    """The description that a target's GGUF file holds, without its weights."""
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in {
        "context_length": 128,
        "embedding_length": 64,
        "feed_forward_length": 96,
        "block_count": layers,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "vocab_size": VOCABULARY,
    }.items():
        writer.add_uint32(f"{architecture}.{name}", value)
    if architecture == "gemma3":
        writer.add_uint32("gemma3.attention.sliding_window", 8)
    writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", 1e-6)
    writer.add_float32(
        f"{architecture}.rope.freq_base", 1_000_000.0 if architecture == "gemma3" else 10_000.0
    )
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([f"t{number}" for number in range(VOCABULARY)])
    writer.add_token_types([1] * VOCABULARY)
    writer.add_token_merges(["t 1"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_llama_file(
    path: Path,
    model: PreTrainedModel,
    tokenizer: Any,
    *,
    stated: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray[Any, Any]] | None = None,
    without: str | None = None,
    kinds: Sequence[gguf.GGMLQuantizationType] = (),
) -> None:
    """A Llama model as llama.cpp would write it: its names, its order of rotary dimensions.

    Args:
        path: where to write.
        model: the model; what its configuration says of RoPE is not written.
        tokenizer: its tokenizer.
        stated: more keys, without the architecture's name.
        tensors: more tensors.
        without: the name of a tensor to leave out.
        kinds: types of its matrices in turn, where their rows are whole blocks; else fp32.
    """
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, bool: writer.add_bool}
    for key, value in (stated or {}).items():
        add[type(value)](f"llama.{key}", value)
    for name, array in (tensors or {}).items():
        writer.add_tensor(name, array)
    writer.add_name("Tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = sorted(backend["model"]["vocab"], key=backend["model"]["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in vocabulary])
    writer.add_token_merges([" ".join(pair) for pair in backend["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_chat_template(tokenizer.chat_template)
    names = {
        "embed_tokens": "token_embd",
        "norm": "output_norm",
        "lm_head": "output",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    turns = cycle(kinds)

    def add_matrix(name: str, values: np.ndarray[Any, Any]) -> None:
        kind = next(turns, None)
        if values.ndim == 1 or kind is None or values.shape[1] % gguf.GGML_QUANT_SIZES[kind][0]:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    for name, tensor in model.state_dict().items():
        values = tensor.numpy().astype(np.float32)
        stem = name.removeprefix("model.").removesuffix(".weight")
        if stem.startswith("layers."):
            _, number, part = stem.split(".", 2)
            count = heads.get(part.rpartition(".")[2])
            if count is not None:
                values = values.reshape(count, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
            written = f"blk.{number}.{names[part]}.weight"
            if written != without:
                add_matrix(written, np.ascontiguousarray(values))
        else:
            add_matrix(f"{names[stem]}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
