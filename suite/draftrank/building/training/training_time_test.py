"""What a draft that reads the target's states sees when it is some tokens ahead of them.

Ahead of the target it reads its own state in place of the target's; what it remembers of the text before is still made
from the target's. Training shows it exactly that, for every position at once: the training-time test of EAGLE-3 (Li et
al. 2025, arXiv:2503.01840).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class TrainingTimeTest:
    """Keys and values of the forwards so far, the first of them with the target's states.

    The forward that is n tokens ahead of the first sees, at each position, what the first forward made of all but the
    last n positions before it, what the second made of the next one, and so on, itself last.
    """

    def __init__(self) -> None:
        """Begins before the first forward of a head of one layer."""
        self._cache = Cache(layers=[_Layer()])
        self._ahead = 0

    def next_forward(self, tokens: Tensor) -> dict[str, Any]:
        """What the decoder is called with, beside what it reads, for the next forward over token ids [batch, length]."""
        length, ahead = tokens.shape[1], self._ahead
        self._ahead += 1
        return {
            "past_key_values": self._cache,
            "use_cache": True,
            "attention_mask": visible(length, ahead, tokens.device)[None, None],
            "position_ids": torch.arange(length, device=tokens.device)[None],
        }


def visible(length: int, ahead: int, device: torch.device) -> Tensor:
    """Which keys the forward sees that is `ahead` tokens ahead of the first, over `length` positions: bool [length, (ahead
    + 1) · length], the keys of the first forward, those of the second, and so on."""
    queries = torch.arange(length, device=device)[:, None]
    keys = torch.arange(length, device=device)[None]
    parts = [keys <= queries - ahead, *(keys == queries - ahead + number for number in range(1, ahead + 1))]
    return torch.cat(parts, -1)


class _Layer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of one layer, [batch, heads, forwards · length, head_dim], differentiable in every forward."""

    is_compileable = False
    is_sliding = False

    def __init__(self) -> None:
        super().__init__()
        self.keys: Tensor
        self.values: Tensor
        self.is_initialized: bool

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Begins empty, for the shapes, dtype and device of the first states."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Appends a forward's states; returns all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = torch.cat([self.keys, key_states], -2)
        self.values = torch.cat([self.values, value_states], -2)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length of what attention will see, and its offset."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Keys held."""
        return self.keys.shape[-2] if self.is_initialized else 0

    def get_max_length(self) -> int:
        """No maximum."""
        return -1
