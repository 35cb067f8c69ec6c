"""Writes an EAGLE-3 head as GGUF, for llama.cpp's `--spec-type draft-eagle3`.

Keys and names of tensors are those that llama.cpp reads for its architecture `eagle3` (as of build 11434). The
vocabulary is the target's; `d2t` holds the target's ids themselves, not their differences as elsewhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from draftrank.building.export.gguf import add_matrix, as_written, written_file
from draftrank.errors import BuildError
from draftrank.models.eagle_head import STATES, PublishedHead
from draftrank.models.gguf_config import rotary_divisors, statements_of
from draftrank.models.gguf_format import GgufWeights
from draftrank.models.quiet import quiet_gguf

_ARCHITECTURE = "eagle3"
_NAMES = {
    "embed_tokens": "token_embd",
    "fc": "fc",
    "layer.input_layernorm": "blk.0.attn_norm",
    "layer.hidden_norm": "blk.0.attn_norm_2",
    "layer.self_attn.q_proj": "blk.0.attn_q",
    "layer.self_attn.k_proj": "blk.0.attn_k",
    "layer.self_attn.v_proj": "blk.0.attn_v",
    "layer.self_attn.o_proj": "blk.0.attn_output",
    "layer.post_attention_layernorm": "blk.0.ffn_norm",
    "layer.mlp.gate_proj": "blk.0.ffn_gate",
    "layer.mlp.up_proj": "blk.0.ffn_up",
    "layer.mlp.down_proj": "blk.0.ffn_down",
    "norm": "output_norm",
    "lm_head": "output",
}


def write_eagle3_gguf(
    head: PublishedHead, target_file: Path, name: str, final: Path, weights: GgufWeights = "f16"
) -> None:
    """Writes an EAGLE-3 head, as `write_gguf` writes a draft; the target's file gives the vocabulary and the number of
    layers.

    Raises:
        BuildError: llama.cpp has no such head, or the target's file is another target's.
    """
    from gguf import GGMLQuantizationType, GGUFReader
    from transformers import LlamaConfig

    _require_expressible(head)
    config = LlamaConfig(**{**head.config, "num_hidden_layers": 1})
    with quiet_gguf():
        source = GGUFReader(target_file)
        of_target = str(source.fields["general.architecture"].contents())
        depth = int(source.fields[f"{of_target}.block_count"].contents())
        _require_target(head, source.fields, of_target, target_file)
        stated, divisors = statements_of(config, "llama"), rotary_divisors(config)
        with written_file(final, _ARCHITECTURE, name, source, stated, divisors) as writer:
            writer.add_array(f"{_ARCHITECTURE}.target_layers", list(head.layers_of(depth)))
            writer.add_uint32(f"{_ARCHITECTURE}.target_hidden_size", head.target_hidden_size)
            writer.add_bool(f"{_ARCHITECTURE}.norm_before_residual", head.norm_before_residual)
            for key, tensor in head.tensors.items():
                stem = key.removesuffix(".weight")
                if stem in _NAMES:  # others are biases of zeros
                    values = as_written(key, tensor, config, "llama")
                    add_matrix(writer, f"{_NAMES[stem]}.weight", values, weights)
            if head.token_ids is not None:
                ids = head.token_ids.cpu().numpy().astype(np.int64)
                writer.add_tensor("d2t", ids, raw_dtype=GGMLQuantizationType.I64)


def _require_expressible(head: PublishedHead) -> None:
    if head.architecture != "eagle3":
        raise BuildError("llama.cpp runs EAGLE-3 heads, and none of the first EAGLE")
    if any(key.endswith(".bias") and bool(tensor.any()) for key, tensor in head.tensors.items()):
        raise BuildError("llama.cpp's EAGLE-3 heads have no biases, and this head has")
    if head.aux_layers is not None and len(head.aux_layers) != STATES:
        raise BuildError(
            f"llama.cpp's EAGLE-3 heads read {STATES} hidden states, and this head {len(head.aux_layers)}"
        )


def _require_target(head: PublishedHead, fields: dict[str, Any], architecture: str, file: Path) -> None:
    width = int(fields[f"{architecture}.embedding_length"].contents())
    tokens = len(fields["tokenizer.ggml.tokens"].contents())
    if width != head.target_hidden_size:
        raise BuildError(
            f"{file.name} is a target {width} wide, and the head reads states of {head.target_hidden_size}"
        )
    if tokens != head.config["vocab_size"]:
        raise BuildError(
            f"{file.name} has {tokens} tokens, and the head's target {head.config['vocab_size']}"
        )
