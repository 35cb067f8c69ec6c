"""Ways to get a 95 % interval of a speedup from few prompts: the one in use and those it was chosen over.

All take the same sums by prompt and give ends on the logarithmic scale. `ci/simulate_intervals.py` lets
them compete; `statistics.compare_speed` uses the jackknife alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from draftrank.measure.statistics.log_ratio import (
    CONFIDENCE,
    Floats,
    LogRatio,
    PromptSums,
    jackknife,
    mean_of,
    t_quantile,
)

RESAMPLES = 400
"""Bootstrap draws per session: enough to compare methods over many sessions."""
_NORMAL_95 = 1.959964


class Ends(NamedTuple):
    """Ends of an interval of a log speedup."""

    low: float
    high: float


class Intervals(NamedTuple):
    """What a method says of one comparison."""

    overall: Ends
    tasks: tuple[Ends, ...]


Method = Callable[[Sequence[PromptSums], np.random.Generator], Intervals]


def jackknife_t(tasks: Sequence[PromptSums], generator: np.random.Generator) -> Intervals:  # noqa: ARG001
    """t-interval of the log ratio of sums; error from leaving out each prompt (in use)."""
    return _around([_known(jackknife(sums)) for sums in tasks])


def sums_bootstrap(tasks: Sequence[PromptSums], generator: np.random.Generator) -> Intervals:
    """Percentiles of the ratio of sums over n−1 of n prompts drawn with replacement (Rao & Wu 1988)."""
    return _percentiles([_draws(sums, generator) for sums in tasks])


def widened_sums_bootstrap(tasks: Sequence[PromptSums], generator: np.random.Generator) -> Intervals:
    """The same, stretched from its value by t ÷ 1.96, degrees of freedom as for the jackknife."""
    errors = [_known(jackknife(sums)) for sums in tasks]
    plain = _percentiles([_draws(sums, generator) for sums in tasks])
    return Intervals(_stretched(plain.overall, mean_of(errors)), tuple(map(_stretched, plain.tasks, errors)))


def ratios_bootstrap(tasks: Sequence[PromptSums], generator: np.random.Generator) -> Intervals:
    """Percentiles of the geometric mean of paired ratios, one per prompt, over n−1 of n prompts."""
    draws = []
    for sums in tasks:
        logs = _paired_logs(sums)
        draws.append(counts_of(len(logs), generator) @ logs / (len(logs) - 1))
    return _percentiles(draws)


def ratios_t(tasks: Sequence[PromptSums], generator: np.random.Generator) -> Intervals:  # noqa: ARG001
    """t-interval of the mean log ratio, one per prompt, clustered by task."""
    found = []
    for logs in map(_paired_logs, tasks):
        error = float(logs.std(ddof=1)) / len(logs) ** 0.5
        found.append(LogRatio(float(logs.mean()), error, len(logs) - 1))
    return _around(found)


METHODS: dict[str, Method] = {
    "jackknife t": jackknife_t,
    "sums, bootstrap": sums_bootstrap,
    "sums, bootstrap × t/1.96": widened_sums_bootstrap,
    "paired ratios, bootstrap": ratios_bootstrap,
    "paired ratios, t": ratios_t,
}


def _known(found: LogRatio | None) -> LogRatio:
    if found is None:
        raise ValueError("a task needs two prompts in which something was decoded")
    return found


def _around(tasks: Sequence[LogRatio]) -> Intervals:
    overall = mean_of(tasks)
    return Intervals(ends_of(overall), tuple(map(ends_of, tasks)))


def ends_of(ratio: LogRatio) -> Ends:
    """The interval of a log ratio."""
    reach = ratio.reach()
    return Ends(ratio.value - reach, ratio.value + reach)


def _stretched(ends: Ends, error: LogRatio) -> Ends:
    factor = t_quantile((1 + CONFIDENCE) / 2, error.freedom) / _NORMAL_95
    return Ends(
        error.value + factor * (ends.low - error.value), error.value + factor * (ends.high - error.value)
    )


def counts_of(prompts: int, generator: np.random.Generator) -> Floats:
    """How often each prompt is drawn, (draws, prompts), of n−1 with replacement."""
    drawn = generator.multinomial(prompts - 1, np.full(prompts, 1 / prompts), size=RESAMPLES)
    return drawn.astype(np.float64)


def _draws(sums: PromptSums, generator: np.random.Generator) -> Floats:
    return _paired_logs(counts_of(len(sums), generator) @ sums)


def _percentiles(draws: Sequence[Floats]) -> Intervals:
    return Intervals(percentiles(np.mean(draws, axis=0)), tuple(map(percentiles, draws)))


def percentiles(draws: Floats) -> Ends:
    """The interval that holds the middle 95 % of draws."""
    tail = 100 * (1 - CONFIDENCE) / 2
    return Ends(*map(float, np.percentile(draws, [tail, 100 - tail])))


def _paired_logs(sums: PromptSums) -> Floats:
    logs = np.log(sums)
    found: Floats = logs[:, 0] - logs[:, 1] - logs[:, 2] + logs[:, 3]
    return found
