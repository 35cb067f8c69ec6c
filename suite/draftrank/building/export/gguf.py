"""Writes a draft as GGUF, for llama.cpp and what is built on it.

The tokens and the chat template are copied word for word from the file that the target came from, so that llama.cpp
finds the two vocabularies equal. Everything that says how the model computes is the draft's own: see `gguf_config`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from draftrank.errors import BuildError
from draftrank.models.gguf_config import ROPE_FREQS, rotary_divisors, statements_of
from draftrank.models.gguf_format import GgufWeights
from draftrank.models.quiet import quiet_gguf

if TYPE_CHECKING:
    from gguf import GGUFReader
    from transformers import PretrainedConfig, PreTrainedModel

_LAYER = re.compile(r"^model\.layers\.(\d+)\.(.+)\.weight$")
_PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
}
_NORMS = {
    "llama": {"post_attention_layernorm": "ffn_norm"},
    "gemma3": {
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    },
}
_OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def write_gguf(
    model: PreTrainedModel, target_file: Path, name: str, final: Path, weights: GgufWeights = "f16"
) -> None:
    """Writes matrices in one type, norms as float32.

    Args:
        model: an ordinary draft of the target's architecture.
        target_file: the GGUF file that the target came from.
        name: what the file calls the model.
        final: where to write.
        weights: type of the matrices; one whose rows are no multiple of its blocks is written as float16.

    Raises:
        BuildError: llama.cpp has no such model, or this architecture is not written yet.
    """
    from gguf import GGUFReader

    with quiet_gguf():
        source = GGUFReader(target_file)
        architecture = _architecture_of(source)
        stated = statements_of(model.config, architecture)
        with written_file(final, architecture, name, source, stated, rotary_divisors(model.config)) as writer:
            tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
            for key, tensor in model.state_dict().items():
                if not (tied and key == "lm_head.weight"):
                    array = as_written(key, tensor, model.config, architecture)
                    add_matrix(writer, _tensor_name(key, architecture), array, weights)


def require_written(model: PreTrainedModel, target_file: Path) -> None:
    """Refuses what `write_gguf` cannot write.

    Raises:
        BuildError: see there.
    """
    from gguf import GGUFReader

    with quiet_gguf():
        architecture = _architecture_of(GGUFReader(target_file))
    statements_of(model.config, architecture)
    for key in model.state_dict():
        _tensor_name(key, architecture)


def _architecture_of(source: GGUFReader) -> str:
    architecture = str(source.fields["general.architecture"].contents())
    if architecture not in _NORMS:
        raise BuildError(f"GGUF files of the architecture {architecture} are not written yet")
    return architecture


@contextmanager
def written_file(
    final: Path,
    architecture: str,
    name: str,
    source: GGUFReader,
    stated: Mapping[str, int | float | str],
    divisors: np.ndarray[Any, Any] | None,
) -> Iterator[Any]:
    """A `GGUFWriter` that is told what comes before the weights, and writes the file in the end.

    Args:
        final: where to write.
        architecture: as llama.cpp names it.
        name: what the file calls the model.
        source: a file of the target, of which all is copied that it says of its tokenizer.
        stated: see `statements_of`.
        divisors: see `rotary_divisors`.
    """
    from gguf import GGUFValueType, GGUFWriter

    writer = GGUFWriter(final, architecture)
    writer.add_name(name)
    for key, field in source.fields.items():
        if key.startswith("tokenizer."):
            kinds = field.types
            inner = kinds[1] if kinds[0] is GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), kinds[0], sub_type=inner)
    add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for key, value in stated.items():
        add[type(value)](f"{architecture}.{key}", value)
    if divisors is not None:
        writer.add_tensor(ROPE_FREQS, divisors)
    yield writer
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensor_name(key: str, architecture: str) -> str:
    if key in _OUTER:
        return _OUTER[key]
    found = _LAYER.match(key)
    part = found and ({**_PARTS, **_NORMS[architecture]}).get(found[2])
    if not found or not part:
        raise BuildError(f"GGUF has no place for the weights {key}")
    return f"blk.{found[1]}.{part}.weight"


def add_matrix(writer: Any, name: str, array: np.ndarray[Any, Any], weights: GgufWeights) -> None:
    """Adds float32 weights: matrices in the type asked for, or float16 where its blocks do not fit; vectors as they are."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import quantize

    kind = GGMLQuantizationType[weights.upper()]
    if array.ndim > 1 and array.shape[-1] % GGML_QUANT_SIZES[kind][0]:
        kind = GGMLQuantizationType.F16
    if array.ndim == 1 or kind is GGMLQuantizationType.F32:
        writer.add_tensor(name, array)
    elif kind is GGMLQuantizationType.F16:
        writer.add_tensor(name, array.astype(np.float16))
    else:
        writer.add_tensor(name, quantize(array, kind), raw_dtype=kind)


def as_written(
    key: str, tensor: torch.Tensor, config: PretrainedConfig, architecture: str
) -> np.ndarray[Any, Any]:
    """The float32 numbers of a weight, given by its name in transformers' model, as llama.cpp expects them: it rotates
    neighbouring channels of a head of queries or keys, transformers those half a head apart."""
    values = tensor.detach().float().cpu()
    if values.ndim == 1:
        return (values + 1.0 if architecture == "gemma3" else values).numpy()
    if architecture == "llama" and key.endswith(("q_proj.weight", "k_proj.weight")):
        heads = config.num_attention_heads if "q_proj" in key else config.num_key_value_heads
        outputs, inputs = values.shape
        halves = values.view(heads, 2, outputs // heads // 2, inputs)
        values = halves.transpose(1, 2).reshape(outputs, inputs).contiguous()
    return values.numpy()
