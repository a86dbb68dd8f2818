"""The archive in numbers, against numbers counted by hand."""

import json
import random
import sqlite3
from pathlib import Path

from checkpoint_maker import fine_tuned, make_safetensors, weights
from click.testing import CliRunner

from csf_store import Archive, Kind
from csf_store.cli import main


def _noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def test_an_empty_archive(tmp_path: Path) -> None:
    with Archive.open(tmp_path / "a", create=True) as archive:
        stats = archive.stats()
    assert (stats.blobs, stats.unique, stats.stored, stats.chunks, stats.ledger) == (0, 0, 0, 0, 1)
    assert (stats.dedup, stats.ratio) == (1.0, 1.0)


def test_logical_unique_and_stored(tmp_path: Path) -> None:
    """Two trees share a file of two chunks, of which one is in a third blob too."""
    first, second, small = _noise(1, 4 << 20), _noise(2, 70_000), b"small"
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "shared").write_bytes(first + second)
        (tmp_path / name / "name").write_text(name)
    with Archive.open(tmp_path / "a", create=True, seal_at=1 << 20) as archive:
        trees = [archive.put_tree(tmp_path / name).digest for name in ("one", "two")]
        archive.put_bytes(second)
        archive.put_bytes(small)
        manifest = archive.put_bytes(b"manifest", kind=Kind.MANIFEST, links=trees[:1]).digest
        archive.pin(trees[1], kind=Kind.TREE)
        archive.ledger.append("ref.set", ref="prod", **{"from": None, "to": str(manifest)})
        stats = archive.stats()
        size = len(first) + len(second)
        assert stats.pinned == 2 * (size + 3)
        assert stats.blobs == size + 3 + 3 + len(second) + len(small)
        assert stats.unique == size + 3 + 3 + len(small)
        assert stats.stored == sum(path.stat().st_size for path in (tmp_path / "a" / "segments").iterdir())
        assert (stats.chunks, stats.differences) == (2, 0)
        assert [(each.codec, each.chunks, each.raw, each.stored) for each in stats.codecs] == [("raw", 2, size, size)]
        assert {each.kind: each.objects for each in stats.kinds} == {"blob": 5, "tree": 2, "manifest": 1}
        assert (stats.sealed, stats.unsealed, stats.ledger, stats.unreadable) == (1, 1, 3, 0)
        assert 0 < stats.unlisted < 2000  # headers and a footer
        archive.unpin(trees[1])
        archive.collect(grace=0)
        after = archive.stats()
        assert after.pinned == size + 3
        assert {each.kind: each.objects for each in after.kinds} == {"blob": 2, "tree": 1, "manifest": 1}


def test_forms(tmp_path: Path) -> None:
    raw = weights(400, 400, 1)
    (tmp_path / "t.safetensors").write_bytes(make_safetensors({"t": ("BF16", [400, 400], fine_tuned(raw, 2))}))
    with Archive.open(tmp_path / "a", create=True) as archive:
        base = archive.put_bytes(make_safetensors({"t": ("BF16", [400, 400], raw)})).digest
        archive.put_file(tmp_path / "t.safetensors", base=archive.base(base))
        stats = archive.stats()
        by_codec = {each.codec: each for each in stats.codecs}
        assert {"planes", "delta"} <= by_codec.keys()
        assert (by_codec["delta"].chunks, by_codec["delta"].raw) == (1, len(raw))
        assert by_codec["delta"].ratio < by_codec["planes"].ratio < 1
        assert stats.differences == 1
        assert sum(each.chunks for each in stats.codecs) == stats.chunks == 3  # the headers are alike


def test_what_is_damaged_is_counted_as_such(tmp_path: Path) -> None:
    with Archive.open(tmp_path / "a", create=True) as archive:
        digest = archive.put_bytes(b"x").digest
        archive.pin(digest, kind=Kind.BLOB)
        with sqlite3.connect(tmp_path / "a" / "index.sqlite") as database:
            database.execute("DELETE FROM objects")
        database.close()
        assert (archive.stats().unreadable, archive.stats().pinned) == (1, 0)


def test_forged_sizes_do_not_overflow(tmp_path: Path) -> None:
    with Archive.open(tmp_path / "a", create=True) as archive:
        for number in range(3):
            archive.put_bytes(b"%d" % number)
        with sqlite3.connect(tmp_path / "a" / "index.sqlite") as database:
            database.execute("UPDATE objects SET raw = 9223372036854775807")
        database.close()
        assert archive.stats().blobs >= 1 << 63


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(_noise(1, 100_000))
    runner = CliRunner()
    at = ["--archive", str(tmp_path / "a")]
    assert runner.invoke(main, [*at, "put", str(tmp_path / "file")]).exit_code == 0
    told = runner.invoke(main, [*at, "stats"])
    assert told.exit_code == 0
    assert "pinned      97.7 KiB logical" in told.stdout
    document = json.loads(runner.invoke(main, [*at, "stats", "--json"]).stdout)
    assert (document["pinned"], document["blobs"], document["chunks"]) == (100_000, 100_000, 1)
    assert document["codecs"][0]["codec"] == "raw"
    assert document["kinds"] == [{"kind": "blob", "objects": 1, "raw": 100_000, "stored": 60}]
