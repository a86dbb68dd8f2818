"""Finishing what ``collecting.json`` says: the index, the files, the ledger, and at last the note itself.

Every step can be done twice, so whoever finds the note of a process that died just does them all. The caller holds
``upkeep.lock``, so nobody else is at it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from csf_store.durable import FileSystem, storage_errors
from csf_store.errors import ConflictError, CorruptError, StorageError
from csf_store.journal import Journal, read_journal, remove_journal
from csf_store.keeping import UPKEEP_LOCK, Waiting, alone
from csf_store.ledger.ledger import Ledger
from csf_store.segment import segment_id_of
from csf_store.store import Store
from csf_store.upkeep.parity import remove_parity

COLLECTED: Final = "collected"
"""The ledger event that says which segments were taken away on purpose."""
_NAMES_PER_LINE: Final = 20_000


@contextlib.contextmanager
def upkeep(store: Store, ledger: Ledger, *, wait: float, waiting: Waiting | None = None) -> Iterator[None]:
    """Alone among those who take segments away; what a dead one left half done is finished first.

    Raises:
        ConflictError: if another one was at it all the time.
    """
    with alone(
        store.fs,
        store.root / UPKEEP_LOCK,
        "another csf gc or csf repair is at work",
        wait=wait,
        waiting=waiting,
    ):
        journal = read_journal(store.fs, store.root, store.archive_id)
        if journal is not None:
            finish(store, ledger, journal)
        yield


def finish_abandoned(store: Store, ledger: Ledger) -> None:
    """On opening: finishes the job of a process that died. Where that can not be, the archive is sound without."""
    with contextlib.suppress(ConflictError, StorageError, CorruptError):
        if read_journal(store.fs, store.root, store.archive_id) is not None:
            with upkeep(store, ledger, wait=0):
                pass


def finish(store: Store, ledger: Ledger, journal: Journal) -> None:
    """Does everything that the note says, and removes it.

    Raises:
        CorruptError: if a segment that came is damaged; then nothing is deleted.
        StorageError: if a file can not be moved or deleted; the note stays, and somebody else will.
    """
    store.keeper.follow(journal)
    if journal.into is None:
        _delete(store.fs, store.directory, journal)
    else:
        _set_aside(store.fs, store.directory, store.root, journal.into, journal)
    remove_parity(store, orphans_only=True)
    _enter(ledger, journal)
    remove_journal(store.fs, store.root)
    store.refresh()


def _delete(fs: FileSystem, directory: Path, journal: Journal) -> None:
    with storage_errors(directory):
        for name in journal.gone:
            fs.unlink(directory / name)
        fs.fsync_directory(directory)


def _set_aside(fs: FileSystem, directory: Path, root: Path, into: str, journal: Journal) -> None:
    """A second name first, durably, and only then the first one away: at no moment is there none."""
    target = root / into
    with storage_errors(target):
        fs.mkdir(target)
        for each in (root, target.parent):
            fs.fsync_directory(each)
        for name in journal.gone:
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                fs.link(directory / name, target / name)
        fs.fsync_directory(target)
        for name in journal.gone:
            fs.unlink(directory / name)
        fs.fsync_directory(directory)


def _enter(ledger: Ledger, journal: Journal) -> None:
    """One event (more, if the names do not fit a line), unless somebody entered it and died after that."""
    with ledger.locked() as transaction:
        if any(entry.event == COLLECTED and entry.fields.get("id") == journal.id for entry in ledger.entries()):
            return
        for start in range(0, len(journal.gone), _NAMES_PER_LINE):
            last = start + _NAMES_PER_LINE >= len(journal.gone)
            transaction.append(
                COLLECTED,
                id=journal.id,
                segments=list(journal.gone[start : start + _NAMES_PER_LINE]),
                freed=journal.freed if last else 0,
                objects=journal.objects if last else 0,
                into=journal.into,
            )


def collected_segments(ledger: Ledger) -> frozenset[str]:
    """Every segment that the ledger says was taken away on purpose; none if the ledger can not be read."""
    names: set[str] = set()
    try:
        for entry in ledger.entries():
            listed = entry.fields.get("segments") if entry.event == COLLECTED else None
            if isinstance(listed, list):
                names.update(name for name in listed if isinstance(name, str) and segment_id_of(name))
    except CorruptError:
        return frozenset()
    return frozenset(names)
