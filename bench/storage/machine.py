"""What the numbers were measured on: enough to judge them by, nothing that names a machine or a person."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

_BUSY = 0.5
"""A load average above this, before anything was started, means that others use the machine."""


class Machine(NamedTuple):
    """A machine and its state when the run began."""

    date: str
    processor: str
    cores: int
    memory_gb: float
    file_system: str
    kernel: str
    huge_pages: str
    versions: str
    commit: str
    load: float

    @property
    def busy(self) -> bool:
        """Whether others were using it when the run began."""
        return self.load > _BUSY

    def text(self) -> str:
        """The description for people."""
        state = f"load average {self.load:.2f} before the run" + (": **the machine was not idle**" if self.busy else "")
        return (
            f"{self.date}, {self.cores} cores of {self.processor}, {self.memory_gb:.0f} GB of memory, {state}.\n"
            f"Linux {self.kernel}, {self.file_system}, transparent huge pages: {self.huge_pages}.\n"
            f"{self.versions}; commit {self.commit}."
        )


def describe(work: Path) -> Machine:
    """Looks at this machine, and at the file system that holds ``work``."""
    return Machine(
        date=datetime.now(UTC).date().isoformat(),
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)),
        memory_gb=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9,
        file_system=_said("findmnt", "-n", "-o", "FSTYPE", "-T", str(work))
        or _said("stat", "-f", "-c", "%T", str(work)),
        kernel=platform.release().partition("-")[0],
        huge_pages=_huge_pages(),
        versions=f"Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in ("torch", "safetensors", "numpy", "blake3", "zstandard")),
        commit=_said("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty") or "unknown",
        load=os.getloadavg()[0],
    )


def _said(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        return ""


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _huge_pages() -> str:
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    words = setting.read_text() if setting.exists() else "[unknown]"
    return words.partition("[")[2].partition("]")[0]
