"""What comes in from outside: safetensors headers, pickles, directories."""

import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import pytest

from csf_store import InvalidInputError, NotFoundError
from csf_store.directories import list_directory
from csf_store.framing import CHUNK_SIZE
from csf_store.ingest import FileSource
from csf_store.pickles import pickle_inside
from csf_store.safetensors_layout import DTYPE_BITS, header_length, parse_header, tensor_cuts


def _head(header: object) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text


def _entry(dtype: str = "F32", shape: object = (2,), begin: object = 0, end: object = 8) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


class TestSafetensors:
    def test_cuts_follow_the_tensors(self) -> None:
        size = CHUNK_SIZE + 10
        head = _head(
            {"b": _entry("U8", [size], 4, 4 + size), "a": _entry("BF16", [2], 0, 4), "z": _entry("F8_E4M3", [0], 4, 4)}
        )
        header = parse_header(head, len(head) + 4 + size)
        assert list(header.tensors) == ["a", "z", "b"]
        start = len(head)
        a, b = header.tensors["a"], header.tensors["b"]
        assert [tuple(cut) for cut in tensor_cuts(header)] == [
            (0, start, None, 0), (start, 4, a, 0), (start + 4, CHUNK_SIZE, b, 0),
            (start + 4 + CHUNK_SIZE, 10, b, CHUNK_SIZE),
        ]  # fmt: skip

    @pytest.mark.parametrize("dtype", DTYPE_BITS)
    def test_every_dtype_has_its_size(self, dtype: str) -> None:
        size = 8 * DTYPE_BITS[dtype] // 8
        head = _head({"t": _entry(dtype, [8], 0, size)})
        assert parse_header(head, len(head) + size).tensors["t"].nbytes == size
        with pytest.raises(InvalidInputError, match="needs"):
            parse_header(_head({"t": _entry(dtype, [8], 0, size + 1)}), len(head) + size + 1)

    @pytest.mark.parametrize(
        ("header", "data", "says"),
        [
            ({"t": _entry()}, 7, "truncated"),
            ({"t": _entry()}, 9, "belong to no tensor"),
            ({"t": _entry(begin=4, end=12)}, 12, "hole"),
            ({"t": _entry(), "u": _entry(begin=4, end=12)}, 12, "overlaps"),
            ({"t": _entry(), "u": _entry(begin=9, end=17)}, 17, "hole"),
            ({"t": _entry("F33")}, 8, "unknown dtype"),
            ({"t": _entry(shape=[-1])}, 8, "impossible shape"),
            ({"t": _entry(shape=[True, 2])}, 8, "impossible shape"),
            ({"t": _entry(shape=[1.5])}, 8, "impossible shape"),
            ({"t": _entry(shape=[1 << 62, 1 << 62])}, 8, "more elements"),
            ({"t": _entry(shape=[1 << 70])}, 8, "impossible shape"),
            ({"t": _entry(begin=8, end=0)}, 8, "needs"),
            ({"t": _entry(begin=False, end=8)}, 8, "needs"),
            ({"t": _entry(begin=-8, end=0)}, 8, "needs"),
            ({"t": _entry(begin="0")}, 8, "described by"),
            ({"t": {**_entry(), "extra": 1}}, 8, "described by"),
            ({"t": {"dtype": "F32", "shape": [2]}}, 8, "described by"),
            ({"t": 5}, 8, "described by"),
            ({"t": _entry(), "__metadata__": {"a": 1}}, 8, "strings to strings"),
            ({"t": _entry(), "__metadata__": []}, 8, "strings to strings"),
            ([], 0, "JSON object"),
            (b"", 0, "not JSON"),
            (b" {}", 0, "begins with"),
            (b"{", 0, "not JSON"),
            (b"\xff\xfe{}", 0, "not JSON"),
            (b'{"a":{},"a":{}}', 0, "given twice"),
            (b'{"a":' + b"[" * 200_000, 0, "not JSON"),
        ],
    )
    def test_broken_promises(self, header: object, data: int, says: str) -> None:
        head = _head(header)
        with pytest.raises(InvalidInputError, match=says):
            parse_header(head, len(head) + data)

    @pytest.mark.parametrize(
        ("prefix", "size"),
        [
            (b"", 0),
            (b"\1\0\0", 3),
            (b"\x09" + bytes(7), 16),
            (b"\xff" * 8, 1 << 62),
            (struct.pack("<Q", 100_000_001), 1 << 40),
        ],
    )
    def test_header_lengths_that_can_not_be(self, prefix: bytes, size: int) -> None:
        with pytest.raises(InvalidInputError):
            header_length(prefix, size)

    def test_an_empty_file_with_an_empty_header(self) -> None:
        assert dict(parse_header(_head({}), 10).tensors) == {}


class TestPickles:
    def _found(self, tmp_path: Path, content: bytes) -> str | None:
        (tmp_path / "f").write_bytes(content)
        with FileSource(tmp_path / "f") as source:
            return pickle_inside(source.read, source.size, content[: 64 << 10])

    def test_a_zip_directory_is_not_read_when_no_honest_one_is_so_long(self) -> None:
        """The end record asks for 100 MiB, which exist: the read is refused, and never made."""
        directory = 100 << 20
        end = b"PK\x05\x06" + bytes(8) + directory.to_bytes(4, "little") + bytes(6)
        asked: list[int] = []

        def read(offset: int, length: int) -> bytes:
            asked.append(length)
            return (bytes(max(directory - offset, 0)) + end)[-(directory + 22 - offset) :][:length]

        with pytest.raises(InvalidInputError, match="directory of 104857600 bytes"):
            pickle_inside(read, directory + 22, b"PK")
        assert max(asked) < 1 << 20

    @pytest.mark.parametrize("protocol", [2, 3, 4, 5])
    @pytest.mark.parametrize("value", [None, 1, "text", [1, {"a": (2.5, b"x" * 100_000)}], {"k": list(range(9))}])
    def test_streams_of_every_protocol(self, tmp_path: Path, protocol: int, value: object) -> None:
        assert self._found(tmp_path, pickle.dumps(value, protocol=protocol)) == "a pickle stream"
        assert self._found(tmp_path, pickle.dumps(value, protocol=protocol) + b"storage" * 1000) == "a pickle stream"

    def test_the_old_torch_magic(self, tmp_path: Path) -> None:
        magic = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
        assert self._found(tmp_path, magic + pickle.dumps(1001, protocol=2)) == "a pickle stream"

    def test_torch_zip(self, tmp_path: Path) -> None:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("model/data.pkl", b"")
            archive.writestr("model/data/0", b"1234")
        assert "model/data.pkl" in (self._found(tmp_path, buffer.getvalue()) or "")

    def test_what_is_none(self, tmp_path: Path) -> None:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("a.txt", b"")
        for content in (
            b"",
            b"\x80",
            b"\x80\x02",
            b"\x80\x09}.",
            b"text",
            b"PK not a zip",
            b"\x80\x02\xff\xff",
            buffer.getvalue(),
        ):
            assert self._found(tmp_path, content) is None


class TestDirectories:
    def test_order_and_modes(self, tmp_path: Path) -> None:
        for name in ("b", "a/z", "a-b", "é"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text("x")
        (tmp_path / "b").chmod(0o755)
        found = list_directory(tmp_path, allow_pickle=False)
        assert [(file.path, file.executable) for file in found] == [
            ("a-b", False), ("a/z", False), ("b", True), ("é", False),
        ]  # fmt: skip

    def test_what_can_not_be_put_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(NotFoundError):
            list_directory(tmp_path / "nowhere", allow_pickle=False)
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(InvalidInputError, match="pipe is neither"):
            list_directory(tmp_path, allow_pickle=False)
        (tmp_path / "pipe").unlink()
        (tmp_path / "dangling").symlink_to("nowhere")
        with pytest.raises(InvalidInputError, match="dangling is a symbolic link"):
            list_directory(tmp_path, allow_pickle=False)
        (tmp_path / "dangling").unlink()
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff")).touch()
        with pytest.raises(InvalidInputError, match="not valid UTF-8"):
            list_directory(tmp_path, allow_pickle=False)
