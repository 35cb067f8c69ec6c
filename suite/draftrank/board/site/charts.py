"""Coordinates of the small inline charts; the templates only draw them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from draftrank.board.formats import rank, times
from draftrank.board.rows import BoardRow

WIDTH = 180.0
"""Units across an interval chart."""
_MARGIN = 8.0
_REACH = 1.25
"""How far beyond the outermost value an axis follows the intervals, as a factor."""
_LEAST = 1.1
"""The least ratio between the ends of an axis."""
_MARKS = (1, 2, 0.5, 4, 0.25, 1.5, 3, 0.75, 8, 6, 5, 1.25, 2.5, 0.1, 10, 20, 50, 100, 0.01, 1000)
"""Speedups that an axis may name, the most useful first."""
_ROOM = 32.0
"""Units that a label of an axis takes."""


@dataclass(frozen=True, slots=True)
class Tick:
    """One mark of an axis."""

    x: float
    label: str


@dataclass(frozen=True, slots=True)
class Scale:
    """A logarithmic axis shared by the interval bars of one table; it always shows 1×."""

    low: float
    high: float

    @classmethod
    def over(cls, values: Iterable[float | None], spans: Iterable[tuple[float, float] | None] = ()) -> Scale:
        """The axis that holds every value, above 0, and 1, and of the intervals what lies near: one that is many times
        as wide as all the others may not flatten them, so it is cut off."""
        marks = [1.0, *(value for value in values if value is not None)]
        low, high = min(marks), max(marks)
        ends = [end for span in spans if span for end in span]
        low, high = (
            min(low, max(min(ends, default=low), low / _REACH)),
            max(high, min(max(ends, default=high), high * _REACH)),
        )
        if high / low < _LEAST:  # nothing but noise: do not blow it up to the full width
            low, high = low / _LEAST, high * _LEAST
        return cls(low, high)

    def x(self, value: float) -> float:
        """Where a value lies, within the chart."""
        low, high = math.log(self.low), math.log(self.high)  # ratios of extreme values are infinite
        share = (math.log(value) - low) / (high - low) if value > 0 else 0.0
        return round(_MARGIN + min(max(share, 0.0), 1.0) * (WIDTH - 2 * _MARGIN), 2)

    @property
    def ticks(self) -> tuple[Tick, ...]:
        """Marks with room for their labels, 1× among them, from the left."""
        found: list[Tick] = []
        for mark in _MARKS:
            x = self.x(mark)
            if self.low <= mark <= self.high and all(abs(tick.x - x) >= _ROOM for tick in found):
                found.append(Tick(x, f"{mark:g}×"))
        return tuple(sorted(found, key=lambda tick: tick.x))


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of a bar chart, heights between 0 and 100."""

    x: float
    y: float
    width: float
    height: float
    label: str
    amount: float


def bars(
    amounts: Sequence[float], labels: Sequence[str], width: float, full: float | None = None
) -> tuple[Bar, ...]:
    """Upright bars side by side over `width` units; `full` is the amount of a bar of full height."""
    top = full if full is not None else max(amounts, default=0.0)
    slot = width / max(len(amounts), 1)
    result = []
    for index, (amount, label) in enumerate(zip(amounts, labels, strict=True)):
        height = round(100 * amount / top, 2) if top > 0 else 0.0
        left = round(index * slot + 0.1 * slot, 2)
        result.append(Bar(left, round(100 - height, 2), round(0.8 * slot, 2), height, label, amount))
    return tuple(result)


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a whole, as a stretch of a bar 100 units long."""

    name: str
    x: float
    width: float
    share: float


def stacked(shares: Sequence[tuple[str, float]]) -> tuple[Part, ...]:
    """Parts one after the other; shares that add up to more than 1 are scaled down to it."""
    total = max(1.0, sum(share for _, share in shares))
    result, left = [], 0.0
    for name, share in shares:
        width = 100 * share / total
        result.append(Part(name, round(left, 2), round(width, 2), share))
        left += width
    return tuple(result)


@dataclass(frozen=True, slots=True)
class Badge:
    """A badge's words and width, in pixels."""

    message: str
    width: int
    """Of the message."""
    good: bool
    """Whether the draft is ranked and surely faster than plain decoding."""


def badge(row: BoardRow) -> Badge:
    """A draft's speedup and rank for other people's pages."""
    if row.rank is not None:
        message = f"{times(row.speedup)} · rank {rank(row.rank)}"
    else:
        message = "not ranked"
    good = row.rank is not None and row.ci is not None and row.ci[0] > 1.0
    return Badge(message, 14 + round(6.6 * len(message)), good)
