"""Speedup from paired trials, and how sure one can be of it.

Both arms decoded the same prompts back to back in one session, so only cells (task, prompt, turn,
repeat) that both have are compared. Prompts are what was sampled from the world: turns and repeats of
one prompt rise and fall together, so the bootstrap draws whole prompts, each task by itself (a
stratified cluster bootstrap).
"""

from __future__ import annotations

import math
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from draftrank.measure.records import Trial

RESAMPLES = 4_000
CONFIDENCE = 0.95
_NORMAL_95 = 1.96
MIN_PROMPTS = 2
"""Prompts per task below which nothing can be said about their spread."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A 95 % confidence interval, ends included."""

    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half the distance between the ends."""
        return (self.high - self.low) / 2

    def contains(self, value: float) -> bool:
        """Whether `value` lies within."""
        return self.low <= value <= self.high

    def above(self, other: Interval) -> bool:
        """Whether this interval lies entirely above the other."""
        return self.low > other.high


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its interval."""

    value: float
    interval: Interval | None
    """None where a task has fewer than two prompts: one prompt shows no spread, and none is invented."""


@dataclass(frozen=True, slots=True)
class SpeedComparison:
    """One arm's decode speed as a multiple of another's."""

    overall: Estimate | None
    """Geometric mean over `tasks`; None without any."""
    tasks: Mapping[str, Estimate]
    """Speedup of each task that both arms decoded, by task id."""
    cells: int
    """Pairs of trials it rests on."""


def pair_trials(baseline: Iterable[Trial], other: Iterable[Trial]) -> tuple[tuple[Trial, Trial], ...]:
    """Trials of the same cell (task, prompt, turn, repeat) and attempt, sorted by these; the rest is left out."""
    first = {(trial.cell, trial.attempt): trial for trial in baseline}
    second = {(trial.cell, trial.attempt): trial for trial in other}
    return tuple((first[cell], second[cell]) for cell in sorted(first.keys() & second.keys()))


def compare_speed(
    baseline: Iterable[Trial], other: Iterable[Trial], *, resamples: int = RESAMPLES, seed: int = 0
) -> SpeedComparison:
    """Speedup of `other` over `baseline`; A/A is the control arm over the baseline.

    Per task: (Σ baseline decode seconds ÷ Σ baseline decode tokens) ÷ (Σ other decode seconds ÷ Σ
    other decode tokens). A task in which either arm spent no decode time or emitted no token by steps
    has no speedup and is left out.

    Intervals are percentile intervals over `resamples` bootstrap draws. Each draw takes n−1 of a task's
    n prompts with replacement, not n: with few prompts n draws give intervals that are too narrow by
    √((n−1)/n), and n−1 draws give the right variance (McCarthy & Snowden 1985; Rao & Wu 1988).
    Equal records and seed give equal numbers, whatever the order of the trials.
    """
    pairs = pair_trials(baseline, other)
    estimates: dict[str, Estimate] = {}
    draws: list[NDArray[np.float64]] = []
    for task, sums in _sums_by_prompt(pairs).items():
        value = _speedup(*(math.fsum(column) for column in sums.T))
        if value is None:
            continue
        # A task's own generator keeps its interval the same whichever tasks stand beside it.
        generator = np.random.default_rng([seed, zlib.crc32(task.encode())])
        drawn = _bootstrap(sums, resamples, generator) if len(sums) >= MIN_PROMPTS else np.empty(0)
        estimates[task] = Estimate(value, _interval(drawn, value))
        draws.append(drawn)
    return SpeedComparison(_overall(estimates, draws), estimates, len(pairs))


def prompt_spread(baseline: Iterable[Trial], other: Iterable[Trial]) -> float | None:
    """Relative half-width of the overall interval that would remain after endlessly many repeats.

    The variance of a prompt's log speedup over repeats is the machine's noise, and averages out; what
    is left of the variance between prompts is theirs. None with fewer than two repeats of some prompt,
    or fewer than two prompts in a task.
    """
    logs: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for first, second in pair_trials(baseline, other):
        value = _speedup(first.decode_s, first.decode_tokens, second.decode_s, second.decode_tokens)
        if value is not None:
            logs[first.task][f"{first.prompt}/{first.turn}"].append(math.log(value))
    variances = []
    for prompts in logs.values():
        repeats = min(map(len, prompts.values()))
        if len(prompts) < MIN_PROMPTS or repeats < 2:
            return None
        between = float(np.var([np.mean(values) for values in prompts.values()], ddof=1))
        within = float(np.mean([np.var(values, ddof=1) / len(values) for values in prompts.values()]))
        variances.append(max(0.0, between - within) / len(prompts))
    if not variances:
        return None
    return _NORMAL_95 * math.sqrt(math.fsum(variances)) / len(variances)


def ratio(above: float, below: float) -> float | None:
    """`above` ÷ `below`; None where that is no finite number."""
    if below == 0:
        return None
    quotient = above / below
    return quotient if math.isfinite(quotient) else None


def geometric_mean(values: Iterable[float]) -> float | None:
    """Geometric mean of positive values; None without any."""
    logarithms = [math.log(value) for value in values]
    return math.exp(math.fsum(logarithms) / len(logarithms)) if logarithms else None


def _overall(estimates: Mapping[str, Estimate], draws: list[NDArray[np.float64]]) -> Estimate | None:
    value = geometric_mean(estimate.value for estimate in estimates.values())
    if value is None:
        return None
    if any(estimate.interval is None for estimate in estimates.values()):
        return Estimate(value, None)
    return Estimate(value, _interval(np.exp(np.mean(np.log(np.stack(draws)), axis=0)), value))


def _sums_by_prompt(pairs: Iterable[tuple[Trial, Trial]]) -> dict[str, NDArray[np.float64]]:
    """Per task, sorted: one row per prompt of (baseline seconds, tokens, other's seconds, tokens).

    Turns are summed and repeats averaged, so a prompt that an unfinished repeat happened to reach once
    more does not weigh more.
    """
    turns: dict[str, dict[str, dict[int, list[tuple[float, ...]]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for first, second in pairs:
        row = (first.decode_s, float(first.decode_tokens), second.decode_s, float(second.decode_tokens))
        turns[first.task][first.prompt][first.turn].append(row)
    return {
        task: np.array(
            [np.sum([_mean_row(rows) for rows in by_turn.values()], axis=0) for by_turn in prompts.values()]
        )
        for task, prompts in turns.items()
    }


def _mean_row(rows: list[tuple[float, ...]]) -> list[float]:
    return [math.fsum(column) / len(rows) for column in zip(*rows, strict=True)]


def _speedup(baseline_s: float, baseline_tokens: float, other_s: float, other_tokens: float) -> float | None:
    if min(baseline_s, baseline_tokens, other_s, other_tokens) <= 0.0:
        return None
    # A product or quotient of times near the smallest float may still come out as 0 or infinite.
    return ratio(baseline_s / baseline_tokens, other_s / other_tokens) or None


def _bootstrap(
    sums: NDArray[np.float64], resamples: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Speedups of `resamples` draws of n−1 among the n rows, shape (resamples,); NaN where undefined."""
    prompts = len(sums)
    counts = generator.multinomial(prompts - 1, np.full(prompts, 1.0 / prompts), size=resamples)
    # A draw may hold only prompts whose outputs were a single token: nothing was decoded in it.
    drawn = counts.astype(np.float64) @ sums
    drawn[(drawn <= 0.0).any(axis=1)] = np.nan
    with np.errstate(all="ignore"):
        speedups: NDArray[np.float64] = (drawn[:, 0] / drawn[:, 1]) / (drawn[:, 2] / drawn[:, 3])
    speedups[speedups <= 0.0] = np.nan
    return speedups


def _interval(draws: NDArray[np.float64], value: float) -> Interval | None:
    """Percentile interval of the defined draws, stretched to hold the value; None when most are undefined."""
    defined = draws[np.isfinite(draws)]
    if len(defined) == 0 or 2 * len(defined) < len(draws):
        return None
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(defined, [tail, 100 - tail])
    return Interval(min(float(low), value), max(float(high), value))
