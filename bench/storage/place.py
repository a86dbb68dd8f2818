"""Where a tool works during the bench, and how its commands are run and timed.

Every tool gets a fresh directory with the store it fills, a home of its own for caches and settings, and a place to
restore to. All of them lie on one file system. A command that fails stops the tool's row and is reported in it;
nothing is skipped in silence.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

FLUSHES = ("fsync", "fdatasync", "sync_file_range", "syncfs", "sync", "msync")
"""System calls that push data towards the disk."""


class ToolFailedError(Exception):
    """A tool's command did not succeed; says which, and what it wrote."""


@dataclass
class Place:
    """One tool's directory for one round.

    Attributes:
        root: made by ``fresh``; everything below belongs to the tool.
        trace: count flushing system calls into this file, with ``strace``, instead of running at full speed.
        environment: added to this process's environment for every command.
    """

    root: Path
    trace: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def store(self) -> Path:
        """What counts as stored."""
        return self.root / "store"

    @property
    def tree(self) -> Path:
        """A working tree, for tools that store only what lies in one."""
        return self.root / "tree"

    @property
    def out(self) -> Path:
        """Where a get writes."""
        return self.root / "out"

    def fresh(self) -> None:
        """Empties it."""
        shutil.rmtree(self.root, ignore_errors=True)
        for directory in (self.root, self.root / "home", self.store, self.tree):
            directory.mkdir()

    def empty_out(self) -> None:
        """Makes room for the next get."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()

    def run(self, *command: str | Path, cwd: Path | None = None) -> str:
        """Runs a command to its end; returns what it printed.

        Raises:
            ToolFailedError: if it exits with anything but 0.
        """
        argv = [str(part) for part in command]
        if self.trace:
            counted = ["strace", "-f", "-qq", "-c", "-U", "calls,name", "-o", str(self.trace)]
            argv = [*counted, "-e", "trace=" + ",".join(FLUSHES), *argv]
        done = subprocess.run(
            argv,
            cwd=cwd or self.root,
            env={**os.environ, **self._home(), **self.environment},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip())[-400:]
            raise ToolFailedError(f"{' '.join(argv[:4])} ... exited with {done.returncode}: {said}")
        return done.stdout

    def _home(self) -> dict[str, str]:
        home = str(self.root / "home")
        inside = {"XDG_CACHE_HOME": ".cache", "XDG_CONFIG_HOME": ".config", "DVC_SITE_CACHE_DIR": ".dvc-site"}
        return {"HOME": home} | {name: f"{home}/{directory}" for name, directory in inside.items()}

    def stored_bytes(self) -> int:
        """Bytes of the files in the store, every one counted, metadata included."""
        return sum(file.lstat().st_size for file in self.store.rglob("*") if file.is_file() and not file.is_symlink())


def timed_commands(place: Place, commands: Sequence[Sequence[str | Path]], cwd: Path | None = None) -> float:
    """Seconds that commands take, one after the other, start of the programs included."""
    begun = time.perf_counter()
    for command in commands:
        place.run(*command, cwd=cwd)
    return time.perf_counter() - begun


def timed_worker(place: Place, *command: str | Path) -> float:
    """Seconds that a library says its work took; its start and its imports are not counted."""
    answer = json.loads(place.run(*command).splitlines()[-1])
    return float(answer["seconds"])


def settle() -> None:
    """Writes back everything that is dirty, so that no tool pays for another's writes."""
    os.sync()


def flush(directory: Path) -> float:
    """Seconds of ``sync -f``: the file system that holds ``directory`` is flushed to its disk."""
    begun = time.perf_counter()
    subprocess.run(["sync", "-f", str(directory)], check=True)
    return time.perf_counter() - begun
