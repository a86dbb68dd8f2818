"""The index in line with the segments, which are the truth: opened, rebuilt, replaced, corrected.

Everything that changes what the index lists, other than a writer's own commit, happens under ``index.lock`` and looks
again at the directory and the journal of segments taken away, so that no slow process brings back what another one
collected. An index that SQLite can not read, that lies, that is another archive's, or that vanished under an open
connection is the same to us: a new one is read back from the segments. Where the archive may not be written to, that is
done for this process alone, in a directory of its own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, TypeVar

from csf_store.durable import FileStat, FileSystem, storage_errors
from csf_store.errors import CorruptError, StorageError
from csf_store.framing import FooterEntry, FramingError
from csf_store.index import Index, remove
from csf_store.index_rows import IndexUnusableError, SegmentState
from csf_store.intake import Intake
from csf_store.journal import JOURNAL, Journal, read_journal
from csf_store.segment import read_footer, segment_id_of

SEGMENTS: Final = "segments"
INDEX: Final = "index.sqlite"
INDEX_LOCK: Final = "index.lock"
_FORBIDDEN: Final = (errno.EACCES, errno.EPERM, errno.EROFS)
_CLOCK_NS: Final = 100_000_000
"""A directory that changed less than this ago may change again without its time showing it."""

_T = TypeVar("_T")


class _FileLock:
    """``index.lock``: one process, one thread at a time; the same thread may take it again."""

    def __init__(self, fs: FileSystem, path: Path) -> None:
        self._fs, self._path = fs, path
        self._mutex = threading.RLock()
        self._depth = 0

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        with self._mutex:
            if self._depth:
                yield
                return
            with storage_errors(self._path):
                fd = self._fs.open(self._path, os.O_RDWR | os.O_CREAT)
            try:
                with storage_errors(self._path):
                    self._fs.lock(fd)
                self._depth = 1
                try:
                    yield
                finally:
                    self._depth = 0
            finally:
                self._fs.close(fd)


class IndexKeeper:
    """The one open index of a store. Thread-safe."""

    def __init__(
        self, fs: FileSystem, root: Path, archive_id: bytes, collected: Callable[[], frozenset[str]] | None = None
    ) -> None:
        """``collected`` names the segments that the ledger says were taken away on purpose."""
        self.epoch = 0
        """Raised whenever the numbers of segment rows may have changed their meaning."""
        self._fs = fs
        self._root = root
        self._path = root / INDEX
        self._directory = root / SEGMENTS
        self._archive_id = archive_id
        self._collected = collected or frozenset
        self._mutex = threading.RLock()
        self._changing = _FileLock(fs, root / INDEX_LOCK)
        self._looked: int | None = None
        self._behind = False
        self._own: tempfile.TemporaryDirectory[str] | None = None
        self._index = self._open()
        try:
            self.using(self._reconcile)
        except BaseException:
            self.close()
            raise

    def _open(self) -> Index:
        try:
            # Under the lock: SQLite does not wait its turn when several processes make one database at once.
            with self._changing.held():
                try:
                    return Index(self._path, self._archive_id)
                except IndexUnusableError:
                    remove(self._path)
                    return Index(self._path, self._archive_id)
        except StorageError as error:
            if getattr(error.__cause__, "errno", None) not in _FORBIDDEN or self._own is not None:
                raise
            return self._open_elsewhere()

    def _open_elsewhere(self) -> Index:
        """Reading needs no permission to write: where there is none, the index is made for this process alone."""
        with storage_errors(self._path):
            self._own = tempfile.TemporaryDirectory(prefix="csf-index-")
        self._path = Path(self._own.name) / INDEX
        self._changing = _FileLock(self._fs, Path(self._own.name) / INDEX_LOCK)
        return Index(self._path, self._archive_id)

    def close(self) -> None:
        """Closes the connection."""
        with self._mutex:
            self._index.close()
            if self._own is not None:
                self._own.cleanup()

    def using(self, action: Callable[[Index], _T]) -> _T:
        """Runs ``action``; an index that proves unusable is thrown away, rebuilt, and asked once more."""
        index = self._index
        try:
            return action(index)
        except IndexUnusableError:
            self.rebuild(index)
            try:
                return action(self._index)
            except IndexUnusableError as error:
                raise CorruptError(
                    f"{self._path}: {error}, even after a rebuild; check the device, then delete the file"
                ) from error

    def sure(self, action: Callable[[Index], _T]) -> _T:
        """As ``using``, but not of an index that was deleted, replaced or half read back: it would miss things."""
        if self._behind or not self._index.is_current():
            self.refresh()
        return self.using(action)

    def rebuild(self, unusable: Index | None = None) -> None:
        """Throws an index away and reads it back from the segments, unless another thread did so meanwhile.

        Args:
            unusable: the one that proved so; without it, whatever is there.
        """
        with self._mutex, self._changing.held():
            if unusable is not None and self._index is not unusable:
                return
            current = self._index.is_current()
            self._behind = True
            self._index.close()
            if current:  # else somebody else has made a new one already
                remove(self._path)
            self._index = self._open()
            self.epoch += 1
            self._reconcile(self._index)

    def refresh(self) -> None:
        """Brings the index in line with the files as they are now, and notices if it was replaced by another."""
        with self._mutex:
            if not self._index.is_current():
                self._behind = True
                self._index.close()
                self._index = self._open()
                self.epoch += 1
            self.using(self._reconcile)

    def settle(self) -> None:
        """What must be sure before anybody builds on what the index lists; costs a few calls when nothing happened.

        The caller holds a share of the lock that takers-away hold alone, so what is settled stays so.

        Raises:
            CorruptError: if there is a damaged journal, so that nobody knows which segments count.
        """
        with self._mutex:
            journal = read_journal(self._fs, self._root, self._archive_id)
            if self._behind or not self._index.is_current():
                self.refresh()
            if journal is not None:
                self.follow(journal)
            looked = self._directory_time()
            if looked is None or looked != self._looked:
                with storage_errors(self._directory):
                    files = self._fs.scan(self._directory)
                if any(state.end and name not in files for name, state in self.using(Index.segments).items()):
                    self.refresh()
                self._looked = looked

    def _directory_time(self) -> int | None:
        """When the segments' directory last changed; None while it may change again without its time showing it."""
        with storage_errors(self._directory):
            fd = self._fs.open(self._directory, os.O_RDONLY)
            try:
                changed = self._fs.stat(fd).mtime_ns
            finally:
                self._fs.close(fd)
        return changed if abs(time.time_ns() - changed) > _CLOCK_NS else None

    # -- bringing it in line -----------------------------------------------------------------------------------------

    def _journal(self) -> Journal | None:
        try:
            return read_journal(self._fs, self._root, self._archive_id)
        except CorruptError:
            return None  # nobody follows it; csf verify names it, and nothing is put before csf repair

    def _reconcile(self, index: Index) -> None:
        """Compares what the index knows of each segment with the file, and reads what it does not know."""
        looked = self._directory_time()
        known = index.segments()
        # In this order: a segment that is known is there in full, unless it was taken away or cut.
        with storage_errors(self._directory):
            files = self._fs.scan(self._directory)
        if self._journal() is not None or not _agree(known, files):
            with self._changing.held():
                self._correct(index)
        self._looked = looked
        self._behind = False

    def _correct(self, index: Index) -> None:
        journal = self._journal()
        gone = frozenset(journal.gone if journal is not None else ())
        # First what is there no more: a record that is listed where it was is not listed where it came to.
        self._drop(index, lambda name: name not in gone)
        if journal is not None:
            try:
                self._follow(index, journal)
            except CorruptError:  # what came is damaged: then what went is still there, and counts
                gone = frozenset()
                self._drop(index, lambda name: name in journal.gone)
        known = index.segments()
        unseen = [
            (name, known.get(name), found)
            for name, found in self._files().items()
            if name not in gone and segment_id_of(name) is not None and _is_news(known.get(name), found)
        ]
        self._intake(index).take(unseen)

    def _files(self) -> dict[str, FileStat]:
        with storage_errors(self._directory):
            return self._fs.scan(self._directory)

    def _drop(self, index: Index, which: Callable[[str], bool]) -> None:
        """Strikes segments that are gone or shorter than they were: silently if they were taken away on purpose."""
        files = self._files()
        collected: frozenset[str] | None = None
        for name, state in index.segments().items():
            size = files[name].size if name in files else 0
            if which(name) and size < state.end:
                collected = self._collected() if collected is None else collected
                if name in collected and name not in files:
                    index.forget([name])
                else:
                    index.lose(state, size)

    def follow(self, journal: Journal) -> None:
        """Makes the index forget the segments that went and know those that came; durable when this returns."""
        with self._mutex, self._changing.held():
            self.using(lambda index: self._follow(index, journal))

    def take_in(self, name: str) -> None:
        """Reads what a segment holds beyond what the index knows of it."""
        with self._mutex, self._changing.held(), storage_errors(self._directory):
            found = self._fs.scan(self._directory)[name]
            self.using(lambda index: self._intake(index).take([(name, index.segments().get(name), found)]))

    def _intake(self, index: Index) -> Intake:
        return Intake(self._fs, self._directory, self._archive_id, index)

    def _follow(self, index: Index, journal: Journal) -> None:
        known = index.segments()
        if not any(name in known for name in journal.gone) and all(
            name in known and known[name].sealed for name in journal.came
        ):
            return
        states, records = [], []
        for name in journal.came:
            found, table = self._came(name)
            states.append(SegmentState(0, name, found.size, found.size, found.mtime_ns, sealed=True))
            records += [(name, entry) for entry in table]
        index.replace(journal.gone, states, records)

    def _came(self, name: str) -> tuple[FileStat, list[FooterEntry]]:
        path = self._directory / name
        with storage_errors(path):
            fd = self._fs.open(path, os.O_RDONLY)
            try:
                found = self._fs.stat(fd)
                table = read_footer(self._fs, fd, segment_id_of(name) or b"", found.size)
            except FramingError:
                table = None
            finally:
                self._fs.close(fd)
        if table is None:
            raise CorruptError(
                f"segment {name} is damaged; it came for those that {JOURNAL} lists, none of which was deleted yet "
                "if it is there; run csf repair"
            )
        return found, table


def _is_news(old: SegmentState | None, found: FileStat) -> bool:
    return old is None or (old.end != found.size and (old.size, old.mtime) != found)


def _agree(known: Mapping[str, SegmentState], files: Mapping[str, FileStat]) -> bool:
    return all(
        name in files and state.end <= files[name].size for name, state in known.items() if state.end
    ) and not any(_is_news(known.get(name), found) for name, found in files.items() if segment_id_of(name) is not None)
