"""Limits on a sandbox as a whole, where the machine has control groups to give.

Resource limits hold for each process; a control group holds for all of them together, the private file system
included. Both kernel versions are tried, below the group that we are in ourselves. Without the right to make one, or
without the controllers, there is none, and the other limits must do: `ControlGroup.active` says which it is.
"""

from __future__ import annotations

import os
import secrets
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from keystone.evaluation.sandbox import Limits

_ROOT: Final = Path("/sys/fs/cgroup")
_OURS: Final = 192 << 20
"""Memory for the zygote, the judge and bubblewrap."""
_OUR_PROCESSES: Final = 16
_PREFIX: Final = "keystone-"
_PATIENCE_SECONDS: Final = 5.0


@dataclass(frozen=True)
class ControlGroup:
    """The folders of one new group; a folder for each controller in version 1, one for all in version 2."""

    folders: tuple[Path, ...]

    @classmethod
    def create(cls, limits: Limits, root: Path = _ROOT) -> ControlGroup:
        """A group with room for one program and what surrounds it; an empty one where that is not to be had."""
        memory = str(2 * limits.memory_bytes + limits.disk_bytes + _OURS)
        processes = str(limits.processes + _OUR_PROCESSES)
        name = f"{_PREFIX}{os.getpid()}-{secrets.token_hex(8)}"
        places = _own_groups()
        if (root / "cgroup.controllers").exists():
            wanted = [(root / places.get("", "").lstrip("/") / name, {"memory.max": memory, "pids.max": processes})]
        else:
            wanted = [
                (root / controller / places.get(controller, "").lstrip("/") / name, {file: value})
                for controller, file, value in (
                    ("memory", "memory.limit_in_bytes", memory),
                    ("pids", "pids.max", processes),
                )
            ]
        for folder, _ in wanted:
            _sweep(folder.parent)
        return cls(tuple(folder for folder, files in wanted if _made(folder, files)))

    @property
    def active(self) -> bool:
        """Whether there is any."""
        return bool(self.folders)

    @property
    def entrances(self) -> list[str]:
        """The files that a process writes its id to, to enter."""
        return [str(folder / "cgroup.procs") for folder in self.folders]

    def remove(self) -> None:
        """Kill what is left in the group and remove its folders; the dead keep a folder until they are reaped."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        for folder in self.folders:
            while not _removed(folder) and time.monotonic() < deadline:
                _kill_all(folder)
                time.sleep(0.002)


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _kill_all(folder: Path) -> None:
    with suppress(OSError):
        for pid in (folder / "cgroup.procs").read_text(encoding="ascii").split():
            with suppress(OSError):
                os.kill(int(pid), signal.SIGKILL)


def _sweep(parent: Path) -> None:
    """Remove the groups of processes that were killed before they could; their own processes have ended with them."""
    with suppress(OSError):
        for folder in parent.glob(f"{_PREFIX}*"):
            owner = folder.name.removeprefix(_PREFIX).split("-")[0]
            if owner.isdigit() and not Path(f"/proc/{owner}").exists():
                _removed(folder)


def _own_groups() -> dict[str, str]:
    """Our own group by controller; version 2's is under the empty name."""
    found = {}
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines():
            _, controllers, path = line.split(":", 2)
            for controller in controllers.split(","):
                found[controller] = path
    return found


def _made(folder: Path, files: dict[str, str]) -> bool:
    try:
        folder.mkdir()
    except OSError:
        return False
    try:
        for file, value in files.items():
            if not os.access(folder / file, os.W_OK):
                raise FileNotFoundError(file)
            (folder / file).write_text(value, encoding="ascii")
    except OSError:
        with suppress(OSError):
            folder.rmdir()
        return False
    return True
