"""A cache for layers from whose state no token can be taken back: recurrent layers, convolutions, compressed attention.

Rollback restores the state that was saved at the last verified position and reads what stands behind it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers.cache_utils import DYNAMIC_LAYER_TYPE_MAPPING, Cache, get_layer_types_and_kwargs

from draftrank.engine.backends.kv_cache import RollbackCache, RollbackLayer
from draftrank.models.attention_windows import ATTENTION, SHARED

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_REPLACED = ("keys", "values")
"""Tensors of transformers' layers that new ones replace; into others may be written."""


def cache_for(config: PretrainedConfig) -> RollbackCache | SnapshotCache:
    """The cache that a model needs, by the configuration of its text part: one whose rollback costs nothing where all
    layers keep keys and values of each token."""
    if keeps_every_token(config):
        kinds, _ = get_layer_types_and_kwargs(config)
        return RollbackCache([_layer(kind, {}) for kind in kinds])
    return SnapshotCache(config)


def keeps_every_token(config: PretrainedConfig) -> bool:
    """Whether all layers of a model keep keys and values of each token, and no state; by the configuration of its text part."""
    return ATTENTION.issuperset(get_layer_types_and_kwargs(config)[0])


class SnapshotCache(Cache):  # type: ignore[misc]
    """Layers of any kind that transformers has, in the form that its models take.

    The state is copied before the first forward after a commit or a rollback, so plain decoding copies nothing.
    A rollback to another position than the copy's takes the tokens between the two to be read again, by one forward
    before the next one: a step that rejects something costs a forward over its accepted tokens more. A rollback behind the
    copy takes the whole sequence to be read again.
    """

    def __init__(self, config: PretrainedConfig) -> None:
        self._kinds, self._arguments = get_layer_types_and_kwargs(config)
        super().__init__(layers=self._empty())
        self._tokens: list[int] = []
        self._read = 0
        self._is_verified = False
        self._saved: list[dict[str, Any]] | None = None
        self._saved_at = 0

    @property
    def length(self) -> int:
        """Tokens of the sequence, whether the layers have read them or not."""
        return len(self._tokens)

    @property
    def unread(self) -> list[int]:
        """The newest tokens, which the layers must read again."""
        return self._tokens[self._read :]

    def begin(self, tokens: Sequence[int]) -> None:
        """A forward over these tokens begins, all before them being read."""
        assert not self.unread
        if self._is_verified and self._read:
            self._saved = [_copy_of(layer) for layer in self.layers]
            self._saved_at = self._read
        # Behind a prompt, where the first step begins, nobody has committed anything.
        self._is_verified = not self._read
        self._tokens += tokens
        self._read = len(self._tokens)

    def read_again(self) -> None:
        """A forward over the unread tokens begins."""
        self._read = len(self._tokens)

    def reserve(self, capacity: int) -> None:
        """Makes room in the layers that have a position for each token."""
        for layer in self.layers:
            if isinstance(layer, RollbackLayer):
                layer.reserve(capacity)

    def rollback(self, count: int) -> None:
        """Drops the newest `count` tokens; the others are verified."""
        self._is_verified = True
        del self._tokens[len(self._tokens) - count :]
        if self._read <= len(self._tokens):
            return
        if self._saved is None or self._saved_at > len(self._tokens):
            self.layers, self._read = self._empty(), 0
        else:
            for layer, saved in zip(self.layers, self._saved, strict=True):
                vars(layer).update(saved)
            self._read = self._saved_at
        self._saved = None

    def keep(self, start: int, path: Sequence[int]) -> None:
        """Of the tokens from `start` on only these stay: the first ones, as these layers read no trees."""
        assert list(path) == list(range(len(path))), "layers with a state read no trees"
        self.rollback(self.length - start - len(path))

    def reset(self) -> None:
        """Drops all tokens."""
        self._tokens, self._saved, self._is_verified = [], None, False
        self.layers, self._read = self._empty(), 0

    def _empty(self) -> list[Any]:
        return [_layer(*one) for one in zip(self._kinds, self._arguments, strict=True)]


def _layer(kind: str, arguments: dict[str, Any]) -> Any:
    if kind in ATTENTION - {SHARED}:
        return RollbackLayer()
    return DYNAMIC_LAYER_TYPE_MAPPING[kind](**arguments)


def _copy_of(layer: Any) -> dict[str, Any]:
    if isinstance(layer, RollbackLayer):
        return {"length": layer.length}
    return {name: value if name in _REPLACED else _copied(value) for name, value in vars(layer).items()}


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _copied(one) for key, one in value.items()}
    return value
