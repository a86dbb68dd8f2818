"""The Merkle tree of RFC 9162 (section 2.1): SHA-256, ``0x00`` before a leaf, ``0x01`` before two children.

``Frontier`` is the tree in logarithmic space: the roots of the perfect subtrees that make up the leaves so far. It is
all that is needed to go on and to give the root.

Two proofs make a root worth keeping. An *inclusion proof* shows that one line is among those that a root stands for. A
*consistency proof* shows that a longer ledger begins with all the lines of a shorter one, so that nothing was altered
or removed in between. Both are lists of at most about 2 log n hashes; making one reads the perfect subtrees through a
``NodeReader``, checking one needs nothing but the proof. A check takes anything that anybody hands in: it says no.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

HASH_SIZE: Final = 32
EMPTY_ROOT: Final = hashlib.sha256().digest()

NodeReader: TypeAlias = Callable[[int, int], bytes]
"""(level, index) -> the hash over the leaves from ``index << level`` up to ``(index + 1) << level``, all of them."""


def leaf_hash(data: bytes) -> bytes:
    """The hash of one leaf."""
    return hashlib.sha256(b"\0" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of two children."""
    return hashlib.sha256(b"\1" + left + right).digest()


class Frontier:
    """Grows leaf by leaf; gives the root at any time.

    Args:
        size: how many leaves there are already.
        subtrees: the hashes of the perfect subtrees they make up, the largest first: one per bit set in ``size``.
    """

    __slots__ = ("_subtrees", "size")

    def __init__(self, size: int = 0, subtrees: Sequence[bytes] = ()) -> None:
        if size < 0 or len(subtrees) != size.bit_count() or any(len(each) != HASH_SIZE for each in subtrees):
            raise ValueError(f"{len(subtrees)} subtrees can not be the frontier of {size} leaves")
        self.size = size
        self._subtrees = list(subtrees)

    @property
    def subtrees(self) -> tuple[bytes, ...]:
        """The perfect subtrees, the largest first."""
        return tuple(self._subtrees)

    def add(self, leaf: bytes) -> list[tuple[int, int, bytes]]:
        """Takes the next leaf hash; returns level, index and hash of the inner nodes that it completed."""
        completed = []
        carried, index, level = leaf, self.size, 0
        while index & 1:
            carried = node_hash(self._subtrees.pop(), carried)
            index >>= 1
            level += 1
            completed.append((level, index, carried))
        self._subtrees.append(carried)
        self.size += 1
        return completed

    def root(self) -> bytes:
        """The root over all leaves so far; of none, the hash of nothing."""
        if not self._subtrees:
            return EMPTY_ROOT
        root = self._subtrees[-1]
        for subtree in reversed(self._subtrees[:-1]):
            root = node_hash(subtree, root)
        return root


def nodes_of(leaves: Sequence[bytes]) -> NodeReader:
    """Reads nodes from a list of leaf hashes, computing each when it is asked for."""

    def node(level: int, index: int) -> bytes:
        if level == 0:
            return leaves[index]
        return node_hash(node(level - 1, 2 * index), node(level - 1, 2 * index + 1))

    return node


def root_of(node: NodeReader, size: int) -> bytes:
    """The root over the first ``size`` leaves."""
    return _range_root(node, 0, size) if size else EMPTY_ROOT


def _split(length: int) -> int:
    """The largest power of two below ``length``, which is at least 2."""
    return 1 << ((length - 1).bit_length() - 1)


def _range_root(node: NodeReader, start: int, end: int) -> bytes:
    """The root over some leaves; ``start`` is where a split of the whole tree put it, so left parts are perfect."""
    perfect = []
    while (length := end - start) & (length - 1):
        split = _split(length)
        perfect.append(node(split.bit_length() - 1, start // split))
        start += split
    root = node(length.bit_length() - 1, start // length)
    for left in reversed(perfect):
        root = node_hash(left, root)
    return root


def inclusion_proof(node: NodeReader, index: int, size: int) -> tuple[bytes, ...]:
    """The hashes that lead from leaf ``index`` to the root over the first ``size`` leaves (section 2.1.3.1).

    Raises:
        ValueError: if there is no such leaf.
    """
    if not 0 <= index < size:
        raise ValueError(f"there is no leaf {index} among {size}")
    path = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            path.append(_range_root(node, middle, end))
            end = middle
        else:
            path.append(_range_root(node, start, middle))
            start = middle
    return tuple(reversed(path))


def _lefts(index: int, last: int, count: int) -> list[bool] | None:
    """On the way up from a node to the root: whether each sibling is the left one. None unless there are ``count``.

    On the right edge of the tree a node may have no sibling; then it is its own parent and the path has no hash for it.
    """
    lefts: list[bool] = []
    while last and len(lefts) < count:
        left = bool(index & 1) or index == last
        lefts.append(left)
        while left and index and not index & 1:
            index, last = index >> 1, last >> 1
        index, last = index >> 1, last >> 1
    return lefts if last == 0 and len(lefts) == count else None


def verify_inclusion(leaf: bytes, index: int, size: int, root: bytes, path: Sequence[bytes]) -> bool:
    """Whether ``path`` proves that ``leaf`` is number ``index`` of the ``size`` leaves under ``root`` (2.1.3.2)."""
    if not 0 <= index < size or any(len(each) != HASH_SIZE for each in path):
        return False
    lefts = _lefts(index, size - 1, len(path))
    if lefts is None:
        return False
    hashed = leaf
    for sibling, left in zip(path, lefts, strict=True):
        hashed = node_hash(sibling, hashed) if left else node_hash(hashed, sibling)
    return hashed == root


def consistency_proof(node: NodeReader, old_size: int, size: int) -> tuple[bytes, ...]:
    """The hashes that show that the first ``size`` leaves begin with the first ``old_size`` (section 2.1.4.1).

    Empty if the two are the same, and for ``old_size`` 0: everything begins with nothing.

    Raises:
        ValueError: if there are not that many leaves.
    """
    if not 0 <= old_size <= size:
        raise ValueError(f"{size} leaves do not begin with {old_size}")
    if old_size in (0, size):
        return ()
    path = []
    start, end = 0, size
    while old_size != end:
        middle = start + _split(end - start)
        if old_size <= middle:
            path.append(_range_root(node, middle, end))
            end = middle
        else:
            path.append(_range_root(node, start, middle))
            start = middle
    if start:  # otherwise it is the old root, which the checker has
        path.append(_range_root(node, start, end))
    return tuple(reversed(path))


def verify_consistency(old_size: int, old_root: bytes, size: int, root: bytes, path: Sequence[bytes]) -> bool:
    """Whether ``path`` proves that the leaves under ``root`` begin with all those under ``old_root`` (2.1.4.2)."""
    if not 0 <= old_size <= size or any(len(each) != HASH_SIZE for each in path):
        return False
    if old_size == size:
        return not path and old_root == root
    if old_size == 0:
        return not path and old_root == EMPTY_ROOT
    if old_size & (old_size - 1) == 0:
        path = (old_root, *path)
    index, last = old_size - 1, size - 1
    while index & 1:
        index, last = index >> 1, last >> 1
    lefts = _lefts(index, last, len(path) - 1)
    if lefts is None:
        return False
    old_hash = new_hash = path[0]
    for sibling, left in zip(path[1:], lefts, strict=True):
        if left:
            old_hash, new_hash = node_hash(sibling, old_hash), node_hash(sibling, new_hash)
        else:
            new_hash = node_hash(new_hash, sibling)
    return old_hash == old_root and new_hash == root
