"""The paired bootstrap: how far could this difference have fallen out otherwise?

Families are drawn with replacement, each with all its items and both models' results on them, and the mean difference
is computed again. Two intervals come from it: percentile, and BCa (Efron 1987), which corrects the percentile interval
for bias and for skew: differences of lengths or of repetition are skewed. The spread of the resampled means is the
standard error, for levels so far out that no affordable number of resamples has a percentile there.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from adapters.errors import InvalidEvidenceError, InvalidPolicyError
from adapters.statistics.families import Floats
from adapters.statistics.quantiles import normal_quantile

RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class BootstrapInterval:
    """A mean difference with its interval and standard error."""

    mean: float
    low: float
    high: float
    error: float
    level: float
    method: str


def paired_bootstrap(
    means: Floats, *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0, method: str = "bca"
) -> BootstrapInterval:
    """Interval around the mean over families of a paired difference.

    Args:
        means: one mean difference a family, shape (F,), as `Families.means` gives it.
        level: two-sided confidence.
        resamples: how many times to draw the families again.
        seed: of the draws.
        method: `bca` or `percentile`.

    Raises:
        InvalidEvidenceError: fewer than two families.
        InvalidPolicyError: a method, a level or a number of resamples that is none.
    """
    if means.ndim != 1 or len(means) < 2:
        raise InvalidEvidenceError(f"a bootstrap over families needs at least two of them, shape is {means.shape}")
    if method not in ("bca", "percentile") or not 0 < level < 1 or resamples < 100:
        raise InvalidPolicyError(
            f"method {method!r}, level {level}, {resamples} resamples: choose bca or percentile, a level between 0 and"
            " 1, and at least 100 resamples"
        )
    drawn = resampled_means(means, resamples=resamples, seed=seed)
    shares = (1 - level) / 2, (1 + level) / 2
    if method == "bca":
        shares = _corrected(means, drawn, shares)
    low, high = np.quantile(drawn, shares)
    return BootstrapInterval(float(means.mean()), float(low), float(high), float(drawn.std(ddof=1)), level, method)


def resampled_means(means: Floats, *, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """The mean over families in each resample: (..., F) to (..., B)."""
    count = means.shape[-1]
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    return np.asarray(means @ (drawn.T / count), dtype=np.float64)


def _corrected(means: Floats, drawn: Floats, shares: tuple[float, float]) -> tuple[float, float]:
    normal = NormalDist()
    # The share of resamples below the estimate, ties counted half; kept inside so that its quantile exists.
    below = float((drawn < means.mean()).mean() + 0.5 * (drawn == means.mean()).mean())
    edge = 0.5 / len(drawn)
    bias = normal_quantile(min(max(below, edge), 1 - edge))
    # For a mean, leaving out family i moves it by -(m_i - mean) / (F - 1): the jackknife in closed form.
    centred = means - means.mean()
    spread = float((centred**2).sum())
    if spread == 0:
        return shares
    skew = float((centred**3).sum()) / (6 * spread**1.5)

    def moved(share: float) -> float:
        z = bias + normal_quantile(share)
        return normal.cdf(bias + z / (1 - skew * z))

    return moved(shares[0]), moved(shares[1])
