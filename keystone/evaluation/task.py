"""What a task is: a prompt to complete, and the calls that decide whether the completion is right.

A task is judged only by behaviour. Its `cases` are calls of the completed function with the value each must return;
they are computed from a reference implementation that is not the canonical solution's text, so a wrong solution and a
wrong test cannot agree by construction. The expected values never enter the process that runs generated code (see
`keystone.evaluation.sandbox`).

Values are what JSON can hold, compared strictly: `True` is not `1`, and `2.0` is not `2`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

Value: TypeAlias = "bool | int | float | str | Sequence[Value] | Mapping[str, Value] | None"
"""An argument or a result of a task's function."""


class Side(StrEnum):
    """On which side of the split a task is."""

    TRAINING = "training"
    """May be trained on."""
    SEEN_FAMILY = "seen"
    """Held out, of a family whose other draws are trained on."""
    UNSEEN_FAMILY = "held-out"
    """Held out, of a family that training never sees, as every public benchmark must be."""


@dataclass(frozen=True, slots=True)
class Case:
    """One call of the function: positional arguments and the value it must return."""

    args: tuple[Value, ...]
    expected: Value


@dataclass(frozen=True, slots=True)
class Task:
    """One small programming problem.

    Attributes:
        suite: Name of the suite it belongs to, such as `basics`.
        family: The kind of problem within the suite; results are reported per family.
        name: Unique within a draw, and the same whenever the same function is drawn again.
        prompt: Python source that ends right after the docstring's newline.
        solution: The canonical body, indented, ending in a newline; `prompt + solution` is a whole module.
        entry_point: The function that the cases call.
        cases: Hidden tests.
        side: Whether it may be trained on, and if not, whether its family is known from training.
    """

    suite: str
    family: str
    name: str
    prompt: str
    solution: str
    entry_point: str
    cases: tuple[Case, ...]
    side: Side

    @property
    def held_out(self) -> bool:
        """Whether the task may never be trained on."""
        return self.side is not Side.TRAINING

    @property
    def source(self) -> str:
        """The completed function as it would be written by hand."""
        return self.prompt + self.solution
