"""The ``csf`` command as people and scripts meet it."""

import json
import os
import pickle
import pty
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from blake3 import blake3
from click.testing import CliRunner, Result

from csf_store import Archive, Kind
from csf_store.cli import main


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "checkpoint"
    (directory / "nested").mkdir(parents=True)
    (directory / "config.json").write_text('{"hidden_size": 256}')
    (directory / "empty").touch()
    (directory / "nested" / "big.bin").write_bytes(bytes(range(256)) * 40_000)
    (directory / "nested" / "run.sh").write_text("#!/bin/sh\n")
    (directory / "nested" / "run.sh").chmod(0o755)
    header = json.dumps({"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}).encode()
    (directory / "m.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(range(16)))
    return directory


def _csf(tmp_path: Path, *arguments: object) -> Result:
    return CliRunner().invoke(main, ["--archive", str(tmp_path / "archive"), *map(str, arguments)])


def _lines(result: Result) -> list[dict[str, object]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def _put(tmp_path: Path, source: Path) -> str:
    return str(_lines(_csf(tmp_path, "put", "--json", source))[-1]["digest"])


def _archive_bytes(tmp_path: Path) -> dict[str, bytes]:
    segments = tmp_path / "archive" / "segments"
    return {path.name: path.read_bytes() for path in segments.iterdir()} if segments.exists() else {}


def test_put_prints_files_first_and_the_tree_last_and_the_second_time_stores_nothing(
    tmp_path: Path, source: Path
) -> None:
    first = _lines(_csf(tmp_path, "put", "--json", source))
    assert [line["kind"] for line in first] == ["blob"] * 5 + ["tree"]
    assert all({"digest", "path", "size", "stored"} <= line.keys() for line in first)
    for line in first[:-1]:
        content = Path(str(line["path"])).read_bytes()
        assert (line["digest"], line["size"]) == (f"b3:{blake3(content).hexdigest()}", len(content))
    assert first[-1]["stored"] == sum(path.stat().st_size for path in (tmp_path / "archive/segments").iterdir()) - 64
    before = _archive_bytes(tmp_path)
    second = _lines(_csf(tmp_path, "put", "--json", source))
    assert [line["digest"] for line in second] == [line["digest"] for line in first]
    assert {line["stored"] for line in second} == {0}
    assert _archive_bytes(tmp_path) == before
    assert len(_lines(_csf(tmp_path, "log", "--json"))) == 2


def test_ls_of_a_tree_agrees_with_b3sum(tmp_path: Path, source: Path) -> None:
    tree = _put(tmp_path, source)
    rows = _lines(_csf(tmp_path, "ls", "--json", tree))
    files = sorted(path for path in source.rglob("*") if path.is_file())
    assert [row["path"] for row in rows] == sorted(str(path.relative_to(source)) for path in files)
    for row in rows:
        content = (source / str(row["path"])).read_bytes()
        assert row["digest"] == f"b3:{blake3(content).hexdigest()}"
        assert row["size"] == len(content)
    human = _csf(tmp_path, "ls", tree[:14]).stdout
    assert all(str(row["digest"]) in human for row in rows)


def test_get_writes_the_same_tree(tmp_path: Path, source: Path) -> None:
    tree = _put(tmp_path, source)
    assert _csf(tmp_path, "get", tree.removeprefix("b3:")[:10], "-o", tmp_path / "out").exit_code == 0
    originals = {path.relative_to(source): path for path in source.rglob("*") if path.is_file()}
    copies = {path.relative_to(tmp_path / "out"): path for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert copies.keys() == originals.keys()
    for name, copy in copies.items():
        assert copy.read_bytes() == originals[name].read_bytes()
        assert os.access(copy, os.X_OK) == os.access(originals[name], os.X_OK)


def test_get_never_overwrites_unless_forced(tmp_path: Path, source: Path) -> None:
    tree = _put(tmp_path, source)
    blob = f"b3:{blake3(b'').hexdigest()}"
    for digest, name in ((tree, "directory"), (blob, "file")):
        out = tmp_path / name
        out.mkdir() if digest == tree else None
        (out / "mine" if digest == tree else out).write_text("keep me")
        refused = _csf(tmp_path, "get", digest, "-o", out)
        assert refused.exit_code == 8
        assert "--force" in refused.stderr
        assert (out / "mine" if digest == tree else out).read_text() == "keep me"
        assert _csf(tmp_path, "get", digest, "-o", out, "--force").exit_code == 0
    assert not (tmp_path / "directory" / "mine").exists()
    assert (tmp_path / "directory" / "config.json").exists()
    assert (tmp_path / "file").read_bytes() == b""


def test_cat_and_stat_and_tensors(tmp_path: Path, source: Path) -> None:
    tree = _put(tmp_path, source)
    assert _csf(tmp_path, "cat", tree, "config.json").stdout == '{"hidden_size": 256}'
    assert _csf(tmp_path, "cat", tree, "missing").exit_code == 5
    info = _lines(_csf(tmp_path, "stat", "--json", tree))[0]
    assert (info["kind"], info["pinned"]) == ("tree", ["checkpoint"])
    blob = blake3((source / "m.safetensors").read_bytes()).hexdigest()
    assert _lines(_csf(tmp_path, "ls", "--json", blob)) == [
        {"tensor": "w", "dtype": "F32", "shape": [2, 2], "size": 16}
    ]


def test_rm_unpins_and_ls_shows_pins(tmp_path: Path, source: Path) -> None:
    tree = _put(tmp_path, source)
    assert [line["digest"] for line in _lines(_csf(tmp_path, "ls", "--json"))] == [tree]
    assert _csf(tmp_path, "rm", tree[:15]).exit_code == 0
    assert _lines(_csf(tmp_path, "ls", "--json")) == []
    again = _csf(tmp_path, "rm", tree)
    assert again.exit_code == 5
    assert tree in again.stderr
    events = [line["event"] for line in _lines(_csf(tmp_path, "log", "--json"))]
    assert events == ["archive.created", "pin", "unpin"]
    assert len(_lines(_csf(tmp_path, "ls", "--json", "--all"))) == 6


def test_verify_says_ok(tmp_path: Path, source: Path) -> None:
    tree = _put(tmp_path, source)
    for arguments in ([], ["--all"], ["--deep"], ["--all", "--deep"], [tree]):
        result = _lines(_csf(tmp_path, "verify", "--json", *arguments))
        assert result[-1]["ok"] is True
        assert result[-1]["findings"] == 0


def test_init_makes_one_archive(tmp_path: Path) -> None:
    assert _csf(tmp_path, "init").exit_code == 0
    assert _csf(tmp_path, "init").exit_code == 8
    assert _csf(tmp_path, "ls").stdout == ""


class TestRefused:
    def _refused(self, tmp_path: Path, code: int, says: str, *arguments: object) -> None:
        before = _archive_bytes(tmp_path)
        result = _csf(tmp_path, *arguments)
        assert result.exit_code == code, result.output
        assert says in result.stderr
        assert result.stderr.count("\n") == 1
        assert result.stdout == ""
        assert _archive_bytes(tmp_path) == before

    def test_unknown_digest(self, tmp_path: Path, source: Path) -> None:
        _put(tmp_path, source)
        self._refused(tmp_path, 5, "deadbeef00", "get", "deadbeef00", "-o", tmp_path / "x")
        self._refused(tmp_path, 7, "at least 8", "get", "dead", "-o", tmp_path / "x")
        self._refused(tmp_path, 7, "not a digest", "stat", "hello world")
        assert not (tmp_path / "x").exists()

    def test_no_archive(self, tmp_path: Path) -> None:
        self._refused(tmp_path, 5, "not a CSF archive", "ls")

    def test_missing_path(self, tmp_path: Path) -> None:
        self._refused(tmp_path, 5, "nowhere", "put", tmp_path / "nowhere")

    def test_truncated_safetensors_and_nothing_of_the_rest_is_written(self, tmp_path: Path, source: Path) -> None:
        whole = (source / "m.safetensors").read_bytes()
        (source / "m.safetensors").write_bytes(whole[:-1])
        self._refused(tmp_path, 7, "truncated", "put", source / "config.json", source)
        assert not (tmp_path / "archive").exists()

    def test_symbolic_link_in_a_directory(self, tmp_path: Path, source: Path) -> None:
        (source / "nested" / "outside").symlink_to("/etc/passwd")
        self._refused(tmp_path, 7, "nested/outside is a symbolic link", "put", source)

    @pytest.mark.parametrize("protocol", [2, 3, 4, 5])
    def test_pickles_by_content(self, tmp_path: Path, source: Path, protocol: int) -> None:
        (source / "weights.bin").write_bytes(pickle.dumps({"a": [1, 2, {"b": 3.0}]}, protocol=protocol))
        self._refused(tmp_path, 7, "pickle", "put", source)
        assert _csf(tmp_path, "put", "--allow-pickle", source).exit_code == 0

    def test_torch_zip(self, tmp_path: Path, source: Path) -> None:
        with zipfile.ZipFile(source / "model.pt", "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps({}))
        self._refused(tmp_path, 7, "archive/data.pkl", "put", source / "model.pt")

    def test_json_errors_are_objects(self, tmp_path: Path) -> None:
        result = _csf(tmp_path, "put", "--json", tmp_path / "nowhere")
        error = json.loads(result.stderr)
        assert (error["error"], error["exit_code"], result.exit_code) == ("NotFoundError", 5, 5)

    def test_usage(self, tmp_path: Path) -> None:
        assert _csf(tmp_path, "put").exit_code == 2
        assert _csf(tmp_path, "nonsense").exit_code == 2

    def test_ambiguous_prefix_needs_more_digits(self, tmp_path: Path) -> None:
        with Archive.open(tmp_path / "archive", create=True) as archive:
            stored = archive.put_bytes(b"x")
            archive.put_bytes(b"x", kind=Kind.RECORD)
        assert _csf(tmp_path, "stat", stored.digest.hex[:8]).exit_code == 0  # two kinds, one digest


def test_help_is_fast_and_imports_nothing_heavy() -> None:
    heavy = ("numpy", "rich", "sqlite3", "zstandard", "torch", "platformdirs", "rfc8785")
    code = (
        "import sys\nfrom csf_store.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.rstrip().endswith("[]")
    assert "Shell completion" in output


def test_every_command_has_help_with_an_example() -> None:
    for command in ("init", "put", "import", "get", "ls", "stat", "cat", "verify", "rm", "log"):
        result = CliRunner().invoke(main, [command, "--help"])
        assert result.exit_code == 0
        assert f"csf {command}" in result.stdout or f" {command}\n" in result.stdout


def test_the_archive_is_chosen_by_the_environment_and_can_be_moved(tmp_path: Path, source: Path) -> None:
    runner = CliRunner()
    environment = {"CSF_ARCHIVE": str(tmp_path / "here")}
    assert runner.invoke(main, ["put", str(source)], env=environment).exit_code == 0
    shutil.move(tmp_path / "here", tmp_path / "there")
    result = runner.invoke(main, ["verify"], env={"CSF_ARCHIVE": str(tmp_path / "there")})
    assert result.exit_code == 0


def test_a_terminal_sees_a_bar_and_a_pipe_sees_whole_lines(tmp_path: Path, source: Path) -> None:
    """Standard error is a terminal, standard output a pipe: the bar may not swallow or break what we print."""
    leader, follower = pty.openpty()
    code = "from csf_store.cli import main; main()"
    command = [sys.executable, "-c", code, "--archive", str(tmp_path / "archive"), "put", str(source)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=follower, text=True) as process:
        os.close(follower)
        assert process.stdout is not None
        lines = process.stdout.read().splitlines()
    seen = b""
    while True:
        try:
            seen += os.read(leader, 4096)
        except OSError:  # the other end is closed
            break
    os.close(leader)
    assert process.returncode == 0
    assert len(lines) == 6
    assert all(line.startswith("b3:") and line.endswith(path) for line, path in zip(lines, _names(source), strict=True))
    assert b"\x1b[" in seen
    assert b"b3:" not in seen


def _names(source: Path) -> list[str]:
    return [*sorted(str(path) for path in source.rglob("*") if path.is_file()), str(source)]
