"""Student's t distribution, for intervals from few prompts.

With n prompts the standard error is itself an estimate from n values; t (Student 1908) widens the
interval by what that costs: 2 prompts need 12.7 standard errors on each side, 16 need 2.13, many 1.96.
Degrees of freedom need not be whole (Welch 1947).
"""

from __future__ import annotations

from functools import lru_cache


def t_cdf(t: float, freedom: float) -> float:
    """Probability that a t variable with `freedom` > 0 degrees of freedom is at most `t`."""
    from scipy.special import stdtr  # a fifth of a second, which commands that estimate nothing are spared

    return float(stdtr(freedom, t))


@lru_cache(maxsize=65_536)
def t_quantile(probability: float, freedom: float) -> float:
    """The t value that a t variable stays below with this probability, strictly between 0 and 1."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, probability))
