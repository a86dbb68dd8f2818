"""The ledger as it stands: the file, which is the truth, and the cache, kept in step with it.

A look costs the same however long the ledger is. If the file is as long and as old as the cache says, and the last line
it knows is there and has the hash it says, nothing else is read. Otherwise it is read on from there; and from its
beginning if that line is not there, if the file is shorter, or if it changed without growing.

**What counts.** Lines beyond the cache may be on their way: written, not yet synced, perhaps about to be taken back.
They count once they are *settled*: nobody holds the append lock, and they are synced. So a reader that finds unknown
lines takes the lock if it is free, syncs the file, and takes them in. If it is not free, it goes by what was settled
before and waits for nobody: whoever writes updates the cache before anybody is told.

**Contradictions.** Whenever cache and file disagree, the cache is thrown away and the file read as a whole, which
either names the altered line or proves the cache wrong. A ledger that does not lead to where the cache once was,
because its end was cut off or its last line replaced, is a perfectly good other ledger; the cache remembers what was
lost.

Where no cache can be written, the same tables are kept in memory. Not thread-safe: ``Ledger`` sees to that.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from csf_store.durable import FileStat, FileSystem
from csf_store.errors import CorruptError
from csf_store.ledger.cache import LedgerCache, Lost
from csf_store.ledger.cache_errors import CacheDamagedError, CacheUnwritableError
from csf_store.ledger.file import LedgerFile, LedgerLock
from csf_store.ledger.head import EMPTY_HEAD, LedgerHead, LineBatch
from csf_store.ledger.line import MAX_LINE, LedgerEntry, is_event, parse_line
from csf_store.ledger.merkle import leaf_hash
from csf_store.ledger.slot import CacheSlot

LEDGER: Final = "ledger.jsonl"
LOCK: Final = "ledger.lock"
GENESIS_EVENT: Final = "archive.created"
CACHE: Final = "ledger.sqlite"
_BATCH: Final = 4096
FAILURES: Final = (CacheDamagedError, CacheUnwritableError)
"""The ways in which a cache fails."""

_T = TypeVar("_T")


class LedgerView:
    """What one process sees of one ledger.

    Attributes:
        file: the ledger's file.
        lock: the append lock.
        head: where the ledger stands, drafts included.
        written: where its file stands: the same, unless a transaction is under way.
        settled: whether all of it is durable and beyond being taken back.
        drafts: lines of the transaction under way, with what they say.
    """

    def __init__(self, fs: FileSystem, root: Path, archive: str) -> None:
        self.file = LedgerFile(fs, root / LEDGER)
        self.lock = LedgerLock(fs, root / LOCK)
        self.head = self.written = EMPTY_HEAD
        self.settled = True
        self.drafts: list[tuple[bytes, LedgerEntry]] = []
        self._archive = archive
        self._slot = CacheSlot(root / CACHE, archive)
        self._seen: FileStat | None = None
        self._drafting = False

    def close(self) -> None:
        """Lets go of the cache; the next look opens it again."""
        self._slot.close()
        self._seen = None

    # -- looking -----------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Takes notice of the lines that were added since the last look.

        Raises:
            CorruptError: if lines were altered, or removed since the last look.
        """
        if self._drafting:
            return  # we hold the lock: nobody adds any
        if self._seen is not None and self._slot.cache is not None and self.file.stat() == self._seen:
            return
        if self._current():
            return
        with self.lock.if_free() as held:
            if held:
                self.settle()
            else:
                self._glimpse()

    def _current(self) -> bool:
        """Goes by the cache as it is, if it tells all of the ledger."""
        try:
            cache = self._slot.existing()
            head, mtime = cache.head() if cache is not None else (EMPTY_HEAD, 0)
        except FAILURES:
            return False
        found = self.file.stat()  # after the head, so that the file can only be ahead
        if cache is None:
            if found is None and not self.head.size:  # no ledger yet, nothing to know
                self._slot.memory()
                return True
            return False
        if found is None or (found.size, found.mtime_ns) != (head.end, mtime):
            return False
        if head != self.head and not self._holds(head):
            return False
        self._take(head, found, settled=self._slot.on_disk or self.settled)
        return True

    def _glimpse(self) -> None:
        """Somebody is writing: goes by what was settled before; without a cache, by whatever whole lines there are."""
        try:
            cache = self._slot.existing()
            if cache is not None and self._slot.on_disk:
                head, _ = cache.head()
                found = self.file.stat()
                if head.size and found is not None and found.size >= head.end and self._holds(head):
                    self._take(head, None, settled=True)
                    return
        except CacheDamagedError:
            pass
        except CacheUnwritableError:
            self._slot.memory_only = True
        cache = self._slot.cache
        self._follow(self._slot.memory() if cache is None or self._slot.on_disk else cache, settling=False)

    def _holds(self, head: LedgerHead) -> bool:
        """Whether the last line of a head is in the file where it should be."""
        if not 0 <= head.start < head.end <= head.start + MAX_LINE:
            return head == EMPTY_HEAD
        line = self.file.read(head.start, head.end)
        return line[-1:] == b"\n" and leaf_hash(line[:-1]) == head.leaf

    def _take(self, head: LedgerHead, seen: FileStat | None, *, settled: bool) -> None:
        self.head = self.written = head
        self.settled = settled
        self._seen = seen if settled else None

    # -- asking ------------------------------------------------------------------------------------------------------

    def ask(self, question: Callable[[LedgerCache], _T]) -> _T:
        """Asks the cache; if it proves wrong, throws it away, reads the ledger, and asks again.

        Raises:
            CorruptError: if it is the ledger that is wrong.
        """
        failure: Exception | None = None
        for repair in (None, self._reread, self._remake, self._restart_in_memory):
            try:
                if repair is not None:
                    repair()
                if self._slot.cache is not None:
                    return question(self._slot.cache)
            except FAILURES as error:
                failure = error
        raise CorruptError(f"{self.file.path}: {failure}, even after reading all of it again; check the device")

    def _reread(self) -> None:
        """Reads the ledger as a whole into the cache, if it may be written now, and into memory if not."""
        if self._drafting:
            self._restart_in_memory()
            return
        self._seen = None
        with self.lock.if_free() as held:
            if held:
                self._follow(self._slot.shared(), settling=True, anew=True)
            else:
                self._follow(self._slot.memory(), settling=False)

    def _remake(self) -> None:
        """The same, with a new file for the cache."""
        if self._drafting:
            return
        with self.lock.if_free() as held:
            if held:
                self._follow(self._slot.fresh(), settling=True)

    def _restart_in_memory(self) -> None:
        """The cache failed: goes on with one in memory."""
        self._follow(self._slot.memory(), settling=False)

    def distrust(self) -> None:
        """Reads the ledger as a whole again: somebody found that the cache lies."""
        try:
            self._reread()
        except FAILURES:
            self._restart_in_memory()

    # -- under the append lock ---------------------------------------------------------------------------------------

    def settle(self, *, touched: bool = False) -> None:
        """Takes in all whole lines and makes them durable. The caller holds the append lock.

        Args:
            touched: the caller changed the file behind the settled lines itself, so its time says nothing.
        """
        try:
            try:
                self._follow(self._slot.shared(), settling=True, touched=touched)
            except CacheDamagedError:
                self._follow(self._slot.fresh(), settling=True)
        except FAILURES:
            self._slot.memory_only = True
            self._follow(self._slot.memory(), settling=True)

    def _follow(self, cache: LedgerCache, *, settling: bool, touched: bool = False, anew: bool = False) -> None:
        """Brings a cache to the end of the file's whole lines. Everything but ``settling`` is about what to believe."""
        head, mtime = cache.head()
        found = self.file.stat()
        self._check_not_less(head, found)
        if found is None:
            self._take(EMPTY_HEAD, None, settled=settling)
            return
        plausible = touched or found.size > head.end or found.mtime_ns == mtime
        fits = not anew and (not head.size or (plausible and found.size >= head.end and self._holds(head)))
        if fits and (found.size, found.mtime_ns) == (head.end, mtime):
            self._take(head, found, settled=settling)
            return
        if settling and not (fits and found.size == head.end):
            self.file.sync(name=not (fits and head.size))
        cache.begin()
        try:
            if not fits:
                cache.clear()
            now = self._absorb(cache, found.size, scrap=fits and head.size > 0)
            if not fits and self._slot.on_disk:
                _remember(cache, now, head)
            cache.commit(found.mtime_ns)
        except BaseException:
            cache.rollback()
            raise
        self._take(now, found, settled=settling)

    def _check_not_less(self, head: LedgerHead, found: FileStat | None) -> None:
        if found is None and (head.size or self.written.size):
            raise CorruptError(
                f"{self.file.path} has vanished; restore it from a backup, or delete {CACHE} too to begin a new one"
            )
        if found is not None and found.size < self.written.end and self.settled:
            raise CorruptError(f"{self.file.path} became shorter: lines were removed; restore it from a backup")

    def _absorb(self, cache: LedgerCache, end: int, *, scrap: bool) -> LedgerHead:
        """Takes in lines up to ``end``. Pieces of a line may follow that a power cut left behind.

        With ``scrap`` what we begin from was durable, so whatever is no line behind it is such a piece. Without it,
        only what has a zero byte in it: a page that never reached the disk reads as zeros, and no line ever had one.
        """
        head, _ = cache.head()
        batch = LineBatch(head)
        for line in self.file.lines(head.end, end):
            try:
                entry = batch.take(line)
            except CorruptError:
                if self._is_scrap(batch.head.end, end, expected=scrap):
                    break
                raise
            if entry.seq == 0:
                self._check_first(entry)
            if len(batch.lines) == _BATCH:
                cache.absorb(batch)
                batch = LineBatch(batch.head)
        cache.absorb(batch)
        return batch.head

    def _check_first(self, entry: LedgerEntry) -> None:
        if entry.event != GENESIS_EVENT or entry.fields.get("archive") != self._archive:
            raise CorruptError(
                f"ledger line 0 is not that of archive {self._archive}: {self.file.path} was altered, or is another "
                "archive's; restore it from a backup"
            )

    def _is_scrap(self, start: int, end: int, *, expected: bool) -> bool:
        """Whether the file ends in no more than pieces of one line: no event in it, nothing anybody was told of."""
        rest = self.file.read(start, end)
        pieces = end - start <= MAX_LINE and not any(is_event(piece) for piece in re.split(rb"[\0\n]+", rest))
        return pieces and (expected or b"\0" in rest)

    def lost(self) -> list[Lost]:
        """What the ledger once was and does not lead to now."""
        return self.ask(lambda cache: [each for each in cache.lost() if not _leads_to(cache, self.head, each)])

    def torn(self) -> int:
        """How many bytes follow the last whole line."""
        found = self.file.stat()
        return found.size - self.written.end if found is not None else 0

    def recover(self) -> None:
        """Under the lock, settled: completes a last line that lacks its newline, and sets pieces of one aside."""
        found = self.file.stat()
        if found is None or found.size == self.head.end:
            return
        rest = self.file.read(self.head.end, found.size)
        try:
            parse_line(rest, self.head.size, self.head.leaf, self.head.time)
        except CorruptError:
            self.file.set_aside(self.head.end, found.size)
        else:
            self.file.complete()
        self.settle(touched=True)


def _leads_to(cache: LedgerCache, now: LedgerHead, lost: Lost) -> bool:
    return lost.size <= now.size and cache.node(0, lost.size - 1) == lost.leaf


def _remember(cache: LedgerCache, now: LedgerHead, once: LedgerHead) -> None:
    """After the ledger was read as a whole: notes what it once was and does not lead to any more.

    If it leads to all that was lost before, it has been restored, and what it was in between is no loss.
    """
    before = cache.lost()
    lost = [each for each in before if not _leads_to(cache, now, each)]
    if (lost or not before) and once.size:
        lost += [each for each in [Lost(once.size, once.leaf, once.root())] if not _leads_to(cache, now, each)]
    cache.lose(lost)
