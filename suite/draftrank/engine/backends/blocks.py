"""Llama and Gemma 3 decoders as kernels of our own read them: what is computed, with which weights.

Every hand-written backend takes a model apart here and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from draftrank.models.architecture import Architecture
from draftrank.models.attention_windows import attention_windows, layer_kinds

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

SUPPORTED = ("llama", "gemma3_text")
"""Model types whose layers are known here."""
_STATIC_ROTATIONS = frozenset({"default", "linear", "llama3", "yarn"})
"""Kinds of rotary embedding that do not depend on how long the sequence is."""
_GELU = {"silu": False, "gelu_pytorch_tanh": True}
"""Activations that our kernels know, by the names of configurations: whether it is GELU."""


@dataclass(frozen=True, slots=True)
class Block:
    """The weights of one decoder layer. Norms are fp32 and multiply as they are; matrices are modules."""

    attention_norm: Tensor
    queries: nn.Module
    keys: nn.Module
    values: nn.Module
    attention_output: nn.Module
    query_norm: Tensor | None
    """RMS norm of each query head, where the architecture has one."""
    key_norm: Tensor | None
    attention_output_norm: Tensor | None
    """Gemma norms what attention and the feed-forward network give, too."""
    feed_forward_norm: Tensor
    gate: nn.Module
    up: nn.Module
    down: nn.Module
    feed_forward_output_norm: Tensor | None
    kind: str
    """Full or sliding attention, as the configuration names it."""

    @property
    def matrices(self) -> tuple[nn.Module, ...]:
        """All of them, in the order of the forward."""
        return (
            self.queries,
            self.keys,
            self.values,
            self.attention_output,
            self.gate,
            self.up,
            self.down,
        )


class DecoderShape:
    """A Llama or Gemma 3 decoder taken apart; see `fits`."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Reads the model's shape; `fits` says which models can be given."""
        self._shape = Architecture.of(model)
        self._model = model
        config = model.config.get_text_config()
        self._queries, self._kv_heads = int(config.num_attention_heads), int(config.num_key_value_heads)
        self._size = head_size(config)
        self._scale = float(getattr(config, "query_pre_attn_scalar", None) or self._size) ** -0.5
        self._eps = float(config.rms_norm_eps)
        self._windows = attention_windows(config)
        self._decoder = getattr(model, self._shape.decoder)
        self._norm = _norm_weight(self._shape, self._shape.norm(model))
        self._rotations: dict[str, tuple[Tensor, Tensor]] = {}

    @staticmethod
    def fits(model: PreTrainedModel) -> bool:
        """Whether this model's forward is known here, with every matrix as large as the configuration says."""
        config = model.config.get_text_config()
        return (
            config.model_type in SUPPORTED
            and _rotation_types(config) <= _STATIC_ROTATIONS
            and getattr(config, "attn_logit_softcapping", None) is None
            and not getattr(config, "use_bidirectional_attention", False)
            and _activation(model) in _GELU
            and _has_plain_layers(model)
        )

    def _blocks(self) -> list[Block]:
        return blocks_of(self._model)

    def _rotation_tables(self, kind: str, end: int) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines of at least the first `end` positions, fp32 [positions, 1, size]."""
        known = self._rotations.get(kind)
        if known is None or len(known[0]) < end:
            known = self._rotations[kind] = self._tables(kind, max(2 * end, 512))
        return known

    def _tables(self, kind: str, positions: int) -> tuple[Tensor, Tensor]:
        weight = self._shape.embedding(self._model).weight
        assert isinstance(weight, Tensor)
        numbers = torch.arange(positions, device=weight.device)[None]
        several = {} if self._shape.model_type == "llama" else {"layer_type": kind}
        cosine, sine = self._decoder.rotary_emb(weight[:1, None].float(), numbers, **several)
        half = self._size // 2
        signed = torch.cat([-sine[..., :half], sine[..., half:]], -1)
        return cosine[0][:, None].contiguous(), signed[0][:, None].contiguous()


def blocks_of(model: PreTrainedModel) -> list[Block]:
    """Every decoder layer of a model, in order."""
    shape = Architecture.of(model)
    layers = shape.layers(model)
    kinds = layer_kinds(model.config.get_text_config())
    return [_block(shape, layer, kind) for layer, kind in zip(layers, kinds, strict=True)]


def is_gelu(model: PreTrainedModel) -> bool:
    """Whether the activation is GELU, by its tanh approximation, and not SiLU."""
    return _GELU[_activation(model)]


def head_size(config: PretrainedConfig) -> int:
    """How many numbers a query of one head has."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _block(shape: Architecture, layer: nn.Module, kind: str) -> Block:
    names = shape.block
    attention, network = getattr(layer, names.attention), getattr(layer, names.feed_forward)
    norms = [_norm_weight(shape, getattr(layer, name)) for name in names.norms]
    norms_outputs = len(norms) > 2  # Gemma
    query_norm, key_norm = (
        None if norm is None else _norm_weight(shape, norm)
        for norm in (getattr(attention, name, None) for name in ("q_norm", "k_norm"))
    )
    gate, up = (getattr(network, name) for name in names.feed_forward_inputs)
    return Block(
        attention_norm=norms[0],
        queries=getattr(attention, names.queries),
        keys=getattr(attention, names.keys),
        values=getattr(attention, names.values),
        attention_output=getattr(attention, names.attention_output),
        query_norm=query_norm,
        key_norm=key_norm,
        attention_output_norm=norms[1] if norms_outputs else None,
        feed_forward_norm=norms[2] if norms_outputs else norms[1],
        gate=gate,
        up=up,
        down=getattr(network, names.feed_forward_output),
        feed_forward_output_norm=norms[3] if norms_outputs else None,
        kind=kind,
    )


def _norm_weight(shape: Architecture, norm: nn.Module) -> Tensor:
    """A norm's weight as it multiplies, fp32."""
    weight = norm.weight
    assert isinstance(weight, Tensor)
    return weight.detach().float() + shape.norm_offset


def _has_plain_layers(model: PreTrainedModel) -> bool:
    config = model.config.get_text_config()
    size, hidden, channels = head_size(config), config.hidden_size, config.intermediate_size
    asked, kept = config.num_attention_heads * size, config.num_key_value_heads * size
    usual = [
        (asked, hidden),
        *[(kept, hidden)] * 2,
        (hidden, asked),
        *[(channels, hidden)] * 2,
        (hidden, channels),
    ]
    return all(
        [(getattr(one, "out_features", 0), getattr(one, "in_features", 0)) for one in block.matrices] == usual
        for block in blocks_of(model)
    )


def _activation(model: PreTrainedModel) -> str:
    config = model.config.get_text_config()
    return str(getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None))


def _rotation_types(config: PretrainedConfig) -> set[str]:
    found = config.rope_parameters
    kinds = [found] if "rope_type" in found else [one for one in found.values() if one is not None]
    return {str(one["rope_type"]) for one in kinds}
