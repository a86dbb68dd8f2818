"""Small files are whole: what a failing disk or another writer leaves is the old file or the new one."""

import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from csf_store import create_file, replace_file

Write = Callable[..., bool | None]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_replacing_leaves_the_new_bytes_and_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    for data in (b"one", b"another, longer", b""):
        replace_file(path, data)
        assert path.read_bytes() == data
    assert names(tmp_path) == {"state.json"}


def test_only_the_first_creates(tmp_path: Path) -> None:
    path = tmp_path / "key"
    assert create_file(path, b"first")
    assert not create_file(path, b"second")
    assert path.read_bytes() == b"first"
    assert names(tmp_path) == {"key"}


def test_of_many_at_once_one_creates_and_all_read_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "key"

    def race(number: int) -> tuple[bool, bytes]:
        data = bytes([number]) * 32
        return create_file(path, data), path.read_bytes()

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(race, range(64)))
    assert sum(made for made, _ in found) == 1
    assert {read for _, read in found} == {bytes([next(n for n, (made, _) in enumerate(found) if made)]) * 32}


@pytest.mark.parametrize("write", [replace_file, create_file])
def test_private_files_are_the_owners(write: Write, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write(tmp_path / "private", b"x", private=True)
        write(tmp_path / "open", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "open").stat().st_mode & 0o777 == 0o666


@pytest.mark.parametrize("write", [replace_file, create_file])
def test_a_disk_that_fails_leaves_what_was_there(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    path = tmp_path / "state"
    if write is replace_file:
        path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        write(path, b"new")
    assert names(tmp_path) == ({"state"} if write is replace_file else set())
    assert write is create_file or path.read_bytes() == b"old"


@pytest.mark.parametrize("write", [replace_file, create_file])
def test_bytes_are_synced_before_they_get_their_name_and_the_name_after(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state"
    seen: list[tuple[bool, bool]] = []
    real = os.fsync

    def watch(fd: int) -> None:
        seen.append((stat.S_ISDIR(os.fstat(fd).st_mode), path.exists()))
        real(fd)

    monkeypatch.setattr(os, "fsync", watch)
    write(path, b"new")
    assert seen == [(False, False), (True, True)]
