"""Half of a ledger: everything that reads. ``Ledger`` adds the other half; they are one object to its users.

What the lines add up to comes from a cache (see ``ledger_view``), so it costs the same with ten lines and a million.
``entries`` and ``audit`` go by the file alone: they read and hash every line again.
"""

from __future__ import annotations

import bisect
import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from csf_store.digest import Digest
from csf_store.durable import FileSystem
from csf_store.errors import CorruptError, NotFoundError
from csf_store.ledger.cache import LedgerCache
from csf_store.ledger.cache_errors import CacheDamagedError
from csf_store.ledger.drafts import DraftingView
from csf_store.ledger.line import MAX_LINE, NO_LEAF, LedgerEntry, parse_line
from csf_store.ledger.merkle import Frontier, consistency_proof, inclusion_proof, leaf_hash, root_of
from csf_store.ledger.proofs import Checkpoint, ConsistencyProof, InclusionProof
from csf_store.ledger.state import LedgerState, Pin, RefMove
from csf_store.ledger.view import LEDGER

_NOTHING: Final = LedgerEntry(-1, "", "", {}, NO_LEAF)


class LedgerAudit(NamedTuple):
    """What reading every line again found.

    Attributes:
        checkpoint: size and root of what was read: all of it, or up to what was altered.
        pins: what is pinned, by these lines alone.
        refs: every ref with all its moves, by these lines alone.
        findings: what is wrong.
        notes: what is unusual but harmless.
    """

    checkpoint: Checkpoint
    pins: tuple[Pin, ...]
    refs: Mapping[str, Sequence[RefMove]]
    findings: tuple[str, ...]
    notes: tuple[str, ...]


class LedgerReading:
    """The reading half of ``Ledger``."""

    def __init__(self, fs: FileSystem, root: Path, archive_id: bytes) -> None:
        self.path = root / LEDGER
        self._archive = archive_id.hex()
        self._view = DraftingView(fs, root, self._archive)
        self._mutex = threading.RLock()

    def close(self) -> None:
        """Lets go of the cache. A closed ledger opens it again when it is used."""
        with self._mutex:
            self._view.close()

    # -- what the lines add up to ------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _looking(self) -> Iterator[DraftingView]:
        with self._mutex:
            self._view.look()
            yield self._view

    @property
    def size(self) -> int:
        """How many events there are."""
        with self._looking() as view:
            return view.head.size

    def refs(self) -> Mapping[str, Sequence[RefMove]]:
        """Every ref ever set, with all its moves in order."""
        with self._looking() as view:
            return view.ask(lambda cache: cache.moves())

    def ref(self, name: str) -> Sequence[RefMove]:
        """All moves of one ref in order; none if it was never set. Costs nothing for the other refs."""
        with self._looking() as view:
            return view.ask(lambda cache: cache.moves_of(name))

    def pins(self) -> tuple[Pin, ...]:
        """What is pinned now, in the order of pinning."""
        with self._looking() as view:
            return view.ask(lambda cache: cache.pins())

    def has_pin(self, digest: Digest) -> bool:
        """Whether a digest is pinned now, whatever as."""
        with self._looking() as view:
            # That it finds none may be the cache's fault; all pins together are counted.
            return bool(view.ask(lambda cache: cache.pins_of(digest))) or any(
                pin.digest == digest for pin in self.pins()
            )

    def is_pinned(self, digest: Digest, kind: str, name: str | None) -> bool:
        """Whether a digest is pinned now, as that kind and under that name, durably: who hears so need not pin it."""
        with self._looking() as view:

            def question(cache: LedgerCache) -> bool:
                pin = cache.pin(digest, kind, name)
                if pin is None or pin.seq >= view.head.size:
                    return False  # or another process pinned it since we looked, which nobody promised us is durable
                said = self._entry(cache, pin.seq)  # the cache is not believed that something is safe
                if (said.event, said.fields.get("digest")) != ("pin", str(digest)):
                    raise CacheDamagedError(f"line {pin.seq} does not pin {digest}")
                return True

            return view.settled and view.ask(question)

    # -- the lines themselves ----------------------------------------------------------------------------------------

    def entries(self, start: int = 0) -> Iterator[LedgerEntry]:
        """Every event from number ``start`` on, as of now; each line is read from the file and hashed.

        Raises:
            CorruptError: naming the first line that was altered.
        """
        with self._looking() as view:
            head, drafts = view.written, tuple(entry for _, entry in view.drafts)
            at, previous = 0, _NOTHING
            if 0 < start <= head.size:
                previous = view.ask(lambda cache: self._entry(cache, start - 1))
                at = head.end if start == head.size else view.ask(lambda cache: cache.line(start))[0]
        if 0 <= start < head.size:
            tree = Frontier()
            for seq, line in enumerate(view.file.lines(at, head.end), start):
                previous = parse_line(line, seq, previous.leaf, previous.time)
                tree.add(previous.leaf)
                yield previous
            if previous.seq + 1 < head.size:
                raise CorruptError(
                    f"{self.path} became shorter: line {previous.seq + 1} is gone; restore it from a backup"
                )
            if previous.leaf != head.leaf:
                raise CorruptError(f"ledger line {previous.seq} was altered just now; compare with a backup")
            if start == 0 and tree.root() != head.root():
                with self._mutex:
                    self._view.distrust()
        yield from drafts[max(0, start - head.size) :] if start >= 0 else ()

    def entry(self, seq: int) -> LedgerEntry:
        """One event by its number.

        Raises:
            NotFoundError: if there is no such line.
        """
        with self._looking() as view:
            self._check_number(seq, view.head.size)
            return view.ask(lambda cache: self._entry(cache, seq))

    def _check_number(self, seq: int, size: int) -> None:
        if not 0 <= seq < size:
            raise NotFoundError(f"the ledger has {size} events, none of number {seq}; see csf log")

    def _line(self, cache: LedgerCache, seq: int) -> bytes:
        """A line without its newline, from the file; it is the one the cache knows, or the cache is thrown away."""
        written = self._view.written.size
        if seq >= written:
            return self._view.drafts[seq - written][0]
        start, end, leaf = cache.line(seq)
        if not 0 < end - start <= MAX_LINE:
            raise CacheDamagedError(f"line {seq} can not have {end - start} bytes")
        line = self._view.file.read(start, end)
        if line[-1:] != b"\n" or leaf_hash(line[:-1]) != leaf:
            raise CacheDamagedError(f"line {seq} is not what it was")
        return line[:-1]

    def _entry(self, cache: LedgerCache, seq: int) -> LedgerEntry:
        return parse_line(self._line(cache, seq), seq, None, "")

    def first_at(self, time: str) -> int:
        """The number of the first event at or after a time (RFC 3339 UTC with microseconds, as in the ledger)."""
        with self._looking() as view:
            return bisect.bisect_left(range(view.head.size), time, key=lambda seq: self.entry(seq).time)

    # -- proofs ------------------------------------------------------------------------------------------------------

    def root(self, size: int | None = None) -> bytes:
        """The RFC 9162 root over all lines, or over the first ``size``.

        Raises:
            NotFoundError: if there are not that many.
        """
        return self.checkpoint(size).root

    def checkpoint(self, size: int | None = None) -> Checkpoint:
        """Size and root, to be written down elsewhere and compared later.

        Raises:
            NotFoundError: if there are not that many lines.
        """
        with self._looking() as view:
            size = self._size(size)
            return view.ask(lambda cache: Checkpoint(size, self._root(cache, size)))

    def _size(self, size: int | None) -> int:
        there = self._view.head.size
        if size is None:
            return there
        if not 0 <= size <= there:
            raise NotFoundError(f"the ledger has {there} events, not {size}; see csf log --checkpoint")
        return size

    def _root(self, cache: LedgerCache, size: int) -> bytes:
        """An earlier root comes with the proof that it leads to the present one, or the cache is wrong."""
        head = self._view.head
        if size == head.size:
            return head.root()
        root, path = root_of(cache.node, size), consistency_proof(cache.node, size, head.size)
        if not ConsistencyProof(size, root, head.size, head.root(), path).holds():
            raise CacheDamagedError(f"the root of {size} does not lead to that of {head.size}")
        return root

    def inclusion_proof(self, seq: int, size: int | None = None) -> InclusionProof:
        """Proves that line ``seq`` is in the ledger, or in its first ``size`` lines.

        Raises:
            NotFoundError: if there is no such line, or there are not that many.
        """

        def question(cache: LedgerCache) -> InclusionProof:
            path = inclusion_proof(cache.node, seq, within)
            proof = InclusionProof(seq, self._line(cache, seq), within, self._root(cache, within), path)
            if not proof.holds():
                raise CacheDamagedError(f"it can not prove line {seq}")
            return proof

        with self._looking() as view:
            within = self._size(size)
            self._check_number(seq, within)
            return view.ask(question)

    def consistency_proof(self, old_size: int, size: int | None = None) -> ConsistencyProof:
        """Proves that the ledger, or its first ``size`` lines, begins with the first ``old_size``.

        Raises:
            NotFoundError: if there are not that many lines.
        """

        def question(cache: LedgerCache) -> ConsistencyProof:
            path = consistency_proof(cache.node, old_size, within)
            proof = ConsistencyProof(old_size, self._root(cache, old_size), within, self._root(cache, within), path)
            if not proof.holds():
                raise CacheDamagedError(f"it can not prove that {within} lines begin with {old_size}")
            return proof

        with self._looking() as view:
            within = self._size(size)
            if not 0 <= old_size <= within:
                raise NotFoundError(f"{old_size} events are not the beginning of {within}; see csf log --checkpoint")
            return view.ask(question)

    # -- auditing ----------------------------------------------------------------------------------------------------

    def audit(self) -> LedgerAudit:
        """Reads and hashes every line again and adds them up; then compares that with what the cache remembers."""
        state, tree = LedgerState(), Frontier()
        findings: list[str] = []
        notes: list[str] = []
        try:
            for entry in self.entries():
                state.apply(entry.seq, entry.time, entry.event, entry.fields)
                tree.add(entry.leaf)
            self._against_cache(tree, state, findings, notes)
        except CorruptError as error:
            findings.append(str(error))
        refs = {name: tuple(moves) for name, moves in state.refs.items()}
        return LedgerAudit(Checkpoint(tree.size, tree.root()), state.pinned(), refs, tuple(findings), tuple(notes))

    def _against_cache(self, tree: Frontier, state: LedgerState, findings: list[str], notes: list[str]) -> None:
        """Whether the cache adds the same lines up to the same, and what it remembers that is there no more."""
        refs = {name: tuple(moves) for name, moves in state.refs.items()}
        with self._looking() as view:
            findings += [
                f"the ledger once had {lost.size} lines with root {lost.root.hex()} and no longer begins with them: "
                f"lines at its end were removed or altered; restore {self.path.name} from a backup, or delete "
                "ledger.sqlite to go on with what is here"
                for lost in view.lost()
            ]
            if view.head.size != tree.size:
                return  # somebody appended meanwhile
            told = view.head.root(), view.ask(lambda cache: cache.pins()), view.ask(lambda cache: cache.moves())
            if told != (tree.root(), state.pinned(), refs):
                view.distrust()
                notes.append("ledger.sqlite did not say what the ledger says, and was made anew")
            if torn := view.torn():
                notes.append(
                    f"the ledger ends in {torn} bytes of a line that was cut short; nobody was told of it, and the "
                    "next event moves it aside"
                )
