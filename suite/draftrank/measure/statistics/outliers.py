"""Trials that took oddly long or short: flagged, counted and kept.

A trial is judged by its seconds per step, because a prompt with a high acceptance is no outlier. On the
logarithmic scale, the arm's median over all its trials is subtracted, then the median over the arms of the
same block (one sweep of Tukey's median polish). The residual belongs neither to the arm nor to the block. It
is an outlier beyond 3.5 robust standard deviations of its arm (1.4826 × the median absolute deviation;
Iglewicz & Hoaglin 1993) and beyond 5 %, without which very steady arms would have outliers of no weight.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from statistics import median
from typing import TypeVar

from draftrank.measure.records import Trial

ROBUST_DEVIATIONS = 3.5
"""Standard deviations, estimated robustly, beyond which a residual is odd."""
LEAST = 0.05
"""Logarithmic residual that is never an outlier."""
MIN_TRIALS = 5
"""Trials of an arm below which its spread is unknown and none is flagged."""
_DEVIATION_OF_NORMAL = 1.4826
"""Standard deviation ÷ median absolute deviation of a normal distribution."""

Key = tuple[str, str, str, int, int, int]
Group = TypeVar("Group")


def flag_outliers(trials: Iterable[Trial]) -> frozenset[Key]:
    """Keys of the trials (of one session, all arms) that are outliers; the order changes nothing."""
    paces = {
        trial.key: math.log(trial.decode_s / trial.steps)
        for trial in trials
        if trial.steps and trial.decode_s / trial.steps > 0.0
    }
    usual = {arm: median(values) for arm, values in _grouped(paces, _arm).items()}
    left = {key: pace - usual[_arm(key)] for key, pace in paces.items()}
    shared = {block: median(values) for block, values in _grouped(left, _block).items()}
    left = {key: value - shared[_block(key)] for key, value in left.items()}
    centres = {arm: median(values) for arm, values in _grouped(left, _arm).items()}
    away = {key: abs(value - centres[_arm(key)]) for key, value in left.items()}
    limits = {
        arm: max(LEAST, ROBUST_DEVIATIONS * _DEVIATION_OF_NORMAL * median(values))
        if len(values) >= MIN_TRIALS
        else math.inf
        for arm, values in _grouped(away, _arm).items()
    }
    return frozenset(key for key, value in away.items() if value > limits[_arm(key)])


def _arm(key: Key) -> str:
    return key[0]


def _block(key: Key) -> tuple[str, str, int, int, int]:
    return key[1:]


def _grouped(values: dict[Key, float], group: Callable[[Key], Group]) -> dict[Group, list[float]]:
    found: dict[Group, list[float]] = defaultdict(list)
    for key, value in values.items():
        found[group(key)].append(value)
    return found
