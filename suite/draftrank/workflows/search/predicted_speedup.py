"""The predicted speedup of a draft before it is measured, from its agreement and the cost of its forwards.

With a_i the share of texts on which the i-th token ahead agrees, given that those before did, a chain of k tokens
gives 1 + Σ_j Π_{i≤j} a_i tokens per step, for k forwards of the draft and one of the target over k+1 tokens (Leviathan
et al. 2022, arXiv:2211.17192, with an acceptance of its own for each place). Agreement is taken on answers kept aside
from training, by teacher forcing: it costs one forward and no decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from draftrank.measure.cost.forward_times import ForwardTimes


@dataclass(frozen=True, slots=True)
class Prediction:
    """The best that a draft can be expected to give."""

    speedup: float
    k: int
    """Number of proposed tokens that gives it."""


DEAR = 1.5
"""Copied tokens are given up beyond what this many single forwards verify: some of them stand nearly always, all of them
rarely."""


def most_copied(times: ForwardTimes, context: int, least: int, most: int) -> int:
    """How many copied tokens are worth a place in a verification, from `least` to `most`."""
    allowed = DEAR * times.target_s(1, context)
    worth = [count for count in range(least, most + 1) if times.target_s(count + 1, context) <= allowed]
    return max(worth, default=least)


def predict(agreements: Sequence[float], times: ForwardTimes, context: int, most: int) -> Prediction:
    """The expected speedup at the best k.

    Args:
        agreements: for the first, second, … token ahead; further ones agree as often as the last.
        times: of the draft's forwards and the target's.
        context: tokens held, for which the times are taken.
        most: largest k.
    """
    best = Prediction(0.0, 1)
    tokens, likely = 1.0, 1.0
    for k in range(1, most + 1):
        likely *= agreements[min(k, len(agreements)) - 1]
        tokens += likely
        step_s = k * times.draft_s(1, context) + times.target_s(k + 1, context)
        speedup = tokens * times.target_s(1, context) / step_s
        if speedup > best.speedup:
            best = Prediction(speedup, k)
    return best
