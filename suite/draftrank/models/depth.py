"""The configuration of a model with some of another one's layers.

Much in it belongs to layers: lists with one entry a layer, lists of layers' indices, and numbers from which a layer's
kind follows by its index. All are rewritten here, so that each layer stays what it is; what cannot be written is found by
the comparison that every cut ends with (`models.architecture_checks`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformers import PretrainedConfig

if TYPE_CHECKING:
    from collections.abc import Callable

_INDEX_LISTS = frozenset(
    {"mlp_only_layers", "moe_layers", "full_attn_idxs", "hybrid_layer_ids", "attn_layer_indices"}
)
"""Lists of the indices of some layers."""
_FIRST_LAYERS = ("first_k_dense_replace", "num_dense_layers", "max_window_layers", "moe_layer_start_index")
"""How many of the first layers are of one kind."""
_PERIODS = (("attn_layer_period", "attn_layer_offset"), ("expert_layer_period", "expert_layer_offset"))
"""Layers of one kind: those whose index leaves the offset when it is divided by the period."""
_NO_LAYERS = frozenset(vars(PretrainedConfig())) | {"attention_types", "block_types"}
"""Fields of every configuration, whose lists are not of layers, and two that are rewritten by hand."""


def sublayers(config: PretrainedConfig) -> int:
    """How many attention layers one decoder layer of a text model has, each with a KV cache of its own: LongCat Flash has two,
    which its `num_hidden_layers` counts."""
    depth, layers = int(config.num_hidden_layers), getattr(config, "num_layers", None)
    return depth // layers if isinstance(layers, int) and 0 < layers < depth and depth % layers == 0 else 1


def set_depth(config: PretrainedConfig, indices: Sequence[int]) -> None:
    """Makes the configuration of a text model, in place, that of a model with other layers: `indices` are the old ones that
    they are."""
    each = sublayers(config)
    depth = int(config.num_hidden_layers) // each
    for name, values in list(vars(config).items()):
        if name in _INDEX_LISTS and isinstance(values, list):
            setattr(config, name, [new for new, old in enumerate(indices) if old in values])
        elif _is_per_layer(name, values, depth):
            setattr(config, name, type(values)(values[index] for index in indices))
    for name in _FIRST_LAYERS:
        value = getattr(config, name, None)
        if isinstance(value, int):
            setattr(config, name, sum(index < value for index in indices))
    _set_sparse(config, indices)
    for period, offset in _PERIODS:
        if hasattr(config, period):
            _set_period(config, period, offset, indices)
    if "block_types" in vars(config):  # RecurrentGemma repeats them until there are enough
        kinds = config.block_types
        config.block_types = [kinds[index % len(kinds)] for index in indices]
    if "attention_types" in vars(config):  # GPT-Neo makes the list of layers from them
        config.attention_types = [[list(config.attention_layers), 1]]
    config.num_hidden_layers = len(indices) * each


def _is_per_layer(name: str, values: Any, depth: int) -> bool:
    return (
        isinstance(values, list | tuple)
        and len(values) == depth
        and name not in _NO_LAYERS
        and not name.endswith(("token_id", "token_ids"))
    )


def _set_sparse(config: PretrainedConfig, indices: Sequence[int]) -> None:
    """Qwen's experts are in every so-manieth layer but for some: all of it as those without."""
    step = getattr(config, "decoder_sparse_step", None)
    if not isinstance(step, int) or step < 2:
        return
    dense = set(config.mlp_only_layers)
    config.mlp_only_layers = sorted(dense | {new for new, old in enumerate(indices) if (old + 1) % step != 0})
    config.decoder_sparse_step = 1


def _set_period(config: PretrainedConfig, period: str, offset: str, indices: Sequence[int]) -> None:
    """The shortest period by which the layers at `indices` keep their kinds; if there is none, it stays."""
    chosen: Callable[[int], bool] = lambda index: index % getattr(config, period) == getattr(config, offset)  # noqa: E731
    wanted = [chosen(index) for index in indices]
    for length in range(1, len(indices) + 2):
        for first in range(length):
            if [index % length == first for index in range(len(indices))] == wanted:
                setattr(config, period, length)
                setattr(config, offset, first)
                return
