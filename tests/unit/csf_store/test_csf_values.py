"""Digests, trees, objects and frames: values that are parsed once and refuse what they are not."""

import pickle
import struct
from dataclasses import dataclass

import pytest
from blake3 import blake3

from csf_store import CorruptError, Digest, InvalidInputError, Kind, TreeEntry
from csf_store.framing import (
    CHUNK_SIZE,
    FramingError,
    RecordHeader,
    RecordType,
    Trailer,
    check_segment_header,
    pack_record_header,
    pack_segment_header,
    pack_trailer,
    unpack_footer,
    unpack_record_header,
    unpack_trailer,
)
from csf_store.objects import ChunkRef, Form, Layout, ObjectBody, pack_object, unpack_object
from csf_store.trees import decode_tree, encode_tree

ID = bytes(range(16))
EMPTY = Digest.of(b"")


class TestDigest:
    def test_is_blake3_and_prints_as_such(self) -> None:
        digest = Digest.of(b"abc")
        assert bytes(digest) == blake3(b"abc").digest()
        assert str(digest) == f"b3:{blake3(b'abc').hexdigest()}"
        assert digest.short == str(digest)[:15]
        assert digest.hex == str(digest)[3:]

    def test_parses_with_and_without_prefix_in_any_case(self) -> None:
        digest = Digest.of(b"abc")
        assert Digest.parse(str(digest)) == Digest.parse(digest.hex.upper()) == digest

    @pytest.mark.parametrize(
        "text", ["", "b3:", "b3:12", "sha256:" + "0" * 64, "g" * 64, "0" * 63, "0" * 65, "b3:b3:" + "0" * 61]
    )
    def test_refuses_everything_else(self, text: str) -> None:
        with pytest.raises(InvalidInputError):
            Digest.parse(text)

    @pytest.mark.parametrize("raw", [b"", bytes(31), bytes(33), "0" * 32, bytearray(32)])
    def test_is_32_bytes(self, raw: bytes) -> None:
        with pytest.raises(InvalidInputError):
            Digest(raw)

    def test_is_a_value(self) -> None:
        low, high = Digest(bytes(32)), Digest(b"\xff" * 32)
        assert low < high
        assert sorted([high, low]) == [low, high]
        assert {low: 1}[Digest(bytes(32))] == 1
        assert low != bytes(32)
        assert pickle.loads(pickle.dumps(high)) == high
        with pytest.raises(AttributeError, match="immutable"):
            low.hex = "x"  # type: ignore[misc]

    def test_large_buffers_hash_the_same_on_all_cores(self) -> None:
        data = bytes(range(256)) * 20_000
        assert bytes(Digest.of(data)) == blake3(data).digest()


class TestTree:
    def test_order_is_that_of_utf8_bytes(self) -> None:
        names = ["b", "a/b", "a-b", "Z", "é", "\U0001f600", "\uffee"]
        content = encode_tree(TreeEntry(name, EMPTY, 0) for name in names)
        tree = decode_tree(content, Digest.of(content))
        assert [entry.path for entry in tree.entries] == sorted(names, key=str.encode)
        assert encode_tree(reversed(tree.entries)) == content

    def test_of_nothing(self) -> None:
        assert encode_tree([]) == b'{"entries":[],"v":1}'

    @pytest.mark.parametrize("path", ["", "/a", "a/", "a//b", ".", "..", "a/../b", "./a", "a\\b", "a\0b", "\udc80"])
    def test_refuses_paths_that_could_leave(self, path: str) -> None:
        with pytest.raises(InvalidInputError):
            encode_tree([TreeEntry(path, EMPTY, 0)])

    @pytest.mark.parametrize("paths", [["a", "a"], ["a", "a/b"], ["a/b/c", "a/b"]])
    def test_refuses_a_path_twice_or_as_file_and_directory(self, paths: list[str]) -> None:
        with pytest.raises(InvalidInputError):
            encode_tree(TreeEntry(path, EMPTY, 0) for path in paths)

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"[]",
            b"{}",
            b'{"entries":[],"v":2}',
            b'{"entries":[],"v":1} ',
            b'{"v":1,"entries":[]}',
            b'{"entries":[["../x","b3:%s",0,false]],"v":1}' % (b"0" * 64),
            b'{"entries":[["x","b3:%s",-1,false]],"v":1}' % (b"0" * 64),
            b'{"entries":[["x","b3:%s",true,false]],"v":1}' % (b"0" * 64),
            b'{"entries":[["x","b3:%s",0]],"v":1}' % (b"0" * 64),
            b'{"entries":[["x","%s",0,false]],"v":1}' % (b"0" * 64),
            b'{"entries":' + b"[" * 100_000,
        ],
    )
    def test_reads_only_what_it_would_write(self, content: bytes) -> None:
        with pytest.raises(CorruptError):
            decode_tree(content, Digest.of(content))


def _header(**changes: object) -> RecordHeader:
    return RecordHeader(RecordType.CHUNK, 1, 0, 100, 50, bytes(32), b"\1" * 32)._replace(**changes)


class TestFrames:
    def test_every_bit_of_every_frame_counts(self) -> None:
        @dataclass
        class Frame:
            data: bytes
            check: object

        frames = [
            Frame(pack_segment_header(ID, ID), lambda data: check_segment_header(data, ID, ID)),
            Frame(pack_record_header(ID, _header()), lambda data: unpack_record_header(ID, data)),
            Frame(pack_trailer(ID, Trailer(64, 0, 1000)), lambda data: unpack_trailer(ID, data)),
        ]
        for frame in frames:
            assert callable(frame.check)
            frame.check(frame.data)
            for bit in range(8 * len(frame.data)):
                bad = bytearray(frame.data)
                bad[bit // 8] ^= 1 << bit % 8
                with pytest.raises(FramingError):
                    frame.check(bytes(bad))

    def test_another_segments_record_is_not_ours(self) -> None:
        with pytest.raises(FramingError, match="damaged"):
            unpack_record_header(bytes(16), pack_record_header(ID, _header()))

    @pytest.mark.parametrize(
        "changes",
        [
            {"stored_length": CHUNK_SIZE + 1},
            {"raw_length": CHUNK_SIZE + 1},
            {"stored_length": (1 << 64) - 1},
            {"type": RecordType.OBJECT, "raw_length": 1 << 63},
            {"type": RecordType.OBJECT, "stored_length": (128 << 20) + 1},
            {"type": RecordType.FOOTER, "stored_length": (1 << 30) + 1},
        ],
    )
    def test_impossible_lengths_are_refused_even_with_a_good_checksum(self, changes: dict[str, object]) -> None:
        with pytest.raises(FramingError, match="impossible"):
            unpack_record_header(ID, pack_record_header(ID, _header(**changes)))

    def test_a_header_of_another_archive_or_name_says_so(self) -> None:
        with pytest.raises(FramingError, match="belongs to archive"):
            check_segment_header(pack_segment_header(bytes(16), ID), ID, ID)
        with pytest.raises(FramingError, match="under another name"):
            check_segment_header(pack_segment_header(ID, bytes(16)), ID, ID)

    def test_a_footer_may_not_point_outside(self) -> None:
        entry = struct.pack("<QQQBBBBI32s32s", 900, 50, 100, 1, 0, 0, 0, 0, bytes(32), bytes(32))
        assert len(unpack_footer(entry, 1078)) == 1
        for data, size in ((entry, 1077), (entry[:-1], 5000), (entry[:24] + b"\3" + entry[25:], 5000)):
            with pytest.raises(FramingError):
                unpack_footer(data, size)


class TestObjects:
    BODY = ObjectBody(
        Form.CHUNKED, Layout.SAFETENSORS, 40, (Digest(bytes(32)), Digest(b"\1" * 32)), (ChunkRef(b"\2" * 32, 7),), b""
    )

    def test_round_trip(self) -> None:
        body = self.BODY._replace(header_length=7)
        assert unpack_object(pack_object(body), 7) == body

    @pytest.mark.parametrize(
        ("changes", "size"),
        [
            ({}, 8),
            ({}, 6),
            ({"header_length": 8}, 7),
            ({"inline": b"x"}, 7),
            ({"chunks": (ChunkRef(bytes(32), 0), ChunkRef(bytes(32), 7))}, 7),
            ({"chunks": (ChunkRef(bytes(32), CHUNK_SIZE + 1),)}, CHUNK_SIZE + 1),
            ({"links": (Digest(b"\1" * 32), Digest(bytes(32)))}, 7),
            ({"links": (Digest(bytes(32)), Digest(bytes(32)))}, 7),
            ({"form": Form.INLINE}, 7),
            ({"form": Form.INLINE, "chunks": (), "inline": b"x"}, 1 << 40),
        ],
    )
    def test_what_does_not_add_up_is_refused(self, changes: dict[str, object], size: int) -> None:
        body = self.BODY._replace(header_length=7)._replace(**changes)
        with pytest.raises(FramingError):
            unpack_object(pack_object(body), size)

    def test_counts_near_the_limit_allocate_nothing(self) -> None:
        payload = struct.pack("<HBBIIIQ", 1, 2, 0, 0xFFFFFFFF, 0xFFFFFFFF, 0, 0)
        with pytest.raises(FramingError, match="shorter than its lists"):
            unpack_object(payload, 0)

    def test_kinds_have_numbers_for_ever(self) -> None:
        assert {kind: kind.number for kind in Kind} == {"blob": 1, "tree": 2, "manifest": 3, "record": 4}
        assert [Kind.of(number) for number in (1, 2, 3, 4)] == list(Kind)
        with pytest.raises(FramingError):
            Kind.of(5)
