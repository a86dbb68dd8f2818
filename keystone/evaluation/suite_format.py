"""Suites as JSONL files: one item a line, checked line by line; `SUITES.md` describes the format for people.

Lines as HumanEval writes them (`task_id`, `canonical_solution`) are read too. Fields that are not in the format are
refused, since a misspelt `test` would otherwise be an item that anything passes.
"""

from __future__ import annotations

import ast
import gzip
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from keystone.errors import SuiteFormatError
from keystone.evaluation.task import Case, Value

VERSION: Final = 1
_CODE_FIELDS: Final = frozenset({"name", "family", "prompt", "entry_point", "solution", "cases", "test", "setup"})
_TEXT_FIELDS: Final = frozenset({"name", "family", "text"})
_OTHER_NAMES: Final = {"task_id": "name", "canonical_solution": "solution"}


@dataclass(frozen=True, slots=True)
class CodeItem:
    """A function to write.

    Attributes:
        suite: the suite it belongs to.
        name: unique in the suite.
        family: the kind of problem; results are reported per family.
        prompt: source to continue, ending right after the docstring's newline as a rule.
        entry_point: the function under test.
        solution: what the suite itself writes after the prompt, where it has that.
        cases: calls with the value each must return; empty where there is test code.
        test: test code: top-level assertions or `check(candidate)`; empty where there are cases.
        setup: code the test relies on, such as helpers that the prompt defines; executed beside the test.
    """

    suite: str
    name: str
    family: str
    prompt: str
    entry_point: str
    solution: str | None = None
    cases: tuple[Case, ...] = ()
    test: str = ""
    setup: str = ""


@dataclass(frozen=True, slots=True)
class TextItem:
    """Held-out text, measured in bits per byte."""

    suite: str
    name: str
    family: str
    text: str


def item_fields(item: CodeItem | TextItem) -> dict[str, Value]:
    """An item as a line of a suite holds it, the suite's name not included."""
    if isinstance(item, TextItem):
        return {"name": item.name, "family": item.family, "text": item.text}
    fields: dict[str, Value] = {
        "name": item.name,
        "family": item.family,
        "prompt": item.prompt,
        "entry_point": item.entry_point,
    }
    if item.solution is not None:
        fields["solution"] = item.solution
    if item.cases:
        fields["cases"] = [{"args": list(case.args), "expected": case.expected} for case in item.cases]
    else:
        fields |= {"test": item.test, "setup": item.setup}
    return fields


def item_line(item: CodeItem | TextItem) -> str:
    """The one line of an item: keys sorted, ASCII, no spaces."""
    return json.dumps(item_fields(item), sort_keys=True, separators=(",", ":"))


def read_suite(path: Path, *, name: str) -> tuple[str, list[CodeItem] | list[TextItem]]:
    """Read a suite file.

    Args:
        path: the file, gzipped when it ends in `.gz`.
        name: what to call the suite if the file does not say.

    Returns:
        The suite's name and its items, all of one kind.

    Raises:
        SuiteFormatError: with the file and the line.
    """
    try:
        text = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise SuiteFormatError(f"{path} cannot be read: {error}") from error
    items: list[CodeItem | TextItem] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            if not isinstance(fields, dict):
                raise SuiteFormatError("a line is one JSON object")
            if not items and "suite" in fields:
                name = _head(fields)
            else:
                items.append(read_item(name, fields))
        except (ValueError, RecursionError) as error:
            raise SuiteFormatError(f"{path} line {number}: {error}") from error
    _check(path, items)
    return name, items  # type: ignore[return-value]  # all of one kind, as just checked


def read_item(suite: str, fields: dict[str, Value]) -> CodeItem | TextItem:
    """One item from the fields of its line.

    Raises:
        SuiteFormatError: a field is missing, surplus, or of another type.
    """
    fields = {_OTHER_NAMES.get(key, key): value for key, value in fields.items()}
    allowed = _TEXT_FIELDS if "text" in fields else _CODE_FIELDS
    if surplus := sorted(fields.keys() - allowed):
        raise SuiteFormatError(f"an item has no field {surplus[0]!r}; it may have {', '.join(sorted(allowed))}")
    name = _text(fields, "name")
    family = _text(fields, "family") if "family" in fields else suite
    if "text" in fields:
        return TextItem(suite, name, family, _text(fields, "text"))
    prompt, entry_point = _text(fields, "prompt"), _text(fields, "entry_point")
    if not entry_point.isidentifier():
        raise SuiteFormatError(f"entry_point {entry_point!r} is not the name of a function")
    if ("cases" in fields) == ("test" in fields):
        raise SuiteFormatError("an item has either cases or a test")
    test = _text(fields, "test") if "test" in fields else ""
    setup = _text(fields, "setup", empty=True) if "setup" in fields else prompt if test and _parses(prompt) else ""
    solution = _text(fields, "solution") if "solution" in fields else None
    cases = _cases(fields["cases"]) if "cases" in fields else ()
    return CodeItem(suite, name, family, prompt, entry_point, solution, cases, test, setup)


def _head(fields: dict[str, Value]) -> str:
    if fields.keys() - {"suite", "v", "about", "licence"} or fields.get("v") != VERSION:
        raise SuiteFormatError(f"a first line with `suite` has `v` {VERSION}, may have about and licence, and no more")
    return _text(fields, "suite")


def _text(fields: dict[str, Value], key: str, *, empty: bool = False) -> str:
    value = fields.get(key)
    if not isinstance(value, str) or not (value or empty):
        raise SuiteFormatError(f"{key} must be a text, and not empty" if not empty else f"{key} must be a text")
    return value


def _cases(value: Value) -> tuple[Case, ...]:
    if not isinstance(value, list) or not value:
        raise SuiteFormatError("cases must be a list of at least one call")
    found = []
    for case in value:
        if not isinstance(case, dict) or case.keys() != {"args", "expected"} or not isinstance(case["args"], list):
            raise SuiteFormatError('a case is {"args": [...], "expected": ...}')
        found.append(Case(tuple(case["args"]), case["expected"]))
    return tuple(found)


def _parses(source: str) -> bool:
    try:
        ast.parse(source)
    except (SyntaxError, ValueError):
        return False
    return True


def _check(path: Path, items: list[CodeItem | TextItem]) -> None:
    if not items:
        raise SuiteFormatError(f"{path} holds no item")
    if len({type(item) for item in items}) > 1:
        raise SuiteFormatError(f"{path} mixes code and texts; a suite is one or the other")
    seen: set[str] = set()
    for item in items:
        if item.name in seen:
            raise SuiteFormatError(f"{path} has two items named {item.name!r}")
        seen.add(item.name)
