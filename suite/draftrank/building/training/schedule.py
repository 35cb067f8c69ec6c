"""What a training run does when: the order of sequences, the learning rate, when to look and when to end.

Everything is a function of the declaration and of how many updates have been done, so that a resumed run
takes the same decisions.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from draftrank.building.steps.distill import MIN_HELD_OUT
from draftrank.errors import BuildError

HELD_OUT_SHARE = 0.05
HELD_OUT_MOST = 64
"""Sequences kept aside: this share, at least `MIN_HELD_OUT`, at most that many."""
FINAL_RATE = 0.1
"""Where the cosine ends, as a share of the peak learning rate."""


def learning_rate_factor(update: int, updates: int, warmup_fraction: float) -> float:
    """Share of the peak rate at an update (from 0): linear warm-up, then cosine to `FINAL_RATE`."""
    warmup = math.ceil(updates * warmup_fraction)
    if update < warmup:
        return (update + 1) / warmup
    way = (update - warmup) / max(updates - warmup - 1, 1)
    return FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * way))


def split_sequences(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the sequences to train on and of those kept aside (int64).

    Raises:
        BuildError: there are not enough.
    """
    aside = min(max(MIN_HELD_OUT, round(count * HELD_OUT_SHARE)), HELD_OUT_MOST)
    if count <= aside:
        raise BuildError(
            f"a corpus of {count} sequences is too small to keep {aside} aside: raise data.tokens or lower "
            "data.sequence_tokens"
        )
    shuffled = order(torch.arange(count), seed, -1)
    return shuffled[aside:], shuffled[:aside]


def no_longer_better(agreements: Sequence[float], patience: int | None) -> bool:
    """Whether the best of all evaluations is as long ago as `patience` says."""
    if patience is None or len(agreements) <= patience:
        return False
    return max(agreements[-patience:]) <= max(agreements[:-patience])


def evaluation_points(updates: int, evaluations: int) -> set[int]:
    """After which updates agreement is looked at: evenly spread, never after the last."""
    return {updates * number // (evaluations + 1) for number in range(1, evaluations + 1)} - {0, updates}


def order(indices: Tensor, seed: int, number: int) -> Tensor:
    """The indices in another order, decided by the seed and which pass it is (-1: before the first)."""
    generator = torch.Generator().manual_seed(seed_of(seed, str(number)))
    return indices[torch.randperm(len(indices), generator=generator)]


def seed_of(seed: int, what: str) -> int:
    """A seed for one purpose, from the declared one."""
    digest = hashlib.sha256(f"distill/{seed}/{what}".encode()).digest()
    return int.from_bytes(digest[:7], "big")
