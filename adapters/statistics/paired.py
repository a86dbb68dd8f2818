"""Paired tests: the same items, two models, who won where.

- **McNemar's exact test** looks only at items that exactly one model passed. It is the plain exact binomial test, and
  not mid-p: mid-p is sharper, but its error can exceed the stated level, and a guard's level is a promise. It counts
  items as independent, so it serves *within* a family.
- **Sign flips** (a paired permutation test) serve across families. If the candidate is no different, a family's mean
  difference is as likely to come with the other sign; the p-value is the share of all sign patterns that look at least
  as extreme as what was seen. Whole families are flipped, so items may hang together within one as they like. With up
  to 13 families every pattern is tried; above, a fixed random sample of them with the observed one added, which keeps
  the level exact (Phipson and Smyth 2010).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from adapters.errors import InvalidEvidenceError
from adapters.statistics.families import Floats

FLIPS = 9999
"""Sign patterns drawn where not all can be tried: the smallest p-value is 1/10,000."""

_BATCH = 256
_TIE = 1e-9


@lru_cache(maxsize=65536)
def mcnemar_worse(lost: int, gained: int) -> float:
    """One-sided exact McNemar: how likely at least this many losses are if a flip is as likely a gain.

    Args:
        lost: items that only the reference passed.
        gained: items that only the candidate passed.

    Raises:
        InvalidEvidenceError: a negative count.
    """
    if lost < 0 or gained < 0:
        raise InvalidEvidenceError(f"{lost} lost and {gained} gained items cannot be")
    total = lost + gained
    return sum(math.comb(total, count) for count in range(lost, total + 1)) / (1 << total)


def mcnemar_better(lost: int, gained: int) -> float:
    """One-sided exact McNemar in the candidate's favour."""
    return mcnemar_worse(gained, lost)


def mcnemar_differs(lost: int, gained: int) -> float:
    """Two-sided exact McNemar: twice the smaller side, at most 1."""
    return min(1.0, 2 * min(mcnemar_worse(lost, gained), mcnemar_better(lost, gained)))


class SignFlips:
    """Sign patterns for a number of families, made once and used for every comparison of that shape.

    Args:
        families: how many there are.
        count: patterns to draw where there are more than that.
        seed: of the drawn patterns; policies fix it, so that a report can be computed again.
    """

    def __init__(self, families: int, *, count: int = FLIPS, seed: int = 0) -> None:
        if families < 1:
            raise InvalidEvidenceError("there are no families to compare")
        self.exhaustive = 2**families <= count
        if self.exhaustive:
            patterns = np.arange(2**families)[None, :] >> np.arange(families)[:, None] & 1
            self._signs = patterns * 2.0 - 1.0
        else:
            drawn = np.random.default_rng(seed).integers(0, 2, (families, count))
            self._signs = drawn * 2.0 - 1.0
        self._totals = self._signs.sum(axis=0)

    def p_worse(self, means: Floats, *, null: float = 0.0) -> Floats:
        """Against "the mean difference is `null` or more": small when the candidate is worse. (..., F) to (...)."""
        return self.p_better(-means, null=-null)

    def p_better(self, means: Floats, *, null: float = 0.0) -> Floats:
        """Against "the mean difference is `null` or less": small when the candidate is better. (..., F) to (...)."""
        rows = np.reshape(means, (-1, means.shape[-1]))
        return self._tails(rows, null)[1].reshape(means.shape[:-1])

    def tails(self, means: Floats, *, margin: float) -> tuple[Floats, Floats, Floats]:
        """What a verdict asks, from one pass over the patterns: (B, F) to (B,) each.

        Returns:
            p worse and p better than nothing, and p better than `-margin`.
        """
        worse, better, not_inferior = self._tails(means, 0.0, -margin)
        return worse, better, not_inferior

    def _tails(self, rows: Floats, *nulls: float) -> list[Floats]:
        # The lower tail of the first null, then the upper tail of each.
        families, patterns = self._signs.shape
        if rows.shape[-1] != families:
            raise InvalidEvidenceError(f"{rows.shape[-1]} families, and patterns for {families}")
        counts = np.empty((1 + len(nulls), len(rows)))
        for start in range(0, len(rows), _BATCH):  # the product is rows x patterns, so a few rows at a time
            part = slice(start, start + _BATCH)
            flipped, seen = rows[part] @ self._signs, rows[part].sum(axis=-1)[:, None]
            for number, null in enumerate(nulls):
                moved, at = (flipped - null * self._totals, seen - null * families) if null else (flipped, seen)
                # Equal sums reached in another order differ in the last bits, and a tie must count as extreme.
                if number == 0:
                    counts[0, part] = (moved <= at + _TIE).sum(axis=-1)
                counts[1 + number, part] = (moved >= at - _TIE).sum(axis=-1)
        extra = 0 if self.exhaustive else 1
        return list((counts + extra) / (patterns + extra))
