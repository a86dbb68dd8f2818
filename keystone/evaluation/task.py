"""What a task is: a prompt to complete, and the calls that decide whether the completion is right.

A task is judged only by behaviour. Its `cases` are calls of the completed function with the value each must return; they are
computed from a reference implementation that is not the canonical solution's text, so a wrong solution and a wrong test cannot
agree by construction. The expected values never enter the process that runs generated code (see `keystone.evaluation.sandbox`).

Values are what JSON can hold, compared strictly: `True` is not `1`, and `2.0` is not `2`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias, Union

Value: TypeAlias = Union[None, bool, int, float, str, list["Value"], dict[str, "Value"]]
"""An argument or a result of a task's function."""


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
        held_out: Whether the task may never be trained on.
    """

    suite: str
    family: str
    name: str
    prompt: str
    solution: str
    entry_point: str
    cases: tuple[Case, ...]
    held_out: bool

    @property
    def source(self) -> str:
        """The completed function as it would be written by hand."""
        return self.prompt + self.solution
