"""An output directory that is there whole or not at all.

Everything is written to a sibling under a temporary name, hashed on the way and synced; one rename at the end makes it
visible. Whatever goes wrong before that (an error, a full disk, an interruption) takes the sibling away again. An older
export in the way is replaced only when asked, and only if it is an export: `--force` must not empty a home directory.

Names come from archived trees, which anybody may have made. `ExportDirectory` takes plain relative names alone.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TypeAlias

from blake3 import blake3

from csf_store import Digest
from keystone.errors import InvalidInputError, OutputExistsError, RefusedError, StorageError

PROVENANCE_FILE = "keystone.json"
"""What tells an export from any other directory; see `provenance`."""

Buffer: TypeAlias = bytes | bytearray | memoryview


class Sink(Protocol):
    """Where bytes go."""

    def write(self, data: Buffer, /) -> int:
        """Take all of the bytes."""
        ...


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file of the export: its path with forward slashes, the BLAKE3 of its content, its size in bytes."""

    path: str
    digest: Digest
    size: int


class _HashingFile:
    """A file that knows the digest of what went into it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._hasher = blake3()
        self.size = 0

    def write(self, data: Buffer, /) -> int:
        view = memoryview(data).cast("B")
        self._hasher.update(view)
        self.size += len(view)
        rest = view
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
        return len(view)

    def digest(self) -> Digest:
        return Digest(self._hasher.digest())


class ExportDirectory:
    """A directory in the making. Use it as a context manager: leaving it without an error makes it visible.

    Args:
        out: where it will be; its parent must exist.
        force: replace an earlier export.

    Raises:
        OutputExistsError: there is something already.
        RefusedError: `force` was given, and what is there is no export.
        InvalidInputError: there is no directory to put it in.
        StorageError: the file system said no.
    """

    def __init__(self, out: Path, *, force: bool) -> None:
        self.out = Path(os.path.abspath(out))  # noqa: PTH100 - resolve() would follow a link that is to be refused
        self._check_place(force=force)
        self._holder = self.out.with_name(f".{self.out.name}.{secrets.token_hex(6)}.part")
        self.path = self._holder / self.out.name  # its last name already: a signature over it holds that
        self.files: list[WrittenFile] = []

    def _check_place(self, *, force: bool) -> None:
        if not self.out.parent.is_dir():
            raise InvalidInputError(f"{self.out.parent} is not a directory; make it first")
        if not os.path.lexists(self.out) or _is_empty_directory(self.out):
            return
        if not force:
            raise OutputExistsError(f"{self.out} exists; choose another directory, or replace an export with --force")
        if self.out.is_symlink() or not (self.out / PROVENANCE_FILE).is_file():
            raise RefusedError(f"{self.out} is not an export (no {PROVENANCE_FILE} in it); remove it by hand first")

    def __enter__(self) -> Self:
        with _storage_errors(self.out):
            self.path.mkdir(parents=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if error is None:
                with _storage_errors(self.out):
                    self._publish()
        finally:
            shutil.rmtree(self._holder, ignore_errors=True)
        if isinstance(error, OSError):
            raise _storage_error(self.out, error) from error

    @contextlib.contextmanager
    def file(self, path: str) -> Iterator[Sink]:
        """Open a new file to write; it is hashed, synced and listed when the block ends.

        Raises:
            InvalidInputError: the path could leave the directory.
            RefusedError: the export has a file of that name already.
        """
        place = self.place(path)
        with _storage_errors(self.out):
            descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            try:
                sink = _HashingFile(descriptor)
                yield sink
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        self.note(path, sink.digest(), sink.size)

    def write(self, path: str, data: bytes) -> None:
        """Write a small file at once."""
        with self.file(path) as sink:
            sink.write(data)

    def place(self, path: str) -> Path:
        """Where a file of that name is to be written by somebody else, who then calls `note`.

        Raises:
            InvalidInputError, RefusedError: as `file`.
        """
        check_relative(path)
        if any(path == known.path for known in self.files):
            raise RefusedError(f"{path!r} is already taken in this export; two sources give a file of that name")
        place = self.path / path
        with _storage_errors(self.out):
            place.parent.mkdir(parents=True, exist_ok=True)
        return place

    def note(self, path: str, digest: Digest, size: int) -> None:
        """List a file that lies in its place."""
        self.files.append(WrittenFile(path, digest, size))

    def _publish(self) -> None:
        for folder, _, _ in os.walk(self.path, topdown=False):
            _sync_directory(Path(folder))
        aside = None
        if os.path.lexists(self.out):
            aside = self._holder.with_suffix(".old")
            self.out.rename(aside)
        try:
            self.path.rename(self.out)
        except BaseException:
            if aside is not None:
                aside.rename(self.out)
            raise
        _sync_directory(self.out.parent)
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)


def check_relative(path: str) -> None:
    """Refuse a name that is not a plain path below a directory.

    Raises:
        InvalidInputError: naming it.
    """
    bad = any(part in ("", ".", "..") for part in path.split("/"))
    if bad or "\\" in path or "\0" in path or ":" in path:
        raise InvalidInputError(f"{path!r} is not a plain relative path; it could leave the directory")


def _is_empty_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())


@contextlib.contextmanager
def _storage_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _storage_error(out, error) from error


def _storage_error(out: Path, error: OSError) -> StorageError:
    return StorageError(f"{out}: {error.strerror or error}; nothing was left behind, make room or choose another place")


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
