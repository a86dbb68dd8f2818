"""Systems that do less than asked: short writes, full and read-only disks, clocks and chance that repeat themselves."""

import errno
import os
import random
import secrets
import shutil
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from test_csf_power_loss import BIG, content_of, directory, safetensors

from csf_store import Archive, CsfError, Digest, Kind, StorageError
from csf_store.digest import Buffer
from csf_store.durable import OsFileSystem
from csf_store.ledger import ledger

CONTENTS = [b"small" * 20, safetensors(1), BIG, b""]


class ShortWrites(OsFileSystem):
    """Never writes all of more than one byte, and often just one."""

    def __init__(self) -> None:
        self._chance = random.Random(1)

    def write(self, fd: int, parts: Sequence[Buffer]) -> int:
        data = b"".join(map(bytes, parts))
        return super().write(
            fd, [data[: self._chance.choice((1, 1, 7, max(1, len(data) // 2), max(1, len(data) - 1)))]]
        )

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        return super().pread(fd, self._chance.randint(1, max(1, length)), offset)

    def read_into(self, fd: int, parts: Sequence[memoryview], offset: int) -> int:
        first = next(part for part in parts if len(part))
        return super().read_into(fd, [first[: self._chance.randint(1, len(first))]], offset)


def test_short_writes_and_reads(scratch: Path) -> None:
    source = directory(scratch)
    with Archive.open(scratch / "a", create=True, fs=ShortWrites(), seal_at=900) as archive:
        for content in CONTENTS:
            archive.pin(archive.put_bytes(content).digest, kind=Kind.BLOB, name="x")
        tree = archive.put_tree(source).digest
        archive.get_tree(tree, scratch / "out")
        archive.get_file(Digest.of(BIG), scratch / "big")
        assert content_of(scratch / "out") == content_of(source)
        assert (scratch / "big").read_bytes() == BIG
    with Archive.open(scratch / "a") as archive:
        assert [archive.get_bytes(Digest.of(content)) for content in CONTENTS] == CONTENTS
        assert archive.verify(deep=True).ok
        assert archive.verify(deep=True).notes == ()


class FullDisk(OsFileSystem):
    """Has room for so many bytes more, whichever file they are for."""

    left = 1 << 60

    def write(self, fd: int, parts: Sequence[Buffer]) -> int:
        data = b"".join(map(bytes, parts))[: self.left]
        if not data:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.left -= len(data)
        return super().write(fd, [data])


@pytest.mark.parametrize("left", [0, 1, 63, 64, 65, 200, 700, 2000, 40_000])
def test_a_disk_that_is_full_and_then_is_not(scratch: Path, left: int) -> None:
    disk = FullDisk()
    source = directory(scratch)
    with Archive.open(scratch / "a", create=True, fs=disk, seal_at=900) as archive:
        archive.pin(archive.put_bytes(b"before").digest, kind=Kind.BLOB, name="x")
        lines = (scratch / "a" / "ledger.jsonl").read_bytes()
        disk.left = left
        for _ in range(3):
            with pytest.raises(StorageError, match="free some space"):
                archive.put_bytes(BIG)
            with pytest.raises(StorageError, match="free some space"):
                archive.get_file(archive.put_bytes(b"before").digest, scratch / "out", overwrite=True)
                archive.pin(Digest.of(b"before"), kind=Kind.BLOB, name="y")
            disk.left = min(disk.left, left // 2)
        assert archive.get_bytes(Digest.of(b"before")) == b"before"
        assert (scratch / "a" / "ledger.jsonl").read_bytes().startswith(lines)
        disk.left = 1 << 60
        archive.pin(archive.put_bytes(BIG).digest, kind=Kind.BLOB, name="big")
        archive.put_tree(source)
    with Archive.open(scratch / "a") as archive:
        assert archive.get_bytes(Digest.of(BIG)) == BIG
        assert archive.verify(deep=True).ok
    assert not [path for path in scratch.iterdir() if path.name.endswith(".tmp")]


@pytest.fixture
def harmless() -> Iterator[None]:
    """Without the rights of root, who may write anywhere."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


class ReadOnly(OsFileSystem):
    """As if one directory were mounted read-only."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def open(self, path: Path, flags: int) -> int:
        if path.is_relative_to(self._root) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return super().open(path, flags)

    def mkdir(self, path: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def _readable(path: Path, fs: OsFileSystem) -> None:
    """Opens it and reads everything there is; hears that it can not write."""
    with Archive.open(path, fs=fs) as archive:
        assert [archive.get_bytes(Digest.of(content)) for content in CONTENTS] == CONTENTS
        assert len(list(archive.objects())) == len(CONTENTS)
        assert len(archive.tensors(Digest.of(CONTENTS[1]))) == 3
        assert [pin.name for pin in archive.pins()] == ["x"] * len(CONTENTS)
        assert archive.ledger.size == len(CONTENTS) + 1
        assert archive.verify(deep=True).ok
        for write in (
            lambda archive=archive: archive.put_bytes(b"new"),
            lambda archive=archive: archive.put_bytes(CONTENTS[0]),
            lambda archive=archive: archive.pin(Digest.of(CONTENTS[0]), kind=Kind.BLOB, name="new"),
            lambda archive=archive: archive.unpin(Digest.of(CONTENTS[0])),
            lambda archive=archive: archive.collect(),
        ):
            with pytest.raises(StorageError, match=r"check the permissions|read-only"):
                write()


@pytest.mark.parametrize("caches", [True, False], ids=["with caches", "without caches"])
def test_an_archive_that_may_not_be_written_can_be_read(
    scratch: Path, request: pytest.FixtureRequest, caches: bool
) -> None:
    path = scratch / "a"
    with Archive.open(path, create=True, seal_at=900) as archive:
        for content in CONTENTS:
            archive.pin(archive.put_bytes(content).digest, kind=Kind.BLOB, name="x")
    for file in path.iterdir():
        if file.name.endswith(".lock") or (not caches and ".sqlite" in file.name):
            file.unlink()
    copy = Path(shutil.copytree(path, scratch / "copy"))
    _readable(copy, ReadOnly(copy))  # as root, too, for whom permissions are nothing
    places = [scratch, path, *path.rglob("*")]
    for place in places:
        place.chmod(0o555 if place.is_dir() else 0o444)
    before = {place: place.stat().st_mtime_ns for place in places}
    request.getfixturevalue("harmless")
    try:
        _readable(path, OsFileSystem())
        _readable(path, ReadOnly(path))
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
        for place in places:
            place.chmod(0o755)
    assert {place: place.stat().st_mtime_ns for place in places} == before


def test_two_writers_with_one_clock_and_one_chance(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock stands still, and both draw the same numbers: nothing may rest on them being different."""

    class Stopped(datetime):
        @classmethod
        def now(cls, tz: object = None) -> "Stopped":
            return cls(2026, 1, 2, 3, 4, 5, 6, UTC)

    monkeypatch.setattr(ledger, "datetime", Stopped)
    with Archive.open(scratch / "a", create=True):
        pass
    ids = [bytes([number]) * 16 for number in range(40)]
    drawn = {"one": iter(ids), "two": iter(ids)}
    turn = "one"
    monkeypatch.setattr(secrets, "token_bytes", lambda size: next(drawn[turn])[:size])
    monkeypatch.setattr(secrets, "token_hex", lambda size: next(drawn[turn]).hex()[: 2 * size])
    kept: dict[Digest, bytes] = {}
    with (
        Archive.open(scratch / "a", seal_at=600) as one,
        Archive.open(scratch / "a", seal_at=600) as two,
    ):
        for number in range(12):
            for turn, archive in (("one", one), ("two", two)):
                content = b"%s %d" % (turn.encode(), number) * 20
                try:
                    digest = archive.put_bytes(content).digest
                    archive.pin(digest, kind=Kind.BLOB, name=turn)
                except CsfError:
                    continue  # the name was taken: an error, and nothing lost
                kept[digest] = content
    assert len(kept) >= 12
    with Archive.open(scratch / "a") as archive:
        assert {pin.digest for pin in archive.pins()} == set(kept)
        assert all(archive.get_bytes(digest) == content for digest, content in kept.items())
        assert {entry.time for entry in archive.ledger.entries()} == {"2026-01-02T03:04:05.000006Z"}
        assert archive.verify(deep=True).ok


def test_a_clock_that_goes_back(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    years = iter([2030, 2026, 2020, 2040, 1999])

    class Backwards(datetime):
        @classmethod
        def now(cls, tz: object = None) -> "Backwards":
            return cls(next(years), 1, 1, tzinfo=UTC)

    monkeypatch.setattr(ledger, "datetime", Backwards)
    with Archive.open(scratch / "a", create=True) as archive:
        for number in range(4):
            archive.ledger.append("note", number=number)
        times = [entry.time[:4] for entry in archive.ledger.entries()]
    assert times == ["2030", "2030", "2030", "2040", "2040"]
    with Archive.open(scratch / "a") as archive:
        assert archive.verify().ok
