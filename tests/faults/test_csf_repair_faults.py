"""A repair that is stopped at any of its steps: what was sound before is sound after, and the next one ends it."""

import contextlib
import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kept import INDEX, SEAL, index_files, indexes, make
from mortal import Dead, Mortal, abandon

from csf_store import Archive, CsfError, Kind, StorageError


class Damaged:
    """An archive with one chunk and one object hit, and what is whole in it all the same."""

    def __init__(self, path: Path) -> None:
        self.path = path
        kept, _ = make(path)
        with Archive.open(path, seal_at=SEAL) as archive:
            large = [digest for digest, content in kept.items() if len(content) == 70_000]
            small = [digest for digest, content in kept.items() if len(content) == 9000]
            store = archive._store
            places = [store.find_chunk(bytes(large[0])), store.find_object(bytes(small[0]), Kind.BLOB)]
            hit = [
                (store.directory / store.segment_name(where.segment), where.offset + 140) for where in places if where
            ]
        for segment, offset in hit:
            data = bytearray(segment.read_bytes())
            data[offset] ^= 1
            segment.write_bytes(data)
        self.segments = {segment.name: segment.read_bytes() for segment, _ in hit}
        self.lost = {large[0]: kept[large[0]], small[0]: kept[small[0]]}
        self.kept = {digest: content for digest, content in kept.items() if digest not in self.lost}


@pytest.fixture
def damaged(scratch: Path) -> Damaged:
    (scratch / "made").mkdir()
    return Damaged(scratch / "made" / "archive")


def _run(path: Path, fs: Mortal) -> None:
    archive = None
    try:
        archive = Archive.open(path, fs=fs, seal_at=SEAL)
        archive.repair()
    except Dead:
        pass
    finally:
        if archive is not None and fs.dead:
            abandon(archive)
        elif archive is not None:
            archive.close()


def _holds(path: Path, damaged: Damaged, label: str) -> None:
    """What is whole can be read; nothing damaged is given out; every damaged file still exists somewhere."""
    with Archive.open(path, seal_at=SEAL) as archive:
        for digest, content in damaged.kept.items():
            assert archive.get_bytes(digest) == content, label
        for digest in damaged.lost:
            with pytest.raises(CsfError):
                archive.get_bytes(digest)
    for name, content in damaged.segments.items():
        places = [path / "segments" / name, *path.glob(f"quarantine/*/{name}")]
        assert [place.read_bytes() == content for place in places if place.exists()].count(True) >= 1, label


def _ends(path: Path, damaged: Damaged, label: str) -> None:
    """The next repair ends it, and putting what is lost again heals it."""
    with Archive.open(path, seal_at=SEAL) as archive:
        report = archive.repair()
        assert {each.digest for each in report.lost} <= damaged.lost.keys(), label
        for digest, content in damaged.lost.items():
            assert archive.put_bytes(content).digest == digest
            assert archive.get_bytes(digest) == content, label
        assert archive.repair().ok, label
        report = archive.verify(deep=True)
        assert report.findings == (), (label, report)
        for digest, content in damaged.kept.items():
            assert archive.get_bytes(digest) == content, label


def _steps(damaged: Damaged, scratch: Path) -> list[str]:
    whole = Mortal()
    shutil.copytree(damaged.path, scratch / "whole")
    _run(scratch / "whole", whole)
    assert any(what.startswith("rename to collecting") for what in whole.diary)
    return whole.diary


def test_killed_at_every_step(damaged: Damaged, scratch: Path) -> None:
    before = index_files(damaged.path)
    steps = _steps(damaged, scratch)
    assert len(steps) > 25
    for number, step in enumerate(steps):
        for index in ("left", "deleted", "from before"):
            here = scratch / f"{number}-{index}"
            shutil.copytree(damaged.path, here)
            _run(here, Mortal(number))
            for now in indexes(here, before):
                if now == index:
                    break
            label = f"step {number} ({step}), index {index}"
            _holds(here, damaged, label)
            if number % 3 == 0:
                _ends(here, damaged, label)
            shutil.rmtree(here)


@pytest.mark.parametrize("trouble", [errno.ENOSPC, errno.EIO])
def test_an_error_at_every_step(damaged: Damaged, scratch: Path, trouble: int) -> None:
    for number, step in list(enumerate(_steps(damaged, scratch)))[trouble == errno.EIO :: 2]:
        here = scratch / str(number)
        shutil.copytree(damaged.path, here)
        try:
            archive = Archive.open(
                here, fs=Mortal(number, lambda: OSError(trouble, os.strerror(trouble))), seal_at=SEAL
            )
        except StorageError:
            continue
        with archive:
            with contextlib.suppress(StorageError):
                archive.repair()
            for digest, content in damaged.kept.items():
                assert archive.get_bytes(digest) == content, (number, step)
        _holds(here, damaged, f"{number} {step}")
        _ends(here, damaged, f"{number} {step}")
        shutil.rmtree(here)


def test_killed_by_the_system(damaged: Damaged, scratch: Path) -> None:
    chance = random.Random(99)
    for number in range(8):
        here = scratch / str(number)
        shutil.copytree(damaged.path, here)
        program = (
            "from csf_store import Archive\n"
            f"with Archive.open({str(here)!r}, seal_at={SEAL}) as archive:\n"
            "    print('ready', flush=True)\n"
            "    archive.repair()\n"
        )
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            until = time.perf_counter_ns() + chance.randrange(30_000_000)
            while time.perf_counter_ns() < until:
                pass
            os.kill(process.pid, signal.SIGKILL)
        if number % 3 == 2:
            for name in INDEX:
                (here / name).unlink(missing_ok=True)
        _holds(here, damaged, f"round {number}")
        _ends(here, damaged, f"round {number}")
        shutil.rmtree(here)


def test_a_read_only_archive(damaged: Damaged) -> None:
    class ReadOnly(Mortal):
        def _count(self, what: str) -> None:
            if not what.endswith(".lock"):
                raise OSError(errno.EROFS, "Read-only file system")

    with Archive.open(damaged.path, fs=ReadOnly(), seal_at=SEAL) as archive:
        told = archive.repair(dry_run=True)
        assert {each.digest for each in told.lost} == damaged.lost.keys()
        with pytest.raises(StorageError, match="read-only"):
            archive.repair()
    _holds(damaged.path, damaged, "")
