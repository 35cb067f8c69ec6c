"""Forward times as functions of how many tokens are read and how many are in the KV cache."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from draftrank.measure.records import ForwardLatency

MIN_S, MAX_S = 1e-9, 1e6
"""What is no time of a forward is left out."""
Points = tuple[tuple[float, float], ...]
"""(place, seconds), by place."""
Curves = tuple[tuple[int, Points], ...]
"""(context, seconds by tokens read), by context."""


@dataclass(frozen=True, slots=True)
class ForwardTimes:
    """What one session timed of a target and a draft; times between what was timed are interpolated."""

    target: Curves
    draft: Curves
    """Empty for drafts without a model."""

    @classmethod
    def of(cls, latencies: Iterable[ForwardLatency]) -> ForwardTimes | None:
        """The times of an arm's record; None without the target's."""
        latencies = tuple(entry for entry in latencies if MIN_S < entry.median_s < MAX_S)
        target = _curves(latencies, "target")
        return cls(target, _curves(latencies, "draft")) if target else None

    @property
    def has_draft(self) -> bool:
        """Whether a draft's forwards were timed."""
        return bool(self.draft)

    def target_s(self, tokens: int, context: float) -> float:
        """Seconds of one forward of the target.

        Between sizes and contexts it is interpolated linearly. Above the largest size it goes on with
        the mean slope from one token on; outside the contexts the nearest one's time holds.
        """
        return _at(self.target, tokens, context)

    def draft_s(self, tokens: int, context: float) -> float:
        """Seconds of one forward of the draft; of one token where two were not timed."""
        return _at(self.draft, tokens, context)


def _curves(latencies: Iterable[ForwardLatency], part: Literal["target", "draft"]) -> Curves:
    found: dict[int, dict[int, float]] = defaultdict(dict)
    for entry in latencies:
        if entry.part == part:
            found[entry.context][entry.tokens] = entry.median_s
    return tuple((context, tuple(sorted(sizes.items()))) for context, sizes in sorted(found.items()))


def _at(curves: Curves, tokens: int, context: float) -> float:
    contexts = [held for held, _ in curves]
    return float(np.interp(context, contexts, [_of_size(points, tokens) for _, points in curves]))


def _of_size(points: Points, tokens: int) -> float:
    (first, least), (last, most) = points[0], points[-1]
    if tokens > last > first:
        return most + max(0.0, (most - least) / (last - first)) * (tokens - last)
    sizes, seconds = zip(*points, strict=True)
    return float(np.interp(tokens, sizes, seconds))
