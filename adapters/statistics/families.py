"""Items come in families, and the family is the unit of every test here.

Twenty tasks made from one template rise and fall together: counted as twenty independent witnesses they make a lucky
adapter look proven. So a paired comparison is reduced to one number a family, the mean difference over its items, and
the tests see as many observations as there are families. Each family weighs the same, so "the pass rate" of a
comparison is the mean over families (on a draw that is spread evenly, the same as the mean over items). Where every
item is a family of its own, as in HumanEval, this is the plain mean of differences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adapters.errors import InvalidEvidenceError

Floats = npt.NDArray[np.float64]
"""An array of float64; shapes are given where it is used. `...` is any number of batch axes, N items, F families."""


@dataclass(frozen=True, slots=True)
class Families:
    """Which item belongs to which family.

    Attributes:
        names: the families, sorted.
        members: the family's index of every item, shape (N,).
    """

    names: tuple[str, ...]
    members: npt.NDArray[np.intp]

    @classmethod
    def of(cls, labels: Sequence[str]) -> Families:
        """From one family name an item.

        Raises:
            InvalidEvidenceError: when there are no items.
        """
        if not labels:
            raise InvalidEvidenceError("there are no items to compare; draw some, and evaluate both models on them")
        names = tuple(sorted(set(labels)))
        index = {name: number for number, name in enumerate(names)}
        return cls(names, np.array([index[label] for label in labels], dtype=np.intp))

    @property
    def sizes(self) -> npt.NDArray[np.intp]:
        """Items in each family, shape (F,)."""
        return np.bincount(self.members, minlength=len(self.names))

    def sums(self, values: npt.ArrayLike) -> Floats:
        """Sums over the items of each family: (..., N) to (..., F).

        Raises:
            InvalidEvidenceError: when there is not one value an item, or one of them is not finite.
        """
        array = np.asarray(values, dtype=np.float64)
        if array.shape[-1:] != self.members.shape:
            raise InvalidEvidenceError(f"{array.shape[-1:]} values for {len(self.members)} items")
        if not np.isfinite(array).all():
            raise InvalidEvidenceError("a value is not a finite number; what could not be measured cannot be compared")
        # Sorted by family once, so that one reduceat adds up a batch of any shape.
        order = np.argsort(self.members, kind="stable")
        starts = np.concatenate(([0], np.cumsum(self.sizes)[:-1]))
        return np.asarray(np.add.reduceat(array[..., order], starts, axis=-1), dtype=np.float64)

    def means(self, values: npt.ArrayLike) -> Floats:
        """Means over the items of each family: (..., N) to (..., F)."""
        return self.sums(values) / self.sizes


def family_error(means: Floats) -> Floats:
    """The standard error of the mean over families, from the spread between them: (..., F) to (...).

    With one family there is no spread to see, and the error is infinite: nothing can be concluded.
    """
    count = means.shape[-1]
    if count < 2:
        return np.full(means.shape[:-1], np.inf)
    return np.asarray(means.std(axis=-1, ddof=1) / np.sqrt(count), dtype=np.float64)
