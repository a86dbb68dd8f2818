"""Where a ledger stands after some line, and how it gets from there to the next.

``LedgerHead`` is all that is needed to go on: to parse the next line, to write one, to give the root. ``LineBatch``
takes lines after a head and holds what they change, so that a cache can take in many at once.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from csf_store.ledger.line import NO_LEAF, LedgerEntry, parse_line
from csf_store.ledger.merkle import Frontier
from csf_store.ledger.state import LedgerState


class LedgerHead(NamedTuple):
    """A ledger up to some line.

    Attributes:
        size: how many lines.
        start: offset of the last of them.
        end: offset behind its newline, where the next one begins.
        leaf: its leaf hash.
        time: its time.
        subtrees: the perfect subtrees of the Merkle tree, the largest first.
    """

    size: int
    start: int
    end: int
    leaf: bytes
    time: str
    subtrees: tuple[bytes, ...]

    def root(self) -> bytes:
        """The RFC 9162 root over all lines."""
        return Frontier(self.size, self.subtrees).root()


EMPTY_HEAD: Final = LedgerHead(0, 0, 0, NO_LEAF, "", ())


class LineBatch:
    """Some lines after a head.

    Attributes:
        first: the head they follow.
        lines: number, offset and leaf hash of each.
        nodes: level, index and hash of the inner nodes of the Merkle tree that they complete.
        state: what they change.
    """

    def __init__(self, first: LedgerHead) -> None:
        self.first = first
        self.lines: list[tuple[int, int, bytes]] = []
        self.nodes: list[tuple[int, int, bytes]] = []
        self.state = LedgerState()
        self._tree = Frontier(first.size, first.subtrees)
        self._end, self._leaf, self._time = first.end, first.leaf, first.time

    def take(self, line: bytes) -> LedgerEntry:
        """Takes the next line, without its newline.

        Raises:
            CorruptError: naming the line that was altered; the batch is as it was.
        """
        entry = parse_line(line, self._tree.size, self._leaf, self._time)
        self.state.apply(entry.seq, entry.time, entry.event, entry.fields)
        self.lines.append((entry.seq, self._end, entry.leaf))
        self.nodes.extend(self._tree.add(entry.leaf))
        self._end += len(line) + 1
        self._leaf, self._time = entry.leaf, entry.time
        return entry

    @property
    def head(self) -> LedgerHead:
        """Where the ledger stands now."""
        if not self.lines:
            return self.first
        return LedgerHead(self._tree.size, self.lines[-1][1], self._end, self._leaf, self._time, self._tree.subtrees)
