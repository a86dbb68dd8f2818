"""Results as they come, in a file, so that a killed evaluation goes on where it was.

The file's name is a digest of everything that decides the results; another setting is another file. Results are
appended batch by batch and synced, so a kill loses at most the batch in hand. A torn last line is not counted. Nobody
trusts the file: an evaluation that resumes from it is as good as whoever can write to the directory, and that is the
user who runs it.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from csf_store import Digest
from keystone.errors import RefusedError, StorageError
from keystone.evaluation.task import Value

Line = Mapping[str, Value]


class Journal:
    """An append-only file of results, held by one process at a time; use as a context manager.

    Args:
        folder: where journals live; made when missing.
        key: everything that decides the results.

    Raises:
        RefusedError: another process is at the same evaluation.
        StorageError: the file system said no.
    """

    def __init__(self, folder: Path, key: Mapping[str, Value]) -> None:
        name = Digest.of(json.dumps(key, sort_keys=True).encode()).hex[:32]
        self.path = folder / f"{name}.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b")
        except OSError as error:
            raise StorageError(f"{self.path} cannot be opened: {error.strerror}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise RefusedError(f"another process is at this very evaluation; {self.path} is its file") from error
        self.lines: list[Line] = self._whole_lines()

    def append(self, lines: Sequence[Line]) -> None:
        """Add results; they are on disk when this returns."""
        data = "".join(json.dumps(line, sort_keys=True, separators=(",", ":")) + "\n" for line in lines)
        try:
            self._file.write(data.encode())
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise StorageError(f"{self.path} cannot be written: {error.strerror}") from error
        self.lines.extend(lines)

    def remove(self) -> None:
        """The evaluation is recorded; there is nothing to go on with."""
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _whole_lines(self) -> list[Line]:
        """What is there, and the file cut after the last whole line, so that the next append starts a line."""
        self._file.seek(0)
        data = self._file.read()
        end = 0
        found: list[Line] = []
        for line in data.splitlines(keepends=True):
            try:
                value = json.loads(line)
            except ValueError:
                break
            if not isinstance(value, dict) or not line.endswith(b"\n"):
                break
            found.append(value)
            end += len(line)
        self._file.truncate(end)
        return found
