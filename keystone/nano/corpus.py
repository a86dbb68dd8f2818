"""What keystone-nano reads: the interpreter's own library, and generated exercises that are not held out.

Two kinds of documents, each with its provenance:

- *library*: source files of the standard library of the Python that runs this (PSF licence). Tests, tables and
  machine-specific files are left out, exact duplicates are dropped, tabs become spaces. One file in twenty, chosen by
  the hash of its path, is never trained on and serves to measure bits per byte.
- *exercises*: one function per document, prompt and solution, drawn from the training side of the suite `basics`.

Decontamination: no function in the training text may be a held-out task. Exercises are on the training side by
construction. A library function is cut out if its shape (frame and parts, constants blanked) is one that the suite can
produce and the split puts it on the held-out side; and in any case if it is a task of the frozen draw.
"""

from __future__ import annotations

import ast
import itertools
import sysconfig
import warnings
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Literal

from blake3 import blake3

from csf_store import Digest
from keystone.evaluation.basics import (
    Family,
    draft_stream,
    families,
    frozen_fingerprints,
    in_held_out_fraction,
    training_drafts,
)
from keystone.evaluation.fingerprint import FunctionNode, fingerprint, function_nodes, outline

Split = Literal["train", "held-out"]

LIBRARY_LICENCE = "PSF-2.0"
EXERCISE_LICENCE = "Apache-2.0"

_EXCLUDED_FOLDERS = frozenset(
    {"__phello__", "ensurepip", "encodings", "idlelib", "idle_test", "lib-dynload", "lib2to3", "msilib", "pydoc_data"}
    | {"site-packages", "dist-packages", "test", "tests", "turtledemo", "__pycache__"}
)
_EXCLUDED_FILES = frozenset(
    {"__hello__.py", "antigravity.py", "html/entities.py", "locale.py", "stringprep.py", "this.py"}
)
_LEAST_ENTROPY = 0.14  # compressed size over size; below it a file is a table, not a program
_SHAPE_DRAWS = 1200  # at most so many draws to learn a family's shapes, and fewer when
_SHAPE_PATIENCE = 120  # so many in a row bring nothing new
_LARGEST_TASK_NODES = 90  # no canonical solution has more syntax nodes; larger functions need not be looked at


@dataclass(frozen=True, slots=True)
class Document:
    """One text to read, and where it comes from."""

    text: str
    source: str
    licence: str


def stdlib_documents(split: Split) -> Iterator[Document]:
    """The library's files of one side of the split, in the order of their paths, decontaminated.

    The text depends on the Python that runs this; `corpus_digest` tells two of them apart.
    """
    root = Path(sysconfig.get_path("stdlib"))
    seen: set[Digest] = set()
    for path in sorted(_library_files(root)):
        text = _plain((root / path).read_bytes())
        digest = Digest.of(text.encode())
        if digest in seen or not text or _is_table(text):
            continue
        seen.add(digest)
        if side_of(path) == split:
            yield Document(without_held_out_functions(text), f"stdlib:{path}", LIBRARY_LICENCE)


def exercise_documents(n: int, seed: int) -> Iterator[Document]:
    """`n` exercises from the training side of `basics`, families taking turns; each ends with a newline."""
    for family, draft in itertools.islice(training_drafts(seed), n):
        yield Document(draft.prompt + draft.solution, f"basics:{family.name}", EXERCISE_LICENCE)


def corpus_digest(documents: Iterable[Document]) -> Digest:
    """BLAKE3 over the documents in order, their provenance included."""
    hasher = blake3()
    for document in documents:
        for part in (document.source, document.licence, document.text):
            data = part.encode()
            hasher.update(len(data).to_bytes(8, "big") + data)
    return Digest(hasher.digest())


def side_of(path: PurePosixPath) -> Split:
    """The side of the split a library file is on; a function of its path below the library's root alone."""
    return "held-out" if bytes(Digest.of(str(path).encode()))[0] % 20 == 0 else "train"


def without_held_out_functions(source: str) -> str:
    """`source` with every function cut out that is a held-out task; text that does not parse is returned as it is."""
    doomed = [node for node in _functions(source) if is_held_out_function(node)]
    if not doomed:
        return source
    lines = source.splitlines(keepends=True)
    for node in doomed:
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        for index in range(first - 1, node.end_lineno or node.lineno):
            lines[index] = ""
    return "".join(lines)


def is_held_out_function(node: FunctionNode) -> bool:
    """Whether a function found in some text is a task that may not be trained on."""
    if next(itertools.islice(ast.walk(node), _LARGEST_TASK_NODES, None), None) is not None:
        return False
    mark = fingerprint(node)
    if mark in frozen_fingerprints():
        return True
    shape = outline(node)
    owners = [family for family, parts in _suite_shapes().get(shape.frame, {}).items() if shape.parts <= parts]
    return any(family.held_out for family in owners) or (bool(owners) and in_held_out_fraction(mark))


@cache
def _suite_shapes() -> dict[Digest, dict[Family, set[Digest]]]:
    """For every frame that the suite's families produce: which families do, and with which parts."""
    shapes: dict[Digest, dict[Family, set[Digest]]] = {}
    for family in families().values():
        stale = 0
        for draft in itertools.islice(draft_stream(family, "shapes", 0), _SHAPE_DRAWS):
            shape = draft.outline
            known = shapes.setdefault(shape.frame, {}).setdefault(family, set())
            stale = stale + 1 if shape.parts <= known else 0
            known |= shape.parts
            if stale >= _SHAPE_PATIENCE:
                break
    return shapes


def _functions(source: str) -> list[FunctionNode]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        warnings.simplefilter("ignore", DeprecationWarning)  # invalid escapes in old files
        try:
            return list(function_nodes(source))
        except SyntaxError:
            return []


def _library_files(root: Path) -> Iterator[PurePosixPath]:
    for path in root.rglob("*.py"):
        relative = PurePosixPath(path.relative_to(root).as_posix())
        if _EXCLUDED_FOLDERS.isdisjoint(relative.parts) and str(relative) not in _EXCLUDED_FILES:
            if relative.parts[0].startswith(("_sysconfigdata", "config-")):
                continue
            yield relative


def _plain(data: bytes) -> str:
    """Text with newlines only, spaces only and no trailing blanks; empty when it is not UTF-8."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return ""
    lines = [line.rstrip().expandtabs(8) for line in text.replace("\r\n", "\n").replace("\f", "").split("\n")]
    return "\n".join(lines).strip("\n") + "\n"


def _is_table(text: str) -> bool:
    data = text.encode()
    return len(data) > 4096 and len(zlib.compress(data, 6)) < _LEAST_ENTROPY * len(data)
