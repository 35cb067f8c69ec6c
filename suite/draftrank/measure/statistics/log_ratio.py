"""Logarithms of speed ratios with their standard errors: from prompts to a task, from tasks to a whole.

The speedup of a task is a ratio of sums over its prompts, so its error is that of a ratio and not of a mean.
The jackknife (Quenouille 1949, Tukey 1958) estimates it by leaving out each prompt in turn, with n−1 degrees
of freedom. Over tasks, variances add up, and Welch and Satterthwaite's formula gives the degrees of freedom
of the whole. `docs/simulation.md` shows how often the intervals contain the truth, and compares other
methods.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
PromptSums = NDArray[np.float64]
"""One row per prompt of a task, (first arm's seconds, its tokens, second arm's seconds, its tokens)."""
CONFIDENCE = 0.95
MIN_PROMPTS = 2
"""Prompts per task below which nothing can be said about their spread."""
_ONE_SIDED_95 = 1.645


@dataclass(frozen=True, slots=True)
class LogRatio:
    """A natural logarithm of a ratio of speeds, and how well it is known."""

    value: float
    standard_error: float
    freedom: float
    """Degrees of freedom of the standard error."""

    @property
    def ratio(self) -> float:
        """The ratio itself; infinite where no float holds it."""
        return _exp(self.value)

    def ends(self) -> tuple[float, float]:
        """Ends of the interval of the ratio itself, no longer its logarithm; infinite ones included."""
        reach = self.reach()
        return _exp(self.value - reach), _exp(self.value + reach)

    def reach(self) -> float:
        """Half the interval's width on the logarithmic scale."""
        if self.standard_error == 0.0:
            return 0.0
        return t_quantile((1 + CONFIDENCE) / 2, self.freedom) * self.standard_error

    @property
    def half_width(self) -> float:
        """Half the width of the ratio's interval, relative to the ratio."""
        reach = self.reach()
        return math.sinh(reach) if reach < 709.0 else math.inf

    @property
    def above_one(self) -> float:
        """Probability that the ratio is above 1: the t distribution around the value (flat prior)."""
        if self.standard_error == 0.0:
            return 0.5 + 0.5 * ((self.value > 0.0) - (self.value < 0.0))
        return t_cdf(self.value / self.standard_error, self.freedom)


def log_speedup(sums: PromptSums) -> float | None:
    """Logarithm of (Σ seconds ÷ Σ tokens of the first) ÷ (Σ seconds ÷ Σ tokens of the second arm).

    None where a sum is 0, or where times near the ends of the floating range give no finite value.
    """
    total = sums.sum(axis=0)
    if not (total > 0.0).all():
        return None
    value = float(_log_ratios(total))
    return value if math.isfinite(_exp(value)) and _exp(value) > 0.0 else None


def jackknife(sums: PromptSums) -> LogRatio | None:
    """`log_speedup` with its error from leaving out each prompt in turn.

    None with fewer than two prompts in which something was decoded, or if without one of them nothing is.
    """
    value = log_speedup(sums)
    left = left_out(sums)
    return None if value is None or left is None else LogRatio(value, *error_of(left))


def left_out(sums: PromptSums) -> Floats | None:
    """`log_speedup` without each prompt in turn; None as of `jackknife`.

    Prompts in which neither arm decoded anything have no entry.
    """
    sums = sums[(sums > 0.0).any(axis=1)]
    if len(sums) < MIN_PROMPTS or log_speedup(sums) is None:
        return None
    without = sums.sum(axis=0) - sums
    return _log_ratios(without) if (without > 0.0).all() else None


def error_of(left: Floats) -> tuple[float, float]:
    """Standard error and degrees of freedom of a figure, from its values without each prompt in turn."""
    prompts = len(left)
    variance = (prompts - 1) / prompts * float(np.sum((left - left.mean()) ** 2))
    return math.sqrt(variance), float(prompts - 1)


def mean_of(tasks: Sequence[LogRatio]) -> LogRatio:
    """The mean over independent tasks: the logarithm of the geometric mean of their ratios."""
    value = math.fsum(task.value for task in tasks) / len(tasks)
    return LogRatio(value, *_added(tasks, 1 / len(tasks)))


def difference(first: LogRatio, second: LogRatio) -> LogRatio:
    """`first` less `second`, taken as independent."""
    return LogRatio(first.value - second.value, *_added((first, second), 1.0))


def spread_of_prompts(tasks: Sequence[Sequence[Sequence[float]]]) -> LogRatio | None:
    """The least error that prompts alone leave in a mean over tasks, around 0: what repeats cannot lower.

    The variance of a prompt's logarithm over its repeats is the machine's noise, and averages out; what
    is more between prompts is theirs. From few prompts this is a vague figure, so its lower bound is
    given (one-sided 95 %, normal approximation of the noncentral chi-square): a session must not end
    because noise looked like spread.

    Args:
        tasks: of each task its prompts, of each prompt its log ratios, one per repeat.

    Returns:
        None with fewer than two repeats of some prompt, or fewer than two prompts in a task.
    """
    between: list[LogRatio] = []
    noise: list[LogRatio] = []
    for prompts in tasks:
        if len(prompts) < MIN_PROMPTS or min(map(len, prompts)) < 2:
            return None
        apart = float(np.var([np.mean(values) for values in prompts], ddof=1))
        within = float(np.mean([np.var(values, ddof=1) / len(values) for values in prompts]))
        for parts, variance in ((between, apart), (noise, within)):
            parts.append(LogRatio(0.0, math.sqrt(variance / len(prompts)), len(prompts) - 1))
    if not between:
        return None
    whole, blur = mean_of(between), mean_of(noise).standard_error ** 2
    own = max(0.0, whole.standard_error**2 - blur)
    least = own - _ONE_SIDED_95 * math.sqrt((2 * blur**2 + 4 * blur * own) / whole.freedom)
    return LogRatio(0.0, math.sqrt(max(0.0, least)), whole.freedom)


def _log_ratios(sums: Floats) -> Floats:
    """Log speedups along the last axis; exactly 0 where both arms have the same sums."""
    logs = np.log(sums)
    found: Floats = (logs[..., 0] - logs[..., 2]) - (logs[..., 1] - logs[..., 3])
    return found


def _added(parts: Sequence[LogRatio], weight: float) -> tuple[float, float]:
    """Standard error of the weighted sum, and its degrees of freedom (Satterthwaite 1946; Welch 1947)."""
    variances = [(weight * part.standard_error) ** 2 for part in parts]
    total = math.fsum(variances)
    if total == 0.0:
        return 0.0, math.fsum(part.freedom for part in parts)
    # Shares before squares, so that tiny variances do not vanish.
    below = math.fsum((own / total) ** 2 / part.freedom for own, part in zip(variances, parts, strict=True))
    return math.sqrt(total), 1 / below


def t_cdf(t: float, freedom: float) -> float:
    """Probability that a variable of Student's t distribution with `freedom` > 0 degrees of freedom is at most `t`.

    With n prompts the standard error is itself an estimate from n values; t (Student 1908) widens the interval by what that
    costs: 2 prompts need 12.7 standard errors on each side, 16 need 2.13, many 1.96. Degrees of freedom need not be whole
    (Welch 1947).
    """
    from scipy.special import stdtr  # a fifth of a second, which commands that estimate nothing are spared

    return float(stdtr(freedom, t))


@lru_cache(maxsize=65_536)
def t_quantile(probability: float, freedom: float) -> float:
    """The t value that a t variable stays below with this probability, strictly between 0 and 1."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, probability))


def _exp(value: float) -> float:
    return math.exp(value) if value < 709.0 else math.inf
