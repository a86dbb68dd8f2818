"""The write order of FORMAT.md, watched on a file system that keeps a diary."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from csf_store import Archive, ConflictError, Kind, StorageError
from csf_store.digest import Buffer
from csf_store.directories import list_directory
from csf_store.durable import OsFileSystem
from csf_store.index import Index
from csf_store.output import write_file


class Diary(OsFileSystem):
    """Notes what is written and synced, in order; can fail any sync."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.fail_sync_of: str | None = None

    def _name(self, fd: int) -> str:
        path = Path(f"/proc/self/fd/{fd}").readlink()
        return "segment" if path.suffix == ".csfs" else path.name

    def write(self, fd: int, parts: Sequence[Buffer]) -> int:
        self.notes.append(f"write {self._name(fd)}")
        return super().write(fd, parts)

    def fsync(self, fd: int) -> None:
        if self._name(fd) == self.fail_sync_of:
            raise OSError(5, "Input/output error")
        self.notes.append(f"sync {self._name(fd)}")
        super().fsync(fd)

    def fsync_directory(self, path: Path) -> None:
        self.notes.append(f"sync {path.name}/")
        super().fsync_directory(path)


@pytest.fixture
def diary(monkeypatch: pytest.MonkeyPatch) -> Diary:
    diary = Diary()
    add = Index.add

    def noted(index: Index, *arguments: object) -> None:
        diary.notes.append("index")
        add(index, *arguments)

    monkeypatch.setattr(Index, "add", noted)
    return diary


def _story(diary: Diary) -> str:
    return re.sub(r"(write segment )+", "write segment ", " ".join(diary.notes) + " ").strip()


def test_data_then_index_then_ledger(tmp_path: Path, diary: Diary) -> None:
    with Archive.open(tmp_path / "archive", create=True, fs=diary) as archive:
        diary.notes.clear()
        stored = archive.put_bytes(bytes(range(256)) * 1000)
        assert _story(diary) == "write segment sync segment sync segments/ sync archive/ index"
        diary.notes.clear()
        archive.pin(stored.digest, kind=Kind.BLOB, name="x")
        assert _story(diary) == "write ledger.jsonl sync ledger.jsonl"
        diary.notes.clear()
        archive.put_bytes(b"the segment's name is durable already")
        assert _story(diary) == "write segment sync segment index"
        diary.notes.clear()
        archive.put_bytes(b"the segment's name is durable already")
        assert diary.notes == ["index"]  # nothing is written; the object counts as new again


def test_the_first_ledger_line_makes_its_name_durable(tmp_path: Path, diary: Diary) -> None:
    with Archive.open(tmp_path / "archive", create=True, fs=diary):
        assert _story(diary).endswith("write ledger.jsonl sync ledger.jsonl sync archive/")
        marker = [note for note in diary.notes if "csf.json" in note or note == "sync archive/"]
        assert [note.split()[0] for note in marker] == ["sync", "write", "sync", "sync", "sync", "sync"]


def test_a_sealed_segment_is_durable_before_the_index_hears_of_it(tmp_path: Path, diary: Diary) -> None:
    with Archive.open(tmp_path / "archive", create=True, fs=diary, seal_at=1000) as archive:
        diary.notes.clear()
        archive.put_bytes(bytes(range(256)) * 8)
        assert _story(diary) == "write segment sync segment sync segments/ sync archive/ index"


def test_a_failed_sync_acknowledges_nothing_and_is_not_believed_later(tmp_path: Path, diary: Diary) -> None:
    with Archive.open(tmp_path / "archive", create=True, fs=diary) as archive:
        archive.put_bytes(b"kept")
        diary.fail_sync_of = "segment"
        with pytest.raises(StorageError, match="failing"):
            archive.put_bytes(b"not durable")
        diary.fail_sync_of = None
        diary.notes.clear()
        assert archive.put_bytes(b"not durable").new  # written and synced anew, in another segment
        assert _story(diary) == "write segment sync segment sync segments/ sync archive/ index"
        assert archive.verify().ok


def test_got_files_are_synced_before_they_get_their_name(tmp_path: Path, diary: Diary) -> None:
    with Archive.open(tmp_path / "archive", create=True, fs=diary) as archive:
        digest = archive.put_bytes(b"content").digest
        diary.notes.clear()
        archive.get_file(digest, tmp_path / "out")
        assert [note.split()[0] for note in diary.notes] == ["write", "sync", "sync"]
        assert diary.notes[-1] == f"sync {tmp_path.name}/"
    assert (tmp_path / "out").read_bytes() == b"content"


def test_each_file_of_a_directory_is_durable_before_it_is_acknowledged(tmp_path: Path, diary: Diary) -> None:
    (tmp_path / "source").mkdir()
    for name in "ab":
        (tmp_path / "source" / name).write_text(f"content of {name}")
    with Archive.open(tmp_path / "archive", create=True, fs=diary) as archive:
        archive.put_bytes(b"the segment exists")
        for file in list_directory(tmp_path / "source", allow_pickle=False):
            diary.notes.clear()
            archive.put_found(file)
            assert _story(diary) == "write segment sync segment index"
        diary.notes.clear()
        archive.put_tree(tmp_path / "source")
        # The known files count as new again; then one sync, because only the tree is new.
        assert _story(diary) == "index write segment sync segment index"


def test_nobody_overwrites_a_file_that_appears_meanwhile(tmp_path: Path) -> None:
    def content() -> Iterator[bytes]:
        yield b"half"
        (tmp_path / "out").write_text("somebody was faster")
        yield b"half"

    with pytest.raises(ConflictError, match="--force"):
        write_file(OsFileSystem(), tmp_path / "out", content, overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out").read_text() == "somebody was faster"


def test_what_another_process_left_is_made_durable_before_it_counts(tmp_path: Path, diary: Diary) -> None:
    with Archive.open(tmp_path / "archive", create=True) as archive:
        digest = archive.put_bytes(b"left behind").digest
    (tmp_path / "archive" / "index.sqlite").unlink()
    diary.notes.clear()
    with Archive.open(tmp_path / "archive", fs=diary) as archive:
        assert _story(diary) == "sync segment sync segments/ sync archive/ index"
        assert not archive.put_bytes(b"left behind").new
        assert archive.get_bytes(digest) == b"left behind"
