"""Merkle proofs against the definitions of RFC 9162, written here once more in their plain recursive form."""

import hashlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csf_store.ledger.merkle import (
    EMPTY_ROOT,
    Frontier,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    nodes_of,
    root_of,
    verify_consistency,
    verify_inclusion,
)

ALL = 130
"""Every size up to here is tried with every index and every earlier size."""


def _split(count: int) -> int:
    split = 1
    while split * 2 < count:
        split *= 2
    return split


def plain_root(leaves: list[bytes]) -> bytes:
    """Section 2.1.1."""
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return leaves[0]
    k = _split(len(leaves))
    return hashlib.sha256(b"\1" + plain_root(leaves[:k]) + plain_root(leaves[k:])).digest()


def plain_path(m: int, leaves: list[bytes]) -> list[bytes]:
    """Section 2.1.3.1: PATH(m, D_n)."""
    if len(leaves) == 1:
        return []
    k = _split(len(leaves))
    if m < k:
        return [*plain_path(m, leaves[:k]), plain_root(leaves[k:])]
    return [*plain_path(m - k, leaves[k:]), plain_root(leaves[:k])]


def plain_subproof(m: int, leaves: list[bytes], known: bool) -> list[bytes]:
    """Section 2.1.4.1: SUBPROOF(m, D_n, b)."""
    if m == len(leaves):
        return [] if known else [plain_root(leaves)]
    k = _split(len(leaves))
    if m <= k:
        return [*plain_subproof(m, leaves[:k], known), plain_root(leaves[k:])]
    return [*plain_subproof(m - k, leaves[k:], False), plain_root(leaves[:k])]


LEAVES = [leaf_hash(b"leaf %d" % number) for number in range(4000)]
ROOTS = {0: EMPTY_ROOT}
_tree = Frontier()
for _number, _leaf in enumerate(LEAVES, 1):
    _tree.add(_leaf)
    ROOTS[_number] = _tree.root()
NODE = nodes_of(LEAVES)


def test_roots_of_every_size() -> None:
    for size in range(ALL + 1):
        assert ROOTS[size] == root_of(NODE, size) == plain_root(LEAVES[:size])


def test_the_frontier_goes_on_from_where_it_was_and_names_the_nodes_it_completes() -> None:
    tree = Frontier()
    for size in range(1, ALL):
        tree = Frontier(tree.size, tree.subtrees)
        for level, index, found in tree.add(LEAVES[size - 1]):
            assert found == plain_root(LEAVES[index << level : (index + 1) << level])
            assert (index + 1) << level == size
        assert tree.root() == ROOTS[size]
    for size, subtrees in ((-1, ()), (1, ()), (3, (bytes(32),)), (1, (bytes(31),)), (0, (bytes(32),))):
        with pytest.raises(ValueError, match="frontier"):
            Frontier(size, subtrees)


def test_inclusion_for_every_line_of_every_size() -> None:
    for size in range(1, ALL + 1):
        leaves = LEAVES[:size]
        for index in range(size):
            path = inclusion_proof(NODE, index, size)
            assert verify_inclusion(LEAVES[index], index, size, ROOTS[size], path)
            if size <= 40:
                assert list(path) == plain_path(index, leaves)
                assert not any(
                    verify_inclusion(LEAVES[index], other, size, ROOTS[size], path)
                    for other in range(size)
                    if other != index
                )


def test_consistency_for_every_earlier_size_of_every_size() -> None:
    for size in range(ALL + 1):
        leaves = LEAVES[:size]
        for old in range(size + 1):
            path = consistency_proof(NODE, old, size)
            assert verify_consistency(old, ROOTS[old], size, ROOTS[size], path)
            if old > 0 and size <= 40:
                assert list(path) == plain_subproof(old, leaves, True)
                assert not any(
                    verify_consistency(old, ROOTS[wrong], size, ROOTS[size], path)
                    for wrong in range(41)
                    if wrong != old
                )
                assert not any(
                    verify_consistency(old, ROOTS[old], size, ROOTS[wrong], path)
                    for wrong in range(41)
                    if wrong != size
                )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_beyond(data: st.DataObject) -> None:
    size = data.draw(st.integers(ALL, len(LEAVES)))
    index = data.draw(st.integers(0, size - 1))
    old = data.draw(st.integers(1, size))
    path = inclusion_proof(NODE, index, size)
    assert list(path) == plain_path(index, LEAVES[:size])
    assert verify_inclusion(LEAVES[index], index, size, ROOTS[size], path)
    path = consistency_proof(NODE, old, size)
    assert list(path) == plain_subproof(old, LEAVES[:size], True)
    assert verify_consistency(old, ROOTS[old], size, ROOTS[size], path)


def _tampered(path: tuple[bytes, ...], random_: random.Random) -> list[tuple[bytes, ...]]:
    """A path with any one hash altered, removed, doubled, swapped with the next, or cut short."""
    wrong = [(*path, bytes(32)), (random_.randbytes(32), *path)]
    for at, each in enumerate(path):
        flipped = bytearray(each)
        flipped[random_.randrange(32)] ^= 1 << random_.randrange(8)
        wrong += [
            (*path[:at], bytes(flipped), *path[at + 1 :]),
            (*path[:at], *path[at + 1 :]),
            (*path[: at + 1], each, *path[at + 1 :]),
            (*path[:at], each[:31], *path[at + 1 :]),
            (*path[:at], b"", *path[at + 1 :]),
            (*path[:at], each + b"\0", *path[at + 1 :]),
        ]
        if at + 1 < len(path):
            wrong.append((*path[:at], path[at + 1], each, *path[at + 2 :]))
    return wrong


def test_tampered_proofs_are_refused() -> None:
    random_ = random.Random(9162)
    for size in [*range(1, 34), 64, 65, 127, 128, 129, 1000, 3999]:
        root = ROOTS[size]
        for index in {0, size - 1, random_.randrange(size)}:
            leaf, path = LEAVES[index], inclusion_proof(NODE, index, size)
            assert not verify_inclusion(leaf_hash(b"other"), index, size, root, path)
            assert not verify_inclusion(leaf, index, size, bytes(32), path)
            for wrong in _tampered(path, random_):
                assert not verify_inclusion(leaf, index, size, root, wrong)
        for old in {1, size, random_.randrange(1, size + 1)}:
            path = consistency_proof(NODE, old, size)
            assert not verify_consistency(old, bytes(32), size, root, path)
            assert not verify_consistency(old, ROOTS[old], size, bytes(32), path)
            for wrong in _tampered(path, random_):
                assert not verify_consistency(old, ROOTS[old], size, root, wrong)


def test_a_ledger_that_was_altered_is_not_consistent_with_what_it_was() -> None:
    for size in range(2, 40):
        for altered in range(size):
            other = [*LEAVES[:altered], leaf_hash(b"altered"), *LEAVES[altered + 1 : size]]
            node, root = nodes_of(other), plain_root(other)
            for old in range(altered + 1, size):
                assert not verify_consistency(old, ROOTS[old], size, root, consistency_proof(node, old, size))


@pytest.mark.parametrize(("index", "size"), [(-1, 3), (3, 3), (0, 0), (5, 3), (-1, 0), (1 << 70, 1 << 69)])
def test_leaves_that_are_not_there(index: int, size: int) -> None:
    assert not verify_inclusion(LEAVES[0], index, size, ROOTS[3], ())
    with pytest.raises(ValueError, match="leaf"):
        inclusion_proof(NODE, index, size)


def test_sizes_that_make_no_sense() -> None:
    for old, size in ((4, 3), (-1, 3), (1, -1)):
        assert not verify_consistency(old, ROOTS[3], size, ROOTS[3], ())
        with pytest.raises(ValueError, match="begin"):
            consistency_proof(NODE, old, size)
    assert not verify_consistency(0, bytes(32), 3, ROOTS[3], ())
    assert not verify_consistency(0, EMPTY_ROOT, 3, ROOTS[3], (LEAVES[0],))
    assert verify_consistency(0, EMPTY_ROOT, 3, ROOTS[3], ())
    assert not verify_consistency(3, ROOTS[3], 3, ROOTS[4], ())
    # Nobody is kept busy by a proof about a tree that is larger than the world.
    assert not verify_inclusion(LEAVES[0], 0, 1 << 4000, ROOTS[3], LEAVES[:100])
    assert not verify_consistency((1 << 4000) - 1, ROOTS[3], 1 << 4000, ROOTS[3], LEAVES[:100])
