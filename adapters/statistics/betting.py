"""Anytime-valid evidence: bets against "nothing got worse" that may be looked at after every cycle.

A p-value holds for one look. Somebody who tests every week and stops at the first p below 5 % is wrong far more often.
Wealth from fair bets has no such weakness: start with 1, stake a part on "the candidate is worse" in every cycle, and
if it is not, the chance of ever reaching 1/alpha is at most alpha (Ville), however often and whenever one looks. The
wealth is called an e-value. (Waudby-Smith and Ramdas 2024 for bounded means; Shafer 2021 for the language.)

What a bet is. In a cycle, family f has the mean difference X in [-1, 1]. With a stake s in (0, 1) the wealth is
multiplied by `1 - s (X - null) / (1 + |null|)`, which is never negative. The stake is the same for all families of a
cycle and fixed beforehand, so if the *mean over families* is at least `null`, the expected product is at most
`exp(-s * sum(E X - null) / (1 + |null|)) <= 1`: some families may truly fall while others rise. Nothing is assumed
about variances, shapes or symmetry, only that families err independently on items not seen before; that is why bets
are made on fresh draws and never on the frozen sentinel set, whose luck would be counted again in every cycle.

Which stake is best depends on how bad things are, which nobody knows, so wealth is split over a few stakes (`STAKES`).
When the drift began is not known either, and years of good cycles would make an early bet too poor to ever win again.
So a share of the wealth waits for each cycle to begin with (`start_weights`): half for the first, the rest over the
others. An average of e-values is an e-value.

A refused candidate is not an ancestor of those that come after, so its losses must not be held against them, and its
wins are kept out too: a refused look counts with `min(bet, 1)`, which only ever makes an e-value smaller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adapters.errors import InvalidEvidenceError, InvalidPolicyError
from adapters.statistics.families import Floats

STAKES = (0.1, 0.25, 0.5, 0.9)
"""Shares of the wealth that are staked on each family; the wealth begins split evenly between them."""


@dataclass(frozen=True, slots=True)
class Look:
    """One cycle's bets: the log of what wealth was multiplied with, one number a stake, and what came of it.

    Attributes:
        bets: as `log_bets` gives them.
        kept: whether the candidate was promoted, and so is part of what later candidates stand on.
    """

    bets: tuple[float, ...]
    kept: bool


@dataclass(frozen=True, slots=True)
class MeanInterval:
    """Where the mean over all cycles so far must lie, at once for every number of cycles."""

    low: float
    high: float


def log_bets(means: Floats, *, null: float = 0.0, stakes: Sequence[float] = STAKES) -> Floats:
    """Bets of one cycle on "worse than `null`": (..., F) mean differences to (..., S) logs of factors.

    Raises:
        InvalidEvidenceError: a difference outside [-1, 1].
        InvalidPolicyError: a stake outside (0, 1), or a null outside (-1, 1).
    """
    _check(means, stakes)
    if not -1 < null < 1:
        raise InvalidPolicyError(f"a mean difference of pass rates lies between -1 and 1, so a null of {null} is none")
    scaled = (means - null) / (1 + abs(null))
    parts = [np.log1p(-stake * scaled).sum(axis=-1) for stake in stakes]
    return np.stack(parts, axis=-1)


def start_weights(looks: int) -> tuple[float, ...]:
    """How the first wealth is divided over the cycles it may begin in: half for the first, the rest evenly."""
    if looks < 1:
        raise InvalidPolicyError(f"a chain has at least one look, not {looks}")
    return (1.0,) if looks == 1 else (0.5, *([0.5 / (looks - 1)] * (looks - 1)))


def chain_e_value(history: Sequence[Look], bets: Sequence[float], *, looks: int) -> float:
    """The e-value of a chain that ends in a candidate with these bets.

    Args:
        history: the earlier looks of the same chain, oldest first.
        bets: the candidate's own, as `log_bets` gives them.
        looks: how many looks the policy planned.

    Raises:
        InvalidPolicyError: when the planned looks are used up; record a new policy.
        InvalidEvidenceError: looks with different numbers of stakes.
    """
    if len(history) >= looks:
        raise InvalidPolicyError(f"the policy planned {looks} looks and they are used up; record a new policy")
    if any(len(look.bets) != len(bets) for look in history):
        raise InvalidEvidenceError(f"the looks of one chain were made with different stakes; this one has {len(bets)}")
    rows = [np.array(look.bets) if look.kept else np.minimum(look.bets, 0.0) for look in history]
    ends = np.cumsum(np.stack([np.asarray(bets, dtype=np.float64), *rows[::-1]]), axis=0)[::-1]
    weights = np.array(start_weights(looks))
    started = np.exp(np.minimum(ends, 700.0)).mean(axis=-1)  # one number a start, oldest first; capped before overflow
    return float((weights[: len(started)] * started).sum() + weights[len(started) :].sum())


def confidence_sequence(
    cycles: Sequence[Floats], *, alpha: float, stakes: Sequence[float] = STAKES, points: int = 801
) -> list[MeanInterval]:
    """The confidence sequence of the mean difference, one interval a cycle; each lies inside the one before.

    Every value on a grid is bet against from both sides; it stays while neither bet has won. All intervals at once
    cover the mean with probability 1 - alpha, so one may look after every cycle and stop when one likes.

    Args:
        cycles: family mean differences of each cycle, shape (F,) each, in [-1, 1].
        alpha: the chance that any of the intervals misses.
        stakes: as for `log_bets`.
        points: values on the grid over [-1, 1]; the ends are rounded outwards by one step.

    Raises:
        InvalidEvidenceError, InvalidPolicyError: as for `log_bets`.
    """
    if not 0 < alpha < 1:
        raise InvalidPolicyError(f"alpha must lie between 0 and 1, not at {alpha}")
    grid = np.linspace(-1, 1, points)
    wealth = np.zeros((2, len(stakes), points))
    alive = np.ones(points, dtype=bool)
    found = []
    for means in cycles:
        _check(means, stakes)
        scaled = (means[:, None] - grid[None, :]) / (1 + np.abs(grid))[None, :]
        for number, stake in enumerate(stakes):
            wealth[0, number] += np.log1p(-stake * scaled).sum(axis=0)
            wealth[1, number] += np.log1p(stake * scaled).sum(axis=0)
        total = np.exp(np.minimum(wealth, 700.0)).mean(axis=(0, 1))
        alive &= total < 1 / alpha
        kept = np.flatnonzero(alive)
        # No value left means that the mean moved between cycles; the interval then has no honest ends but all of it.
        first, last = (int(kept[0]), int(kept[-1])) if len(kept) else (0, points - 1)
        found.append(MeanInterval(float(grid[max(first - 1, 0)]), float(grid[min(last + 1, points - 1)])))
    return found


def _check(means: Floats, stakes: Sequence[float]) -> None:
    if not stakes or not all(0 < stake < 1 for stake in stakes):
        raise InvalidPolicyError(f"stakes are shares between 0 and 1, not {tuple(stakes)}")
    if means.shape[-1] == 0 or not (np.abs(means) <= 1 + 1e-12).all():
        raise InvalidEvidenceError("bets are on mean differences of pass rates, which lie between -1 and 1")
