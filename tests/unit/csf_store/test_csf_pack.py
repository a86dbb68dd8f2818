"""The older container: what the samples hold, and each thing that is refused, by name and offset."""

import hashlib
import io
import json
import pickle
import struct
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zstandard
from blake3 import blake3
from csfpack_maker import GOLDEN, SAMPLES, JsonObject, entry, pack, seal, unpack

from csf_store import CorruptError, CsfError, Digest, InvalidInputError, NotFoundError, PickleRefusedError
from csf_store.csfpack.container import CsfPack

CONTENTS: dict[str, list[JsonObject]] = json.loads((GOLDEN / "contents.json").read_text())
ABC = b"abcdefghij"


def read(path: Path, *, allow_pickle: bool = False) -> dict[str, bytes]:
    """Everything a container holds, once it is proven."""
    with CsfPack.open(path) as container:
        digests = container.verify(allow_pickle=allow_pickle)
        found = {member.path: bytes(container.source(member).read(0, member.size)) for member in container.members}
    assert digests == tuple(Digest(blake3(content).digest()) for content in found.values())
    return found


@pytest.fixture
def held(tmp_path: Path) -> Callable[[bytes], dict[str, bytes]]:
    """What a container of these bytes holds."""

    def of(data: bytes) -> dict[str, bytes]:
        (tmp_path / "t.csf").write_bytes(data)
        return read(tmp_path / "t.csf")

    return of


Held = Callable[[bytes], dict[str, bytes]]


@contextmanager
def at_most(mebibytes: int, seconds: float) -> Iterator[None]:
    tracemalloc.start()
    begun = time.process_time()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < mebibytes << 20
        assert time.process_time() - begun < seconds
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_holds_what_contents_json_says(name: str) -> None:
    found = read(GOLDEN / name)
    assert [
        {"path": path, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for path, content in found.items()
    ] == CONTENTS[name]


def test_every_sample_is_listed() -> None:
    assert sorted(CONTENTS) == sorted(SAMPLES) == sorted(path.name for path in GOLDEN.glob("*.csf"))


@pytest.mark.parametrize("codec", ["zlib", "zstd"])
def test_any_range_of_a_compressed_member_can_be_read_in_any_order(tmp_path: Path, codec: str) -> None:
    content = bytes(range(256)) * 20_000 + b"end"
    stored = zlib.compress(content) if codec == "zlib" else zstandard.compress(content)
    manifest = {"files": [entry("a", content, csize=len(stored), codec=codec)]}
    (tmp_path / "t.csf").write_bytes(pack(manifest, stored))
    with CsfPack.open(tmp_path / "t.csf") as container:
        source = container.source(container.members[0])
        for offset, length in [(5_000_000, 100), (0, 9), (9, 1), (3, 4_000_000), (len(content) - 3, 3), (0, 0)]:
            assert bytes(source.read(offset, length)) == content[offset : offset + length]


def test_zstd_without_a_stated_size_and_in_several_frames(held: Held) -> None:
    frames = [
        zstandard.ZstdCompressor(write_content_size=False).compress(ABC),
        zstandard.compress(b""),
        zstandard.ZstdCompressor(write_checksum=True).compress(ABC),
    ]
    stored = b"".join(frames)
    assert held(pack({"files": [entry("a", ABC * 2, csize=len(stored), codec="zstd")]}, stored)) == {"a": ABC * 2}


def test_one_content_under_two_names_and_bytes_nobody_names(held: Held) -> None:
    files = [entry("a", ABC, offset=4), entry("b/c", ABC, offset=4), entry("empty", b"", offset=14)]
    assert held(pack({"files": files}, b"hole" + ABC)) == {"a": ABC, "b/c": ABC, "empty": b""}


def test_an_empty_container(held: Held) -> None:
    assert held(pack({"files": []})) == {}


class TestTheFile:
    def test_not_there_or_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(NotFoundError, match="nowhere"):
            CsfPack.open(tmp_path / "nowhere")
        with pytest.raises(InvalidInputError, match="not a regular file"):
            CsfPack.open(tmp_path)

    @pytest.mark.parametrize("name", SAMPLES)
    def test_every_truncation_and_every_addition(self, tmp_path: Path, name: str) -> None:
        whole = (GOLDEN / name).read_bytes()
        path = tmp_path / "t.csf"
        for length in [*range(60), *range(60, len(whole), 211), *range(len(whole) - 45, len(whole))]:
            path.write_bytes(whole[:length])
            with pytest.raises((CorruptError, InvalidInputError), match=r"t\.csf"):
                CsfPack.open(path)
        for more in (b"\0", bytes(40), whole[-40:], whole):
            path.write_bytes(whole + more)
            with pytest.raises(CorruptError, match="something was added behind it"):
                CsfPack.open(path)

    @pytest.mark.parametrize(
        ("at", "bytes_", "kind", "says"),
        [
            (0, b"PK\3\4", InvalidInputError, "no CSF-Pack container"),
            (4, b"\1\0", InvalidInputError, r"version 1\.0 at offset 4"),
            (4, b"\0\x09", InvalidInputError, r"version 0\.9 at offset 4"),
            (6, b"\0\3", InvalidInputError, "flags 0x0003 at offset 6"),
            (6, b"\x80\0", InvalidInputError, "flags 0x8000 at offset 6"),
            (8, b"\xff\xff\xff\xff", CorruptError, "manifest of 4294967295 bytes at offset 8"),
        ],
    )
    def test_header_fields(self, held: Held, at: int, bytes_: bytes, kind: type[CsfError], says: str) -> None:
        body = (GOLDEN / "mixed.csf").read_bytes()[:-40]
        with pytest.raises(kind, match=says):
            held(seal(body[:at] + bytes_ + body[at + len(bytes_) :]))

    def test_a_flipped_bit_anywhere(self, held: Held) -> None:
        whole = (GOLDEN / "no-codec-field.csf").read_bytes()
        for at in range(0, len(whole), 13):
            with pytest.raises((CorruptError, InvalidInputError)):
                held(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])

    def test_the_trailer_names_hash_and_offset(self, held: Held) -> None:
        whole = bytearray((GOLDEN / "stored.csf").read_bytes())
        whole[2000] ^= 1
        with pytest.raises(CorruptError, match=f"trailer at offset {len(whole) - 40} says"):
            held(bytes(whole))

    def test_a_manifest_too_long_to_parse(self, held: Held) -> None:
        data = pack(b"[" * ((16 << 20) + 1))
        with at_most(1, 1), pytest.raises(InvalidInputError, match="at most 16777216 are read"):
            held(data)


class TestTheManifest:
    @pytest.mark.parametrize(
        ("raw", "says"),
        [
            (b"", "not JSON"),
            (b"{", "not JSON"),
            (b'{"files":[]}\0', "not JSON"),
            (b'{"files":[],"x":"\xff"}', "not JSON"),
            ('{"files":[]}'.encode("utf-16"), "not JSON"),
            (b'\xef\xbb\xbf{"files":[]}', "not JSON"),
            (b'{"files":[],"x":NaN}', "NaN is not a JSON number"),
            (b'{"files":[],"files":[]}', "given twice"),
            (b'{"files":[],"x":' + b"9" * 5000 + b"}", "not JSON"),
            (b"[" * 1_000_000, "nested too deeply"),
            (b'{"files":' * 100_000, "nested too deeply"),
            (b"[]", "not an object"),
            (b"7", "not an object"),
            (b"{}", "not a list"),
            (b'{"files":{}}', "not a list"),
            (b'{"files":[3]}', "file 0 is 3, not an object"),
            (b'{"files":[],"file_count":1}', "file_count 1 and lists 0"),
            (b'{"files":[],"file_count":false}', "file_count False"),
            (b'{"files":[],"format":"other"}', "format is 'other'"),
        ],
        ids=lambda value: repr(value)[:30],
    )
    def test_json(self, held: Held, raw: bytes, says: str) -> None:
        with pytest.raises(InvalidInputError, match=f"manifest at offset 12: .*{says}"):
            held(pack(raw))

    @pytest.mark.parametrize("name", ["size", "csize", "offset"])
    @pytest.mark.parametrize("value", [-1, 1.0, 1e300, True, None, "1", [], {}, 2**53, 2**63, 2**64, 10**400])
    def test_numbers(self, held: Held, name: str, value: object) -> None:
        with pytest.raises(InvalidInputError, match=f"file 0, 'a': its {name} is"):
            held(pack({"files": [entry("a", ABC, **{name: value})]}, ABC))

    @pytest.mark.parametrize("name", ["path", "size", "csize", "offset", "sha256"])
    def test_missing_fields(self, held: Held, name: str) -> None:
        fields = entry("a", ABC)
        del fields[name]
        with pytest.raises(InvalidInputError, match=f"its {name} is None"):
            held(pack({"files": [fields]}, ABC))

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"offset": 1}, "10 bytes at offset 1 of the blob region, which has 10"),
            ({"offset": 11, "csize": 0, "size": 0}, "0 bytes at offset 11"),
            ({"offset": 2**53 - 1}, "at offset 9007199254740991"),
            ({"csize": 9}, "csize 9 and size 10"),
            ({"codec": "lzma"}, "codec is 'lzma'"),
            ({"codec": "ZSTD"}, "codec is 'ZSTD'"),
            ({"codec": None}, "codec is None"),
            ({"codec": ["zstd"]}, "codec is a list of 1"),
            ({"sha256": "00"}, "sha256 is '00'"),
            ({"sha256": "é" * 64}, "not 64 hex digits"),
            ({"sha256": "0" * 64 + "\n"}, "not 64 hex digits"),
        ],
    )
    def test_fields(self, held: Held, changes: JsonObject, says: str) -> None:
        with pytest.raises(InvalidInputError, match=says):
            held(pack({"files": [entry("a", ABC, **changes)]}, ABC))

    def test_compressed_decides_only_where_there_is_no_codec(self, held: Held) -> None:
        stored = zlib.compress(ABC)
        old = entry("a", ABC, csize=len(stored), compressed=True)
        del old["codec"]
        assert held(pack({"files": [old]}, stored)) == {"a": ABC}
        assert held(pack({"files": [entry("a", ABC, compressed=True)]}, ABC)) == {"a": ABC}
        plain = {name: value for name, value in entry("a", ABC).items() if name != "codec"}
        assert held(pack({"files": [plain]}, ABC)) == {"a": ABC}
        with pytest.raises(InvalidInputError, match="compressed is 1, not true or false"):
            held(pack({"files": [{**plain, "compressed": 1}]}, ABC))

    @pytest.mark.parametrize(
        ("path", "says"),
        [
            ("", "empty path"),
            ("/etc/passwd", "absolute"),
            ("../up", "could leave the tree"),
            ("a/../../b", "could leave the tree"),
            ("a/./b", "could leave the tree"),
            ("a//b", "could leave the tree"),
            ("a/", "could leave the tree"),
            ("a\\b", "backslash"),
            ("a\0b", "NUL"),
            ("a\ud800", "not valid UTF-8"),
            ("x" * 4097, "more than 4096 bytes"),
            ("é" * 2049, "more than 4096 bytes"),
            (["a"], "not text"),
            (5, "not text"),
        ],
        ids=lambda value: repr(value)[:20],
    )
    def test_paths(self, held: Held, path: object, says: str) -> None:
        with pytest.raises(InvalidInputError, match=says) as caught:
            held(pack({"files": [{**entry("a", ABC), "path": path}]}, ABC))
        assert len(str(caught.value)) < 1000

    @pytest.mark.parametrize(
        ("paths", "says"),
        [
            (["a", "b", "a"], "path 'a' is given twice"),
            (["a/b", "a"], "'a' is both a file and the directory of 'a/b'"),
            (["a", "a!", "a/b/c"], "'a' is both a file and the directory of 'a/b/c'"),
        ],
    )
    def test_names_that_clash(self, held: Held, paths: list[str], says: str) -> None:
        with pytest.raises(InvalidInputError, match=says):
            held(pack({"files": [entry(path, b"") for path in paths]}))

    def test_paths_made_to_be_slow(self, held: Held) -> None:
        """Thousands of deep paths that differ in their last letters."""
        files = [entry("a/" * 2040 + f"{number}", b"") for number in range(3000)]
        data = pack({"files": [*files, files[-1]]})
        assert len(data) > 12 << 20
        with at_most(100, 10), pytest.raises(InvalidInputError, match="given twice"):
            held(data)

    @pytest.mark.parametrize(
        ("other", "dictionary"),
        [
            ({"offset": 5, "size": 10, "csize": 10}, None),
            ({"offset": 2, "size": 3, "csize": 3}, None),
            ({"offset": 0, "size": 11, "csize": 10, "codec": "zlib"}, None),
            ({"offset": 20}, {"offset": 9, "size": 4}),
            ({"offset": 20}, {"offset": 0, "size": 30}),
        ],
    )
    def test_overlap(self, held: Held, other: JsonObject, dictionary: JsonObject | None) -> None:
        files = [entry("a", ABC), entry("b", ABC, **other)]
        with pytest.raises(InvalidInputError, match="overlap at offset"):
            held(pack({"files": files, "shared_dict": dictionary}, ABC * 3))

    @pytest.mark.parametrize(
        ("dictionary", "says"),
        [
            ({"offset": 0, "size": 31}, "31 bytes at offset 0 of the blob region, which has 30"),
            ({"offset": 31, "size": 1}, "1 bytes at offset 31"),
            ({"offset": 0, "size": 0}, "a dictionary of 0 bytes"),
            ({"offset": 0, "size": 17 << 20}, "a dictionary of 17825792 bytes"),
            ({"offset": -1, "size": 4}, "its offset is -1"),
            ({"offset": 0, "size": 4.0}, r"its size is 4\.0"),
            ({"offset": 0, "size": 4, "codec": "zlib"}, "only zstd shares a dictionary"),
            ([], "shared_dict is a list of 0"),
            (True, "shared_dict is True"),
        ],
    )
    def test_dictionary(self, held: Held, dictionary: object, says: str) -> None:
        with pytest.raises(InvalidInputError, match=says):
            held(pack({"files": [], "shared_dict": dictionary}, ABC * 3))


class TestContent:
    def _one(self, content: bytes, stored: bytes, codec: str, **changes: object) -> bytes:
        return pack({"files": [entry("d/a", content, csize=len(stored), codec=codec, **changes)]}, stored)

    @pytest.mark.parametrize("codec", ["store", "zlib", "zstd"])
    def test_another_content_of_the_same_length(self, held: Held, codec: str) -> None:
        pressed = {"store": bytes, "zlib": zlib.compress, "zstd": zstandard.compress}[codec]
        with pytest.raises(CorruptError, match=r"file 'd/a' at offset \d+ has SHA-256"):
            held(self._one(b"x" * 10, pressed(ABC), codec))

    @pytest.mark.parametrize(
        ("codec", "stored"), [("zlib", zlib.compress(ABC)), ("zstd", zstandard.compress(ABC))], ids=["zlib", "zstd"]
    )
    def test_sizes_and_streams_that_lie(self, held: Held, codec: str, stored: bytes) -> None:
        refused = {
            "unfolds to more than its 9": self._one(ABC[:9], stored, codec),
            "unfolds to more than its 0": self._one(b"", stored, codec),
            "ends after 10 of 11|cut short": self._one(ABC + b"k", stored, codec),
            "ends after|cut short": self._one(ABC, stored[: len(stored) // 2], codec),
            f"{codec}: ": self._one(ABC, b"\xff" + stored[1:], codec),
            "ends after 0 of 10|cut short": self._one(ABC, b"", codec),
            f"follow its zlib stream|{codec}: ": self._one(ABC, stored + b"more", codec),
        }
        for says, data in refused.items():
            with pytest.raises(CorruptError, match=f"file 'd/a' at offset [0-9]+: .*({says})"):
                held(data)

    def test_frames_that_need_a_dictionary_or_another_one(self, held: Held) -> None:
        manifest, region = unpack((GOLDEN / "dictionary.csf").read_bytes())
        del manifest["shared_dict"]
        with pytest.raises(CorruptError, match=r"'memory/day-00\.jsonl' at offset"):
            held(pack(manifest, region))
        manifest["shared_dict"] = {"offset": 2132, "size": 3000}
        with pytest.raises(CorruptError, match=r"'memory/day-00\.jsonl' at offset"):
            held(pack(manifest, region))

    def test_a_window_that_would_take_gigabytes(self, held: Held) -> None:
        # Frame header: no single segment, window descriptor for 2 GiB; then one raw block, the last.
        frame = b"\x28\xb5\x2f\xfd\x00" + bytes([21 << 3]) + struct.pack("<I", len(ABC) << 3 | 1)[:3] + ABC
        data = self._one(ABC, frame, "zstd")
        with at_most(4, 2), pytest.raises(CorruptError, match="zstd: "):
            held(data)

    @pytest.mark.parametrize("codec", ["zlib", "zstd"])
    def test_a_bomb_is_decoded_no_further_than_it_says(self, held: Held, codec: str) -> None:
        zeros = bytes(64 << 20)
        stored = zlib.compress(zeros) if codec == "zlib" else zstandard.compress(zeros)
        del zeros
        data = self._one(bytes(10), stored, codec)
        with at_most(4, 1), pytest.raises(CorruptError, match="unfolds to more than its 10"):
            held(data)

    @pytest.mark.parametrize("codec", ["store", "zlib", "zstd"])
    def test_a_large_member_takes_little_memory(self, tmp_path: Path, codec: str) -> None:
        zeros = bytes(64 << 20)
        stored = {"store": bytes, "zlib": zlib.compress, "zstd": zstandard.compress}[codec](zeros)
        (tmp_path / "t.csf").write_bytes(self._one(zeros, stored, codec))
        del zeros, stored
        with at_most(8, 20), CsfPack.open(tmp_path / "t.csf") as container:
            container.verify()

    def test_claims_beyond_what_is_sane(self, held: Held) -> None:
        stored = zlib.compress(ABC)
        size = (1 << 30) + 1
        with pytest.raises(InvalidInputError, match=r"'d/a' alone 1073741825.*decompression bomb"):
            held(self._one(ABC, stored, "zlib", size=size))
        files = [entry(str(n), ABC, csize=len(stored), codec="zlib", size=1 << 20) for n in range(1025)]
        with pytest.raises(InvalidInputError, match="decompression bomb"):
            held(pack({"files": files}, stored))


class TestWhatPutRefuses:
    @pytest.mark.parametrize("codec", ["store", "zlib"])
    def test_pickles(self, tmp_path: Path, codec: str) -> None:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("m/data.pkl", pickle.dumps({}))
            archive.writestr("m/data/0", bytes(100_000))
        for content, says in [(pickle.dumps([1, {"a": 2.0}]), "a pickle stream"), (buffer.getvalue(), "m/data.pkl")]:
            stored = zlib.compress(content) if codec == "zlib" else content
            path = tmp_path / "t.csf"
            path.write_bytes(pack({"files": [entry("d/w.bin", content, csize=len(stored), codec=codec)]}, stored))
            with pytest.raises(PickleRefusedError, match=f"t.csf/d/w.bin is .*{says}"):
                read(path)
            assert read(path, allow_pickle=True) == {"d/w.bin": content}

    def test_malformed_safetensors(self, held: Held) -> None:
        content = (2).to_bytes(8, "little") + b"{}" + b"more"
        with pytest.raises(InvalidInputError, match=r"t\.csf/m\.safetensors is not a sound safetensors file"):
            held(pack({"files": [entry("m.safetensors", content)]}, content))

    @pytest.mark.parametrize("name", ["m.safetensors", "m.bin"])
    def test_a_tensor_header_that_is_a_bomb(self, held: Held, name: str) -> None:
        length = 40 << 20
        content = length.to_bytes(8, "little") + b"{" + b" " * (length - 2) + b"}"
        stored = zlib.compress(content)
        data = pack({"files": [entry(name, content, csize=len(stored), codec="zlib")]}, stored)
        with at_most(8, 5), pytest.raises(InvalidInputError, match=f"{name}: a safetensors header of {length} bytes"):
            held(data)
