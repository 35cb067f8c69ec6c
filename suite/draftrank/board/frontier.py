"""The drafts that no other one beats in two respects at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

Item = TypeVar("Item")


def frontier(items: Iterable[tuple[Item, float, float]]) -> list[Item]:
    """The Pareto frontier of (item, cost, gain): lowest costs and highest gains, by rising cost.

    An item is on it unless another one costs no more and gains at least as much, and differs in either.
    """
    best: list[Item] = []
    reached, at = float("-inf"), float("-inf")
    for item, cost, gain in sorted(items, key=lambda entry: (entry[1], -entry[2])):
        if gain > reached or (gain == reached and cost == at):
            best.append(item)
            reached, at = gain, cost
    return best
