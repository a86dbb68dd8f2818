"""Quantiles of the normal and of Student's t distribution, without a heavy dependency.

The tail of t is a regularised incomplete beta function, computed here with its continued fraction in the form of Lentz
(Numerical Recipes, 6.4); the quantile is found by bisection on that tail, since it is needed a few times a cycle and
must be right far out, where tests that are spent over many looks live.
"""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

from adapters.errors import InvalidPolicyError

_STEPS = 300
_TINY = 1e-300


def normal_quantile(p: float) -> float:
    """The value below which a standard normal variable falls with probability `p`, 0 < p < 1."""
    _check(p)
    return NormalDist().inv_cdf(p)


@lru_cache(maxsize=1024)
def t_quantile(p: float, degrees: int) -> float:
    """The value below which Student's t with this many degrees of freedom falls with probability `p`, 0 < p < 1.

    Raises:
        InvalidPolicyError: a probability outside (0, 1), or no degrees of freedom.
    """
    _check(p)
    if degrees < 1:
        raise InvalidPolicyError(f"Student's t needs at least one degree of freedom, not {degrees}")
    if p < 0.5:
        return -t_quantile(1 - p, degrees)
    low, high = 0.0, 1.0
    while t_tail(high, degrees) > 1 - p:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if t_tail(middle, degrees) > 1 - p:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def t_tail(value: float, degrees: int) -> float:
    """The probability that Student's t exceeds `value`."""
    if value < 0:
        return 1 - t_tail(-value, degrees)
    return 0.5 * _incomplete_beta(degrees / 2, 0.5, degrees / (degrees + value * value))


def _incomplete_beta(a: float, b: float, x: float) -> float:
    if x <= 0 or x >= 1:
        return float(x >= 1)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    # The fraction converges fast on one side of the mean only; the other side follows by symmetry.
    if x < (a + 1) / (a + b + 2):
        return math.exp(log_front) * _fraction(a, b, x) / a
    return 1 - math.exp(log_front) * _fraction(b, a, 1 - x) / b


def _fraction(a: float, b: float, x: float) -> float:
    c, d = 1.0, 1 / _away(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, _STEPS):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _away(1 + term * d)
            c = _away(1 + term / c)
            value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return value


def _away(value: float) -> float:
    return value if abs(value) > _TINY else _TINY


def _check(p: float) -> None:
    if not 0 < p < 1:
        raise InvalidPolicyError(f"a probability must lie between 0 and 1, not at {p}")
