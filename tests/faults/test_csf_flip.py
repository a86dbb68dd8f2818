"""One flipped byte, anywhere in any segment: verify names it, and nothing that lives there is given out."""

import json
import random
from pathlib import Path

import pytest
from click.testing import CliRunner

from csf_store import Archive, CorruptError, Digest, Kind
from csf_store.cli import main

SEALED = 900
"""The last record of the small archive crosses this size, so its one segment is sealed."""


def _safetensors() -> bytes:
    header = json.dumps(
        {"a": {"dtype": "BF16", "shape": [3, 4], "data_offsets": [0, 24]}}, separators=(",", ":")
    ).encode()
    return len(header).to_bytes(8, "little") + header + bytes(range(24))


def _make(tmp_path: Path, *, seal_at: int) -> Digest:
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text('{"hidden":256}')
    (source / "model.safetensors").write_bytes(_safetensors())
    with Archive.open(tmp_path / "archive", create=True, seal_at=seal_at) as archive:
        tree = archive.put_tree(source).digest
        archive.pin(tree, kind=Kind.TREE, name="source")
    return tree


def _segments(archive: Path) -> list[Path]:
    return sorted((archive / "segments").iterdir())


def _flip(path: Path, offset: int, mask: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ mask]))


@pytest.mark.parametrize("seal_at", [1 << 20, 200], ids=["unsealed", "sealed"])
def test_every_byte_of_every_segment(tmp_path: Path, seal_at: int) -> None:
    tree = _make(tmp_path, seal_at=seal_at)
    random_ = random.Random(7)
    for segment in _segments(tmp_path / "archive"):
        content = segment.read_bytes()
        for offset in range(len(content)):
            _flip(segment, offset, mask := 1 << random_.randrange(8))
            with Archive.open(tmp_path / "archive") as archive:
                report = archive.verify(reachable_only=True)
                named = [found for found in report.findings if found.segment == segment.name]
                assert named, f"offset {offset} of {len(content)}: {report}"
                assert all(found.digest or found.offset is not None for found in named)
            _flip(segment, offset, mask)
        assert segment.read_bytes() == content
    with Archive.open(tmp_path / "archive") as archive:
        assert archive.verify(deep=True).ok
        archive.get_tree(tree, tmp_path / "out")


@pytest.mark.parametrize("seal_at", [1 << 20, SEALED], ids=["unsealed", "sealed"])
def test_get_refuses_whatever_byte_is_flipped(tmp_path: Path, seal_at: int) -> None:
    """All records here belong to one tree, so every byte is one that a get of it needs or vouches for."""
    tree = _make(tmp_path, seal_at=seal_at)
    segments = _segments(tmp_path / "archive")
    assert len(segments) == 1
    size = segments[0].stat().st_size
    assert segments[0].read_bytes()[-64:].startswith(b"\x89CSFEND\n") == (seal_at == SEALED)
    for offset in range(size):
        _flip(segments[0], offset, 0x40)
        with Archive.open(tmp_path / "archive") as archive, pytest.raises(CorruptError, match=segments[0].name):
            for entry in archive.tree(tree).entries:
                archive.get_bytes(entry.blob)
        if offset % 16 == 0:
            with Archive.open(tmp_path / "archive") as archive, pytest.raises(CorruptError, match=segments[0].name):
                archive.get_tree(tree, tmp_path / "out")
        _flip(segments[0], offset, 0x40)
    assert {path.name for path in tmp_path.iterdir()} == {"archive", "source"}


def test_without_the_index_the_ledger_still_knows(tmp_path: Path) -> None:
    """The index is gone and the last record of an unsealed segment is hit: a torn tail to the scanner, a loss to us."""
    _make(tmp_path, seal_at=1 << 20)
    segment = _segments(tmp_path / "archive")[0]
    for offset in range(64, segment.stat().st_size, 13):
        for name in ("index.sqlite", "index.sqlite-wal", "index.sqlite-shm"):
            (tmp_path / "archive" / name).unlink(missing_ok=True)
        _flip(segment, offset, 1)
        with Archive.open(tmp_path / "archive") as archive:
            assert not archive.verify(reachable_only=True).ok, offset
        _flip(segment, offset, 1)


def test_the_command_line_names_the_damage_and_refuses(tmp_path: Path) -> None:
    tree = _make(tmp_path, seal_at=1 << 20)
    archive = str(tmp_path / "archive")
    segment = _segments(tmp_path / "archive")[0]
    random_ = random.Random(11)
    runner = CliRunner()
    for offset in random_.sample(range(segment.stat().st_size), 25):
        _flip(segment, offset, 0x10)
        verified = runner.invoke(main, ["--archive", archive, "verify"])
        assert verified.exit_code == 1
        assert segment.name in verified.stdout
        got = runner.invoke(main, ["--archive", archive, "get", str(tree), "-o", str(tmp_path / "out")])
        assert got.exit_code == 6, got.output
        assert segment.name in got.stderr
        assert not (tmp_path / "out").exists()
        _flip(segment, offset, 0x10)
    assert runner.invoke(main, ["--archive", archive, "verify", "--all", "--deep"]).exit_code == 0
