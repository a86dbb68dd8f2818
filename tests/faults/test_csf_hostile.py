"""Archives forged with true checksums: every lie is an error of ours, costs little, and gives out no wrong byte."""

import random
import shutil
import struct
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zstandard
from examining import examine, limits
from forging import SEGMENT, address, chunk, forge, inline, listing, thing
from mutations import EDGES
from pieces import Piece

from csf_store import Archive, CorruptError, CsfError, Digest, Kind
from csf_store.codecs import Hint, codec
from csf_store.framing import (
    CHUNK_SIZE,
    FooterEntry,
    RecordType,
    Trailer,
    pack_record_header,
    pack_segment_header,
)
from csf_store.objects import Layout
from csf_store.trees import TreeEntry, encode_tree

pytestmark = pytest.mark.usefixtures("one_thread")

MEMORY = 256 << 20
"""What looking at a hostile archive may take: chunks of 4 MiB, warm memory to decode them, and little else."""


@pytest.fixture(autouse=True)
def bounds() -> Iterator[None]:
    """An end in time, and no more address space than that."""
    with limits():
        yield


@pytest.fixture
def measured() -> Iterator[None]:
    """Nor more memory than ``MEMORY``."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()


def refused(path: Path, digest: bytes, match: str, *, kind: Kind = Kind.BLOB, unseen: bool = False) -> None:
    """It opens, everybody who wants this object hears why not, verify says so, and life goes on."""
    with Archive.open(path) as archive:
        with pytest.raises(CorruptError, match=match):
            archive.get_bytes(Digest(digest), kind=kind)
        with pytest.raises(CorruptError, match=match):
            archive.get_file(Digest(digest), path / "out")
        assert not (path / "out").exists()
        report = archive.verify(deep=True)
        assert not report.ok
        assert unseen or any(finding.digest for finding in report.findings)
    copy = path.with_name(f"{path.name} copy {digest.hex()}")
    assert examine(Path(shutil.copytree(path, copy)), {})


@pytest.mark.usefixtures("measured")
class TestChunkLists:
    def test_a_forged_list_of_valid_chunks(self, scratch: Path) -> None:
        right, wrong = b"a" * 5000, b"b" * 5000
        digest = address(right + wrong)
        pieces = [chunk(right), chunk(wrong)]
        for number, chunks in enumerate(([wrong, right], [right, right], [right], [wrong, wrong])):
            lie = listing(digest, [(address(each), len(each)) for each in chunks])
            refused(forge(scratch / f"{number}", [*pieces, lie]), digest, "forged")
        true = listing(digest, [(address(right), 5000), (address(wrong), 5000)])
        with Archive.open(forge(scratch / "true", [*pieces, true])) as archive:
            assert archive.get_bytes(Digest(digest)) == right + wrong

    def test_a_chunk_of_another_length_than_the_list_says(self, scratch: Path) -> None:
        content = b"c" * 5000
        for number, length in enumerate((4999, 5001, CHUNK_SIZE)):
            lie = listing(address(content), [(address(content), length)])
            refused(forge(scratch / f"{number}", [chunk(content), lie]), address(content), "5000")

    @pytest.mark.parametrize("place", [4, 8])
    @pytest.mark.parametrize("count", [1, 2, 2**31, 2**32 - 1])
    def test_more_links_or_chunks_than_there_are(self, scratch: Path, place: int, count: int) -> None:
        good = inline(b"content")
        payload = bytearray(good.payload)
        struct.pack_into("<I", payload, place, count)
        refused(
            forge(scratch / "a", [thing(bytes(payload), 7, address(b"content"))]), address(b"content"), "shorter than"
        )

    @pytest.mark.parametrize("sealed", [True, False])
    def test_terabytes_of_one_chunk(self, scratch: Path, sealed: bool) -> None:
        """A small record may list much. It is not read into memory, nor is the header it claims."""
        zeros = bytes(CHUNK_SIZE)
        stored = zstandard.ZstdCompressor().compress(zeros)
        big = listing(b"\1" * 32, [(address(zeros), CHUNK_SIZE)] * 10_000)
        size = 10_000 * CHUNK_SIZE
        lying = listing(
            b"\2" * 32, [(address(zeros), CHUNK_SIZE)] * 10_000, layout=Layout.SAFETENSORS, header_length=size
        )
        path = forge(scratch / "a", [chunk(zeros, stored=stored, codec=1), big, lying], sealed=sealed)
        with Archive.open(path) as archive:
            for digest in (Digest(b"\1" * 32), Digest(b"\2" * 32)):
                with pytest.raises(CsfError):
                    archive.get_bytes(digest)
                with pytest.raises(CsfError):
                    archive.tensors(digest)
                with pytest.raises(CsfError):
                    archive.read_tensors(digest, lambda info: memoryview(bytearray(info.nbytes)))
            assert archive.stat(Digest(b"\1" * 32)).size == size


def bomb() -> bytes:
    """A gigabyte of zeros in some kilobytes."""
    packer = zstandard.ZstdCompressor(level=3).compressobj(size=1 << 30)
    return b"".join([packer.compress(bytes(1 << 20)) for _ in range(1 << 10)] + [packer.flush()])


@pytest.mark.usefixtures("measured")
class TestBombs:
    """What unfolds to more than its record says is refused before it does."""

    def payloads(self, bomb: bytes) -> dict[str, tuple[int, bytes]]:
        unsized = zstandard.ZstdCompressor(
            compression_params=zstandard.ZstdCompressionParameters(write_content_size=False)
        ).compress(bytes(1 << 24))
        window = b"\x28\xb5\x2f\xfd\x00\xf8" + b"\x01\x00\x00"  # a window of 2^41 bytes
        plane = struct.pack("<BBBBI", 2, 0, 0, 0, len(bomb)) + bomb
        fields = struct.pack("<BBBBIIII", 3, 0, 4, 0, 12 + len(bomb), len(bomb), 0, 0) + bomb
        gaps = struct.pack("<BBBBIIII", 3, 0, 0, 0, 12, 0, 2**32 - 1, 2**32 - 1)
        head = struct.pack("<BBH", 1, 0, 0)
        groups = struct.pack("<BBBBHH", 2, 7, 8, 0, 2**16 - 1, 0)
        group = struct.pack("<BBBBHHHHI", 1, 0, 0, 0, 1, 0, 0, 1, 2**32 - 1)
        return {
            "a gigabyte in zstd": (1, bomb),
            "zstd without a size": (1, unsized),
            "zstd with a huge window": (1, window),
            "planes of a gigabyte": (2, head + plane),
            "planes of fields of a gigabyte": (2, head + fields),
            "planes of endless exceptions": (2, head + gaps),
            "differences in endless groups": (3, groups),
            "a difference of one endless group": (3, group + plane),
        }

    def test_in_every_codec(self, scratch: Path) -> None:
        for name, (number, stored) in self.payloads(bomb()).items():
            for size in (1, 4096, CHUNK_SIZE):
                base = bytes(size)
                digest = address(name.encode())
                pieces = [
                    chunk(base, stored=zstandard.ZstdCompressor().compress(base), codec=1),
                    chunk(b"", stored=stored, codec=number, raw=size, digest=digest,
                          base=address(base) if number == 3 else bytes(32)),
                    listing(address(b"whole"), [(digest, size)]),
                ]  # fmt: skip
                refused(forge(scratch / f"{name} {size}", pieces), address(b"whole"), "segment")

    def test_in_an_object_record(self, scratch: Path) -> None:
        head = inline(b"").payload
        for size in (0, 1, 65_536):
            path = forge(scratch / f"{size}", [thing(head + bomb(), size, address(b"x"), codec=1)])
            refused(path, address(b"x"), "inline content|too many bytes")


class TestCircles:
    def test_of_bases(self, scratch: Path) -> None:
        contents = [np.random.default_rng(seed).standard_normal(2000).astype("<f4").tobytes() for seed in range(3)]
        one, two, three = contents

        def difference(raw: bytes, against: bytes) -> Piece:
            stored = bytes(codec(3).encode(raw, Hint("F32", against)))
            return chunk(raw, stored=stored, codec=3, base=address(against))

        pieces = [difference(one, two), difference(two, one), difference(three, three)]
        pieces += [listing(address(each), [(address(each), len(each))]) for each in contents]
        path = forge(scratch / "a", pieces)
        for each in contents:
            refused(path, address(each), "difference itself")
        unsealed = forge(scratch / "b", pieces, sealed=False)  # here nothing vouches for them
        with Archive.open(unsealed) as archive:
            assert list(archive.objects()) == []

    @pytest.mark.parametrize("sealed", [True, False])
    def test_of_links(self, scratch: Path, sealed: bool) -> None:
        names = [b"one", b"two", b"three", b"itself"]
        one, two, three, itself = map(address, names)
        links = [(two,), (three,), (one,), (itself,)]
        pieces = [inline(name, kind=Kind.MANIFEST, links=to) for name, to in zip(names, links, strict=True)]
        path = forge(scratch / "a", pieces, sealed=sealed)
        with Archive.open(path) as archive:
            assert archive.verify(deep=True).ok
            assert sum(1 for _ in archive.objects()) == (4 if sealed else 0)
            if sealed:
                archive.pin(Digest(one), kind=Kind.MANIFEST)
            archive.collect(grace=0, threshold=0)
            assert {info.digest for info in archive.objects()} == (
                {Digest(one), Digest(two), Digest(three)} if sealed else set()
            )

    def test_of_trees(self, scratch: Path) -> None:
        """A tree can not hold its own digest, but its record may link to itself, and its entries to anything."""
        inner = inline(encode_tree([TreeEntry("a", Digest(b"\5" * 32), 3)]), kind=Kind.TREE, links=(b"\5" * 32,))
        digest = inner.header.digest
        outer = inline(encode_tree([TreeEntry("t", Digest(digest), 7)]), kind=Kind.TREE, links=(digest,))
        again = Piece(outer.header, outer.payload)
        path = forge(scratch / "a", [inner, outer, again])
        with Archive.open(path) as archive:
            with pytest.raises(CsfError):
                archive.get_tree(Digest(outer.header.digest), scratch / "out")
            assert not (scratch / "out").exists()
            assert not archive.verify(deep=True).ok

    def test_deep_chains_of_links_and_json(self, scratch: Path) -> None:
        pieces, links = [], ()
        for number in range(3000):
            pieces.append(inline(b"%d" % number, kind=Kind.MANIFEST, links=links))
            links = (pieces[-1].header.digest,)
        pieces += [inline(b"[" * 60_000, kind=Kind.TREE), inline(b'{"entries":' * 5000, kind=Kind.TREE)]
        with Archive.open(forge(scratch / "a", pieces)) as archive:
            archive.pin(Digest(links[0]), kind=Kind.MANIFEST)
            assert archive.verify().ok
            for piece in pieces[-2:]:
                with pytest.raises(CorruptError, match="can not be read"):
                    archive.tree(Digest(piece.header.digest))
            assert archive.collect(grace=0, threshold=0).objects == 2


CONTENT = b"kept " * 20


def sound() -> list[Piece]:
    return [inline(CONTENT), chunk(b"c" * 70), listing(address(b"c" * 70), [(address(b"c" * 70), 70)])]


class TestNumbersAtTheEdge:
    """2^16, 2^31, 2^32, 2^62, 2^63, 2^64 and their neighbours, wherever a length, a count or an offset stands."""

    @pytest.mark.parametrize("field", ["raw_length", "stored_length"])
    @pytest.mark.parametrize("number", range(3))
    def test_in_record_headers(self, scratch: Path, field: str, number: int) -> None:
        for at, edge in enumerate(EDGES):
            for sealed in (True, False)[at % 2 :][: 1 + (edge >= 2**62)]:
                pieces = sound()
                pieces[number] = pieces[number]._replace(header=pieces[number].header._replace(**{field: edge}))
                assert examine(
                    forge(scratch / f"{edge}-{sealed}", pieces, sealed=sealed), {Digest.of(CONTENT): CONTENT}
                )

    @pytest.mark.parametrize("field", ["offset", "stored_length", "raw_length"])
    def test_in_footers(self, scratch: Path, field: str) -> None:
        for number in range(3):
            for edge in EDGES:

                def entry(at: int, entry: FooterEntry, edge: int = edge, number: int = number) -> FooterEntry:
                    return entry._replace(**{field: edge}) if at == number else entry

                path = forge(scratch / f"{number}-{edge}", sound(), entry=entry)
                assert examine(path, {Digest.of(CONTENT): CONTENT})

    @pytest.mark.parametrize("field", Trailer._fields)
    def test_in_trailers(self, scratch: Path, field: str) -> None:
        for edge in EDGES:

            def trailer(trailer: Trailer, edge: int = edge) -> Trailer:
                return trailer._replace(**{field: edge})

            path = forge(scratch / f"{edge}", sound(), trailer=trailer)
            assert examine(path, {Digest.of(CONTENT): CONTENT})
            with Archive.open(path) as archive:
                assert archive.get_bytes(Digest.of(CONTENT)) == CONTENT

    @pytest.mark.parametrize(("place", "size"), [(0, 2), (2, 1), (3, 1), (4, 4), (8, 4), (12, 4), (16, 8)])
    def test_in_object_records(self, scratch: Path, place: int, size: int) -> None:
        for number in (0, 2):
            for edge in (each for each in EDGES if each < 1 << 8 * size):
                pieces = sound()
                payload = bytearray(pieces[number].payload)
                payload[place : place + size] = edge.to_bytes(size, "little")
                header = pieces[number].header
                pieces[number] = thing(bytes(payload), header.raw_length, header.digest)
                assert examine(forge(scratch / f"{number}-{edge}", pieces), {Digest.of(CONTENT): CONTENT})

    @pytest.mark.parametrize("edge", EDGES)
    def test_in_safetensors(self, scratch: Path, edge: int) -> None:
        text = b'{"a":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (edge, edge)
        sound = [len(text).to_bytes(8, "little") + text] if edge else []  # nothing is wrong with a tensor of no bytes
        for content in (edge.to_bytes(8, "little") + text, *sound):
            digest = address(content)
            for header_length in {0, 8, 8 + len(text), edge}:
                lie = listing(digest, [(digest, len(content))], layout=Layout.SAFETENSORS, header_length=header_length)
                path = forge(scratch / f"{digest.hex()}-{header_length}", [chunk(content), lie])
                assert examine(path, {})
                with Archive.open(path) as archive, pytest.raises(CsfError):
                    archive.read_tensors(Digest(digest), lambda info: memoryview(bytearray(info.nbytes)))

    def test_in_segment_headers(self, scratch: Path) -> None:
        for at, size in ((8, 2), (10, 2), (12, 4)):
            for edge in (each for each in EDGES if each < 1 << 8 * size):
                path = forge(scratch / f"{at}-{edge}", sound())
                segment = path / "segments" / SEGMENT
                data = bytearray(segment.read_bytes())
                data[at : at + size] = edge.to_bytes(size, "little")
                segment.write_bytes(data)
                assert examine(path, {Digest.of(CONTENT): CONTENT})


def test_unknown_types_codecs_and_kinds(scratch: Path) -> None:
    for field, values in (("type", (0, 4, 255)), ("codec", (4, 63, 64, 255)), ("kind", (0, 5, 255))):
        for value in values:
            for number in range(3):
                pieces = sound()
                pieces[number] = pieces[number]._replace(header=pieces[number].header._replace(**{field: value}))
                for sealed in (True, False):
                    path = forge(scratch / f"{field}-{value}-{number}-{sealed}", pieces, sealed=sealed)
                    assert examine(path, {Digest.of(CONTENT): CONTENT})


def test_the_same_digest_said_of_other_bytes(scratch: Path) -> None:
    """Two records claim one digest, the wrong one first: the wrong bytes never come out."""
    right, wrong = b"right" * 2000, b"wrong" * 2000
    digest = address(right)
    pieces = [chunk(wrong, digest=digest), chunk(right), listing(digest, [(digest, len(right))])]
    refused(forge(scratch / "a", pieces), digest, "decodes to other bytes|forged")
    refused(forge(scratch / "b", [inline(wrong, digest=digest), inline(right)]), digest, "forged|other bytes|hash")


def test_random_records_of_a_segment_inside_another(scratch: Path) -> None:
    """A whole segment as a payload, its magic numbers and checksums true for another segment id."""
    inner = pack_segment_header(bytes(16), bytes(16)) + pack_record_header(bytes(16), sound()[0].header)
    noise = random.Random(1).randbytes(500)
    content = inner + sound()[0].payload + noise
    path = forge(scratch / "a", [chunk(content), listing(address(content), [(address(content), len(content))])])
    with Archive.open(path) as archive:
        assert archive.get_bytes(Digest.of(content)) == content
    damaged = bytearray((path / "segments" / SEGMENT).read_bytes())
    damaged[70] ^= 1
    (path / "segments" / SEGMENT).write_bytes(damaged)
    (path / "index.sqlite").unlink()
    with Archive.open(path) as archive:
        assert not archive.contains(Digest.of(CONTENT))
        assert not archive.verify().ok
    assert RecordType.FOOTER == 3
