"""Files with the two hashes that the world asks for: BLAKE3, which is our address, and SHA-256, which is theirs.

The archive knows the BLAKE3 of every file. A SHA-256 is never taken from anybody's word: the bytes are streamed out,
verified on the way, and hashed again, a piece at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

from blake3 import blake3

from csf_store import Archive, Digest, Kind

Progress: TypeAlias = Callable[[int], None]
"""Told how many bytes were just hashed."""


@dataclass(frozen=True, slots=True)
class HashedFile:
    """A file: its path with forward slashes, its size in bytes, and both hashes of its content."""

    path: str
    size: int
    blake3: Digest
    sha256: str


def hash_pieces(path: str, pieces: Iterable[bytes | memoryview], progress: Progress | None = None) -> HashedFile:
    """Hash a file that comes in pieces."""
    ours, theirs, size = blake3(), hashlib.sha256(), 0
    for piece in pieces:
        ours.update(piece)
        theirs.update(piece)
        size += len(piece)
        if progress is not None:
            progress(len(piece))
    return HashedFile(path, size, Digest(ours.digest()), theirs.hexdigest())


def hash_tree(archive: Archive, tree: Digest, progress: Progress | None = None) -> tuple[HashedFile, ...]:
    """Every file of a tree, streamed out of the archive.

    Raises:
        csf_store.CsfError: it is not there, or its bytes are not those the digest names.
    """
    return tuple(
        hash_pieces(entry.path, archive.pieces(entry.blob, kind=Kind.BLOB), progress)
        for entry in archive.tree(tree).entries
    )


def tree_bytes(archive: Archive, tree: Digest) -> int:
    """Bytes of all files of a tree, for a progress bar."""
    return sum(entry.size for entry in archive.tree(tree).entries)
