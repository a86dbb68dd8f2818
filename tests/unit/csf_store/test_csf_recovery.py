"""What a crash, a bad disk or a careless copy leaves behind, and what the archive makes of it."""

import os
import random
import shutil
import sqlite3
from pathlib import Path

import pytest

from csf_store import Archive, CorruptError, Digest, Kind, NotFoundError
from csf_store.durable import OsFileSystem
from csf_store.framing import RECORD_HEADER_SIZE, SEGMENT_HEADER_SIZE
from csf_store.recovery import scan
from csf_store.segment import segment_id_of

CONTENTS = [b"one" * 100, random.Random(2).randbytes(70_000), b"three", random.Random(4).randbytes(200)]


def _make(path: Path, *, seal_at: int = 1 << 28) -> list[Digest]:
    with Archive.open(path, create=True, seal_at=seal_at) as archive:
        return [archive.put_bytes(content).digest for content in CONTENTS]


def _segments(path: Path) -> list[Path]:
    return sorted((path / "segments").iterdir())


def _forget(path: Path) -> None:
    for name in ("index.sqlite", "index.sqlite-wal", "index.sqlite-shm"):
        (path / name).unlink(missing_ok=True)


def _all_there(path: Path, digests: list[Digest]) -> None:
    with Archive.open(path) as archive:
        assert [archive.get_bytes(digest) for digest in digests] == CONTENTS
        assert archive.verify(deep=True).findings == ()


class TestIndex:
    @pytest.mark.parametrize("seal_at", [1 << 28, 500])
    def test_is_rebuilt_from_the_segments(self, tmp_path: Path, seal_at: int) -> None:
        digests = _make(tmp_path, seal_at=seal_at)
        _forget(tmp_path)
        _all_there(tmp_path, digests)

    def test_of_another_archive_is_refused_and_rebuilt(self, tmp_path: Path) -> None:
        digests = _make(tmp_path / "a")
        with Archive.open(tmp_path / "b", create=True) as other:
            foreign = other.put_bytes(b"only in b").digest
        _forget(tmp_path / "a")
        shutil.copy(tmp_path / "b" / "index.sqlite", tmp_path / "a" / "index.sqlite")
        _all_there(tmp_path / "a", digests)
        with Archive.open(tmp_path / "a") as archive:
            assert not archive.contains(foreign)

    def test_of_an_earlier_state_learns_the_rest(self, tmp_path: Path) -> None:
        with Archive.open(tmp_path, create=True) as archive:
            archive.put_bytes(CONTENTS[0])
        old = (tmp_path / "index.sqlite").read_bytes()
        digests = _make(tmp_path)
        _forget(tmp_path)
        (tmp_path / "index.sqlite").write_bytes(old)
        _all_there(tmp_path, digests)

    @pytest.mark.parametrize(
        "change",
        [
            "UPDATE chunks SET offset = offset + 1",
            "UPDATE objects SET stored = stored - 1",
            "UPDATE objects SET segment = 77",
            "UPDATE objects SET crc = 'x'",
            "UPDATE segments SET end = 'x'",
            "INSERT INTO lost VALUES (x'00', 0, 'x', 0)",
            "DROP TABLE chunks",
            "UPDATE meta SET value = 'another'",
            "PRAGMA user_version = 99",
        ],
    )
    def test_a_lie_in_it_is_noticed_when_it_matters(self, tmp_path: Path, change: str) -> None:
        digests = _make(tmp_path)
        with sqlite3.connect(tmp_path / "index.sqlite") as database:
            database.execute(change)
        database.close()
        _all_there(tmp_path, digests)

    @pytest.mark.parametrize("table", ["objects", "chunks"])
    def test_a_digest_that_is_none_is_noticed_when_all_are_listed(self, tmp_path: Path, table: str) -> None:
        digests = _make(tmp_path)
        with sqlite3.connect(tmp_path / "index.sqlite") as database:
            database.execute(f"UPDATE {table} SET digest = substr(digest, 2)")
        database.close()
        with Archive.open(tmp_path) as archive:
            assert {info.digest for info in archive.objects()} == set(digests)
            archive._store.chunk_digests()
        _all_there(tmp_path, digests)

    def test_flipped_bytes_and_cuts_anywhere(self, tmp_path: Path) -> None:
        digests = _make(tmp_path)
        good = (tmp_path / "index.sqlite").read_bytes()
        random_ = random.Random(3)
        for _ in range(40):
            bad = bytearray(good)
            for _ in range(random_.randrange(1, 30)):
                bad[random_.randrange(len(bad))] ^= 1 << random_.randrange(8)
            del bad[random_.choice([len(bad), random_.randrange(len(bad))]) :]
            _forget(tmp_path)
            (tmp_path / "index.sqlite").write_bytes(bad)
            with Archive.open(tmp_path) as archive:
                for digest, content in zip(digests, CONTENTS, strict=True):
                    assert archive.get_bytes(digest) == content

    def test_is_rebuilt_under_an_open_put(self, tmp_path: Path) -> None:
        """Rows get new numbers, records stay where they are."""
        with Archive.open(tmp_path, create=True) as archive:
            archive.put_bytes(CONTENTS[0])
            archive._store.keeper.rebuild()
            digests = [archive.put_bytes(content).digest for content in CONTENTS]
            archive._store.keeper._index.close()  # as if the connection had broken
            assert [archive.get_bytes(digest) for digest in digests] == CONTENTS
        _all_there(tmp_path, digests)


class TestTornTail:
    def test_every_cut_of_the_last_record_keeps_everything_before_it(self, tmp_path: Path) -> None:
        path = tmp_path / "a"
        _make(path)
        segment = _segments(path)[0]
        size, segment_id = segment.stat().st_size, segment_id_of(segment.name) or b""
        with segment.open("rb") as file:
            found = scan(OsFileSystem(), file.fileno(), segment_id, SEGMENT_HEADER_SIZE, size)
        last = found.records[-1]
        content = segment.read_bytes()
        for cut in range(last.offset, len(content), 11):
            segment.write_bytes(content[:cut])
            _forget(path)
            with Archive.open(path) as archive:
                assert archive.get_bytes(Digest.of(CONTENTS[1])) == CONTENTS[1]
                assert not archive.contains(Digest(last.digest))
                report = archive.verify()
                assert report.ok  # nobody can know that the lost record was acknowledged: not pinned, and no index
                assert bool(report.notes) == (cut > last.offset)

    def test_is_left_alone_and_a_new_segment_begun(self, tmp_path: Path) -> None:
        digests = _make(tmp_path)
        torn = _segments(tmp_path)[0]
        with torn.open("ab") as file:
            file.write(b"\x89CSR half a header")
        before = torn.read_bytes()
        with Archive.open(tmp_path) as archive:
            new = archive.put_bytes(b"after the crash").digest
            assert archive.verify().findings == ()
            assert len(archive.verify().notes) == 1
        assert torn.read_bytes() == before
        assert len(_segments(tmp_path)) == 2
        with Archive.open(tmp_path) as archive:
            assert archive.get_bytes(new) == b"after the crash"
            assert [archive.get_bytes(digest) for digest in digests] == CONTENTS

    def test_a_whole_tail_that_the_index_never_saw_is_taken_in(self, tmp_path: Path) -> None:
        with Archive.open(tmp_path, create=True) as archive:
            archive.put_bytes(CONTENTS[0])
        old = (tmp_path / "index.sqlite").read_bytes()
        digests = _make(tmp_path)
        _forget(tmp_path)
        (tmp_path / "index.sqlite").write_bytes(old)
        with Archive.open(tmp_path) as archive:
            archive.put_bytes(b"goes on in the same segment")
        assert len(_segments(tmp_path)) == 1
        _all_there(tmp_path, digests)

    @pytest.mark.parametrize("size", [0, 1, 63])
    def test_a_segment_killed_at_birth(self, tmp_path: Path, size: int) -> None:
        digests = _make(tmp_path)
        (tmp_path / "segments" / f"{'ab' * 16}.csfs").write_bytes(bytes(size))
        _all_there(tmp_path, digests)
        with Archive.open(tmp_path) as archive:
            assert "never written to" in archive.verify().notes[0]
            archive.put_bytes(b"more")

    def test_other_files_among_the_segments_are_ignored(self, tmp_path: Path) -> None:
        digests = _make(tmp_path)
        for name in ("README", "x.csfs", f"{'zz' * 16}.csfs"):
            (tmp_path / "segments" / name).write_bytes(b"whatever")
        _all_there(tmp_path, digests)


class TestLoss:
    def test_a_segment_cut_short_is_reported_and_can_be_put_again(self, tmp_path: Path) -> None:
        digests = _make(tmp_path)
        segment = _segments(tmp_path)[0]
        size = segment.stat().st_size
        os.truncate(segment, size - 10)
        for _ in range(2):  # the knowledge survives reopening
            with Archive.open(tmp_path) as archive:
                report = archive.verify()
                assert [(found.digest, found.segment) for found in report.findings] == [(digests[-1], segment.name)]
                with pytest.raises(NotFoundError):
                    archive.get_bytes(digests[-1])
        _make(tmp_path)
        _all_there(tmp_path, digests)

    def test_a_segment_removed_is_reported(self, tmp_path: Path) -> None:
        digests = _make(tmp_path, seal_at=500)
        gone = _segments(tmp_path)[0]
        gone.unlink()
        with Archive.open(tmp_path) as archive:
            findings = archive.verify().findings
            assert gone.name in {found.segment for found in findings}
            assert len([digest for digest in digests if not archive.contains(digest)]) >= 1

    def test_two_segments_swapped(self, tmp_path: Path) -> None:
        digests = _make(tmp_path, seal_at=500)
        first, second, *_ = _segments(tmp_path)
        third = tmp_path / "aside"
        first.rename(third)
        second.rename(first)
        third.rename(second)
        with Archive.open(tmp_path) as archive:
            named = {found.segment for found in archive.verify().findings}
            assert {first.name, second.name} <= named
            failed = 0
            for digest, content in zip(digests, CONTENTS, strict=True):
                try:
                    assert archive.get_bytes(digest) == content
                except (CorruptError, NotFoundError):
                    failed += 1
            assert failed

    def test_records_that_changed_places(self, tmp_path: Path) -> None:
        """Every record is sound, none is where it was acknowledged to be: only the index can tell."""
        with Archive.open(tmp_path, create=True) as archive:
            digests = [archive.put_bytes(random.Random(seed).randbytes(500)).digest for seed in (1, 2)]
            first, second = (archive._store.find_object(bytes(digest), Kind.BLOB) for digest in digests)
        segment = _segments(tmp_path)[0]
        data = segment.read_bytes()
        one, two = data[first.offset : second.offset], data[second.offset :]
        assert len(one) == len(two)
        segment.write_bytes(data[: first.offset] + two + one)
        with Archive.open(tmp_path) as archive:
            for digest in digests:
                with pytest.raises(CorruptError, match="another one than the index says"):
                    archive.get_bytes(digest)
            found = {(finding.digest, finding.segment) for finding in archive.verify(reachable_only=True).findings}
            assert found == {(digest, segment.name) for digest in digests}

    def test_a_segment_of_another_archive(self, tmp_path: Path) -> None:
        digests = _make(tmp_path / "a")
        with Archive.open(tmp_path / "b", create=True) as other:
            other.put_bytes(b"foreign")
        foreign = _segments(tmp_path / "b")[0]
        shutil.copy(foreign, tmp_path / "a" / "segments")
        with Archive.open(tmp_path / "a") as archive:
            findings = archive.verify().findings
            assert any("belongs to archive" in found.what and found.segment == foreign.name for found in findings)
            with pytest.raises(CorruptError, match="belongs to archive"):
                archive.get_bytes(Digest.of(b"foreign"))
            assert [archive.get_bytes(digest) for digest in digests] == CONTENTS

    @pytest.mark.parametrize("what", ["zeros", "noise"])
    @pytest.mark.parametrize("pinned", [True, False])
    def test_a_hole_in_the_middle_hurts_only_what_was_there(self, tmp_path: Path, what: str, pinned: bool) -> None:
        """Without the index, a hole is what a crash may leave; that something needed it shows that it was damage."""
        digests = _make(tmp_path)
        if pinned:
            with Archive.open(tmp_path) as archive:
                archive.pin(digests[0], kind=Kind.BLOB)
        segment = _segments(tmp_path)[0]
        data = bytearray(segment.read_bytes())
        start = SEGMENT_HEADER_SIZE + RECORD_HEADER_SIZE + 10
        data[start : start + 300] = bytes(300) if what == "zeros" else random.Random(1).randbytes(300)
        segment.write_bytes(data)
        for known in (True, False):
            if not known:
                _forget(tmp_path)
            with Archive.open(tmp_path) as archive:
                assert archive.get_bytes(digests[2]) == CONTENTS[2]
                assert archive.get_bytes(digests[3]) == CONTENTS[3]
                report = archive.verify()
                assert report.ok == (not known and not pinned)
                assert any(segment.name in each for each in map(str, [*report.findings, *report.notes]))
                archive.put_bytes(b"after the hole %d" % known)
        assert len(_segments(tmp_path)) == 2  # nothing is written behind a hole that the index does not know


def test_sealed_segments_never_change(tmp_path: Path) -> None:
    _make(tmp_path, seal_at=500)
    before = {path: path.read_bytes() for path in _segments(tmp_path) if path.read_bytes()[-64:-56] == b"\x89CSFEND\n"}
    assert len(before) >= 2
    with Archive.open(tmp_path, seal_at=500) as archive:
        for number in range(5):
            archive.put_bytes(b"more %d" % number * 100, kind=Kind.RECORD)
    assert {path: path.read_bytes() for path in before} == before


def test_sealing_a_damaged_segment_leaves_it_unsealed_and_loses_nothing(tmp_path: Path) -> None:
    digests = _make(tmp_path)
    segment = _segments(tmp_path)[0]
    with Archive.open(tmp_path, seal_at=75_000) as archive:
        archive.put_bytes(b"take the segment over")
        data = bytearray(segment.read_bytes())
        data[SEGMENT_HEADER_SIZE + 30] ^= 1  # the first record's header
        with segment.open("r+b") as file:
            file.write(data)
        new = archive.put_bytes(random.Random(9).randbytes(10_000)).digest
        assert archive.contains(new)
    with Archive.open(tmp_path) as archive:
        assert len(archive.get_bytes(new)) == 10_000
        assert [archive.get_bytes(digest) for digest in digests[1:]] == CONTENTS[1:]
        assert any(found.segment == segment.name for found in archive.verify().findings)
