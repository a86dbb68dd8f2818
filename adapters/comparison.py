"""Two models on the same items: from who passed what to the few numbers that a verdict needs.

A comparison is only paired if both models answered exactly the same items, so anything else is refused by name: an
item that one of them skipped may be the one it would have failed. Differences are candidate minus reference, so a
negative number is a loss, everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adapters.errors import InvalidEvidenceError
from adapters.statistics import Families, SignFlips, mcnemar_worse
from adapters.statistics.families import Floats, family_error


@dataclass(frozen=True, slots=True)
class Outcome:
    """One item and whether a model passed it."""

    item: str
    family: str
    passed: bool


@dataclass(frozen=True, slots=True)
class Paired:
    """Two models on the same items.

    Attributes:
        families: which item is of which family.
        differences: candidate minus reference, -1, 0 or 1 an item, shape (N,).
    """

    families: Families
    differences: Floats

    @property
    def means(self) -> Floats:
        """The mean difference of each family, shape (F,)."""
        return self.families.means(self.differences)

    def flips(self) -> tuple[tuple[str, int, int, int], ...]:
        """Of each family: its name, items lost, items gained, items in all."""
        lost = self.families.sums(self.differences < 0)
        gained = self.families.sums(self.differences > 0)
        rows = zip(self.families.names, lost, gained, self.families.sizes, strict=True)
        return tuple((name, int(a), int(b), int(n)) for name, a, b, n in rows)


@dataclass(frozen=True, slots=True)
class Contrast:
    """A candidate against one reference on one set of items.

    Attributes:
        items: how many.
        families: how many.
        difference: mean over families of the pass rate's change, -1 to 1.
        error: its standard error, from the spread between families; 2 where there is only one family.
        p_worse: of "no worse".
        p_better: of "no better".
        p_inferior: of "worse by the margin or more": small when that can be excluded.
    """

    items: int
    families: int
    difference: float
    error: float
    p_worse: float
    p_better: float
    p_inferior: float


@dataclass(frozen=True, slots=True)
class FamilyLoss:
    """The family with the strongest sign of having been forgotten.

    Attributes:
        family: its name.
        lost: items only the reference passed.
        gained: items only the candidate passed.
        items: items in all.
        p: exact McNemar, one-sided, not yet corrected for having looked at every family.
    """

    family: str
    lost: int
    gained: int
    items: int
    p: float

    @property
    def drop(self) -> float:
        """The fall of the family's pass rate."""
        return (self.lost - self.gained) / self.items


def pair(candidate: Sequence[Outcome], reference: Sequence[Outcome], *, what: str) -> Paired:
    """Match two models' results item by item.

    Args:
        candidate: one model's results, in any order.
        reference: the other's.
        what: what is compared, for messages.

    Raises:
        InvalidEvidenceError: an item twice, in only one of the two, or in two families; it is named.
    """
    mine, theirs = _by_item(candidate, what), _by_item(reference, what)
    if odd := sorted(mine.keys() ^ theirs.keys()):
        where = "candidate" if odd[0] in mine else "reference"
        raise InvalidEvidenceError(
            f"{what}: item {odd[0]!r} was answered by the {where} alone ({len(odd)} such items); evaluate both on the"
            " same draw"
        )
    items = sorted(mine)
    for item in items:
        if mine[item].family != theirs[item].family:
            raise InvalidEvidenceError(
                f"{what}: item {item!r} is of family {mine[item].family!r} in one result and of"
                f" {theirs[item].family!r} in the other"
            )
    differences = np.array([float(mine[item].passed) - float(theirs[item].passed) for item in items])
    return Paired(Families.of([mine[item].family for item in items]), differences)


def contrast(paired: Paired, *, margin: float, seed: int) -> Contrast:
    """The numbers of one comparison.

    Args:
        paired: the matched results.
        margin: the largest fall that still counts as none.
        seed: of the sign patterns.
    """
    means = paired.means[None, :]
    numbers = contrasts(means, margin=margin, flips=SignFlips(means.shape[-1], seed=seed))
    return Contrast(len(paired.differences), means.shape[-1], *(float(column[0]) for column in numbers))


def contrasts(means: Floats, *, margin: float, flips: SignFlips) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """Difference, error, p worse, p better and p inferior of a batch of comparisons, (B, F) to (B,) each."""
    return (
        means.mean(axis=-1),
        np.minimum(family_error(means), 2.0),
        *flips.tails(means, margin=margin),
    )


def family_losses(*comparisons: Paired) -> tuple[FamilyLoss, ...]:
    """Every family over one or several sets of items, the most suspicious first; counts of one family are added up."""
    totals: dict[str, list[int]] = {}
    for comparison in comparisons:
        for name, *counts in comparison.flips():
            totals[name] = [a + b for a, b in zip(totals.get(name, [0, 0, 0]), counts, strict=True)]
    losses = (
        FamilyLoss(name, lost, gained, items, mcnemar_worse(lost, gained))
        for name, (lost, gained, items) in totals.items()
    )
    return tuple(sorted(losses, key=lambda loss: (loss.p, loss.family)))


def _by_item(outcomes: Sequence[Outcome], what: str) -> dict[str, Outcome]:
    found = {outcome.item: outcome for outcome in outcomes}
    if len(found) != len(outcomes):
        seen: set[str] = set()
        twice = next(o.item for o in outcomes if o.item in seen or seen.add(o.item))  # type: ignore[func-returns-value]
        raise InvalidEvidenceError(f"{what}: item {twice!r} was answered twice; which answer counts cannot be known")
    return found
