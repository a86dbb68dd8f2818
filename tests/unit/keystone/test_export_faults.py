"""Exports that go wrong leave nothing, and hostile trees get nowhere."""

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from export_lab import put_base, put_manifest, write_base
from safetensors.torch import load_file, save_file

from csf_store import Archive, CorruptError
from keystone.checkpoints.export import ExportRequest, examine_export, export
from keystone.checkpoints.export.writing import ExportDirectory
from keystone.errors import CheckpointError, InvalidInputError, OutputExistsError, RefusedError, StorageError
from keystone.nano.embedded import DATA
from manifests import canonical_bytes


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    (tmp_path / "home").mkdir()
    with Archive.create(tmp_path / "archive") as opened:
        yield opened


def everything(home: Path) -> set[str]:
    return {path.relative_to(home).as_posix() for path in home.rglob("*")}


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_full_disk_leaves_nothing(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str | None
) -> None:
    manifest = put_base(archive, write_base(tmp_path / "base"))
    written = 0
    write = os.write

    def full(descriptor: int, data: bytes) -> int:
        nonlocal written
        written += len(data)
        if written > (1_000_000 if dtype else 2000):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageError, match="No space left"):
        export(archive, manifest, tmp_path / "home" / "out", ExportRequest(dtype=dtype))
    assert everything(tmp_path / "home") == set()


@pytest.mark.parametrize("moment", ["weights", "publish"])
def test_an_interruption_leaves_nothing(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    manifest = put_base(archive, write_base(tmp_path / "base"))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if moment == "publish":
        monkeypatch.setattr(ExportDirectory, "_publish", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export(archive, manifest, tmp_path / "home" / "out", progress=interrupt if moment == "weights" else None)
    assert everything(tmp_path / "home") == set()


def test_a_failed_replacement_keeps_what_was_there(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "home" / "out"
    first = put_base(archive, write_base(tmp_path / "base"))
    export(archive, first, out)
    before = everything(tmp_path / "home")
    second = put_base(archive, write_base(tmp_path / "base2", seed=1))
    with pytest.raises(OutputExistsError, match="--force"):
        export(archive, second, out)
    rename, calls = Path.rename, []

    def fail_second(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == 2:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_second)
    with pytest.raises(StorageError):
        export(archive, second, out, ExportRequest(force=True))
    monkeypatch.undo()
    assert everything(tmp_path / "home") == before
    assert examine_export(out).manifest == first
    export(archive, second, out, ExportRequest(force=True))
    assert examine_export(out).manifest == second
    assert everything(tmp_path / "home") == before


def test_force_replaces_exports_and_nothing_else(archive: Archive, tmp_path: Path) -> None:
    manifest = put_base(archive, write_base(tmp_path / "base"))
    home = tmp_path / "home"
    (home / "letters").mkdir()
    (home / "letters" / "dear.txt").write_text("do not lose me")
    (home / "link").symlink_to(home / "letters")
    (home / "file").write_text("x")
    for name in ("letters", "link", "file"):
        with pytest.raises(RefusedError, match="not an export"):
            export(archive, manifest, home / name, ExportRequest(force=True))
    assert (home / "letters" / "dear.txt").read_text() == "do not lose me"
    with pytest.raises(InvalidInputError, match="not a directory"):
        export(archive, manifest, home / "nowhere" / "out")
    (home / "empty").mkdir()
    export(archive, manifest, home / "empty")


@pytest.mark.parametrize("path", ["../out.txt", "/etc/x", "a/../../b", "a//b", "", ".", "a\\b", "c:x", "a\0b"])
def test_no_name_leaves_the_directory(tmp_path: Path, path: str) -> None:
    with pytest.raises(InvalidInputError), ExportDirectory(tmp_path / "out", force=False) as directory:
        directory.write(path, b"x")
    assert everything(tmp_path) == set()


def test_a_name_is_taken_once(tmp_path: Path) -> None:
    with (
        pytest.raises(RefusedError, match="already taken"),
        ExportDirectory(tmp_path / "out", force=False) as directory,
    ):
        directory.write("config.json", b"{}")
        directory.write("config.json", b"[]")


def test_a_tokenizer_tree_brings_no_code_and_replaces_no_file(archive: Archive, tmp_path: Path) -> None:
    base = archive.put_tree(write_base(tmp_path / "base")).digest
    hostile = tmp_path / "tokenizer"
    hostile.mkdir()
    (hostile / "tokenizer.json").write_bytes((DATA / "tokenizer" / "tokenizer.json").read_bytes())
    config = {
        "tokenizer_class": "Evil",
        "auto_map": {"AutoTokenizer": [None, "x/y--evil.Evil"]},
        "eos_token": "<|end|>",
    }
    (hostile / "tokenizer_config.json").write_text(json.dumps(config))
    for name in (
        "evil.py",
        "modeling_keystone.py",
        "config.json",
        "README.md",
        "keystone.json",
        "model.safetensors.index.json",
    ):
        (hostile / name).write_text("{}")
    (hostile / "adapters").mkdir()
    (hostile / "adapters" / "x.json").write_text("{}")
    manifest = put_manifest(archive, base, tokenizer=hostile)
    exported = export(archive, manifest, tmp_path / "home" / "out")
    assert set(exported.left_out) == {
        "evil.py",
        "modeling_keystone.py",
        "config.json",
        "README.md",
        "keystone.json",
        "model.safetensors.index.json",
        "adapters/x.json",
    }
    written = json.loads((tmp_path / "home" / "out" / "tokenizer_config.json").read_text())
    assert "auto_map" not in written and written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert examine_export(tmp_path / "home" / "out").problems == {}
    assert not list((tmp_path / "home" / "out").glob("*.py"))


def test_names_of_shards_are_our_own(archive: Archive, tmp_path: Path) -> None:
    directory = write_base(tmp_path / "base", shards=2)
    (directory / "sub").mkdir()
    (directory / "part0.safetensors").rename(directory / "sub" / "README.md.safetensors")
    manifest = put_base(archive, directory)
    exported = export(archive, manifest, tmp_path / "home" / "out")
    weights = {file.path for file in exported.files if file.path.endswith(".safetensors")}
    assert weights == {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_damaged_weights_are_not_exported(archive: Archive, tmp_path: Path, dtype: str | None) -> None:
    manifest = put_base(archive, write_base(tmp_path / "base"))
    segment = next((archive.path / "segments").iterdir())
    data = bytearray(segment.read_bytes())
    data[len(data) // 3] ^= 1
    segment.write_bytes(data)
    with Archive.open(archive.path) as damaged, pytest.raises(CorruptError):
        export(damaged, manifest, tmp_path / "home" / "out", ExportRequest(dtype=dtype))
    assert everything(tmp_path / "home") == set()


def test_a_blob_is_proven_as_a_whole_before_its_tensors_are_read_one_by_one(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each chunk proves itself; that the list of chunks is the blob's, only a hash of the whole can tell."""
    manifest = put_base(archive, write_base(tmp_path / "base"))
    monkeypatch.setattr(archive, "verify", lambda _: SimpleNamespace(ok=False, findings=()))
    with pytest.raises(CorruptError, match="nothing was exported"):
        export(archive, manifest, tmp_path / "home" / "out", ExportRequest(dtype="bfloat16"))
    assert everything(tmp_path / "home") == set()


def test_a_base_that_is_no_model_is_refused_before_anything_is_written(archive: Archive, tmp_path: Path) -> None:
    directory = write_base(tmp_path / "base")
    tensors = load_file(directory / "model.safetensors")
    tensors["surplus"] = tensors.pop("model.norm.weight")
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing: model\.norm\.weight; surplus: surplus"):
        export(archive, put_base(archive, directory), tmp_path / "home" / "out")
    packed = write_base(tmp_path / "packed")
    tensors = load_file(packed / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int8)
    save_file(tensors, packed / "model.safetensors")
    with pytest.raises(RefusedError, match=r"model\.norm\.weight"):
        export(archive, put_base(archive, packed), tmp_path / "home" / "out")
    assert everything(tmp_path / "home") == set()


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found.update(v=2),
        lambda found: found.update(manifest="b3:" + "0" * 64),
        lambda found: found["files"].append(["../../etc/passwd", "b3:" + "0" * 64, 1]),
        lambda found: found["files"].append(["x"]),
        lambda found: found["document"].pop("source"),
        lambda found: found["document"]["labels"].update(forged="yes"),
    ],
)
def test_a_forged_provenance_file_is_seen(archive: Archive, tmp_path: Path, change: object) -> None:
    manifest = put_base(archive, write_base(tmp_path / "base"))
    out = tmp_path / "home" / "out"
    export(archive, manifest, out)
    found = json.loads((out / "keystone.json").read_bytes())
    change(found)  # type: ignore[operator]
    (out / "keystone.json").write_bytes(canonical_bytes(found))
    with pytest.raises(CheckpointError):
        examine_export(out)
