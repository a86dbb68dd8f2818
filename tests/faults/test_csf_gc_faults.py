"""A collection that is stopped at any of its steps: nothing kept is lost, and the next one ends what it began."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from kept import INDEX, SEAL, index_files, indexes, make, names, sound
from mortal import Dead, Mortal, abandon

from csf_store import Archive, CorruptError, CsfError, Digest, Kind, StorageError
from csf_store.index import Index
from csf_store.journal import JOURNAL
from csf_store.upkeep.check import Check
from csf_store.upkeep.gc import Collect


@pytest.fixture
def made(scratch: Path) -> tuple[Path, dict[Digest, bytes], list[bytes]]:
    (scratch / "made").mkdir()
    kept, garbage = make(scratch / "made" / "archive")
    return scratch / "made" / "archive", kept, garbage


def _run(path: Path, fs: Mortal) -> None:
    """A collection on a file system that may stop it."""
    archive = None
    try:
        archive = Archive.open(path, fs=fs, seal_at=SEAL)
        archive.collect(grace=0, threshold=0)
    except Dead:
        pass
    finally:
        if archive is not None and fs.dead:
            abandon(archive)
        elif archive is not None:
            archive.close()


def _ends(path: Path, kept: dict[Digest, bytes], garbage: list[bytes]) -> None:
    """What was not promised can be put again and is whole; a collection that is let live cleans up."""
    with Archive.open(path, seal_at=SEAL) as archive:
        for content in garbage[:2]:
            assert archive.get_bytes(archive.put_bytes(content).digest) == content
        archive.collect(grace=0, threshold=0)
        assert {info.digest for info in archive.objects()} == kept.keys()
        assert archive.verify(deep=True).findings == ()
        assert all(name.endswith(".csfs") for name in names(path))
        once = [entry.fields["id"] for entry in archive.ledger.entries() if entry.event == "collected"]
        assert len(once) == len(set(once))


def _steps(made: Path, scratch: Path) -> list[str]:
    whole = Mortal()
    shutil.copytree(made, scratch / "whole")
    _run(scratch / "whole", whole)
    assert [what for what in whole.diary if what.startswith("rename to collecting")], whole.diary
    return whole.diary


def test_killed_at_every_step(made: tuple[Path, dict[Digest, bytes], list[bytes]], scratch: Path) -> None:
    path, kept, garbage = made
    before = index_files(path)
    steps = _steps(path, scratch)
    assert len(steps) > 40
    for number, step in enumerate(steps):
        for index in ("left", "deleted", "from before"):
            here = scratch / f"{number}-{index}"
            shutil.copytree(path, here)
            _run(here, Mortal(number))
            for now in indexes(here, before):
                if now == index:
                    break
            sound(here, kept, f"step {number} ({step}), index {index}")
            if number % 3 == 0:
                _ends(here, kept, garbage)
            shutil.rmtree(here)


@pytest.mark.parametrize("trouble", [errno.ENOSPC, errno.EIO])
def test_an_error_at_every_step(
    made: tuple[Path, dict[Digest, bytes], list[bytes]], scratch: Path, trouble: int
) -> None:
    """The same archive goes on: it gives out what is kept, and puts, and collects when the trouble is over."""
    path, kept, garbage = made
    for number, step in list(enumerate(_steps(path, scratch)))[trouble == errno.EIO :: 2]:
        here = scratch / str(number)
        shutil.copytree(path, here)
        try:
            archive = Archive.open(
                here, fs=Mortal(number, lambda: OSError(trouble, os.strerror(trouble))), seal_at=SEAL
            )
        except StorageError:
            sound(here, kept, step)
            shutil.rmtree(here)
            continue
        with archive:
            try:
                archive.collect(grace=0, threshold=0)
            except StorageError as error:
                assert str(here) in str(error) or "segment" in str(error)
            for digest, content in kept.items():
                assert archive.get_bytes(digest) == content, (number, step)
            assert archive.get_bytes(archive.put_bytes(garbage[0]).digest) == garbage[0]
        sound(here, kept, step)
        _ends(here, kept, garbage)
        shutil.rmtree(here)


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_around_the_index(
    made: tuple[Path, dict[Digest, bytes], list[bytes]], monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    path, kept, garbage = made
    replace = Index.replace

    def dying(self: Index, *arguments: object) -> None:
        if when == "after":
            replace(self, *arguments)
        fs.die()
        raise Dead

    fs = Mortal()
    monkeypatch.setattr(Index, "replace", dying)
    _run(path, fs)
    monkeypatch.undo()
    assert (path / JOURNAL).exists()
    sound(path, kept, when)
    _ends(path, kept, garbage)


def test_a_read_only_archive(made: tuple[Path, dict[Digest, bytes], list[bytes]], scratch: Path) -> None:
    path, kept, _ = made
    before = {each: each.read_bytes() for each in (path / "segments").iterdir()}

    class ReadOnly(Mortal):
        def _count(self, what: str) -> None:
            if not what.endswith(".lock"):
                raise OSError(errno.EROFS, "Read-only file system")

    with Archive.open(path, fs=ReadOnly(), seal_at=SEAL) as archive:
        with pytest.raises(StorageError, match="read-only"):
            archive.collect(grace=0)
        assert all(archive.get_bytes(digest) == content for digest, content in kept.items())
    assert {each: each.read_bytes() for each in (path / "segments").iterdir()} == before


def test_killed_by_the_system(made: tuple[Path, dict[Digest, bytes], list[bytes]], scratch: Path) -> None:
    """Real processes, real signals, at seeded moments."""
    path, kept, garbage = made
    chance = random.Random(77)
    died = 0
    for number in range(10):
        here = scratch / str(number)
        shutil.copytree(path, here)
        program = (
            "import sys; from csf_store import Archive\n"
            f"with Archive.open({str(here)!r}, seal_at={SEAL}) as archive:\n"
            "    print('ready', flush=True)\n"
            "    archive.collect(grace=0, threshold=0)\n"
            "    print('done', flush=True)\n"
        )
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            until = time.perf_counter_ns() + chance.randrange(25_000_000)
            while time.perf_counter_ns() < until:
                pass
            os.kill(process.pid, signal.SIGKILL)
            died += b"done" not in process.stdout.read()
        if number % 4 == 3:
            for name in INDEX:
                (here / name).unlink(missing_ok=True)
        sound(here, kept, f"round {number}")
        _ends(here, kept, garbage)
        shutil.rmtree(here)
    assert died > 2


class TestAChunkThatTwoFightOver:
    """Garbage when the collection looks, needed when it is about to delete."""

    def test_put_between_the_look_and_the_decision(
        self, made: tuple[Path, dict[Digest, bytes], list[bytes]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path, kept, garbage = made
        decide = Collect._decide

        def meanwhile(self: Collect, *arguments: object) -> object:
            with Archive.open(path, seal_at=SEAL) as other:
                for content in garbage:
                    stored = other.put_bytes(content)
                    assert stored.stored == 0  # it relies on what is about to go
                    other.pin(stored.digest, kind=Kind.BLOB)
                    kept[stored.digest] = content
                shared = other.put_bytes(b"new" + garbage[0], kind=Kind.RECORD).digest
                kept[shared] = b"new" + garbage[0]
            return decide(self, *arguments)

        monkeypatch.setattr(Collect, "_decide", meanwhile)
        with Archive.open(path, seal_at=SEAL) as archive:
            archive.collect(grace=0, threshold=0)
        sound(path, kept, "")

    def test_a_put_that_looked_and_has_not_committed_is_waited_for(
        self, made: tuple[Path, dict[Digest, bytes], list[bytes]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It found a chunk of the dead, and appends an object that needs it while the collection wants to decide."""
        path, kept, garbage = made
        content = next(each for each in garbage if len(each) == 70_000)
        decide = Collect._decide
        looked, go, waited = threading.Event(), threading.Event(), threading.Event()

        def put() -> None:
            with Archive.open(path, seal_at=SEAL) as other, other.keeping():
                assert other._store.find_chunk(bytes(Digest.of(content))) is not None
                looked.set()
                go.wait()
                digest = other.put_bytes(content, kind=Kind.RECORD).digest
                other.pin(digest, kind=Kind.RECORD)

        thread = threading.Thread(target=put)

        def meanwhile(self: Collect, *arguments: object) -> object:
            thread.start()
            looked.wait()
            self._waiting = lambda _: (waited.set(), go.set())  # only once it really waits
            return decide(self, *arguments)

        monkeypatch.setattr(Collect, "_decide", meanwhile)
        with Archive.open(path, seal_at=SEAL) as archive:
            try:
                archive.collect(grace=0, threshold=0)
            finally:
                go.set()
        thread.join()
        assert waited.is_set()
        sound(path, kept | {Digest.of(content): content}, "")

    def test_a_ref_that_moves_between_the_look_and_the_decision(
        self, made: tuple[Path, dict[Digest, bytes], list[bytes]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path, kept, garbage = made
        decide = Collect._decide
        target = Digest.of(garbage[1])

        def meanwhile(self: Collect, *arguments: object) -> object:
            with Archive.open(path) as other, other.keeping():
                assert other.contains(target)
                other.ledger.append("ref.set", ref="next", **{"from": None, "to": str(target)})
            return decide(self, *arguments)

        monkeypatch.setattr(Collect, "_decide", meanwhile)
        with Archive.open(path, seal_at=SEAL) as archive:
            archive.collect(grace=0, threshold=0)
        sound(path, kept | {target: garbage[1]}, "")

    def test_the_index_is_deleted_before_the_decision(
        self, made: tuple[Path, dict[Digest, bytes], list[bytes]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path, kept, garbage = made
        decide = Collect._decide

        def meanwhile(self: Collect, *arguments: object) -> object:
            for name in INDEX:
                (path / name).unlink(missing_ok=True)
            return decide(self, *arguments)

        monkeypatch.setattr(Collect, "_decide", meanwhile)
        with Archive.open(path, seal_at=SEAL) as archive:
            archive.collect(grace=0, threshold=0)
        monkeypatch.undo()
        sound(path, kept, "")
        _ends(path, kept, garbage)

    def test_verify_during_a_collection_reports_nothing(
        self, made: tuple[Path, dict[Digest, bytes], list[bytes]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path, kept, _ = made
        look = Check._look
        with Archive.open(path, seal_at=SEAL) as archive, Archive.open(path, seal_at=SEAL) as other:
            done = []

            def meanwhile(self: Check, *arguments: object) -> object:
                if len(done) == 0:
                    done.append(other.collect(grace=0, threshold=0))
                return look(self, *arguments)

            monkeypatch.setattr(Check, "_look", meanwhile)
            report = archive.verify(deep=True)
            assert done[0].removed
            assert report.findings == ()
        sound(path, kept, "")


class TestJournal:
    def test_a_damaged_one_is_not_followed(self, made: tuple[Path, dict[Digest, bytes], list[bytes]]) -> None:
        """It names files to delete: at any doubt, nothing is deleted and nothing is put."""
        path, kept, garbage = made
        fs = Mortal()
        shutil.copytree(path, path.parent / "copy")
        whole = Mortal()
        _run(path.parent / "copy", whole)
        at = next(number for number, what in enumerate(whole.diary) if what.startswith("unlink"))
        _run(path, Mortal(at))
        journal = path / JOURNAL
        good = journal.read_bytes()
        for offset in range(0, len(good), 7):
            journal.write_bytes(good[:offset] + bytes([good[offset] ^ 1]) + good[offset + 1 :])
            files = names(path)
            with Archive.open(path, seal_at=SEAL) as archive:
                for digest, content in kept.items():
                    assert archive.get_bytes(digest) == content
                with pytest.raises(CorruptError, match="csf repair"):
                    archive.put_bytes(b"new")
                with pytest.raises(CorruptError, match="csf repair"):
                    archive.collect(grace=0)
            assert names(path) == files
        journal.write_bytes(good)
        assert not fs.dead
        sound(path, kept, "")
        _ends(path, kept, garbage)

    def test_what_came_is_proven_before_what_went_is_deleted(
        self, made: tuple[Path, dict[Digest, bytes], list[bytes]]
    ) -> None:
        path, kept, _ = made
        shutil.copytree(path, path.parent / "copy")
        whole = Mortal()
        _run(path.parent / "copy", whole)
        at = next(number for number, what in enumerate(whole.diary) if what.startswith("unlink"))
        before = names(path)
        _run(path, Mortal(at))
        came = names(path) - before
        assert came
        for name in came:
            segment = path / "segments" / name
            segment.write_bytes(segment.read_bytes()[:-3])
        for name in INDEX:
            (path / name).unlink(missing_ok=True)
        with Archive.open(path, seal_at=SEAL) as archive:
            for digest, content in kept.items():
                assert archive.get_bytes(digest) == content
            with pytest.raises(CsfError, match="csf repair"):
                archive.put_bytes(b"new")
        assert before <= names(path)
