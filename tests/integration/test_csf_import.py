"""``csf import`` as people and scripts meet it."""

import hashlib
import json
import pickle
import struct
from pathlib import Path

import pytest
from blake3 import blake3
from click.testing import CliRunner, Result

from csf_store import Archive, CorruptError, Digest, Kind
from csf_store.cli import main
from csf_store.csfpack.member import MemberSource

GOLDEN = Path(__file__).parents[1] / "golden" / "csf-pack"
CONTENTS = json.loads((GOLDEN / "contents.json").read_text())


def _csf(tmp_path: Path, *arguments: object) -> Result:
    return CliRunner().invoke(main, ["--archive", str(tmp_path / "archive"), *map(str, arguments)])


def _lines(result: Result) -> list[dict[str, object]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def _container(path: str, content: bytes) -> bytes:
    row = {"path": path, "size": len(content), "csize": len(content), "offset": 0, "codec": "store"}
    manifest = json.dumps({"files": [{**row, "sha256": hashlib.sha256(content).hexdigest()}]}).encode()
    body = b"CSF\0\0\x08" + struct.pack(">HI", 0, len(manifest)) + manifest + content
    return body + hashlib.sha256(body).digest() + struct.pack(">Q", len(body) + 40)


@pytest.mark.parametrize("name", sorted(CONTENTS))
def test_a_container_becomes_a_pinned_tree_that_can_be_written_back(tmp_path: Path, name: str) -> None:
    lines = _lines(_csf(tmp_path, "import", "--json", GOLDEN / name))
    assert [(line["path"], line["size"]) for line in lines[:-1]] == [
        (row["path"], row["size"]) for row in CONTENTS[name]
    ]
    assert all({"digest", "path", "size", "stored"} <= line.keys() for line in lines)
    tree = lines[-1]
    assert (tree["kind"], tree["path"]) == ("tree", str(GOLDEN / name))
    assert tree["size"] == sum(row["size"] for row in CONTENTS[name])
    assert [(pin["digest"], pin["path"]) for pin in _lines(_csf(tmp_path, "ls", "--json"))] == [(tree["digest"], name)]
    out = tmp_path / "out"
    assert _csf(tmp_path, "get", tree["digest"], "-o", out).exit_code == 0
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()) == sorted(
        row["path"] for row in CONTENTS[name]
    )
    for row, line in zip(CONTENTS[name], lines, strict=False):
        content = (out / row["path"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == row["sha256"]
        assert line["digest"] == f"b3:{blake3(content).hexdigest()}"
    assert _lines(_csf(tmp_path, "verify", "--deep", "--json"))[-1]["ok"] is True


def test_the_same_directory_put_is_the_same_tree_and_nothing_is_stored_twice(tmp_path: Path) -> None:
    tree = _lines(_csf(tmp_path, "import", "--json", GOLDEN / "mixed.csf"))[-1]["digest"]
    again = _lines(_csf(tmp_path, "import", "--json", GOLDEN / "stored.csf"))
    assert {line["stored"] for line in again} == {0}
    assert again[-1]["digest"] == tree
    assert _csf(tmp_path, "get", tree, "-o", tmp_path / "out").exit_code == 0
    assert _lines(_csf(tmp_path, "put", "--json", tmp_path / "out"))[-1]["digest"] == tree


class TestRefused:
    def _refused(self, tmp_path: Path, code: int, says: str, file: Path) -> None:
        result = _csf(tmp_path, "import", file)
        assert (result.exit_code, result.stdout) == (code, ""), result.output
        assert says in result.stderr
        assert result.stderr.count("\n") == 1
        assert not (tmp_path / "archive").exists()

    def test_what_is_not_there_not_one_or_damaged(self, tmp_path: Path) -> None:
        self._refused(tmp_path, 5, "nowhere.csf does not exist", tmp_path / "nowhere.csf")
        self._refused(tmp_path, 7, "not a regular file", tmp_path)
        self._refused(tmp_path, 7, "no CSF-Pack container", GOLDEN / "contents.json")
        damaged = bytearray((GOLDEN / "mixed.csf").read_bytes())
        damaged[3000] ^= 1
        (tmp_path / "t.csf").write_bytes(damaged)
        self._refused(tmp_path, 6, "trailer at offset 7915", tmp_path / "t.csf")

    def test_the_last_of_many_files_is_bad_and_nothing_is_stored(self, tmp_path: Path) -> None:
        body = bytearray((GOLDEN / "dictionary.csf").read_bytes()[:-40])
        at = body.index(b'"offset":1884')
        body[at : at + 13] = b'"offset":1883'
        (tmp_path / "t.csf").write_bytes(
            bytes(body) + hashlib.sha256(body).digest() + struct.pack(">Q", len(body) + 40)
        )
        self._refused(tmp_path, 7, "overlap at offset 1883", tmp_path / "t.csf")

    def test_pickles_unless_allowed(self, tmp_path: Path) -> None:
        (tmp_path / "t.csf").write_bytes(_container("w.bin", pickle.dumps({"a": [1, 2.0]})))
        self._refused(tmp_path, 7, "t.csf/w.bin is a pickle stream", tmp_path / "t.csf")
        assert _csf(tmp_path, "import", "--allow-pickle", tmp_path / "t.csf").exit_code == 0

    def test_a_container_that_changes_after_it_was_checked(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        finish = MemberSource.finish

        def then_change(source: MemberSource) -> None:
            finish(source)
            path = tmp_path / "t.csf"
            path.write_bytes(path.read_bytes().replace(b"content", b"CONTENT"))

        (tmp_path / "t.csf").write_bytes(_container("a", b"content"))
        monkeypatch.setattr(MemberSource, "finish", then_change)
        result = _csf(tmp_path, "import", "--json", tmp_path / "t.csf")
        assert (result.exit_code, result.stdout) == (CorruptError.exit_code, "")
        assert "changed at 'a' while it was imported" in result.stderr
        with Archive.open(tmp_path / "archive") as archive:
            assert archive.pins() == ()

    def test_a_name_can_not_talk_to_the_terminal(self, tmp_path: Path) -> None:
        (tmp_path / "t.csf").write_bytes(_container("a\x1b[2J\nb3:forged", b"content"))
        result = _csf(tmp_path, "import", tmp_path / "t.csf")
        assert result.exit_code == 0
        assert "\x1b" not in result.stdout
        assert len(result.stdout.splitlines()) == 2
        (tmp_path / "t.csf").write_bytes(_container("a\x1b[2J.safetensors", b"content"))
        assert "\x1b" not in _csf(tmp_path, "import", tmp_path / "t.csf").stderr


def test_safetensors_in_a_container_are_read_by_tensor(tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    content = len(header).to_bytes(8, "little") + header + bytes(range(8))
    (tmp_path / "t.csf").write_bytes(_container("m.safetensors", content))
    blob = Digest.parse(str(_lines(_csf(tmp_path, "import", "--json", tmp_path / "t.csf"))[0]["digest"]))
    with Archive.open(tmp_path / "archive") as archive:
        assert archive.contains(blob, Kind.BLOB)
        assert bytes(archive.read_tensor(blob, "w")) == bytes(range(8))
