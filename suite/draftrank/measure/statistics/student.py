"""Student's t distribution, for intervals from few prompts.

With n prompts the standard error is itself an estimate from n values; t (Student 1908) widens the
interval by what that costs: 2 prompts need 12.7 standard errors on each side, 16 need 2.13, many 1.96.
Degrees of freedom need not be whole (Welch 1947).

The distribution is a regularized incomplete beta function, whose continued fraction (DLMF 8.17.22) converges fast from the
middle of the distribution or from its end. scipy has it too, but importing that takes longer than reading all results.
"""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Real = TypeVar("Real", float, Floats)
_NEAR = 3.0
"""Squares of t up to which the fraction converges faster from the middle."""
_TERMS = 30
"""Pairs of terms of the fraction; more change no digit, whatever t and the degrees of freedom."""
_SHIFT = 16
"""Stirling's series is exact to the last digit so many steps further on."""
_LAST_DIGIT = 1e-15


def t_cdf(t: float, freedom: float) -> float:
    """Probability that a t variable with `freedom` > 0 degrees of freedom is at most `t`."""
    half, square = freedom / 2, t * t / freedom
    if t * t <= _NEAR:
        share = square / (1 + square)
        return 0.5 + math.copysign(_power(half, square, share) * _fraction(0.5, half, share), t)
    beyond = _power(half, square, 1 / (1 + 1 / square)) * _fraction(half, 0.5, 1 / (1 + square)) / freedom
    return float(1 - beyond if t > 0 else beyond)


def t_cdfs(t: Floats, freedom: Floats) -> Floats:
    """`t_cdf` of each element; no number where there is none."""
    with np.errstate(all="ignore"):
        near, half, square = t * t <= _NEAR, freedom / 2, t * t / freedom
        share = np.where(near, square / (1 + square), 1 / (1 + 1 / square))
        a, b = np.where(near, 0.5, half), np.where(near, half, 0.5)
        fraction = _fraction(a, b, np.where(near, share, 1 / (1 + square)))
        part = _power(half, square, share) * fraction / (2 * a)
    found: Floats = np.where(near, 0.5 + np.sign(t) * part, np.where(t > 0, 1 - part, part))
    return found


@lru_cache(maxsize=65_536)
def t_quantile(probability: float, freedom: float) -> float:
    """The t value that a t variable stays below with this probability, strictly between 0 and 1."""
    if probability < 0.5:
        return -t_quantile(1 - probability, freedom)
    half, normal = freedom / 2, NormalDist().inv_cdf(probability)
    at_0 = float(_gamma_ratio(half)) / math.sqrt(math.pi * freedom)
    t = normal + (normal**3 + normal) / (4 * freedom) if freedom > 1 else 0.0
    while True:  # Newton's method: from the left of a concave function it never goes too far
        density = at_0 * math.exp(-(half + 0.5) * math.log1p(t * t / freedom))
        step = (probability - t_cdf(t, freedom)) / density
        t += step
        if step <= _LAST_DIGIT * t:
            return t


def _power(half: Real, square: Real, share: Real) -> Real:
    """x^a (1−x)^½ ÷ B(a, ½), of a = `half`, x = 1 ÷ (1 + `square`) and 1−x = `share`."""
    found: Real = _gamma_ratio(half) * np.exp(-half * np.log1p(square)) * (share / math.pi) ** 0.5
    return found


def _fraction(a: Real | float, b: Real | float, x: Real) -> Real:
    """The continued fraction of the incomplete beta function at x < (a + 1) ÷ (a + b + 2), about; from its end."""
    below: Real = 1.0 + 0.0 * x
    for m in range(_TERMS, 0, -1):
        p, n = a + 2 * m, m - 1
        below = 1 + m * (b - m) * x / ((p - 1) * p * below)
        below = 1 - (a + n) * (a + b + n) * x / ((p - 2) * (p - 1) * below)
    return 1 / below


def _gamma_ratio(a: Real) -> Real:
    """Γ(a + ½) ÷ Γ(a): Stirling's series some steps further on, and the recurrence back from there."""
    s = a + _SHIFT
    found: Real = s**0.5 * np.exp(-1 / (8 * s) + 1 / (192 * s**3) - 1 / (640 * s**5) + 17 / (14336 * s**7))
    for step in range(_SHIFT):
        found = found * ((a + step) / (a + step + 0.5))
    return found
