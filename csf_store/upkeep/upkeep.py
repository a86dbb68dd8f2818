"""A third of an archive: what keeps it healthy. Collecting garbage, repairing, parity, statistics.

``Archive`` is this, ``Reading`` and the writing half in one object.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable
from functools import partial
from pathlib import Path

from csf_store.digest import Digest
from csf_store.durable import FileSystem
from csf_store.keeping import Waiting
from csf_store.ledger.ledger import Ledger
from csf_store.reading import Reading
from csf_store.store import Store
from csf_store.upkeep.finishing import collected_segments, finish_abandoned, upkeep
from csf_store.upkeep.gc import GRACE, THRESHOLD, WAIT, Collect, CollectReport, Options, Progress
from csf_store.upkeep.healing import other_archive
from csf_store.upkeep.parity import ParityState, add_parity, parity_states, remove_parity
from csf_store.upkeep.parity_file import PERCENT
from csf_store.upkeep.repair import Repair, RepairReport
from csf_store.upkeep.stats import Stats, gather


class Upkeep(Reading):
    """The upkeep of an archive."""

    ledger: Ledger

    def collect(
        self,
        *,
        grace: float = GRACE,
        threshold: float = THRESHOLD,
        dry_run: bool = False,
        wait: float = WAIT,
        accepted: Collection[Digest] = (),
        progress: Progress | None = None,
        waiting: Waiting | None = None,
    ) -> CollectReport:
        """Takes away what no pin, no ref and no recent put leads to. Others may put and get meanwhile.

        Args:
            grace: seconds for which an object is kept after it was put, and a segment left alone after it was written.
            threshold: share of dead bytes above which a segment is rewritten; 0 for any garbage at all.
            dry_run: look and report, change nothing.
            wait: seconds to wait for another collection, and for the puts that are running at the end.
            accepted: objects and chunks that are lost for good; they need not be found.
            progress: called with what is being done, how much was done, and how much there is (0 if not known).
            waiting: called with the seconds waited for others so far.

        Raises:
            RefusedError: if something needed is missing or damaged, so that what it leads to is not known.
            CorruptError: if something to keep is damaged, or the ledger was altered.
            ConflictError: if others were in the way for longer than ``wait``.
        """
        options = Options(grace, threshold, dry_run, wait, accepted)
        collect = Collect(self._store, self._retrieve, self.ledger, options, progress=progress, waiting=waiting)
        return collect.run()

    def repair(
        self,
        *,
        sources: Iterable[str | Path] = (),
        dry_run: bool = False,
        wait: float = WAIT,
        progress: Callable[[int], None] | None = None,
        waiting: Waiting | None = None,
    ) -> RepairReport:
        """Replaces damaged segments by what is sound in them, heals what it can, and builds the index anew.

        Args:
            sources: other archives that may have what is lost here; they are only read.
            dry_run: look and report, change nothing.
            wait: seconds to wait for collections and for puts that are running.
            progress: called with the bytes of each segment read.
            waiting: called with the seconds waited for others so far.

        Returns:
            What was damaged, healed and lost, and every object, pin and ref that is hurt.

        Raises:
            ConflictError: if others were in the way for longer than ``wait``.
            NotFoundError: if a source is no archive.
        """
        with contextlib.ExitStack() as open_:
            others = [open_.enter_context(other_archive(self._fs, Path(path), self._store.root)) for path in sources]
            repair = Repair(
                self._store, self.ledger, self._pipeline, sources=others, progress=progress, waiting=waiting
            )
            return repair.run(dry_run=dry_run, wait=wait)

    def add_parity(
        self, *, percent: float = PERCENT, anew: bool = False, progress: Callable[[int], None] | None = None
    ) -> tuple[str, ...]:
        """Makes parity for every sealed segment that has none, so that ``repair`` can undo rot; returns their names.

        Args:
            percent: how much of a segment may be lost.
            anew: also replace the parity that is there.
            progress: called with the bytes of segments done.

        Raises:
            CorruptError: if a segment is damaged.
            InvalidInputError: if the package ``zfec`` is not installed.
            ConflictError: if a collection or a repair is at work.
        """
        with upkeep(self._store, self.ledger, wait=WAIT):
            self._store.refresh()
            return add_parity(self._store, percent=percent, anew=anew, progress=progress)

    def parity(self, *, deep: bool = False) -> tuple[ParityState, ...]:
        """What parity there is for each sealed segment; ``deep`` also compares every block."""
        self._store.refresh()
        return parity_states(self._store, deep=deep)

    def remove_parity(self) -> int:
        """Deletes all parity; returns how many files there were."""
        with upkeep(self._store, self.ledger, wait=WAIT):
            return remove_parity(self._store)

    def stats(self) -> Stats:
        """What it holds in numbers: logical, unique and stored bytes, by codec and by kind."""
        return gather(self, self._store, self.ledger)


def open_store(fs: FileSystem, path: Path, archive_id: bytes, seal_at: int, ledger: Ledger) -> Store:
    """Opens the store of an archive, and finishes what somebody who died was taking away."""
    store = Store(fs, path, archive_id, seal_at=seal_at, collected=partial(collected_segments, ledger))
    try:
        finish_abandoned(store, ledger)
    except BaseException:
        store.close()
        raise
    return store
