"""From a family's idea to the text of a task.

A family's builder returns a `Draft`: the sentence, the parameters, the body, and how to compute the truth. Turning a
draft into a `Task` (choosing the doctest example, running the reference over the inputs) is the same for every family
and happens here, only when somebody needs the tests: text for training does not.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from csf_store import Digest
from keystone.evaluation.basics.dice import Dice
from keystone.evaluation.basics.text_pieces import word
from keystone.evaluation.fingerprint import Outline, fingerprint, outline, skeleton
from keystone.evaluation.task import Case, Side, Task, Value

Args = tuple[Value, ...]

LIST_NAMES = ("numbers", "values", "items", "xs", "nums", "data", "scores", "points")
SCALAR_NAMES = ("n", "x", "value", "number", "num", "a", "size")
PAIR_NAMES = (("x", "y"), ("a", "b"), ("m", "n"), ("p", "q"), ("left", "right"), ("first", "second"))
TEXT_NAMES = ("text", "s", "word", "line", "name", "title")
WORDS_NAMES = ("words", "names", "tokens", "parts", "labels", "lines")
DICT_NAMES = ("prices", "counts", "table", "stock", "ages", "totals", "record")


@dataclass(frozen=True)
class Draft:
    """One function of a family, before its tests are computed.

    Attributes:
        name: The function's name.
        params: Parameter names.
        statement: What the function does, in one sentence; may contain `{}`-free text only.
        body: Lines of the canonical body, not indented.
        reference: The truth, built from the pieces' callables; it never changes its arguments.
        inputs: Arguments of the hidden tests.
        examples: Candidate arguments for the doctest line; the first one with a telling result is shown.
    """

    name: str
    params: tuple[str, ...]
    statement: str
    body: tuple[str, ...]
    reference: Callable[..., Value]
    inputs: tuple[Args, ...]
    examples: tuple[Args, ...]

    @property
    def signature(self) -> str:
        """The `def` line."""
        return f"def {self.name}({', '.join(self.params)}):\n"

    @property
    def solution(self) -> str:
        """The canonical body, indented by four."""
        return "".join(f"    {line}\n" for line in self.body)

    @property
    def prompt(self) -> str:
        """Signature and docstring, ready to be completed."""
        args = self._example()
        call = f"{self.name}({', '.join(show(arg) for arg in args)})"
        shown = show(self.reference(*args))
        return f'{self.signature}    """{self.statement}\n\n    >>> {call}\n    {shown}\n    """\n'

    @cached_property
    def fingerprint(self) -> Digest:
        """What tells this function from every other, whatever its names and its wording."""
        return fingerprint(self._function)

    @property
    def skeleton(self) -> Digest:
        """The function's shape: what is left when its constants are blanked."""
        return skeleton(self._function)

    @property
    def outline(self) -> Outline:
        """The function's shape in two halves."""
        return outline(self._function)

    def task(self, suite: str, family: str, side: Side) -> Task:
        """The finished task, with its hidden tests."""
        cases = tuple(Case(args, self.reference(*args)) for args in self.inputs)
        name = f"{family}/{self.fingerprint.hex[:12]}"
        return Task(suite, family, name, self.prompt, self.solution, self.name, cases, side)

    @property
    def _function(self) -> ast.FunctionDef:
        function = ast.parse(self.signature + self.solution).body[0]
        if not isinstance(function, ast.FunctionDef):  # pragma: no cover - a builder's mistake, found by any draw
            raise TypeError(f"the draft {self.name!r} is not a function definition")
        return function

    def _example(self) -> Args:
        for args in self.examples:
            result = self.reference(*args)
            if result not in (None, False, 0, "", [], {}) and result not in args:
                return args
        return self.examples[0]


def show(value: Value) -> str:
    """A value as the interpreter prints it."""
    return repr(value)


SWEEP = tuple(range(-30, 80))
"""Every integer that is close to a constant of the grammar."""


def number_inputs(d: Dice, edges: Sequence[int]) -> tuple[tuple[Args, ...], tuple[Args, ...]]:
    """Hidden inputs and example candidates for a function of one integer."""
    hidden = (*edges, *SWEEP, -10000, 10000)
    shown = (*_numbers(d, 3), d.pick(edges))
    return tuple((n,) for n in hidden), tuple((n,) for n in shown)


def list_inputs(d: Dice, edges: Sequence[int]) -> tuple[tuple[Args, ...], tuple[Args, ...]]:
    """Hidden inputs and example candidates for a function of one list of integers."""
    mixed = d.sample((*edges, *_numbers(d, 5)), len(edges) + 5)
    hidden: list[Args] = [([],), (list(mixed),), (mixed[::-1],), (list(SWEEP),), *(([edge],) for edge in edges)]
    hidden += [(_numbers(d, d.between(1, 9)),) for _ in range(4)]
    shown = [(d.sample((*edges, *_numbers(d, 5)), d.between(3, 5)),) for _ in range(5)]
    return tuple(hidden), tuple(shown)


def text_inputs(d: Dice, edges: Sequence[str]) -> tuple[tuple[Args, ...], tuple[Args, ...]]:
    """Hidden inputs and example candidates for a function of one string."""
    hidden = (*edges, "", *(word(d) for _ in range(6)), f"{word(d)} {word(d)}")
    shown = (word(d, 2, 4), word(d, 2, 4), *(edge for edge in edges if edge))
    return tuple((s,) for s in hidden), tuple((s,) for s in shown)


def crossed(conditions: Sequence[str], edits: Sequence[str]) -> tuple[str, ...]:
    """Strings that carry both what a condition looks at and what an edit looks at."""
    return tuple(text for p in conditions for e in edits for text in (p + e, e + p))


def words_inputs(d: Dice, edges: Sequence[str]) -> tuple[tuple[Args, ...], tuple[Args, ...]]:
    """Hidden inputs and example candidates for a function of one list of strings."""
    mixed = d.sample((*edges, *(word(d) for _ in range(4))), len(edges) + 4)
    hidden: list[Args] = [([],), (list(mixed),), (mixed[::-1],), *(([edge],) for edge in edges)]
    hidden += [([word(d) for _ in range(d.between(1, 6))],) for _ in range(4)]
    pool = tuple(edge for edge in edges if edge)
    shown = [([d.pick(pool), *(word(d) for _ in range(2))],) for _ in range(5)]
    return tuple(hidden), tuple(shown)


def dict_inputs(d: Dice, edges: Sequence[int]) -> tuple[tuple[Args, ...], tuple[Args, ...]]:
    """Hidden inputs and example candidates for a function of one dict from words to integers."""
    numbers, examples = list_inputs(d, edges)
    return tuple((_keyed(d, a[0]),) for a in numbers), tuple((_keyed(d, a[0][:3]),) for a in examples)  # type: ignore[index]


def _keyed(d: Dice, values: Value) -> Value:
    if not isinstance(values, list):
        raise TypeError(f"a list of values to key was expected, not {type(values).__name__}")
    keyed: dict[str, Value] = {}
    for value in values:
        key = word(d, 1, 2)
        while key in keyed:
            key += word(d, 1, 1)
        keyed[key] = value
    return keyed


def _numbers(d: Dice, count: int) -> list[int]:
    return [d.between(-20, 70) for _ in range(count)]
