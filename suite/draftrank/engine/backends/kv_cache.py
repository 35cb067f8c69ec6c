"""A preallocated KV cache whose rollback costs nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

_GRAIN = 64
"""Capacities are multiples of it, so that kernels of our own can keep positions in groups."""


Zeros: TypeAlias = Callable[[tuple[int, ...], torch.dtype, torch.device], Tensor]


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Where torch takes its memory from."""
    return torch.zeros(shape, dtype=dtype, device=device)


class RollbackLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of one layer, [1, heads, capacity, head_dim]; only the first `length` count.

    Attention is given views of the filled part, so one token costs one small copy and forgetting
    costs nothing. Sliding-window layers keep all positions too: the mask narrows what they see,
    which is what makes taking tokens back possible.
    """

    is_compileable = False
    is_sliding = False
    is_croppable = True

    def __init__(self, zeros: Zeros = zeros) -> None:
        super().__init__()
        self._zeros = zeros
        self.keys: Tensor
        self.values: Tensor
        self.is_initialized: bool
        self.length = 0
        self.capacity = 0

    def reserve(self, capacity: int) -> None:
        """Grows the buffers to at least `capacity` positions, keeping what they hold."""
        if capacity <= self.capacity:
            return
        self.capacity = capacity + -capacity % _GRAIN
        if self.is_initialized:
            self.keys, self.values = self._grown(self.keys), self._grown(self.values)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocates for the shapes, dtype and device of the first states."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys = self._buffer_like(key_states)
        self.values = self._buffer_like(value_states)
        self.is_initialized = True

    def extend(self, count: int, key_states: Tensor, value_states: Tensor) -> None:
        """Holds `count` more positions, which the caller fills; shapes, dtype and device of the first are those of the
        states, [1, heads, any, head_dim]."""
        end = self.length + count
        if end > self.capacity:
            self.reserve(max(end, 2 * self.capacity))
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.length = end

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Appends states of shape [1, heads, new, head_dim]; returns views of all cached ones."""
        start = self.length
        self.extend(key_states.shape[-2], key_states, value_states)
        self.keys[:, :, start : self.length] = key_states
        self.values[:, :, start : self.length] = value_states
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def keep(self, start: int, kept: Sequence[int]) -> None:
        """Of the positions from `start` on only these stay, counted from there, ascending and moved together."""
        moved = next((to for to, index in enumerate(kept) if to != index), len(kept))
        if moved < len(kept):
            taken = torch.tensor(kept[moved:], device=self.device) + start
            first, end = start + moved, start + len(kept)
            self.keys[:, :, first:end] = self.keys[:, :, taken]
            self.values[:, :, first:end] = self.values[:, :, taken]
        self.length = start + len(kept)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length of what attention will see, and its offset."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens in the KV cache."""
        return self.length

    def get_max_length(self) -> int:
        """No maximum: the buffers grow."""
        return -1

    def reset(self) -> None:
        """Drops all tokens; the buffers stay."""
        self.length = 0

    def crop(self, tokens_to_remove: int) -> None:
        """transformers' name for taking tokens back; negative count, as it asks for."""
        self.length = max(0, self.length - abs(tokens_to_remove))

    def _buffer_like(self, states: Tensor) -> Tensor:
        shape = (*states.shape[:-2], self.capacity, states.shape[-1])
        return self._zeros(shape, states.dtype, states.device)

    def _grown(self, cached: Tensor) -> Tensor:
        grown = self._buffer_like(cached)
        grown[:, :, : cached.shape[2]] = cached
        return grown


class RollbackCache(Cache):  # type: ignore[misc]
    """A `RollbackLayer` per decoder layer, in the form that transformers' models take.

    Layers that read the keys and values of an earlier one have a layer of transformers that stores nothing.
    """

    def __init__(self, layers: list[Any]) -> None:
        super().__init__(layers=layers)
        self._stored = [layer for layer in layers if isinstance(layer, RollbackLayer)]

    @classmethod
    def of_depth(cls, depth: int, zeros: Zeros = zeros) -> RollbackCache:
        """An empty cache for `depth` layers."""
        return cls([RollbackLayer(zeros) for _ in range(depth)])

    def first(self, count: int) -> RollbackCache:
        """The same first layers, shared."""
        return RollbackCache(self.layers[:count])

    @property
    def length(self) -> int:
        """Tokens in the KV cache."""
        return self._stored[0].length

    def reserve(self, capacity: int) -> None:
        """Makes room in every layer."""
        for layer in self._stored:
            layer.reserve(capacity)

    def rollback(self, count: int) -> None:
        """Drops the newest `count` tokens of every layer."""
        for layer in self._stored:
            layer.length -= count

    def keep(self, start: int, kept: Sequence[int]) -> None:
        """See `RollbackLayer.keep`, in every layer."""
        for layer in self._stored:
            layer.keep(start, kept)

    def reset(self) -> None:
        """Drops all tokens of every layer."""
        for layer in self._stored:
            layer.length = 0
