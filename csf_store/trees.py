"""Trees: a checkpoint directory as one digest.

The content of a tree object is the RFC 8785 JSON ``{"entries":[[path,blob,size,executable],...],"v":1}``, sorted by the
UTF-8 bytes of the path, and its digest is the BLAKE3 of exactly these bytes. Paths have forward slashes and no empty,
``.`` or ``..`` part, so a tree can never reach outside the directory it is written to. Empty directories, times and
owners are no part of it: two machines with the same files agree.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import pairwise
from typing import Final, NamedTuple

import rfc8785

from csf_store.digest import Digest
from csf_store.errors import CorruptError, InvalidInputError

_VERSION: Final = 1
_MAX_SIZE: Final = (1 << 53) - 1  # RFC 8785 numbers are IEEE doubles


class TreeEntry(NamedTuple):
    """A file of a tree.

    Attributes:
        path: relative, with forward slashes.
        blob: digest of the content.
        size: bytes of the content.
        executable: whether the owner may execute it.
    """

    path: str
    blob: Digest
    size: int
    executable: bool = False


class Tree(NamedTuple):
    """A directory: its entries in order, and its digest."""

    entries: tuple[TreeEntry, ...]
    digest: Digest

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(entry.size for entry in self.entries)


def check_path(path: str) -> None:
    """Refuses a path that a tree can not hold.

    Raises:
        InvalidInputError: naming the path and what is wrong with it.
    """
    if not path:
        raise InvalidInputError("a tree holds a file with an empty path; give every file a name")
    if "\0" in path or "\\" in path:
        raise InvalidInputError(f"path {path!r} holds a NUL or a backslash; rename the file")
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidInputError(f"path {path!r} is not valid UTF-8; rename the file") from None
    parts = path.split("/")
    if path.startswith("/") or any(part in ("", ".", "..") for part in parts):
        raise InvalidInputError(f"path {path!r} is absolute or has an empty, '.' or '..' part; it could leave the tree")


def encode_tree(entries: Iterable[TreeEntry]) -> bytes:
    """The canonical content of a tree.

    Raises:
        InvalidInputError: if a path is unsafe, given twice, or a file and a directory at once.
    """
    ordered = sorted(entries, key=lambda entry: entry.path.encode("utf-8", "surrogatepass"))
    for entry in ordered:
        check_path(entry.path)
        if not 0 <= entry.size <= _MAX_SIZE:
            raise InvalidInputError(f"{entry.path}: a size of {entry.size} bytes is impossible")
    check_names(entry.path for entry in ordered)
    rows: list[list[str | int | bool]] = [
        [entry.path, str(entry.blob), entry.size, entry.executable] for entry in ordered
    ]
    document: dict[str, int | list[list[str | int | bool]]] = {"v": _VERSION, "entries": rows}
    return rfc8785.dumps(document)


def check_names(paths: Iterable[str]) -> None:
    """Refuses paths that can not be in one tree, each of which ``check_path`` let pass.

    With the least of characters, which no path holds, in the place of the slash, whatever is below a path sorts right
    behind it. So neighbours tell everything, and paths made to be slow (thousands of parts, many alike) are not.

    Raises:
        InvalidInputError: if a path is given twice, or is a file and a directory at once.
    """
    for above, below in pairwise(sorted(path.replace("/", "\0") for path in paths)):
        if below == above:
            raise InvalidInputError(f"path {_slashed(below)!r} is given twice; a tree holds each path once")
        if below.startswith(above + "\0"):
            file, inside = _slashed(above), _slashed(below)
            raise InvalidInputError(f"{file!r} is both a file and the directory of {inside!r}; rename one")


def _slashed(path: str) -> str:
    return path.replace("\0", "/")


def decode_tree(data: bytes, digest: Digest) -> Tree:
    """Reads the content of a tree and insists that it is canonical.

    Raises:
        CorruptError: if these bytes are no tree that ``encode_tree`` would have made.
    """
    try:
        document = json.loads(data)
        if not isinstance(document, dict) or document.keys() != {"v", "entries"} or document["v"] != _VERSION:
            raise InvalidInputError("its fields are not those of version 1")
        entries = tuple(_entry(row) for row in document["entries"])
        if encode_tree(entries) != data:
            raise InvalidInputError("it is not in canonical form")
    except (ValueError, TypeError, RecursionError, InvalidInputError) as error:
        raise CorruptError(f"tree {digest} can not be read: {error}; it was not written by csf put") from error
    return Tree(entries, digest)


def _entry(row: object) -> TreeEntry:
    match row:
        case [str(path), str(blob), int(size), bool(executable)] if not isinstance(size, bool):
            return TreeEntry(path, Digest.parse(blob), size, executable)
        case _:
            raise InvalidInputError(f"the entry {row!r} is not [path, blob, size, executable]")
