"""Numbers from verdicts: pass@k without bias, and how far chance could have moved a score.

With one sample an item, pass@1 is a share and has a Wilson interval. With more samples, or a larger k, a score is a
mean over items, and its interval is the percentile bootstrap over items: samples of one item are not independent of
each other, items are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from keystone.errors import InvalidInputError
from manifests import Interval

LEVEL: Final = 0.95
RESAMPLES: Final = 4000
_SEED: Final = 0
_DIGITS: Final = 9


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Probability that at least one of k samples passes, drawn without replacement from those at hand.

    The unbiased estimator `1 - C(n - c, k) / C(n, k)` of Chen et al., arXiv 2107.03374.

    Args:
        samples: n, how many were drawn for the item.
        passed: c, how many of them passed.
        k: at most n.

    Raises:
        InvalidInputError: there are fewer than k samples, from which nothing can be said about k.
    """
    if not 1 <= k <= samples or not 0 <= passed <= samples:
        raise InvalidInputError(f"pass@{k} needs at least {k} samples of an item; there are {samples}, {passed} passed")
    return 1.0 - math.comb(samples - passed, k) / math.comb(samples, k)


def bootstrap(values: Sequence[float], weights: Sequence[float] | None = None) -> Interval:
    """Percentile interval of a mean, or of a ratio of sums, over resampled items; the same on every run.

    Args:
        values: one number an item.
        weights: the denominators, for a ratio `sum(values) / sum(weights)`; default one each.
    """
    tops = np.asarray(values, dtype=np.float64)
    bottoms = np.ones_like(tops) if weights is None else np.asarray(weights, dtype=np.float64)
    rng = np.random.default_rng(_SEED)
    means = []
    for _ in range(RESAMPLES):
        chosen = rng.integers(0, len(tops), len(tops))
        means.append(tops[chosen].sum() / bottoms[chosen].sum())
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    score = float(tops.sum() / bottoms.sum())
    return Interval(
        low=min(round(float(low), _DIGITS), score),
        high=max(round(float(high), _DIGITS), score),
        level=LEVEL,
        method="bootstrap",
    )
