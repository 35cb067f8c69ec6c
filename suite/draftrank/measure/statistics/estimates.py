"""Speedup from paired trials, and how sure one can be of it.

Both arms decoded the same prompts back to back in one session, so only cells (task, prompt, turn,
repeat) that both have are compared. Prompts are what was sampled from the world: turns and repeats of
one prompt rise and fall together, so a prompt with all of them is the unit that intervals count (a
cluster), each task by itself.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from draftrank.measure.records import Trial
from draftrank.measure.statistics.log_ratio import (
    LogRatio,
    PromptSums,
    jackknife,
    left_out,
    mean_of,
    spread_of_prompts,
)


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

    def __str__(self) -> str:
        """Of ratios, in words, e.g. `1.79–1.90`, `0.93–1.003`."""
        return f"{ratio_end(self.low)}–{ratio_end(self.high)}"


def ratio_end(value: float) -> str:
    """An end of an interval of ratios, e.g. `1.79`, `1.003`: what is not 1 is not rounded to 1 (down to 0.0001)."""
    digits = next((digits for digits in (2, 3, 4) if round(value, digits) != 1), 2)
    return f"{value:.{digits}f}"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its interval."""

    value: float
    interval: Interval | None
    """None where a task has fewer than two prompts: one prompt shows no spread, and none is invented."""
    log: LogRatio | None = None
    """Its logarithm with standard error and degrees of freedom, from which the interval comes."""
    left_out: tuple[float, ...] = ()
    """Of a task's speedup with an interval: its logarithm without each prompt in turn. Two such rows over the
    same prompts and the same baseline give the ratio of their arms with its error, by their differences."""


def ends_of(estimate: Estimate | None) -> tuple[float, float] | None:
    """The ends of an estimate's interval; None where there is none."""
    interval = estimate.interval if estimate else None
    return (interval.low, interval.high) if interval else None


@dataclass(frozen=True, slots=True)
class SpeedComparison:
    """One arm's decode speed as a multiple of another's."""

    overall: Estimate | None
    """Geometric mean over `tasks`; None without any."""
    tasks: Mapping[str, Estimate]
    """Speedup of each task that both arms decoded, by task id."""
    cells: int
    """Pairs of trials it rests on."""
    prompts: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Speedup of each prompt by itself, by task and prompt id."""


def pair_trials(baseline: Iterable[Trial], other: Iterable[Trial]) -> tuple[tuple[Trial, Trial], ...]:
    """Trials of the same cell (task, prompt, turn, repeat) and attempt, sorted by these; the rest is left out."""
    first = {(trial.cell, trial.attempt): trial for trial in baseline}
    second = {(trial.cell, trial.attempt): trial for trial in other}
    return tuple((first[cell], second[cell]) for cell in sorted(first.keys() & second.keys()))


def compare_speed(baseline: Iterable[Trial], other: Iterable[Trial]) -> SpeedComparison:
    """Speedup of `other` over `baseline`; A/A is the control arm over the baseline.

    Per task: (Σ baseline decode seconds ÷ Σ baseline decode tokens) ÷ (Σ other decode seconds ÷ Σ
    other decode tokens). A task in which either arm spent no decode time or emitted no token by steps
    has no speedup and is left out.

    Intervals are t-intervals of the logarithm, with standard errors from a jackknife over each task's
    prompts and Welch–Satterthwaite degrees of freedom over the tasks: of the methods in
    `docs/simulation.md` the one that holds the truth 95 % of the time also with two or three prompts.
    Equal records give equal numbers, whatever the order of the trials.
    """
    pairs = pair_trials(baseline, other)
    by_prompt = _sums_by_prompt(pairs)
    overall, estimates = compare_rates({task: list(sums.values()) for task, sums in by_prompt.items()})
    alone: dict[str, dict[str, float]] = {}
    for task, prompts in by_prompt.items():
        if task in estimates:
            values = {prompt: _speedup(*sums) for prompt, sums in prompts.items()}
            alone[task] = {prompt: value for prompt, value in values.items() if value is not None}
    return SpeedComparison(overall, estimates, len(pairs), alone)


def compare_rates(
    tasks: Mapping[str, Sequence[Sequence[float]]],
) -> tuple[Estimate | None, dict[str, Estimate]]:
    """(Σ a ÷ Σ b) ÷ (Σ c ÷ Σ d) of each task, and the geometric mean over the tasks, with the intervals of `compare_speed`.

    Args:
        tasks: of each task its prompts' (a, b, c, d), none negative. A task without such a ratio is left out.
    """
    found = {task: _of_task(np.array(rows, dtype=np.float64)) for task, rows in tasks.items() if len(rows)}
    estimates = {task: estimate for task, estimate in found.items() if estimate is not None}
    return _overall(estimates), estimates


def prompt_spread(baseline: Iterable[Trial], other: Iterable[Trial]) -> LogRatio | None:
    """What would remain of the overall error after endlessly many repeats; None where that is unknown.

    See `spread_of_prompts`.
    """
    logs: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for first, second in pair_trials(baseline, other):
        value = _speedup(first.decode_s, first.decode_tokens, second.decode_s, second.decode_tokens)
        if value is not None:
            logs[first.task][f"{first.prompt}/{first.turn}"].append(math.log(value))
    return spread_of_prompts([list(prompts.values()) for prompts in logs.values()])


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


def _of_task(sums: PromptSums) -> Estimate | None:
    value = _speedup(*(math.fsum(column) for column in sums.T))
    if value is None:
        return None
    found, left = estimated(value, jackknife(sums)), left_out(sums)
    return found if found.log is None or left is None else replace(found, left_out=tuple(left.tolist()))


def _overall(estimates: Mapping[str, Estimate]) -> Estimate | None:
    value = geometric_mean(estimate.value for estimate in estimates.values())
    if value is None:
        return None
    logs = [estimate.log for estimate in estimates.values() if estimate.log is not None]
    return estimated(value, mean_of(logs) if len(logs) == len(estimates) else None)


def estimated(value: float, log: LogRatio | None) -> Estimate:
    """An estimate whose interval holds its value in spite of rounding; without one if it has no bounds."""
    low, high = log.ends() if log is not None else (0.0, math.inf)
    if log is None or low <= 0.0 or not math.isfinite(high):
        return Estimate(value, None)
    return Estimate(value, Interval(min(low, value), max(high, value)), log)


def _sums_by_prompt(pairs: Iterable[tuple[Trial, Trial]]) -> dict[str, dict[str, list[float]]]:
    """By task and prompt, both sorted: baseline seconds, tokens, other's seconds, tokens.

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
        task: {
            prompt: [math.fsum(column) for column in zip(*map(_mean_row, by_turn.values()), strict=True)]
            for prompt, by_turn in prompts.items()
        }
        for task, prompts in turns.items()
    }


def _mean_row(rows: list[tuple[float, ...]]) -> list[float]:
    return [math.fsum(column) / len(rows) for column in zip(*rows, strict=True)]


def _speedup(baseline_s: float, baseline_tokens: float, other_s: float, other_tokens: float) -> float | None:
    if min(baseline_s, baseline_tokens, other_s, other_tokens) <= 0.0:
        return None
    # A product or quotient of times near the smallest float may still come out as 0 or infinite.
    return ratio(baseline_s / baseline_tokens, other_s / other_tokens) or None
