"""What must hold after the power failed, and the tour of all states in which it is asked.

``Client`` does what a program does with an archive and notes on the disk what it was promised. ``survey`` then visits
every moment, builds what the disk may hold there, puts an caches of the time, older ones, cut ones or none beside it,
opens the archive as anybody would, and compares it with the promises. Whatever does not hold is a ``Failure``.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from crash_disk import ARCHIVE, CrashDisk, CrashFileSystem, Moment
from crash_states import History

from csf_store import Archive, CsfError, Digest, Kind
from csf_store.durable import FileSystem

Content: TypeAlias = "bytes | dict[str, bytes]"
"""A file, or a directory of files by path."""
THOROUGH: Final = os.environ.get("CSF_FAULTS") == "all"
"""Whether every state meets every kind of index and every moment is visited, which takes minutes: ``make faults``."""


class Made(NamedTuple):
    """The archive is there."""


class Holds(NamedTuple):
    """An object is stored."""

    digest: Digest
    kind: Kind
    content: bytes


class Released(NamedTuple):
    """An object is promised no more, because somebody is about to remove it."""

    digest: Digest


class Logged(NamedTuple):
    """The ledger begins with these lines."""

    lines: bytes


class Hurt(NamedTuple):
    """Something is damaged for now (or, if not ``now``, no more), so verification may say so."""

    now: bool


class Wrote(NamedTuple):
    """Something was got to this path, relative to the disk."""

    path: str


class Client:
    """One program with one archive open. A context manager; leaving it after a kill leaves everything as it is."""

    def __init__(self, disk: CrashDisk, fs: FileSystem | None = None, *, seal_at: int = 1 << 20) -> None:
        self.disk = disk
        self.fs = fs or disk.process()
        self.archive = Archive.open(disk.archive, create=True, fs=self.fs, seal_at=seal_at)
        disk.tell(Made())

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        if isinstance(self.fs, CrashFileSystem) and self.fs.dead:
            # The system would close these: the connection as it stands, the idle threads with the process.
            self.archive._store.keeper._index.close()
            self.archive._pipeline.close()
        else:
            self.archive.close()

    def _logged(self, lines: int | None = None) -> None:
        ledger = (self.disk.archive / "ledger.jsonl").read_bytes().splitlines(keepends=True)
        self.disk.tell(Logged(b"".join(ledger[:lines])))

    def put(self, content: bytes, *, kind: Kind = Kind.BLOB, links: tuple[Digest, ...] = ()) -> Digest:
        """Stores bytes."""
        stored = self.archive.put_bytes(content, kind=kind, links=links)
        self.disk.tell(Holds(stored.digest, kind, content))
        return stored.digest

    def put_tree(self, directory: Path) -> Digest:
        """Stores a directory."""
        stored = self.archive.put_tree(directory)
        for entry in self.archive.tree(stored.digest).entries:
            self.disk.tell(Holds(entry.blob, Kind.BLOB, (directory / entry.path).read_bytes()))
        self.disk.tell(Holds(stored.digest, Kind.TREE, self.archive.get_bytes(stored.digest, kind=Kind.TREE)))
        return stored.digest

    def pin(self, digest: Digest, name: str | None = None, *, kind: Kind = Kind.BLOB) -> None:
        """Pins an object."""
        self.archive.pin(digest, kind=kind, name=name)
        self._logged(1 + max(pin.seq for pin in self.archive.pins() if (pin.digest, pin.name) == (digest, name)))

    def unpin(self, digest: Digest) -> None:
        """Ends its pins."""
        self.archive.unpin(digest)
        self._logged()

    def collect(self, *released: Digest) -> None:
        """Takes away what nothing leads to; ``released`` are objects that it may take."""
        for digest in released:
            self.disk.tell(Released(digest))
        self.archive.collect(grace=0, threshold=0)
        self._logged()

    def damage(self, digest: Digest) -> None:
        """Flips a bit in the last chunk of an object, on the disk itself, so that it is promised no more."""
        self.disk.tell(Hurt(now=True))
        self.disk.tell(Released(digest))
        store = self.archive._store
        where = store.find_chunk(self.archive._retrieve.open(digest, None).body.chunks[-1].digest)
        assert where is not None
        path, at = store.directory / store.segment_name(where.segment), where.offset + 130
        fd = self.fs.open(path, os.O_RDWR)
        byte = self.fs.pread(fd, 1, at)[0]
        os.lseek(fd, at, os.SEEK_SET)
        self.fs.write(fd, [bytes([byte ^ 1])])
        self.fs.fsync(fd)
        self.fs.close(fd)

    def repair(self) -> None:
        """Replaces what is damaged."""
        self.archive.repair()
        self._logged()

    def move(self, ref: str, old: Digest | None, new: Digest) -> None:
        """Moves a ref."""
        fields = {"from": None if old is None else str(old), "to": str(new)}
        self.archive.ledger.append("ref.set", ref=ref, **fields)
        self._logged()

    def get_file(self, digest: Digest, name: str, *, overwrite: bool = False) -> None:
        """Writes a blob to a file."""
        self.archive.get_file(digest, self.disk.root / name, overwrite=overwrite)
        self.disk.tell(Wrote(name))

    def get_tree(self, digest: Digest, name: str, *, overwrite: bool = False) -> None:
        """Writes a tree to a directory."""
        self.archive.get_tree(digest, self.disk.root / name, overwrite=overwrite)
        self.disk.tell(Wrote(name))


class Failure(NamedTuple):
    """A state in which a promise does not hold."""

    moment: int
    after: str
    state: str
    index: str
    what: str

    def __str__(self) -> str:
        return f"before operation {self.moment} (after {self.after}), {self.state}, index {self.index}: {self.what}"


class BrokenPromiseError(AssertionError):
    """What does not hold, in a sentence."""


def _insist(holds: bool, what: str) -> None:
    if not holds:
        raise BrokenPromiseError(what)


def check(root: Path, told: list[object], outputs: Mapping[str, Content]) -> None:
    """Opens what a crash left and compares it with the promises; then uses it.

    Raises:
        BrokenPromiseError: naming the promise.
    """
    lines = b""
    objects: dict[tuple[Digest, Kind], bytes] = {}
    hurt = False
    for promise in told:
        match promise:
            case Logged(more):
                lines = more
            case Holds(digest, kind, content):
                objects[digest, kind] = content
            case Released(digest):
                for kind in Kind:
                    objects.pop((digest, kind), None)
            case Hurt(now):
                hurt = now
            case Wrote(path):
                _insist((root / path).exists(), f"{path} was got and is gone")
    for path, expected in outputs.items():
        _check_output(root / path, expected)
    try:
        with Archive.open(root / ARCHIVE, create=Made() not in told) as archive:
            _check_archive(archive, objects, lines, hurt=hurt)
    except CsfError as error:
        raise BrokenPromiseError(f"{type(error).__name__}: {error}") from error


def _check_archive(archive: Archive, objects: Mapping[tuple[Digest, Kind], bytes], lines: bytes, *, hurt: bool) -> None:
    for (digest, kind), content in objects.items():
        _insist(archive.contains(digest, kind), f"the {kind} {digest.short} is gone")
        _insist(archive.get_bytes(digest, kind=kind) == content, f"the {kind} {digest.short} has other bytes")
    ledger = archive.path / "ledger.jsonl"
    _insist((ledger.read_bytes() if ledger.exists() else b"").startswith(lines), "the ledger lost a line")
    report = archive.verify(deep=True)
    _insist(hurt or report.ok, "; ".join(map(str, report.findings)))
    fresh = archive.put_bytes(b"life goes on" * 9).digest
    archive.pin(fresh, kind=Kind.BLOB, name="after")
    _insist(archive.get_bytes(fresh) == b"life goes on" * 9, "a put after the crash is not readable")
    _insist(ledger.read_bytes().startswith(lines), "the ledger lost a line when the next was appended")
    report = archive.verify()
    _insist(hurt or report.ok, "after the next put: " + "; ".join(map(str, report.findings)))


def _check_output(path: Path, expected: Content) -> None:
    if not path.exists():
        return
    if isinstance(expected, dict):
        found = {str(each.relative_to(path)): each.read_bytes() for each in path.rglob("*") if each.is_file()}
        _insist(found == expected, f"{path.name} holds {sorted(found)}, or other bytes in them")
    else:
        _insist(path.read_bytes() == expected, f"{path.name} is neither whole nor absent")


def _indexes(disk: CrashDisk, moment: Moment, chance: random.Random) -> Iterator[tuple[str, dict[str, bytes]]]:
    yield "gone", {}
    newest = disk.indexes[moment.index]
    yield "as it was", newest
    if moment.index > 1:
        yield "of an earlier moment", disk.indexes[chance.randrange(1, moment.index)]
    logs = {name: log for name, log in newest.items() if name.endswith("-wal")}
    if logs:
        yield "with its log cut", newest | {name: log[: chance.randrange(len(log) + 1)] for name, log in logs.items()}


def survey(
    disk: CrashDisk,
    scratch: Path,
    *,
    outputs: Mapping[str, Content] | None = None,
    samples: int = 3,
    seed: int = 1,
    moments: range | None = None,
    share: float = 1.0,
) -> Iterator[Failure]:
    """Visits every state after every moment (or some) of a history; yields where a promise does not hold.

    Args:
        disk: on which something was done.
        scratch: a directory to build states in, best in memory.
        outputs: paths that may be there, and then must have this content.
        samples: seeded samples beside the telling states.
        seed: of the samples.
        moments: which to visit, all without it.
        share: how many of the states to visit, drawn by the seed, unless the tour is to be thorough.
    """
    history = History(disk)
    visited: set[object] = set()
    for number, moment in enumerate(disk.moments()):
        chance = random.Random(seed * 1_000_003 + number)
        if moments is None or number in moments:
            for turn, state in enumerate(history.states(chance, samples)):
                choices = list(_indexes(disk, moment, chance))
                if not THOROUGH:
                    choices = [choices[(number + turn) % len(choices)]]
                for index, files in choices:
                    if not THOROUGH and chance.random() >= share:
                        continue
                    key = (frozenset(state.files.items()), frozenset(files.items()), moment.told)
                    if key not in visited:
                        visited.add(key)
                        root = scratch / "state"
                        state.place(root)
                        what = _visit(root, files, disk.told[: moment.told], outputs or {})
                        if what:
                            last = type(disk.journal[number - 1].op).__name__ if number else "nothing"
                            yield Failure(number, last, state.label, index, what)
        if moment.op is not None:
            history.take(moment.op)


def _visit(root: Path, index: dict[str, bytes], told: list[object], outputs: Mapping[str, Content]) -> str:
    if (root / ARCHIVE).exists():
        for name, content in index.items():
            (root / ARCHIVE / name).write_bytes(content)
    try:
        check(root, told, outputs)
    except BrokenPromiseError as error:
        return str(error) or "a promise"
    finally:
        shutil.rmtree(root)
    return ""
