"""The Merkle tree of RFC 9162 (section 2.1): SHA-256, ``0x00`` before a leaf, ``0x01`` before two children.

``Frontier`` is the tree in logarithmic space: the roots of the perfect subtrees that make up the leaves so far. It is
all that is needed to go on and to give the root.
"""

from __future__ import annotations

import hashlib
from typing import Final

HASH_SIZE: Final = 32
EMPTY_ROOT: Final = hashlib.sha256().digest()


def leaf_hash(data: bytes) -> bytes:
    """The hash of one leaf."""
    return hashlib.sha256(b"\0" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of two children."""
    return hashlib.sha256(b"\1" + left + right).digest()


class Frontier:
    """Grows leaf by leaf; gives the root at any time."""

    __slots__ = ("_subtrees", "size")

    def __init__(self) -> None:
        self.size = 0
        self._subtrees: list[bytes] = []

    def add(self, leaf: bytes) -> None:
        """Takes the next leaf hash."""
        carried = leaf
        size = self.size
        while size & 1:
            carried = node_hash(self._subtrees.pop(), carried)
            size >>= 1
        self._subtrees.append(carried)
        self.size += 1

    def root(self) -> bytes:
        """The root over all leaves so far; of none, the hash of nothing."""
        if not self._subtrees:
            return EMPTY_ROOT
        root = self._subtrees[-1]
        for subtree in reversed(self._subtrees[:-1]):
            root = node_hash(subtree, root)
        return root
