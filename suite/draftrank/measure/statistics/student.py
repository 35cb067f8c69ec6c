"""Student's t distribution, for intervals from few prompts.

With n prompts the standard error is itself an estimate from n values; t (Student 1908) widens the
interval by what that costs: 2 prompts need 12.7 standard errors on each side, 16 need 2.13, many 1.96.
Degrees of freedom need not be whole (Welch 1947).
"""

from __future__ import annotations

import math
from functools import lru_cache

from scipy.special import stdtrit

_TINY = 1e-300
_CLOSE = 1e-13


def t_cdf(t: float, freedom: float) -> float:
    """Probability that a t variable with `freedom` > 0 degrees of freedom is at most `t`."""
    if math.isinf(t):
        return float(t > 0)
    square = t * t
    # The two forms of one tail; each is exact where the other cancels.
    if square < freedom:
        tail = 0.5 * (1.0 - _regular_beta(square / (freedom + square), 0.5, freedom / 2))
    else:
        tail = 0.5 * _regular_beta(freedom / (freedom + square), freedom / 2, 0.5)
    return 1.0 - tail if t > 0 else tail


@lru_cache(maxsize=65_536)
def t_quantile(probability: float, freedom: float) -> float:
    """The t value that a t variable stays below with this probability, strictly between 0 and 1."""
    return float(stdtrit(freedom, probability))


def _regular_beta(x: float, a: float, b: float) -> float:
    """Regularised incomplete beta function I_x(a, b) by its continued fraction (DLMF 8.17.22)."""
    if x <= 0.0 or x >= 1.0:
        return float(x >= 1.0)
    if x > (a + 1) / (a + b + 2):
        return 1.0 - _regular_beta(1.0 - x, b, a)
    front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    c, d = 1.0, 1.0 / _off_zero(1.0 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, 10_000):  # (Lentz's method)
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        change = 1.0
        for term in (even, odd):
            d = 1.0 / _off_zero(1.0 + term * d)
            c = _off_zero(1.0 + term / c)
            change = c * d
            fraction *= change
        if abs(change - 1.0) < _CLOSE:
            break
    return math.exp(front) * fraction / a


def _off_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
