"""What runtimes have in common that keep keys and values in a cache of ours, and hidden states for drafts that read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from draftrank.engine.backends.base import Runtime

if TYPE_CHECKING:
    from torch import Tensor

    from draftrank.engine.backends.kv_cache import RollbackCache
    from draftrank.engine.backends.transformers.snapshot_cache import SnapshotCache

FINAL = -1
"""In the place of a layer's number: the states after the final norm."""


class KeptStates:
    """Hidden states of the last forward, by layer; nothing until `keep` is called."""

    def __init__(self, width: int, device: torch.device) -> None:
        self._width, self._device = width, device
        self.by_layer: dict[int, Tensor] = {}
        """[rows, hidden] each; of the rows the first `count` are the forward's tokens."""
        self.count = 0
        """Tokens of the last forward that stand."""
        self._path: list[int] | None = None
        """Their rows, where these are not the first ones."""

    def keep(self, layers: Sequence[int]) -> list[int]:
        """Keeps the states of these layers from now on; returns those that were not kept before."""
        new = [layer for layer in layers if layer not in self.by_layer]
        for layer in new:
            self.by_layer[layer] = torch.zeros((0, self._width), device=self._device)
        return new

    def begin(self, count: int) -> None:
        """A forward over `count` tokens begins."""
        self.count, self._path = count, None

    def join(self, forwards: Sequence[Mapping[int, Tensor]]) -> None:
        """Takes several forwards over a token each, given by what `by_layer` held behind them, as one over all of these."""
        self.by_layer = {
            layer: torch.cat([states[layer][:1] for states in forwards]) for layer in self.by_layer
        }
        self.begin(len(forwards))

    def commit(self, read: int, path: Sequence[int]) -> None:
        """Of `read` tokens only these stay; nothing where they were not read in one forward."""
        if self.count == read:
            self._path = None if list(path) == list(range(len(path))) else list(path)
            self.count = len(path)

    def read(self, layers: Sequence[int]) -> Tensor:
        """See `Runtime.hidden_states`."""
        assert FINAL in self.by_layer, "keep_hidden_states was not called"
        found = [self.by_layer[layer] for layer in (*layers, FINAL)]
        states = found[0] if len(found) == 1 else torch.cat(found, -1)
        return states[: self.count] if self._path is None else states[self._path]


class CachingRuntime(Runtime):
    """A runtime whose sequence is that of its cache."""

    _cache: RollbackCache | SnapshotCache
    _states: KeptStates

    @property
    def length(self) -> int:
        return self._cache.length

    def reserve(self, tokens: int) -> None:
        self._cache.reserve(tokens)

    def rollback(self, count: int) -> None:
        self._cache.rollback(count)

    def reset(self) -> None:
        self._cache.reset()

    def hidden_states(self, layers: Sequence[int] = ()) -> Tensor:
        return self._states.read(layers)
