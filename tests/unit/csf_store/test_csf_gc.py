"""Garbage collection: what is reached stays, to the last byte, and the rest goes."""

import json
import multiprocessing
import os
import random
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoint_maker import fine_tuned, make_safetensors, weights
from click.testing import CliRunner

from csf_store import Archive, ConflictError, CorruptError, Digest, Kind, RefusedError, StorageError
from csf_store.cli import main
from csf_store.index import Index
from csf_store.segment import chunk_header
from csf_store.upkeep import gc as collecting
from csf_store.upkeep.gc import Collect
from csf_store.upkeep.mark import Reason
from csf_store.upkeep.rewrite import Rewriter

SMALL = 200_000
"""Segments of this size, so that a few objects make several."""


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    with Archive.open(tmp_path / "a", create=True, seal_at=SMALL) as opened:
        yield opened


def _content(number: int, size: int = 70_000) -> bytes:
    return random.Random(number).randbytes(size)


def _segments(archive: Archive) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((archive.path / "segments").iterdir())}


def _pinned(archive: Archive, number: int, size: int = 70_000) -> Digest:
    digest = archive.put_bytes(_content(number, size)).digest
    archive.pin(digest, kind=Kind.BLOB, name=str(number))
    return digest


def _aged(archive: Archive) -> None:
    """Makes everything look as if it had been put long ago."""
    archive._store.rest()
    _age_objects(archive)
    for path in (archive.path / "segments").iterdir():
        os.utime(path, (1, 1))


def _age_objects(archive: Archive) -> None:
    with sqlite3.connect(archive.path / "index.sqlite") as database:
        database.execute("UPDATE objects SET seen = 0")
    database.close()


def _only(archive: Archive, contents: list[bytes]) -> None:
    """These objects are there and no others, now and after the index was read back from the segments."""
    for _ in range(2):
        assert {info.digest for info in archive.objects()} == {Digest.of(content) for content in contents}
        assert [archive.get_bytes(Digest.of(content)) for content in contents] == contents
        report = archive.verify(deep=True)
        assert (report.findings, report.notes) == ((), ())
        archive._store.keeper.rebuild()


class TestWhatStays:
    def test_pins_stay_and_the_rest_goes(self, archive: Archive) -> None:
        for number in range(12):
            _pinned(archive, number) if number % 3 == 0 else archive.put_bytes(_content(number))
        before = sum(map(len, _segments(archive).values()))
        report = archive.collect(grace=0)
        after = sum(map(len, _segments(archive).values()))
        assert (report.objects, report.chunks, report.garbage) == (8, 8, 0)
        assert report.freed == before - after > 8 * 70_000
        assert set(report.written) == set(_segments(archive))
        _only(archive, [_content(number) for number in (0, 3, 6, 9)])
        assert archive.collect(grace=0).removed == ()

    def test_every_target_a_ref_ever_had_stays_and_what_it_links_to(self, archive: Archive) -> None:
        blob = archive.put_bytes(_content(1)).digest
        old = archive.put_bytes(b"old manifest", kind=Kind.MANIFEST, links=[blob]).digest
        new = archive.put_bytes(b"new manifest", kind=Kind.MANIFEST).digest
        archive.put_bytes(_content(2))
        archive.ledger.append("ref.set", ref="prod", **{"from": None, "to": str(old)})
        archive.ledger.append("ref.set", ref="prod", **{"from": str(old), "to": str(new)})
        archive.ledger.append("ref.set", ref="prod", **{"from": str(new), "to": None})
        report = archive.collect(grace=0)
        assert {kept.reason: kept.objects for kept in report.kept}[Reason.REF] == 3
        _only(archive, [_content(1), b"old manifest", b"new manifest"])

    def test_an_unpinned_tree_goes_with_its_blobs_but_for_shared_ones(self, archive: Archive, tmp_path: Path) -> None:
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "shared").write_bytes(_content(1))
            (tmp_path / name / "own").write_bytes(name.encode() * 30_000)
        trees = [archive.put_tree(tmp_path / name).digest for name in ("one", "two")]
        for tree in trees:
            archive.pin(tree, kind=Kind.TREE)
        archive.unpin(trees[0])
        archive.collect(grace=0)
        assert not archive.contains(trees[0])
        assert not archive.contains(Digest.of(b"one" * 30_000))
        archive.get_tree(trees[1], tmp_path / "out")
        assert (tmp_path / "out" / "shared").read_bytes() == _content(1)
        assert archive.verify(deep=True).findings == ()

    def test_what_was_put_lately_stays(self, archive: Archive) -> None:
        archive.put_bytes(_content(1))
        report = archive.collect()
        assert report.removed == ()
        assert {kept.reason: kept.objects for kept in report.kept}[Reason.RECENT] == 1
        _aged(archive)
        assert archive.collect().objects == 1

    def test_what_is_put_again_counts_as_new(self, archive: Archive) -> None:
        first, second = (archive.put_bytes(_content(number)).digest for number in (1, 2))
        _aged(archive)
        assert not archive.put_bytes(_content(1)).new
        assert archive.collect().objects == 1
        assert archive.contains(first)
        assert not archive.contains(second)
        assert archive.get_bytes(first) == _content(1)

    def test_young_segments_are_left_alone_with_all_they_hold(self, archive: Archive) -> None:
        archive.put_bytes(_content(1))
        _age_objects(archive)
        before = _segments(archive)
        report = archive.collect()
        assert [why for _, why in report.left_alone] == ["written to within the grace period"]
        assert _segments(archive) == before
        _only(archive, [_content(1)])

    def test_a_segment_somebody_writes_to_is_left_alone_with_all_it_holds(self, tmp_path: Path) -> None:
        with Archive.open(tmp_path / "a", create=True) as writer, Archive.open(tmp_path / "a") as archive:
            digest = writer.put_bytes(_content(1)).digest
            assert [why for _, why in archive.collect(grace=0).left_alone] == ["being written to"]
            assert writer.get_bytes(digest) == _content(1)
            writer.put_bytes(_content(2))
        with Archive.open(tmp_path / "a") as archive:
            _only(archive, [_content(1), _content(2)])
            assert archive.collect(grace=0).objects == 2

    def test_what_such_a_segment_holds_is_kept_whole(self, tmp_path: Path) -> None:
        """Its record is garbage, but stays, so its chunk in another segment must."""
        with Archive.open(tmp_path / "a", create=True, seal_at=SMALL) as archive:
            first = archive.put_bytes(_content(1)).digest
            archive.put_bytes(_content(2, SMALL))  # the first segment is full
            with Archive.open(tmp_path / "a") as writer:
                second = writer.put_bytes(_content(1), kind=Kind.RECORD)
                assert second.stored < 1000  # only its record; the chunk is in the first segment
                _age_objects(archive)
                report = archive.collect(grace=0)
                assert (first, report.objects) == (second.digest, 1)
                assert archive.get_bytes(first, kind=Kind.RECORD) == _content(1)
                assert archive.verify(deep=True).findings == ()
                archive._store.keeper.rebuild()
                assert archive.verify(deep=True).findings == ()

    def test_what_a_clock_that_was_put_back_calls_old_is_kept(
        self, archive: Archive, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It was put while we collected, and relies on a chunk that was garbage then."""
        digest = archive.put_bytes(_content(1)).digest
        decide = Collect._decide

        def meanwhile(self: Collect, *arguments: object) -> object:
            with Archive.open(archive.path) as other:
                assert other.put_bytes(_content(1), kind=Kind.RECORD).stored < 1000
            _age_objects(archive)
            return decide(self, *arguments)

        monkeypatch.setattr(Collect, "_decide", meanwhile)
        archive.collect(grace=0)
        assert archive.get_bytes(digest, kind=Kind.RECORD) == _content(1)
        assert archive.verify(deep=True).findings == ()


class TestDifferences:
    def _checkpoint(self, archive: Archive, tmp_path: Path) -> tuple[Digest, Digest, bytes, Digest]:
        """A base and a fine-tune stored as differences to it: their digests, the fine-tune, the base's chunk."""
        raw = weights(300, 300, 1)
        base = archive.put_bytes(make_safetensors({"t": ("BF16", [300, 300], raw)})).digest
        content = make_safetensors({"t": ("BF16", [300, 300], fine_tuned(raw, 2))})
        (tmp_path / "tuned.safetensors").write_bytes(content)
        tuned = archive.put_file(tmp_path / "tuned.safetensors", base=archive.base(base)).digest
        where = archive._store.find_chunk(bytes(Digest.of(fine_tuned(raw, 2))))
        assert where is not None
        assert where.base == bytes(Digest.of(raw))
        return base, tuned, content, Digest.of(raw)

    def test_the_base_of_a_difference_stays_when_nothing_else_needs_it(self, archive: Archive, tmp_path: Path) -> None:
        base, tuned, content, chunk = self._checkpoint(archive, tmp_path)
        archive.pin(tuned, kind=Kind.BLOB)
        archive.put_bytes(_content(5))
        report = archive.collect(grace=0)
        assert {kept.reason: kept.bytes for kept in report.kept}[Reason.BASE] > 0
        assert not archive.contains(base)
        assert archive._store.find_chunk(bytes(chunk)) is not None
        _only(archive, [content])

    def test_both_go_when_nothing_needs_them(self, archive: Archive, tmp_path: Path) -> None:
        _, tuned, _, chunk = self._checkpoint(archive, tmp_path)
        archive.pin(tuned, kind=Kind.BLOB)
        archive.unpin(tuned)
        archive.collect(grace=0)
        assert archive._store.find_chunk(bytes(chunk)) is None
        _only(archive, [])

    def test_a_dead_difference_that_stays_for_now_keeps_its_base(self, tmp_path: Path) -> None:
        """Somebody may put it again and find it known: then its base must be there."""
        with Archive.open(tmp_path / "a", create=True) as archive:
            raw = weights(300, 300, 1)
            tuned = fine_tuned(raw, 2)
            first = archive.put_bytes(make_safetensors({"t": ("BF16", [300, 300], raw)})).digest
            (tmp_path / "t.safetensors").write_bytes(make_safetensors({"t": ("BF16", [300, 300], tuned)}))
        # The difference's chunk lies with something large that is kept, and without its object.
        with Archive.open(tmp_path / "a") as archive:
            where = archive._store.find_chunk(bytes(Digest.of(raw)))
            assert where is not None
            with Archive.open(tmp_path / "b", create=True) as other:
                other.put_bytes(make_safetensors({"t": ("BF16", [300, 300], raw)}))
                other.put_file(tmp_path / "t.safetensors", base=other.base(first))
                place = other._store.find_chunk(bytes(Digest.of(tuned)))
                assert place is not None
                record = other._store.read(place, bytes(Digest.of(tuned)))
            with Archive.open(tmp_path / "a") as holds_the_segment:
                holds_the_segment.put_bytes(b"takes the lock of the first segment")
                large = archive.put_bytes(_content(3, 3_000_000)).digest
                archive.pin(large, kind=Kind.BLOB)
                archive._store.append(record.header, record.payload)
                archive._store.commit()
            report = archive.collect(grace=0)
            assert report.objects == 2
            assert len(report.removed) == 1
            assert archive._store.find_chunk(bytes(Digest.of(tuned))) is not None
            assert archive.verify(deep=True).findings == ()
            again = archive.put_file(tmp_path / "t.safetensors")
            assert archive.get_bytes(again.digest) == (tmp_path / "t.safetensors").read_bytes()


class TestWhatGoes:
    def test_a_dry_run_says_what_would_happen_and_changes_nothing(self, archive: Archive) -> None:
        for number in range(6):
            _pinned(archive, number) if number % 2 else archive.put_bytes(_content(number))
        archive._store.rest()
        (archive.path / "segments" / f"{'ab' * 16}.csfs.part").write_bytes(b"of a collection that was killed")
        before = _segments(archive)
        told = archive.collect(grace=0, dry_run=True)
        assert _segments(archive) == before
        assert archive.ledger.size == 4
        done = archive.collect(grace=0)
        assert told.removed == done.removed
        assert all(name.endswith(".csfs") for name in _segments(archive))
        assert (told.objects, told.chunks, told.freed) == (done.objects, done.chunks, done.freed)

    def test_a_little_garbage_may_stay_but_no_dead_object(self, archive: Archive) -> None:
        for number in range(6):
            _pinned(archive, number)
        archive.put_bytes(b"tiny")  # below any threshold, and yet a dead object
        orphan = _content(7, 9000)
        _store_chunk(archive, orphan)
        for number in range(8, 11):
            _pinned(archive, number)
        report = archive.collect(grace=0)
        assert report.objects == 1
        assert len(report.removed) == 1
        _store_chunk(archive, _content(12, 9000))
        _pinned(archive, 13, 180_000)
        report = archive.collect(grace=0)
        assert report.removed == ()
        assert 9000 < report.garbage < 10_000
        assert archive.collect(grace=0, threshold=0).garbage == 0

    def test_second_copies_go(self, archive: Archive) -> None:
        """As a collection leaves them that died before its point of no return."""
        digests = [_pinned(archive, number) for number in range(4)]
        archive._store.rest()
        rows = list(archive._store.keeper.using(lambda index: list(index.chunk_rows()) + list(index.object_rows())))
        rewriter = Rewriter(archive._store.fs, archive._store.directory, archive.id, 1 << 20)
        for row in rows:
            rewriter.copy(archive._store.directory / archive._store.segment_name(row.where.segment), [row])
        twice = rewriter.publish()
        assert len(twice) == 1
        archive._store.refresh()
        assert archive.verify().ok
        assert archive.collect(grace=0).removed == twice
        _only(archive, [_content(number) for number in range(4)])
        assert len(digests) == 4

    def test_a_second_copy_stays_when_the_first_is_damaged(self, archive: Archive) -> None:
        digest = _pinned(archive, 1)
        archive._store.rest()
        where = archive._store.find_chunk(bytes(digest))
        assert where is not None
        first = archive.path / "segments" / archive._store.segment_name(where.segment)
        row = next(iter(archive._store.keeper.using(lambda index: list(index.chunk_rows()))))
        rewriter = Rewriter(archive._store.fs, archive._store.directory, archive.id, 1 << 20)
        rewriter.copy(first, [row])
        rewriter.publish()
        _flip(first, where.offset + 500)
        before = _segments(archive)
        with pytest.raises(CorruptError, match=f"{digest}: segment {first.name}"):
            archive.collect(grace=0)
        assert _segments(archive) == before

    def test_what_was_lost_and_nobody_needs_is_forgotten(self, archive: Archive) -> None:
        for number in range(8):
            archive.put_bytes(_content(number))
        gone = sorted((archive.path / "segments").iterdir())[0]
        archive._store.rest()
        gone.unlink()
        archive._store.refresh()
        assert archive.verify(reachable_only=True).findings
        archive.collect(grace=0)
        assert archive.verify(reachable_only=True).findings == ()

    def test_the_ledger_says_what_was_taken_away(self, archive: Archive) -> None:
        archive.put_bytes(_content(1))
        report = archive.collect(grace=0)
        event = list(archive.ledger.entries())[-1]
        assert event.event == "collected"
        assert event.fields["segments"] == list(report.removed)
        assert (event.fields["freed"], event.fields["objects"]) == (report.freed, 1)
        assert not (archive.path / "collecting.json").exists()


def _store_chunk(archive: Archive, content: bytes) -> None:
    """A chunk that no object lists, as an interrupted put leaves it."""
    archive._store.append(chunk_header(bytes(Digest.of(content)), 0, len(content), content), content)
    archive._store.commit()


def _flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


class TestRefusals:
    def test_damage_in_what_leads_to_more_stops_it(self, archive: Archive) -> None:
        blob = archive.put_bytes(_content(1)).digest
        manifest = archive.put_bytes(b"manifest", kind=Kind.MANIFEST, links=[blob]).digest
        archive.pin(manifest, kind=Kind.MANIFEST)
        archive.put_bytes(_content(2))
        archive._store.rest()
        where = archive._store.find_object(bytes(manifest), Kind.MANIFEST)
        assert where is not None
        path = archive.path / "segments" / archive._store.segment_name(where.segment)
        _flip(path, where.offset + 140)
        before = _segments(archive)
        with pytest.raises(RefusedError, match=f"{manifest}.*csf repair"):
            archive.collect(grace=0)
        assert _segments(archive) == before
        with pytest.raises(CorruptError):
            archive.get_bytes(manifest)
        assert archive.get_bytes(blob) == _content(1)

    def test_a_missing_chunk_stops_it_unless_the_loss_is_accepted(self, archive: Archive) -> None:
        whole, hurt = _pinned(archive, 1), _pinned(archive, 2)
        archive.put_bytes(_content(3))
        with sqlite3.connect(archive.path / "index.sqlite") as database:
            database.execute("DELETE FROM chunks WHERE digest=?", (bytes(Digest.of(_content(2))),))
        database.close()
        with pytest.raises(RefusedError, match=f"chunk {hurt} is in no segment.*--lost"):
            archive.collect(grace=0)
        archive.collect(grace=0, accepted=[hurt])
        assert archive.get_bytes(whole) == _content(1)

    def test_damage_in_what_is_to_be_moved_stops_it(self, archive: Archive) -> None:
        digest = _pinned(archive, 1)
        archive.put_bytes(_content(2))
        archive._store.rest()
        where = archive._store.find_chunk(bytes(digest))
        assert where is not None
        path = archive.path / "segments" / archive._store.segment_name(where.segment)
        _flip(path, where.offset + 1000)
        before = _segments(archive)
        report = archive.collect(grace=0, dry_run=True)
        assert report.removed == ()
        assert [why for _, why in report.left_alone] == ["damaged; run csf repair"]
        assert _segments(archive) == before

    def test_damage_in_a_sealed_segment_stops_it(self, archive: Archive) -> None:
        digests = [_pinned(archive, number) for number in range(4)]
        archive.put_bytes(b"dead, in the second segment")
        archive.put_bytes(_content(9, SMALL))
        where = archive._store.find_chunk(bytes(digests[3]))
        assert where is not None
        path = archive.path / "segments" / archive._store.segment_name(where.segment)
        _flip(path, where.offset + 1000)
        archive._store._readers.clear()
        before = _segments(archive)
        with pytest.raises(CorruptError, match=f"{digests[3]}: segment {path.name} at offset {where.offset}"):
            archive.collect(grace=0)
        assert _segments(archive) == before

    def test_an_altered_ledger_stops_it(self, archive: Archive) -> None:
        _pinned(archive, 1)
        archive.put_bytes(_content(2))
        ledger = archive.path / "ledger.jsonl"
        ledger.write_bytes(ledger.read_bytes().replace(b'"name":"1"', b'"name":"2"'))
        before = _segments(archive)
        with pytest.raises(CorruptError, match=r"restore .* from a backup"):
            archive.collect(grace=0)
        assert _segments(archive) == before

    def test_a_cache_of_the_ledger_that_forgot_a_pin_is_not_asked(self, archive: Archive) -> None:
        digest = _pinned(archive, 1)
        archive.pins()
        with sqlite3.connect(archive.path / "ledger.sqlite") as database:
            tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type='table'")]
            assert "pins" in tables
            database.execute("DELETE FROM pins")
        database.close()
        archive.collect(grace=0)
        assert archive.get_bytes(digest) == _content(1)

    def test_an_object_of_a_kind_from_the_future_stops_it(
        self, archive: Archive, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        archive.put_bytes(_content(1))
        monkeypatch.setattr(collecting, "KINDS", {})
        with pytest.raises(RefusedError, match="newer version"):
            archive.collect(grace=0)

    def test_it_does_not_wait_for_itself(self, archive: Archive) -> None:
        with archive.keeping(), pytest.raises(RefusedError, match="outside of keeping"):
            archive.collect()


class TestOthers:
    def test_a_running_put_is_waited_for_and_not_for_ever(self, archive: Archive) -> None:
        archive.put_bytes(_content(1))
        inside, leave = threading.Event(), threading.Event()

        def put() -> None:
            with archive.keeping():
                inside.set()
                leave.wait()

        thread = threading.Thread(target=put)
        thread.start()
        inside.wait()
        before = _segments(archive)
        try:
            with pytest.raises(ConflictError, match="puts are running"):
                archive.collect(grace=0, wait=0)
        finally:
            leave.set()
            thread.join()
        assert _segments(archive) == before
        assert archive.collect(grace=0, wait=0).objects == 1

    def test_one_collection_at_a_time(self, archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
        archive.put_bytes(_content(1))
        decide = Collect._decide

        def meanwhile(self: Collect, *arguments: object) -> object:
            with Archive.open(archive.path) as other, pytest.raises(ConflictError, match="another csf gc"):
                other.collect(grace=0, wait=0)
            return decide(self, *arguments)

        monkeypatch.setattr(Collect, "_decide", meanwhile)
        assert archive.collect(grace=0).objects == 1

    def test_a_reader_elsewhere_follows_what_moved(self, archive: Archive, tmp_path: Path) -> None:
        """It looked the place up before the collection and reads after it."""
        digest = _pinned(archive, 1)
        archive.put_bytes(_content(2))
        with Archive.open(tmp_path / "a") as reader:
            where = reader._store.find_chunk(bytes(digest))
            assert where is not None
            archive.collect(grace=0)
            assert reader._store.read(where, bytes(digest)).header.digest == bytes(digest)
            room = memoryview(bytearray(where.stored))
            assert reader._store.read_into(where, bytes(digest), room).digest == bytes(digest)
            assert bytes(room) == _content(1)
            assert reader.get_bytes(digest) == _content(1)
            assert reader.verify(deep=True).ok

    def test_open_files_keep_working(self, archive: Archive, tmp_path: Path) -> None:
        digest = _pinned(archive, 1, 150_000)
        archive.put_bytes(_content(2))
        with Archive.open(tmp_path / "a") as reader:
            pieces = reader.pieces(digest)
            first = bytes(next(pieces))
            archive.collect(grace=0)
            assert first + b"".join(map(bytes, pieces)) == _content(1, 150_000)

    def test_a_writer_does_not_take_over_a_segment_that_was_taken_away(self, archive: Archive, tmp_path: Path) -> None:
        archive.put_bytes(_content(1))
        archive._store.rest()
        (gone,) = (archive.path / "segments").iterdir()
        with Archive.open(tmp_path / "a") as writer:
            stale = writer._store.segments()
            with gone.open("rb"):
                archive.collect(grace=0)
            writer._store.segments = lambda: stale  # type: ignore[method-assign]
            kept = writer._store._whole(gone, gone.stat().st_size if gone.exists() else stale[gone.name].end)
            assert not kept

    def test_processes_do_everything_at_once(self, tmp_path: Path) -> None:
        context = multiprocessing.get_context("spawn")
        Archive.create(tmp_path / "a").close()
        workers = [context.Process(target=_put_and_pin, args=(tmp_path / "a", seed)) for seed in (1, 2)]
        workers.append(context.Process(target=_collect_often, args=(tmp_path / "a",)))
        workers.append(context.Process(target=_read_all, args=(tmp_path / "a",)))
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
            assert worker.exitcode == 0
        with Archive.open(tmp_path / "a") as archive:
            assert len(archive.pins()) == 24
            for pin in archive.pins():
                assert Digest.of(archive.get_bytes(pin.digest)) == pin.digest
            archive.collect(grace=0)
            assert sum(1 for _ in archive.objects()) == 24
            report = archive.verify(deep=True)
            assert (report.findings, report.notes) == ((), ())


def _put_and_pin(path: Path, seed: int) -> None:
    own, shared = random.Random(seed), random.Random(0)
    with Archive.open(path, seal_at=100_000) as archive:
        for number in range(24):
            archive.put_bytes(own.randbytes(5000))  # garbage
            with archive.keeping():
                content = shared.randbytes(70_000)  # both write the same, or find what the other wrote
                digest = archive.put_bytes(content).digest
                archive.pin(digest, kind=Kind.BLOB, name=str(number))
            assert archive.get_bytes(digest) == content


def _collect_often(path: Path) -> None:
    for _ in range(12):
        with Archive.open(path, seal_at=100_000) as archive:
            archive.collect(grace=0, threshold=0)


def _read_all(path: Path) -> None:
    with Archive.open(path) as archive:
        for _ in range(15):
            for pin in archive.pins():
                assert Digest.of(archive.get_bytes(pin.digest)) == pin.digest
            report = archive.verify(reachable_only=True)
            assert report.findings == (), report


class TestIndex:
    def test_one_from_before_the_collection_costs_nothing(self, archive: Archive) -> None:
        for number in range(6):
            _pinned(archive, number) if number % 2 else archive.put_bytes(_content(number))
        archive._store.rest()
        archive._store.keeper.using(lambda index: index._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall())
        old = (archive.path / "index.sqlite").read_bytes()
        archive.collect(grace=0)
        archive.close()
        for name in ("index.sqlite", "index.sqlite-wal", "index.sqlite-shm"):
            (archive.path / name).unlink(missing_ok=True)
        (archive.path / "index.sqlite").write_bytes(old)
        with Archive.open(archive.path) as again:
            _only(again, [_content(number) for number in (1, 3, 5)])

    def test_deleted_under_an_open_archive(self, archive: Archive, tmp_path: Path) -> None:
        """Another process reads it back anew; what this one still holds open is no longer the truth."""
        kept = _pinned(archive, 1)
        garbage = archive.put_bytes(_content(2)).digest
        archive._store.rest()
        for name in ("index.sqlite", "index.sqlite-wal", "index.sqlite-shm"):
            (archive.path / name).unlink(missing_ok=True)
        with Archive.open(tmp_path / "a") as other:
            other.collect(grace=0)
            assert not other.contains(garbage)
        assert archive.put_bytes(_content(2)).stored > 70_000  # not taken for known
        assert archive.get_bytes(garbage) == _content(2)
        assert archive.get_bytes(kept) == _content(1)
        with Archive.open(tmp_path / "a") as other:
            assert other.get_bytes(garbage) == _content(2)

    def test_nothing_is_built_on_a_segment_that_is_not_there(self, archive: Archive) -> None:
        """Whatever took it away and whatever the index says."""
        stored = archive.put_bytes(_content(1))
        archive._store.rest()
        aside = archive.path / "aside"
        shutil.move(next((archive.path / "segments").iterdir()), aside)
        assert archive.put_bytes(_content(1)).stored == stored.stored
        assert archive.get_bytes(stored.digest) == _content(1)

    def test_stays_as_it_is_when_the_disk_is_full(self, archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
        """The note is written and the index can not be: the note counts."""
        kept = _pinned(archive, 1)
        garbage = archive.put_bytes(_content(2)).digest
        replace = Index.replace

        def full(self: Index, *_: object) -> None:
            raise StorageError("the index can not be written; free space")

        monkeypatch.setattr(Index, "replace", full)
        with pytest.raises(StorageError):
            archive.collect(grace=0)
        assert (archive.path / "collecting.json").exists()
        assert archive.get_bytes(kept) == _content(1)
        with pytest.raises(StorageError):
            archive.put_bytes(_content(2))  # nobody may build on what the index says now
        monkeypatch.setattr(Index, "replace", replace)
        assert archive.put_bytes(_content(2)).stored > 70_000
        assert archive.get_bytes(garbage) == _content(2)
        archive.close()
        with Archive.open(archive.path) as again:
            assert not (archive.path / "collecting.json").exists()
            _only(again, [_content(1), _content(2)])


class TestCommand:
    def _put(self, tmp_path: Path) -> tuple[list[str], list[str]]:
        at = ["--archive", str(tmp_path / "a")]
        digests = []
        for number in range(2):
            (tmp_path / str(number)).write_bytes(_content(number))
            stored = CliRunner().invoke(main, [*at, "put", "--json", str(tmp_path / str(number))])
            digests.append(json.loads(stored.stdout)["digest"])
        assert CliRunner().invoke(main, [*at, "rm", digests[0]]).exit_code == 0
        return at, digests

    def test_gc_says_what_it_does(self, tmp_path: Path) -> None:
        at, digests = self._put(tmp_path)
        recent = CliRunner().invoke(main, [*at, "gc"])
        assert recent.exit_code == 0
        assert "written to within the grace period" in recent.stdout
        told = CliRunner().invoke(main, [*at, "gc", "--grace", "0", "--dry-run"])
        assert told.stdout.splitlines()[-1].startswith("would free 68.")
        assert "kept   1 objects" in told.stdout
        done = CliRunner().invoke(main, [*at, "gc", "--grace", "0", "--json"])
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert [line["event"] for line in lines if "event" in line] == ["removed"]
        assert (lines[-1]["objects"], lines[-1]["chunks"], lines[-1]["garbage"]) == (1, 1, 0)
        assert CliRunner().invoke(main, [*at, "stat", digests[0]]).exit_code == 5
        assert CliRunner().invoke(main, [*at, "verify", "--all", "--deep"]).exit_code == 0

    def test_a_loss_must_be_named(self, tmp_path: Path) -> None:
        at, digests = self._put(tmp_path)
        with sqlite3.connect(tmp_path / "a" / "index.sqlite") as database:
            database.execute("DELETE FROM chunks WHERE digest=?", (bytes(Digest.parse(digests[1])),))
        database.close()
        refused = CliRunner().invoke(main, [*at, "gc", "--grace", "0"])
        assert refused.exit_code == 10
        assert digests[1] in refused.stderr
        assert CliRunner().invoke(main, [*at, "gc", "--grace", "0", "--lost", digests[1]]).exit_code == 0

    @pytest.mark.parametrize(
        ("text", "seconds"), [("0", 0), ("90", 90), ("90s", 90), ("30m", 1800), ("2d", 172_800), ("1w", 604_800)]
    )
    def test_durations(self, tmp_path: Path, text: str, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
        at, _ = self._put(tmp_path)
        seen = []
        monkeypatch.setattr(Collect, "run", lambda self: seen.append(self._options.grace) or _NOTHING)
        assert CliRunner().invoke(main, [*at, "gc", "--grace", text]).exit_code == 0
        assert seen == [seconds]

    @pytest.mark.parametrize("text", ["-1", "1y", "h", "1.5h", "", "9" * 10])
    def test_what_is_no_duration(self, tmp_path: Path, text: str) -> None:
        refused = CliRunner().invoke(main, ["--archive", str(tmp_path), "gc", "--grace", text])
        assert refused.exit_code == 2
        assert "is no duration" in refused.stderr


_NOTHING = collecting.CollectReport(False, (), (), 0, 0, 0, 0, (), ())
