"""Repair: what is sound is saved, what can be had elsewhere is healed, and the rest is named, with all it hurts."""

import json
import random
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoint_maker import fine_tuned, make_safetensors, weights
from click.testing import CliRunner

from csf_store import Archive, ConflictError, CorruptError, CsfError, Digest, InvalidInputError, Kind, NotFoundError
from csf_store.cli import main
from csf_store.index_rows import Location
from csf_store.segment import chunk_header

SMALL = 200_000
"""Segments of this size, so that a few objects make several."""


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    with Archive.open(tmp_path / "a", create=True, seal_at=SMALL) as opened:
        yield opened


def _content(number: int, size: int = 70_000) -> bytes:
    return random.Random(number).randbytes(size)


def _put(archive: Archive, count: int) -> list[Digest]:
    digests = [archive.put_bytes(_content(number)).digest for number in range(count)]
    for number, digest in enumerate(digests):
        archive.pin(digest, kind=Kind.BLOB, name=f"number {number}")
    archive._store.rest()
    return digests


def _place(archive: Archive, digest: Digest, kind: Kind | None = None) -> tuple[Path, Location]:
    store = archive._store
    where = store.find_object(bytes(digest), kind) if kind else store.find_chunk(bytes(digest))
    assert where is not None
    return store.directory / store.segment_name(where.segment), where


def _flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x10
    path.write_bytes(data)


def _hurt(archive: Archive, digest: Digest, kind: Kind | None = None) -> Path:
    """Flips a bit in the stored bytes of a chunk, or of an object."""
    path, where = _place(archive, digest, kind)
    _flip(path, where.offset + 128 + where.stored // 2)
    return path


def _clean(archive: Archive) -> None:
    report = archive.verify(deep=True)
    assert (report.findings, report.notes) == ((), ())


class TestHealthy:
    def test_nothing_to_do_changes_no_segment(self, archive: Archive) -> None:
        digests = _put(archive, 5)
        before = {path: path.read_bytes() for path in archive._store.directory.iterdir()}
        report = archive.repair()
        assert report.ok
        assert (report.damaged, report.healed, report.lost, report.quarantine) == ((), (), (), None)
        assert {path: path.read_bytes() for path in archive._store.directory.iterdir()} == before
        assert not (archive.path / "quarantine").exists()
        assert [archive.get_bytes(digest) for digest in digests] == [_content(number) for number in range(5)]

    def test_the_index_is_built_anew(self, archive: Archive) -> None:
        digests = _put(archive, 3)
        with sqlite3.connect(archive.path / "index.sqlite") as database:
            database.execute("DELETE FROM objects")
            database.execute("DELETE FROM chunks")
        database.close()
        with pytest.raises(NotFoundError):
            archive.get_bytes(digests[0])
        assert archive.repair().ok
        assert [archive.get_bytes(digest) for digest in digests] == [_content(number) for number in range(3)]


class TestLoss:
    def test_end_to_end(self, archive: Archive) -> None:
        """Flip, verify names it, repair, put again, verify is clean, get is equal."""
        digests = _put(archive, 6)
        path = _hurt(archive, digests[2])
        named = archive.verify().findings
        assert {(finding.digest, finding.segment) for finding in named} == {(digests[2], path.name)}
        report = archive.repair()
        assert not report.ok
        assert [(each.segment, each.salvaged > 0) for each in report.damaged] == [(path.name, True)]
        assert [each.digest for each in report.lost] == [digests[2]]
        assert [Digest(each.digest) for each in report.hurt] == [digests[2]]
        assert report.pins == ("number 2",)
        for number in (0, 1, 3, 4, 5):
            assert archive.get_bytes(digests[number]) == _content(number)
        with pytest.raises(CorruptError, match=str(digests[2])):
            archive.get_bytes(digests[2])
        assert [finding.digest for finding in archive.verify().findings] == [digests[2]]
        again = archive.put_bytes(_content(2))
        assert again.stored >= 70_000
        _clean(archive)
        assert archive.get_bytes(digests[2]) == _content(2)
        assert archive.repair().ok

    def test_the_damaged_file_is_kept_and_the_report_beside_it(self, archive: Archive) -> None:
        digests = _put(archive, 3)
        path = _hurt(archive, digests[0])
        damaged = path.read_bytes()
        report = archive.repair()
        assert report.quarantine is not None
        assert (archive.path / report.quarantine / path.name).read_bytes() == damaged
        assert not path.exists()
        document = json.loads((archive.path / f"{report.quarantine}.json").read_text())
        assert document["lost"][0]["digest"] == str(digests[0])
        assert document["lost"][0]["segment"] == path.name
        assert document["pins"] == ["number 0"]
        event = list(archive.ledger.entries())[-1]
        assert (event.event, event.fields["into"]) == ("collected", report.quarantine)

    def test_a_dry_run_says_the_same_and_changes_nothing(self, archive: Archive) -> None:
        digests = _put(archive, 5)
        _hurt(archive, digests[1])
        before = {path: path.read_bytes() for path in archive._store.directory.iterdir()}
        told = archive.repair(dry_run=True)
        assert {path: path.read_bytes() for path in archive._store.directory.iterdir()} == before
        assert not (archive.path / "quarantine").exists()
        done = archive.repair()
        assert (told.damaged, told.lost, told.hurt, told.pins) == (done.damaged, done.lost, done.hurt, done.pins)

    def test_everything_that_needs_it_is_named(self, archive: Archive, tmp_path: Path) -> None:
        """A chunk of a base model: its blob, the fine-tune that is a difference to it, trees, a manifest, a ref."""
        raw, other = weights(200, 200, 1), weights(200, 200, 9)
        tuned = fine_tuned(raw, 2)
        for name, tensors in (("base", {"t": raw, "o": other}), ("tuned", {"t": tuned}), ("apart", {"o": other})):
            (tmp_path / name).mkdir()
            (tmp_path / name / "model.safetensors").write_bytes(
                make_safetensors({key: ("BF16", [200, 200], value) for key, value in tensors.items()})
            )
        base = archive.put_tree(tmp_path / "base").digest
        fine = archive.put_tree(tmp_path / "tuned", base=archive.base(base)).digest
        apart = archive.put_tree(tmp_path / "apart").digest
        old = archive.put_bytes(b"old manifest", kind=Kind.MANIFEST, links=[fine]).digest
        new = archive.put_bytes(b"new manifest", kind=Kind.MANIFEST, links=[apart]).digest
        archive.ledger.append("ref.set", ref="prod", **{"from": None, "to": str(old)})
        archive.ledger.append("ref.set", ref="prod", **{"from": str(old), "to": str(new)})
        archive.ledger.append("ref.set", ref="safe", **{"from": None, "to": str(new)})
        archive.pin(base, kind=Kind.TREE, name="the base")
        archive.pin(apart, kind=Kind.TREE, name="apart")
        archive._store.rest()
        assert archive._store.find_chunk(bytes(Digest.of(tuned))).is_difference  # type: ignore[union-attr]
        _hurt(archive, Digest.of(raw))
        report = archive.repair()
        blobs = {name: archive.tree(tree).entries[0].blob for name, tree in (("base", base), ("tuned", fine))}
        assert {Digest(each.digest) for each in report.hurt} == {base, fine, old, *blobs.values()}
        assert all(each.causes == (bytes(Digest.of(raw)),) for each in report.hurt)
        assert (report.pins, report.refs) == (("the base",), ("prod",))
        archive.get_tree(apart, tmp_path / "out")
        # The fine-tune alone heals itself, although what it was a difference to is still lost.
        archive.put_tree(tmp_path / "tuned")
        assert archive.get_bytes(blobs["tuned"]) == (tmp_path / "tuned" / "model.safetensors").read_bytes()
        with pytest.raises(CorruptError):
            archive.get_bytes(blobs["base"])
        archive.put_tree(tmp_path / "base")
        _clean(archive)

    def test_differences_in_sound_segments_go_with_their_base(self, archive: Archive, tmp_path: Path) -> None:
        """Else the fine-tune, put again, would find its chunk known and stay as unreadable as it is."""
        raw = weights(200, 200, 1)
        tuned = make_safetensors({"t": ("BF16", [200, 200], fine_tuned(raw, 2))})
        (tmp_path / "t.safetensors").write_bytes(tuned)
        first = archive.put_bytes(make_safetensors({"t": ("BF16", [200, 200], raw)})).digest
        archive.put_bytes(_content(1, SMALL))  # the first segment is full
        second = archive.put_file(tmp_path / "t.safetensors", base=archive.base(first)).digest
        archive._store.rest()
        base, difference = (_place(archive, Digest.of(each))[0] for each in (raw, fine_tuned(raw, 2)))
        assert base != difference
        _hurt(archive, Digest.of(raw))
        report = archive.repair()
        assert {each.segment for each in report.damaged} == {base.name, difference.name}
        assert {Digest(each.digest) for each in report.hurt} == {first, second}
        archive.put_file(tmp_path / "t.safetensors")
        assert archive.get_bytes(second) == tuned
        archive.put_bytes(make_safetensors({"t": ("BF16", [200, 200], raw)}))
        _clean(archive)

    @pytest.mark.parametrize("kind", [Kind.TREE, Kind.MANIFEST, Kind.RECORD])
    def test_a_lost_object_is_named_and_works_again_when_put_again(
        self, archive: Archive, tmp_path: Path, kind: Kind
    ) -> None:
        blob = archive.put_bytes(_content(1)).digest
        if kind == Kind.TREE:
            (tmp_path / "tree").mkdir()
            (tmp_path / "tree" / "file").write_bytes(_content(1))
            digest = archive.put_tree(tmp_path / "tree").digest
        else:
            digest = archive.put_bytes(b"words" * 30, kind=kind, links=[blob]).digest
        parent = archive.put_bytes(b"parent", kind=Kind.MANIFEST, links=[digest]).digest
        archive._store.rest()
        _hurt(archive, digest, kind)
        report = archive.repair()
        assert [each.digest for each in report.lost] == [digest]
        assert {Digest(each.digest) for each in report.hurt} == {digest, parent}
        assert not archive.contains(digest)
        again = (
            archive.put_tree(tmp_path / "tree")
            if kind == Kind.TREE
            else archive.put_bytes(b"words" * 30, kind=kind, links=[blob])
        )
        assert again.digest == digest
        _clean(archive)
        assert archive.links(digest) == (blob,)

    def test_an_orphan_chunk_is_no_loss(self, archive: Archive) -> None:
        """An interrupted put left it; nobody was told of it."""
        content = _content(8)
        archive._store.append(chunk_header(bytes(Digest.of(content)), 0, len(content), content), content)
        archive._store.commit()
        _put(archive, 2)
        _hurt(archive, Digest.of(content))
        report = archive.repair()
        assert report.ok
        assert len(report.damaged) == 1
        _clean(archive)


class TestSegments:
    @pytest.mark.parametrize("how", ["header", "footer", "trailer", "cut", "zeros", "name"])
    def test_every_way_a_sealed_segment_is_damaged(self, archive: Archive, how: str) -> None:
        digests = _put(archive, 7)
        path, _ = _place(archive, digests[0])
        data = bytearray(path.read_bytes())
        assert data[-64:-56] == b"\x89CSFEND\n"
        if how == "header":
            data[20] ^= 1
        elif how == "footer":
            data[-100] ^= 1
        elif how == "trailer":
            data[-30] ^= 1
        elif how == "cut":
            del data[-50_000:]
        elif how == "zeros":
            data[:] = bytes(len(data))
        path.write_bytes(data)
        if how == "name":
            path.rename(path.with_name(f"{'ab' * 16}.csfs"))
        archive._store.refresh()
        archive._store._readers.clear()
        assert not archive.verify().ok
        report = archive.repair()
        assert report.ok == (how in ("header", "footer", "trailer", "name"))
        for number, digest in enumerate(digests):
            if report.ok:
                assert archive.get_bytes(digest) == _content(number)
            archive.put_bytes(_content(number))
        _clean(archive)
        assert [archive.get_bytes(digest) for digest in digests] == [_content(number) for number in range(7)]

    def test_two_segments_swapped(self, archive: Archive) -> None:
        digests = _put(archive, 7)
        first, second = sorted(archive._store.directory.iterdir())[:2]
        first.rename(archive.path / "aside")
        second.rename(first)
        (archive.path / "aside").rename(second)
        archive._store._readers.clear()
        assert not archive.verify().ok
        assert archive.repair().ok
        assert [archive.get_bytes(digest) for digest in digests] == [_content(number) for number in range(7)]
        _clean(archive)

    def test_a_segment_of_another_archive(self, archive: Archive, tmp_path: Path) -> None:
        digests = _put(archive, 3)
        with Archive.open(tmp_path / "b", create=True) as other:
            other.put_bytes(b"foreign" * 20_000)
        foreign = next((tmp_path / "b" / "segments").iterdir())
        shutil.copy(foreign, archive._store.directory)
        archive._store.refresh()
        assert not archive.verify().ok
        report = archive.repair()
        assert [each.segment for each in report.damaged] == [foreign.name]
        assert not archive.contains(Digest.of(b"foreign" * 20_000))
        assert [archive.get_bytes(digest) for digest in digests] == [_content(number) for number in range(3)]
        _clean(archive)

    def test_a_missing_segment_without_its_index(self, archive: Archive) -> None:
        """Nobody remembers it but the ledger."""
        digests = _put(archive, 7)
        path, _ = _place(archive, digests[0])
        path.unlink()
        for name in ("index.sqlite", "index.sqlite-wal", "index.sqlite-shm"):
            (archive.path / name).unlink(missing_ok=True)
        report = archive.repair()
        assert digests[0] in {each.digest for each in report.lost}
        assert "number 0" in report.pins
        assert "number 6" not in report.pins

    def test_a_torn_tail_is_left_as_it_is(self, archive: Archive) -> None:
        digests = _put(archive, 1)
        path, _ = _place(archive, digests[0])
        with path.open("ab") as file:
            file.write(b"\x89CSR half a header")
        report = archive.repair()
        assert report.ok
        assert report.damaged == ()
        assert len(report.notes) == 1

    def test_a_damaged_journal_no_longer_stands_in_the_way(self, archive: Archive) -> None:
        digests = _put(archive, 3)
        (archive.path / "collecting.json").write_text("{}")
        with Archive.open(archive.path) as other, pytest.raises(CorruptError, match="csf repair"):
            other.put_bytes(b"new")
        assert not archive.verify().ok
        assert archive.repair().ok
        archive.put_bytes(b"new")
        assert [archive.get_bytes(digest) for digest in digests] == [_content(number) for number in range(3)]
        assert archive.verify().ok
        assert [path.name for path in (archive.path / "quarantine").glob("*/*")] == ["collecting.json"]

    def test_a_second_copy_heals_the_first(self, archive: Archive) -> None:
        digests = _put(archive, 2)
        path, where = _place(archive, digests[0])
        copy = archive._store.read(where, bytes(digests[0]))
        archive._store.append(copy.header, bytes(copy.payload) + b"")
        archive._store.commit()
        archive._store.rest()
        _flip(path, where.offset + 1000)
        assert not archive.verify().ok
        report = archive.repair()
        assert report.ok
        assert report.healed == ()
        assert archive.get_bytes(digests[0]) == _content(0)
        _clean(archive)

    def test_a_segment_somebody_writes_to_is_not_taken_from_under_them(self, archive: Archive) -> None:
        digests = _put(archive, 1)
        with Archive.open(archive.path, seal_at=SMALL) as writer:
            writer.put_bytes(b"takes the lock")
            _hurt(archive, digests[0])
            with pytest.raises(ConflictError, match="another process writes to it"):
                archive.repair()
            kept = writer.put_bytes(b"goes on").digest
        report = archive.repair()
        assert [each.digest for each in report.lost] == [digests[0]]
        assert archive.get_bytes(kept) == b"goes on"


class TestSources:
    def test_another_archive_heals_chunks_and_objects(self, archive: Archive, tmp_path: Path) -> None:
        (tmp_path / "tree").mkdir()
        (tmp_path / "tree" / "file").write_bytes(_content(1))
        with Archive.open(tmp_path / "b", create=True) as other:
            other.put_tree(tmp_path / "tree")
        tree = archive.put_tree(tmp_path / "tree").digest
        lost = archive.put_bytes(_content(2)).digest
        archive._store.rest()
        _hurt(archive, Digest.of(_content(1)))
        _hurt(archive, Digest.of(_content(1)), Kind.BLOB)
        _hurt(archive, tree, Kind.TREE)
        _hurt(archive, lost)
        told = archive.repair(dry_run=True, sources=[tmp_path / "b"])
        assert [each.digest for each in told.lost] == [lost]
        report = archive.repair(sources=[tmp_path / "b"])
        assert {(Digest(each.digest), each.kind) for each in report.healed} == {
            (Digest.of(_content(1)), 0),
            (Digest.of(_content(1)), 1),
            (tree, 2),
        }
        assert {each.source for each in report.healed} == {str(tmp_path / "b")}
        assert [each.digest for each in report.lost] == [lost]
        archive.get_tree(tree, tmp_path / "out")
        archive.put_bytes(_content(2))
        _clean(archive)

    def test_a_lost_base_heals_its_differences(self, archive: Archive, tmp_path: Path) -> None:
        raw = weights(200, 200, 1)
        tuned = make_safetensors({"t": ("BF16", [200, 200], fine_tuned(raw, 2))})
        (tmp_path / "t.safetensors").write_bytes(tuned)
        base = make_safetensors({"t": ("BF16", [200, 200], raw)})
        first = archive.put_bytes(base).digest
        second = archive.put_file(tmp_path / "t.safetensors", base=archive.base(first)).digest
        archive._store.rest()
        with Archive.open(tmp_path / "b", create=True) as other:
            other.put_bytes(base)
        _hurt(archive, Digest.of(raw))
        report = archive.repair(sources=[tmp_path / "b"])
        assert report.ok
        assert [Digest(each.digest) for each in report.healed] == [Digest.of(raw)]
        assert archive.get_bytes(second) == tuned
        assert archive._store.find_chunk(bytes(Digest.of(fine_tuned(raw, 2)))).is_difference  # type: ignore[union-attr]
        _clean(archive)

    def test_a_source_that_lies_heals_nothing(self, archive: Archive, tmp_path: Path) -> None:
        """A chunk filed under the digest of other bytes, sound as a record."""
        digests = _put(archive, 1)
        with Archive.open(tmp_path / "b", create=True) as other:
            lie = _content(9)
            header = chunk_header(bytes(digests[0]), 0, len(lie), lie)
            other._store.append(header._replace(stored_hash=bytes(Digest.of(lie))), lie)
            other._store.commit()
        _hurt(archive, digests[0])
        report = archive.repair(sources=[tmp_path / "b"])
        assert report.healed == ()
        assert [each.digest for each in report.lost] == [digests[0]]

    def test_what_was_set_aside_is_looked_through(self, archive: Archive) -> None:
        """First one thing was lost, and a sound copy of another went along; later that other is lost too."""
        raw = weights(200, 200, 1)
        tuned = fine_tuned(raw, 2)
        (archive.path.parent / "t.safetensors").write_bytes(make_safetensors({"t": ("BF16", [200, 200], tuned)}))
        digests = _put(archive, 2)
        path, _ = _place(archive, digests[1])
        _hurt(archive, digests[0])
        report = archive.repair()
        assert report.quarantine is not None
        assert (archive.path / report.quarantine / path.name).exists()
        archive.put_bytes(_content(0))
        archive._store.rest()
        _hurt(archive, digests[1])
        report = archive.repair()
        assert report.ok
        assert [(Digest(each.digest), each.source) for each in report.healed] == [(digests[1], "quarantine")]
        assert archive.get_bytes(digests[1]) == _content(1)
        _clean(archive)

    def test_itself_and_what_is_no_archive_are_refused(self, archive: Archive, tmp_path: Path) -> None:
        with pytest.raises(InvalidInputError, match="another one"):
            archive.repair(sources=[archive.path])
        with pytest.raises(NotFoundError):
            archive.repair(sources=[tmp_path / "nothing"])


class TestLedger:
    def test_is_reported_and_never_touched(self, archive: Archive) -> None:
        _put(archive, 2)
        ledger = archive.path / "ledger.jsonl"
        altered = ledger.read_bytes().replace(b"number 0", b"number 9")
        ledger.write_bytes(altered)
        report = archive.repair()
        assert not report.ok
        assert report.ledger
        assert ledger.read_bytes() == altered


def test_damage_everywhere_never_crashes_and_never_loses_what_is_sound(tmp_path: Path) -> None:
    """Seeded bit flips, cuts and zeros in any segment, one archive after the other."""
    chance = random.Random(31)
    with Archive.open(tmp_path / "made", create=True, seal_at=20_000) as archive:
        contents = [chance.randbytes(chance.choice([30, 3000, 9000])) for _ in range(14)]
        digests = [archive.put_bytes(content).digest for content in contents]
        archive.pin(digests[0], kind=Kind.BLOB)
    for number in range(40):
        here = tmp_path / str(number)
        shutil.copytree(tmp_path / "made", here)
        for _ in range(chance.randrange(1, 4)):
            path = chance.choice(sorted((here / "segments").iterdir()))
            data = bytearray(path.read_bytes())
            at = chance.randrange(len(data))
            match chance.randrange(3):
                case 0:
                    data[at] ^= 1 << chance.randrange(8)
                case 1:
                    data[at : at + 300] = bytes(len(data[at : at + 300]))
                case _:
                    del data[at:]
            path.write_bytes(data)
        if number % 3 == 0:
            (here / "index.sqlite").unlink()
        with Archive.open(here, seal_at=20_000) as archive:
            readable = {digest for digest in digests if _reads(archive, digest)}
            archive.repair()
            assert {digest for digest in digests if _reads(archive, digest)} >= readable
            for content in contents:
                archive.put_bytes(content)
            assert [archive.get_bytes(digest) for digest in digests] == contents
            assert archive.verify(deep=True).findings == ()
        shutil.rmtree(here)


def _reads(archive: Archive, digest: Digest) -> bool:
    try:
        return Digest.of(archive.get_bytes(digest)) == digest
    except CsfError:
        return False


class TestCommand:
    def test_repair_names_what_is_hurt_and_exits_with_1(self, archive: Archive, tmp_path: Path) -> None:
        digests = _put(archive, 3)
        _hurt(archive, digests[1])
        archive.close()
        runner = CliRunner()
        command = ["--archive", str(archive.path), "repair"]
        told = runner.invoke(main, [*command, "--dry-run"])
        assert told.exit_code == 1
        assert f"LOST     {digests[1]} (chunk)" in told.stdout
        done = runner.invoke(main, [*command, "--json"])
        assert done.exit_code == 1
        document = json.loads(done.stdout)
        assert [each["digest"] for each in document["hurt"]] == [str(digests[1])]
        (tmp_path / "file").write_bytes(_content(1))
        assert runner.invoke(main, ["--archive", str(archive.path), "put", str(tmp_path / "file")]).exit_code == 0
        again = runner.invoke(main, command)
        assert (again.exit_code, again.stdout) == (0, f"nothing is lost: {_count(archive.path)} segments read\n")
        assert runner.invoke(main, ["--archive", str(archive.path), "verify", "--all", "--deep"]).exit_code == 0


def _count(path: Path) -> int:
    return len(list((path / "segments").iterdir()))
