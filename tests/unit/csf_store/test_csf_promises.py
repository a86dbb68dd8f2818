"""The archive's promises, one by one."""

import json
import multiprocessing
import random
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
from checkpoint_maker import make_safetensors, weights

from csf_store import (
    AmbiguousPrefixError,
    Archive,
    ConflictError,
    CorruptError,
    Digest,
    InvalidInputError,
    Kind,
    NotFoundError,
    PickleRefusedError,
    StorageError,
    Stored,
    TensorInfo,
    TreeEntry,
)
from csf_store.codecs import Hint, encode
from csf_store.digest import Buffer
from csf_store.durable import OsFileSystem
from csf_store.framing import CHUNK_SIZE
from csf_store.objects import ChunkRef, Form, Layout, ObjectBody, pack_object
from csf_store.segment import chunk_header, object_header, stored_hash


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    with Archive.open(tmp_path / "archive", create=True) as opened:
        yield opened


class TestPutAndGet:
    @pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 1, 3 * CHUNK_SIZE])
    def test_sizes_around_every_boundary(self, archive: Archive, tmp_path: Path, size: int) -> None:
        content = random.Random(size).randbytes(size)
        (tmp_path / "file").write_bytes(content)
        stored = archive.put_file(tmp_path / "file")
        assert stored.digest == Digest.of(content)
        assert (stored.size, stored.new) == (size, True)
        assert stored.chunks == (0 if size <= 65_536 else -(-size // CHUNK_SIZE))
        assert archive.get_bytes(stored.digest) == content
        archive.get_file(stored.digest, tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == content
        assert b"".join(map(bytes, archive.pieces(stored.digest))) == content
        again = archive.put_bytes(content)
        assert again == stored._replace(stored=0, new=False)

    def test_one_digest_as_two_kinds(self, archive: Archive) -> None:
        blob = archive.put_bytes(b'{"a":1}')
        record = archive.put_bytes(b'{"a":1}', kind=Kind.RECORD, links=[blob.digest])
        assert blob.digest == record.digest
        info = archive.stat(blob.digest)
        assert info.kinds == (Kind.BLOB, Kind.RECORD)
        assert info.links == (blob.digest,)
        assert archive.contains(blob.digest, Kind.RECORD)
        assert not archive.contains(blob.digest, Kind.MANIFEST)
        with pytest.raises(NotFoundError, match="as a manifest"):
            archive.get_bytes(blob.digest, kind=Kind.MANIFEST)

    def test_links_must_exist_and_may_not_change(self, archive: Archive) -> None:
        one, two = archive.put_bytes(b"1").digest, archive.put_bytes(b"2").digest
        with pytest.raises(NotFoundError, match="links to"):
            archive.put_bytes(b"m", kind=Kind.MANIFEST, links=[one, Digest.of(b"nowhere")])
        manifest = archive.put_bytes(b"m", kind=Kind.MANIFEST, links=[two, one, two])
        assert archive.links(manifest.digest) == tuple(sorted([one, two]))
        assert not archive.put_bytes(b"m", kind=Kind.MANIFEST, links=[one, two]).new
        with pytest.raises(ConflictError, match="other links"):
            archive.put_bytes(b"m", kind=Kind.MANIFEST, links=[one])

    def test_a_tree_needs_its_blobs_and_their_sizes(self, archive: Archive) -> None:
        blob = archive.put_bytes(b"12345").digest
        with pytest.raises(NotFoundError, match="f: blob"):
            archive.put_tree_entries([TreeEntry("f", Digest.of(b"nowhere"), 3)])
        with pytest.raises(InvalidInputError, match="has 5 bytes, not 4"):
            archive.put_tree_entries([TreeEntry("f", blob, 4)])
        tree = archive.put_tree_entries([TreeEntry("b", blob, 5), TreeEntry("a", blob, 5, executable=True)])
        assert tree.size == 10
        assert [entry.path for entry in archive.tree(tree.digest).entries] == ["a", "b"]
        assert archive.put_bytes(archive.get_bytes(tree.digest), kind=Kind.TREE).digest == tree.digest
        with pytest.raises(InvalidInputError, match="no tree"):
            archive.put_bytes(b"{}", kind=Kind.TREE)

    def test_prefixes(self, archive: Archive) -> None:
        digests = [archive.put_bytes(b"%d" % number).digest for number in range(40)]
        for digest in digests:
            assert archive.resolve(digest.hex[:12]) == archive.resolve(str(digest)) == digest
        with pytest.raises(NotFoundError):
            archive.resolve(digests[0].hex[:12], kind=Kind.TREE)

    def test_an_ambiguous_prefix(self, archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
        twins = [(bytes.fromhex("abcdef0123" + f"{number:054x}"), Kind.BLOB) for number in (1, 2)]
        monkeypatch.setattr(archive._store, "objects", lambda *_: twins)
        with pytest.raises(AmbiguousPrefixError, match="more digits"):
            archive.resolve("abcdef0123")

    def test_output_appears_whole_or_not_at_all(self, archive: Archive, tmp_path: Path) -> None:
        digest = archive.put_bytes(b"x" * 100_000).digest
        segment = next((tmp_path / "archive" / "segments").iterdir())
        damaged = bytearray(segment.read_bytes())
        damaged[200] ^= 1
        segment.write_bytes(damaged)
        before = set(tmp_path.iterdir())
        (tmp_path / "mine").write_text("mine")
        with pytest.raises(CorruptError, match=segment.name):
            archive.get_file(digest, tmp_path / "out")
        with pytest.raises(CorruptError):
            archive.get_file(digest, tmp_path / "mine", overwrite=True)
        assert set(tmp_path.iterdir()) == before | {tmp_path / "mine"}
        assert (tmp_path / "mine").read_text() == "mine"

    def test_pickles_are_refused_and_can_be_kept_unread(self, archive: Archive, tmp_path: Path) -> None:
        (tmp_path / "p.safetensors.bin").write_bytes(b"\x80\x04\x95\x0a\0\0\0\0\0\0\0}\x94.")
        with pytest.raises(PickleRefusedError, match="convert it to safetensors"):
            archive.put_file(tmp_path / "p.safetensors.bin")
        assert list(archive.objects()) == []
        assert archive.put_file(tmp_path / "p.safetensors.bin", allow_pickle=True).new


class TestTensors:
    def test_a_tensor_costs_nothing_in_another_file_order_or_shard(self, archive: Archive, tmp_path: Path) -> None:
        tensors = {f"layer.{number}": ("BF16", [300, 500], weights(300, 500, number)) for number in range(4)}
        (tmp_path / "a.safetensors").write_bytes(make_safetensors(tensors, {"format": "pt"}))
        first = archive.put_file(tmp_path / "a.safetensors")
        assert first.stored < 0.69 * first.size
        for number, names in enumerate((list(reversed(tensors)), ["layer.1", "layer.3"])):
            path = tmp_path / f"other-{number}.safetensors"
            path.write_bytes(make_safetensors({name: tensors[name] for name in names}))
            assert archive.put_file(path).stored < 2000

    def test_read_one(self, archive: Archive) -> None:
        big = weights(1500, 3000, 1)
        content = make_safetensors(
            {
                "odd": ("U8", [3], b"abc"),
                "big": ("BF16", [1500, 3000], big),
                "none": ("F32", [0, 4], b""),
                "one": ("F32", [], b"1234"),
            },
            {"format": "pt"},
        )
        blob = archive.put_bytes(content).digest
        found = archive.tensors(blob)
        assert [(info.dtype, info.shape, info.nbytes) for info in found.values()] == [
            ("U8", (3,), 3), ("BF16", (1500, 3000), 9_000_000), ("F32", (0, 4), 0), ("F32", (), 4),
        ]  # fmt: skip
        assert archive.metadata(blob) == {"format": "pt"}
        assert bytes(archive.read_tensor(blob, "big")) == big
        assert bytes(archive.read_tensor(blob, "odd")) == b"abc"
        assert bytes(archive.read_tensor(blob, "one")) == b"1234"
        assert bytes(archive.read_tensor(blob, "none")) == b""
        out = np.zeros((1500, 3000), np.uint16)
        assert archive.read_tensor(blob, "big", memoryview(out)) is not None
        assert out.tobytes() == big
        archive.read_tensor(blob, "none", memoryview(np.zeros((0, 4), np.float32)))
        for wrong in (bytearray(8_999_999), bytearray(), memoryview(bytes(9_000_000))):
            with pytest.raises(InvalidInputError, match="needs 9000000"):
                archive.read_tensor(blob, "big", wrong)
        with pytest.raises(NotFoundError, match="no tensor 'x'"):
            archive.read_tensor(blob, "x")
        plain = archive.put_bytes(b"no tensors here").digest
        with pytest.raises(InvalidInputError, match="not a safetensors blob"):
            archive.tensors(plain)

    def test_reading_one_tensor_touches_only_its_chunks(self, archive: Archive, tmp_path: Path) -> None:
        a, b = weights(300, 300, 1), weights(300, 300, 2)
        blob = archive.put_bytes(make_safetensors({"a": ("BF16", [300, 300], a), "b": ("BF16", [300, 300], b)})).digest
        place = archive._store.find_chunk(bytes(Digest.of(a)))
        assert place is not None
        segment = next((tmp_path / "archive" / "segments").iterdir())
        damaged = bytearray(segment.read_bytes())
        damaged[place.offset + 500] ^= 1
        segment.write_bytes(damaged)
        assert bytes(archive.read_tensor(blob, "b")) == b
        with pytest.raises(CorruptError, match=f"{Digest.of(a)}: segment {segment.name} at offset {place.offset}"):
            archive.read_tensor(blob, "a")

    def test_read_all_in_place_is_proven_as_a_whole(self, archive: Archive, tmp_path: Path) -> None:
        tensors = {"a": ("BF16", [1500, 1500], weights(1500, 1500, 1)), "n": ("F32", [0], b""), "z": ("U8", [2], b"hi")}
        blob = archive.put_bytes(make_safetensors(tensors)).digest
        places: dict[str, bytearray] = {}

        def place(info: TensorInfo) -> memoryview:
            places[info.name] = bytearray(info.nbytes)
            return memoryview(places[info.name])

        archive.read_tensors(blob, place)
        assert {name: bytes(data) for name, data in places.items() if data} == {
            name: content for name, (_, _, content) in tensors.items() if content
        }
        segment = next((tmp_path / "archive" / "segments").iterdir())
        damaged = bytearray(segment.read_bytes())
        damaged[210] ^= 1  # in the header's chunk, which no tensor is read from
        segment.write_bytes(damaged)
        with pytest.raises(CorruptError, match=segment.name):
            archive.read_tensors(blob, place)

    @pytest.mark.parametrize("cut", [1, 7, 8, 9, 60, 80, -1])
    def test_truncated_files_are_refused_and_nothing_is_written(
        self, archive: Archive, tmp_path: Path, cut: int
    ) -> None:
        content = make_safetensors({"a": ("F32", [4], bytes(16))})
        path = tmp_path / "model.safetensors"
        path.write_bytes(content[:cut])
        with pytest.raises(InvalidInputError, match=r"model\.safetensors is not a sound safetensors file"):
            archive.put_file(path)
        assert list((tmp_path / "archive" / "segments").iterdir()) == []

    def test_a_forged_chunk_list_is_found(self, archive: Archive) -> None:
        """All chunks are sound; the list claims that they make something they do not."""
        chunks = [random.Random(seed).randbytes(70_000) for seed in (1, 2)]
        blobs = [archive.put_bytes(chunk) for chunk in chunks]
        assert [blob.chunks for blob in blobs] == [1, 1]
        claimed = Digest.of(chunks[0] + chunks[1])
        swapped = tuple(ChunkRef(bytes(Digest.of(chunk)), len(chunk)) for chunk in reversed(chunks))
        payload = pack_object(ObjectBody(Form.CHUNKED, Layout.PLAIN, 0, (), swapped, b""))
        archive._store.append(object_header(claimed, Kind.BLOB, 0, 140_000, payload), payload)
        archive._store.commit()
        with pytest.raises(CorruptError, match="chunk list is forged"):
            archive.get_bytes(claimed)
        assert archive.verify().ok
        findings = archive.verify(deep=True).findings
        assert [found.digest for found in findings] == [claimed]

    def test_a_lying_record_is_found_by_what_it_decodes_to(self, archive: Archive) -> None:
        """A record whose stored bytes are as it says, filed under the digest of other bytes."""
        true, lie = weights(100, 100, 1), weights(100, 100, 2)
        digest = Digest.of(true)
        forged = chunk_header(bytes(digest), 0, len(lie), lie)._replace(stored_hash=stored_hash(lie))
        archive._store.append(forged, lie)
        archive._store.commit()
        blob = archive.put_bytes(make_safetensors({"t": ("BF16", [100, 100], true)})).digest
        with pytest.raises(CorruptError, match=f"{digest}: segment .* decodes to other bytes"):
            archive.read_tensor(blob, "t")
        with pytest.raises(CorruptError, match=f"{digest}: segment .* decodes to other bytes"):
            archive.get_bytes(blob)
        with pytest.raises(CorruptError, match=f"{digest}: segment .* decodes to other bytes"):
            archive.read_tensors(blob, lambda info: memoryview(bytearray(info.nbytes)))
        assert archive.verify().ok  # its bytes are as stored; only decoding tells
        assert not archive.verify(deep=True).ok


class TestPins:
    def test_one_event_for_one_pin(self, archive: Archive) -> None:
        digest = archive.put_bytes(b"x").digest
        for name in ("a", "a", "b", None, None):
            archive.pin(digest, kind=Kind.BLOB, name=name)
        assert [pin.name for pin in archive.pins()] == ["a", "b", None]
        assert archive.ledger.size == 4
        archive.unpin(digest)
        assert archive.pins() == ()
        with pytest.raises(NotFoundError):
            archive.unpin(digest)
        with pytest.raises(NotFoundError):
            archive.pin(digest, kind=Kind.TREE)

    def test_a_missing_root_is_a_finding(self, archive: Archive) -> None:
        gone = Digest.of(b"never stored")
        archive.ledger.append("ref.set", ref="prod", **{"from": None, "to": str(gone)})
        assert [found.digest for found in archive.verify(reachable_only=True).findings] == [gone]


class TestMarker:
    def test_only_an_archive_opens(self, tmp_path: Path) -> None:
        with pytest.raises(NotFoundError, match="csf init"):
            Archive.open(tmp_path)
        (tmp_path / "something").touch()
        with pytest.raises(InvalidInputError, match="not empty"):
            Archive.open(tmp_path, create=True)

    def test_create_refuses_an_archive(self, tmp_path: Path) -> None:
        Archive.create(tmp_path / "a").close()
        with pytest.raises(ConflictError):
            Archive.create(tmp_path / "a")

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"format":"csf","version":"1","archive":"00"}', "\0" * 9])
    def test_a_damaged_marker(self, tmp_path: Path, text: str) -> None:
        Archive.create(tmp_path).close()
        (tmp_path / "csf.json").write_text(text)
        with pytest.raises(CorruptError, match=r"csf\.json"):
            Archive.open(tmp_path)

    def test_a_newer_version(self, tmp_path: Path) -> None:
        Archive.create(tmp_path).close()
        marker = json.loads((tmp_path / "csf.json").read_text())
        (tmp_path / "csf.json").write_text(json.dumps(marker | {"version": 2}))
        with pytest.raises(InvalidInputError, match="version 2"):
            Archive.open(tmp_path)


class _FailingDisk(OsFileSystem):
    """Fails every write to a segment after so many bytes."""

    left = 1 << 60

    def write(self, fd: int, parts: list[Buffer]) -> int:
        if Path(f"/proc/self/fd/{fd}").readlink().suffix != ".csfs":
            return super().write(fd, parts)
        if self.left <= 0:
            raise OSError(28, "No space left on device")
        data = b"".join(map(bytes, parts))[: self.left]
        self.left -= len(data)
        return super().write(fd, [data])


@pytest.mark.parametrize("left", [0, 1, 64, 100, 200, 70_000])
def test_a_full_disk_loses_nothing_acknowledged(tmp_path: Path, left: int) -> None:
    disk = _FailingDisk()
    random_ = random.Random(left)
    with Archive.open(tmp_path / "a", create=True, fs=disk) as archive:
        kept = archive.put_bytes(b"kept" * 1000).digest
        disk.left = left
        with pytest.raises(StorageError, match="free some space"):
            archive.put_bytes(random_.randbytes(300_000))
        disk.left = 1 << 60
        content = random_.randbytes(300_000)
        after = archive.put_bytes(content).digest
        assert archive.get_bytes(kept) == b"kept" * 1000
        assert archive.get_bytes(after) == content
    with Archive.open(tmp_path / "a") as archive:
        assert archive.get_bytes(after) == content
        assert archive.verify(deep=True).ok


def _put_many(path: Path, seed: int) -> None:
    random_ = random.Random(seed)
    shared = random.Random(0)
    with Archive.open(path, create=True, seal_at=40_000) as archive:
        for number in range(8):
            archive.put_bytes(random_.randbytes(3000))
            archive.put_bytes(shared.randbytes(3000))
            archive.pin(archive.put_bytes(b"%d %d" % (seed, number)).digest, kind=Kind.BLOB, name=f"{seed}/{number}")


def test_processes_put_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_put_many, args=(tmp_path / "a", seed)) for seed in (1, 2, 3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    with Archive.open(tmp_path / "a") as archive:
        assert len(archive.pins()) == 24
        assert sum(1 for _ in archive.objects()) == 3 * 16 + 8
        assert archive.verify(deep=True).findings == ()


def test_threads_share_one_archive(archive: Archive) -> None:
    contents = [random.Random(seed).randbytes(50_000 * seed) for seed in range(1, 9)]
    results: dict[int, Stored] = {}

    def work(number: int) -> None:
        results[number] = archive.put_bytes(contents[number])
        assert archive.get_bytes(results[number].digest) == contents[number]

    threads = [threading.Thread(target=work, args=(number % 8,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert archive.verify(deep=True).ok


def test_a_stored_archive_inside_an_archive_confuses_nobody(tmp_path: Path) -> None:
    """A segment stored raw inside a segment, then a damaged header before it: the scanner must not wander into it."""
    with Archive.open(tmp_path / "inner", create=True) as inner:
        inner.put_bytes(random.Random(1).randbytes(100_000))
    segment = next((tmp_path / "inner" / "segments").iterdir())
    assert encode(segment.read_bytes(), Hint())[0] == 0
    with Archive.open(tmp_path / "outer", create=True) as outer:
        digest = outer.put_file(segment).digest
        outer.pin(digest, kind=Kind.BLOB)
    outer_segment = next((tmp_path / "outer" / "segments").iterdir())
    data = bytearray(outer_segment.read_bytes())
    data[70] ^= 1
    outer_segment.write_bytes(data)
    (tmp_path / "outer" / "index.sqlite").unlink()
    with Archive.open(tmp_path / "outer") as outer:
        assert list(outer.objects()) == []  # its chunk is hurt, and no index says that it was whole once
        assert [found.digest for found in outer.verify().findings] == [digest]


def test_huge_header_length_is_refused_without_reading(archive: Archive, tmp_path: Path) -> None:
    path = tmp_path / "h.safetensors"
    path.write_bytes(struct.pack("<Q", (1 << 63) - 1) + b"{}")
    with pytest.raises(InvalidInputError, match="more than"):
        archive.put_file(path)
