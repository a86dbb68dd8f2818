"""The golden archives of format version 1: read for ever, by this project and by a reader that knows only FORMAT.md."""

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "archives"))
from make_archives import bf16, safetensors
from plain_reader import CHUNK, OBJECT, FormatError, PlainArchive

from csf_store import Archive, Digest, Kind
from csf_store.codecs import codecs

HERE = Path(__file__).parent / "archives"
NAMES = ["empty", "plain", "torn", "whole"]
EXPECTED: dict[str, Any] = json.loads((HERE / "expected.json").read_text())


def _files(path: Path) -> dict[str, str]:
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.suffix != ".pyc" and "sqlite" not in file.name and not file.name.endswith(".lock")
    }


def _check_content(told: dict[str, Any], content: bytes) -> None:
    assert len(content) == told["size"]
    assert hashlib.sha256(content).hexdigest() == told["sha256"]
    assert told.get("content", content.hex()) == content.hex()


@pytest.mark.parametrize("name", NAMES)
def test_every_byte_is_read(tmp_path: Path, name: str) -> None:
    told = EXPECTED[name]
    path = Path(shutil.copytree(HERE / name, tmp_path / name))
    with Archive.open(path) as archive:
        found = {info.digest.hex: sorted(map(str, info.kinds)) for info in archive.objects()}
        assert found == {digest: sorted(each["kinds"]) for digest, each in told["objects"].items()}
        for digest, each in told["objects"].items():
            for kind in each["kinds"]:
                _check_content(each, archive.get_bytes(Digest.parse(digest), kind=Kind(kind)))
            if "tree" in each["kinds"]:
                archive.get_tree(Digest.parse(digest), tmp_path / "tree")
                files = {file for file in (tmp_path / "tree").rglob("*") if file.is_file()}
                assert {Digest.of(file.read_bytes()).hex for file in files} <= told["objects"].keys()
                assert [file.name for file in files if file.stat().st_mode & 0o100] == ["run.sh"]
        assert archive.ledger.size == told["lines"]
        assert [[str(pin.digest), pin.kind, pin.name] for pin in archive.pins()] == told["pins"]
        refs = {
            ref: str(moves[-1].target) if moves[-1].target else None for ref, moves in archive.ledger.refs().items()
        }
        assert refs == told["refs"]
        report = archive.verify(deep=True)
        assert report.findings == ()
        assert bool(report.notes) == (name == "torn")
    unchanged = _files(HERE / name)
    assert {file: digest for file, digest in _files(path).items() if file in unchanged} == unchanged
    with Archive.open(path) as archive:
        archive.pin(archive.put_bytes(b"new").digest, kind=Kind.BLOB, name="new")
        assert archive.verify(deep=True).ok


@pytest.mark.parametrize("name", NAMES)
def test_a_reader_that_knows_only_the_text_agrees(tmp_path: Path, name: str) -> None:
    told = EXPECTED[name]
    plain = PlainArchive(HERE / name)
    assert {(digest.hex(), kind) for digest, kind in plain.objects} == {
        (digest, kind) for digest, each in told["objects"].items() for kind in each["kinds"]
    }
    for digest, each in told["objects"].items():
        for kind in each["kinds"]:
            _check_content(each, plain.content(bytes.fromhex(digest), kind))
            for link in plain.body(bytes.fromhex(digest), kind).links:
                assert link.hex() in told["objects"]
        if "tree" in each["kinds"]:
            for _, blob, size, _ in plain.tree(bytes.fromhex(digest)):
                assert told["objects"][blob.hex()]["size"] == size
    assert len(plain.lines) == told["lines"]
    assert [list(pin) for pin in plain.pins()] == told["pins"]
    assert plain.refs() == told["refs"]
    with Archive.open(shutil.copytree(HERE / name, tmp_path / name)) as archive:
        assert archive.ledger.root() == plain.root()
        for digest, kind in plain.objects:
            assert {bytes(link) for link in archive.links(Digest(digest))} >= set(plain.body(digest, kind).links)


def test_they_hold_everything_that_there_is() -> None:
    """A codec, a kind, a form or a layout that no golden archive has would not stay readable unnoticed."""
    archives = {name: PlainArchive(HERE / name) for name in NAMES}
    records = [record for each in archives.values() for segment in each.segments.values() for record in segment.records]
    assert {record.codec for record in records if record.type == CHUNK} == set(codecs())
    assert {record.codec for record in records if record.type == OBJECT} == {0, 1}
    assert {record.kind for record in records if record.type == OBJECT} == {kind.number for kind in Kind}
    bodies = [each.body(*key) for each in archives.values() for key in each.objects]
    assert {(body.form, body.layout) for body in bodies} == {(1, 0), (2, 0), (2, 1)}
    assert {bool(body.links) for body in bodies} == {True, False}
    segments = [segment for each in archives.values() for segment in each.segments.values()]
    assert {segment.sealed for segment in segments} == {True, False}
    assert any(segment.tail and segment.records for segment in segments)
    assert any(segment.tail and not segment.records for segment in segments)
    assert archives["torn"].torn
    events = {json.loads(line)["event"] for each in archives.values() for line in each.lines}
    assert events == {"archive.created", "pin", "unpin", "ref.set", "note", "collected"}
    assert sum(file.stat().st_size for file in HERE.rglob("*") if file.is_file()) < 300_000


_DTYPES = {
    "F16": "<f2", "F32": "<f4", "F64": "<f8", "C64": "<c8", "F8_E4M3": "u1", "F8_E5M2": "u1", "BOOL": "u1",
    "I8": "i1", "U8": "u1", "I16": "<i2", "I32": "<i4", "I64": "<i8",
}  # fmt: skip


def _tensors(seed: int) -> dict[str, tuple[str, list[int], bytes]]:
    """Of every dtype and temper: noise, constants, few values, mostly zero, odd lengths."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, tuple[str, list[int], bytes]] = {}
    for dtype, numpy in _DTYPES.items():
        for temper in ("normal", "constant", "few", "sparse", "wild"):
            count = int(rng.integers(60, 5000))
            if temper == "normal":
                values = rng.standard_normal(count) * 3
            elif temper == "constant":
                values = np.full(count, 7.0)
            elif temper == "few":
                values = rng.integers(0, 3, count) * 1.0
            elif temper == "sparse":
                values = np.where(rng.random(count) < 0.03, rng.standard_normal(count) * 50, 0)
            else:
                values = np.frombuffer(rng.bytes(count), "u1").astype("f8")
            if np.dtype(numpy).kind in "iu":
                values = np.clip(values, 0 if numpy == "u1" else -100, 1 if dtype == "BOOL" else 100)
            tensors[f"{dtype} {temper}"] = (dtype, [count], values.astype(numpy).tobytes())
    tensors["bf16"] = ("BF16", [4001], bf16(rng.standard_normal(4001)))
    return tensors


def _nudged(tensors: dict[str, tuple[str, list[int], bytes]], seed: int) -> dict[str, tuple[str, list[int], bytes]]:
    rng = np.random.default_rng(seed)
    moved = {}
    for name, (dtype, shape, content) in tensors.items():
        data = np.frombuffer(content, "u1").copy()
        places = rng.random(len(data)) < rng.choice([0.0, 0.01, 0.3, 1.0])
        data[places] ^= rng.integers(0, 4, int(places.sum()), dtype=np.uint8)
        moved[name] = (dtype, shape, data.tobytes())
    return moved


@pytest.mark.parametrize("seed", range(3))
def test_what_is_written_today_is_read_from_the_text(tmp_path: Path, seed: int) -> None:
    first = _tensors(seed)
    contents = [
        safetensors(first, {}),
        safetensors(_nudged(first, seed), {}),
        safetensors(_nudged(first, seed + 9), {}),
    ]
    with Archive.open(tmp_path / "a", create=True, seal_at=200_000) as archive:
        base = None
        for number, content in enumerate(contents):
            (tmp_path / f"{number}.safetensors").write_bytes(content)
            stored = archive.put_file(tmp_path / f"{number}.safetensors", base=base)
            archive.pin(stored.digest, kind=Kind.BLOB, name=f"{number}")
            base = archive.base(stored.digest)
    plain = PlainArchive(tmp_path / "a")
    for content in contents:
        assert plain.content(bytes(Digest.of(content)), "blob") == content
    assert {record.codec for record in plain.chunks.values()} >= set(codecs()) - {0}


def test_the_plain_reader_sees_a_changed_byte(tmp_path: Path) -> None:
    """It is strict: were it lenient, its agreement would mean little."""
    path = Path(shutil.copytree(HERE / "whole", tmp_path / "whole"))
    told = EXPECTED["whole"]["objects"]

    def reads() -> bool:
        try:
            plain = PlainArchive(path)
            for digest, each in told.items():
                for kind in each["kinds"]:
                    plain.content(bytes.fromhex(digest), kind)
        except (FormatError, KeyError):
            return False
        return True

    assert reads()
    for name, segment in PlainArchive(path).segments.items():
        file = path / "segments" / name
        data = file.read_bytes()
        last = segment.records[-1]
        for at in range(0, last.offset + 128 + len(last.payload), 97):
            file.write_bytes(data[:at] + bytes([data[at] ^ 8]) + data[at + 1 :])
            assert not reads(), (name, at)
        file.write_bytes(data)
