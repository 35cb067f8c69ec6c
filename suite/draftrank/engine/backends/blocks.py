"""Decoders as kernels of our own read them: what is computed, with which weights.

Every hand-written backend takes a model apart here and nowhere else. What distinguishes the families is told by one
description, `Block`: biases, norms before or after a part, norms of queries and keys, softcaps, scales, windows, partial
rotary embedding. A model that has anything else is not taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.ao.nn.quantized.dynamic import Linear as DynamicInt8Linear

from draftrank.errors import BuildError
from draftrank.models.architecture import Architecture
from draftrank.models.attention_windows import attention_windows, declared, head_size, layer_kinds
from draftrank.models.eagle import eagle3_layer
from draftrank.models.layer_parts import Block as BlockNames

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

SUPPORTED = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "phi3",
    "granite",
    "olmo2",
    "smollm3",
)
"""Model types that were compared with transformers. A block tells all that their layers do; another family's code could do
more than its modules and its configuration show."""
LONGROPE = "longrope"
_ROTATIONS = frozenset({"default", "linear", "llama3", "yarn", LONGROPE})
"""Kinds of rotary embedding that do not depend on how long the sequence is, within the context window."""
_GELU = {"silu": False, "gelu_pytorch_tanh": True}
"""Activations that our kernels know, by the names of configurations: whether it is GELU."""


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer, or some outputs of one that makes several things."""

    module: nn.Module
    begin: int
    """The first output."""
    end: int
    """The first output that is not meant."""

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return self.end - self.begin, int(getattr(self.module, "in_features", 0))


@dataclass(frozen=True, slots=True)
class Block:
    """One decoder layer. Norms are RMS norms in fp32 that multiply as they are; None: there is none."""

    embedding_norm: Tensor | None
    """Of the token's embedding, which the attention of an EAGLE-3 head reads before the normed state; [hidden]."""
    attention_norm: Tensor | None
    queries: Linear
    keys: Linear
    values: Linear
    attention_output: Linear
    query_norm: Tensor | None
    """[size] of each query head, or [heads · size] of all of a token together."""
    key_norm: Tensor | None
    attention_output_norm: Tensor | None
    """Of what attention gives, before it is added."""
    feed_forward_norm: Tensor | None
    gate: Linear
    up: Linear
    down: Linear
    feed_forward_output_norm: Tensor | None
    kind: str
    """Full or sliding attention, as the configuration names it."""
    rotary: bool
    """Whether queries and keys are rotated."""
    scale: float
    """What scores are multiplied with."""
    score_cap: float | None
    """Which scores are softcapped at: cap · tanh(score / cap)."""
    residual_scale: float
    """What attention and the feed-forward network give is multiplied with before it is added."""

    @property
    def matrices(self) -> tuple[Linear, ...]:
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
    """A decoder taken apart; see `fits`."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Reads the model's shape; `fits` says which models can be given."""
        self._shape = Architecture.of(model)
        self._model = model
        config = model.config.get_text_config()
        self._queries, self._kv_heads = int(config.num_attention_heads), int(config.num_key_value_heads)
        self._size = head_size(config)
        self._eps = float(config.rms_norm_eps)
        self._windows = attention_windows(config)
        self.context_window = min(
            [
                int(config.max_position_embeddings),
                *(
                    int(one["original_max_position_embeddings"])
                    for one in rotations(config)
                    if one["rope_type"] == LONGROPE
                ),
            ]
        )
        """Most tokens. Of LongRoPE's two sets of frequencies the kernels know the one for texts as long as those of pretraining
        (Ding et al. 2024, arXiv:2402.13753)."""
        self._decoder = model.get_submodule(self._shape.names.decoder)
        self._norm = _norm_weight(self._shape, self._shape.norm(model))
        self._input_scale = float(declared(config, "embedding_multiplier", 1.0))
        self._logit_divisor = float(declared(config, "logits_scaling", 1.0))
        self._logit_cap: float | None = declared(config, "final_logit_softcapping")
        self._rotations: dict[tuple[str, bool], tuple[Tensor, Tensor]] = {}

    @staticmethod
    def fits(model: PreTrainedModel) -> bool:
        """Whether this model's forward is known here, with every matrix as large as the configuration says."""
        config = model.config.get_text_config()
        return (
            config.model_type in SUPPORTED
            and {str(one["rope_type"]) for one in rotations(config)} <= _ROTATIONS
            and not getattr(config, "use_bidirectional_attention", False)
            and _activation(model) in _GELU
            and _is_told_by_blocks(model)
        )

    def _rotation_tables(self, kind: str, rotary: bool, end: int) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines of at least the first `end` positions, fp32 [positions, 1, rotated dimensions];
        without rotary embedding of no angle. Behind the window of LongRoPE's first frequencies they are those of
        its end."""
        known = self._rotations.get((kind, rotary))
        if known is None or len(known[0]) < end:
            known = self._rotations[kind, rotary] = self._tables(kind, rotary, max(2 * end, 512))
        return known

    def _tables(self, kind: str, rotary: bool, positions: int) -> tuple[Tensor, Tensor]:
        weight = self._shape.embedding(self._model).weight
        assert isinstance(weight, Tensor)
        config = self._model.config.get_text_config()
        numbers = torch.arange(positions, device=weight.device)[None]
        if self.context_window < config.max_position_embeddings:
            numbers = numbers.clamp(max=self.context_window - 1)
        by_kind = "rope_type" not in config.rope_parameters
        cosine, sine = self._decoder.rotary_emb(
            weight[:1, None].float(), numbers, **({"layer_type": kind} if by_kind else {})
        )
        if not rotary:
            cosine, sine = torch.ones_like(cosine), torch.zeros_like(sine)
        half = sine.shape[-1] // 2
        signed = torch.cat([-sine[..., :half], sine[..., half:]], -1)
        return cosine[0][:, None].contiguous(), signed[0][:, None].contiguous()


def blocks_of(model: PreTrainedModel) -> list[Block]:
    """Every decoder layer of a model, in order."""
    shape, config = Architecture.of(model), model.config.get_text_config()
    kinds = layer_kinds(config)
    return [
        _block(shape, names, config, layer, kind)
        for names, layer, kind in zip(shape.blocks, shape.layers(model), kinds, strict=True)
    ]


def is_gelu(model: PreTrainedModel) -> bool:
    """Whether the activation is GELU, by its tanh approximation, and not SiLU."""
    return _GELU[_activation(model)]


def caps_logits(model: PreTrainedModel) -> bool:
    """Whether the logits are softcapped."""
    return declared(model.config.get_text_config(), "final_logit_softcapping") is not None


def rotations(config: PretrainedConfig) -> list[dict[str, Any]]:
    """The parameters of each rotary embedding of a model."""
    found = config.rope_parameters
    return [found] if "rope_type" in found else [one for one in found.values() if one is not None]


def _block(
    shape: Architecture, names: BlockNames, config: PretrainedConfig, layer: nn.Module, kind: str
) -> Block:
    attention, network = getattr(layer, names.attention), getattr(layer, names.feed_forward)
    hidden, size, channels = int(config.hidden_size), head_size(config), int(config.intermediate_size)
    asked, kept = int(config.num_attention_heads) * size, int(config.num_key_value_heads) * size
    queries, keys, values = _split(attention, (names.queries, names.keys, names.values), (asked, kept, kept))
    gate, up = _split(network, names.feed_forward_inputs, (channels, channels))
    norms = {
        role: None if norm is None else _norm_weight(shape, norm)
        for role, norm in _norms(names, layer).items()
    }
    return Block(
        **norms,
        queries=queries,
        keys=keys,
        values=values,
        attention_output=Linear(getattr(attention, names.attention_output), 0, hidden),
        gate=gate,
        up=up,
        down=Linear(getattr(network, names.feed_forward_output), 0, hidden),
        kind=kind,
        rotary=bool(getattr(attention, "use_rope", True)),
        scale=float(attention.scaling),
        score_cap=getattr(attention, "attn_logit_softcapping", None),
        residual_scale=float(getattr(layer, "residual_multiplier", 1.0)),
    )


def _split(parent: nn.Module, names: Sequence[str], outputs: Sequence[int]) -> list[Linear]:
    """Layers that make several things, by the names of the modules that do; one module may make all of them, in this
    order."""
    modules = [getattr(parent, name) for name in dict.fromkeys(names)]
    if len(modules) == len(outputs):
        return [Linear(module, 0, count) for module, count in zip(modules, outputs, strict=True)]
    ends = list(accumulate(outputs))
    return [Linear(modules[0], end - count, end) for end, count in zip(ends, outputs, strict=True)]


def _norms(names: BlockNames, layer: nn.Module) -> dict[str, nn.Module | None]:
    """The norms of a layer by what `Block` calls them: their names tell whether a part's input or what it gives is normed."""
    attention = getattr(layer, names.attention)

    def named(parent: nn.Module, name: str) -> nn.Module | None:
        found = getattr(parent, name, None)
        return found if isinstance(found, nn.Module) else None

    before, after = named(layer, "input_layernorm"), named(layer, "post_attention_layernorm")
    inner, last = named(layer, "pre_feedforward_layernorm"), named(layer, "post_feedforward_layernorm")
    of_output = (
        before is None or inner is not None
    )  # the name means the feed-forward network's input in other families
    state = named(layer, "hidden_norm")
    return {
        "embedding_norm": None if state is None else before,
        "attention_norm": before if state is None else state,
        "query_norm": named(attention, "q_norm"),
        "key_norm": named(attention, "k_norm"),
        "attention_output_norm": after if of_output else None,
        "feed_forward_norm": inner if of_output else after,
        "feed_forward_output_norm": last,
    }


def _norm_weight(shape: Architecture, norm: nn.Module) -> Tensor:
    """A norm's weight as it multiplies, fp32."""
    weight = norm.weight
    assert isinstance(weight, Tensor)
    return weight.detach().float() + shape.norm_offset


def _is_told_by_blocks(model: PreTrainedModel) -> bool:
    """Whether a block tells all that is in every layer, and its parts have the sizes that the configuration says."""
    config = model.config.get_text_config()
    try:
        shape = Architecture.of(model)
        final = shape.norm(model)
    except BuildError:
        return False
    if not _is_rms_norm(final, config) or not all(map(_is_usual, shape.blocks)):
        return False
    size, hidden, channels = head_size(config), int(config.hidden_size), int(config.intermediate_size)
    asked, kept = int(config.num_attention_heads) * size, int(config.num_key_value_heads) * size
    read = hidden if eagle3_layer(model) is None else 2 * hidden
    usual = [
        (asked, read),
        *[(kept, read)] * 2,
        (hidden, asked),
        *[(channels, hidden)] * 2,
        (hidden, channels),
    ]
    for names, layer, block in zip(shape.blocks, shape.layers(model), blocks_of(model), strict=True):
        norms = [norm for norm in _norms(names, layer).values() if norm is not None]
        lengths = [None if norm is None else len(norm) for norm in (block.query_norm, block.key_norm)]
        made = {matrix.module: 0 for matrix in block.matrices}
        for matrix in block.matrices:
            made[matrix.module] += matrix.shape[0]
        if (
            [matrix.shape for matrix in block.matrices] != usual
            or any(getattr(module, "out_features", 0) != outputs for module, outputs in made.items())
            or lengths not in ([None, None], [size, size], [asked, kept])
            or not all(_is_rms_norm(norm, config) and type(norm) is type(final) for norm in norms)
            or not all(_has_no_weights(module) for module in {*layer.modules()} - {*norms, *made})
        ):
            return False
    return True


def _is_usual(names: BlockNames) -> bool:
    """Whether a layer is attention and one gated feed-forward network."""
    attends = names.mixing in ("separate", "fused") and names.attention_output
    return bool(attends and names.feed_forward and names.gates != "none" and not names.other_matrices)


def _has_no_weights(module: nn.Module) -> bool:
    """Of its own."""
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return not own and not isinstance(module, DynamicInt8Linear)


def _is_rms_norm(norm: nn.Module, config: PretrainedConfig) -> bool:
    """Whether this is one of the configuration's epsilon, with a weight and nothing else."""
    epsilon = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    plain = [name for name, _ in norm.named_parameters()] == ["weight"] and not [*norm.buffers()]
    return type(norm).__name__.endswith("RMSNorm") and plain and epsilon == config.rms_norm_eps


def _activation(model: PreTrainedModel) -> str:
    config = model.config.get_text_config()
    return str(getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None))
