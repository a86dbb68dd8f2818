"""From the archive into memory, against the fastest way there is without an archive.

The baseline maps a safetensors file and clones every tensor; it verifies nothing. The archive decodes each tensor
where the caller wants it and hashes the whole checkpoint. Every measurement is a process of its own, as a loader is
one: memory is fresh, thread pools are cold. The ways take turns, and the median counts.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bench.storage.features import delta_is_built
from bench.storage.inputs import Inputs
from bench.storage.place import ToolFailedError, settle
from csf_store import Archive, Digest

_WORKER = Path(__file__).parent / "workers" / "memory_worker.py"
_WAYS = {
    "safetensors": "safetensors: load, then clone",
    "load": "csf: load_tensors",
    "fresh": "csf: read_tensors into fresh torch memory",
    "safetensors-into": "safetensors: load, then copy into memory used before",
    "into": "csf: read_tensors into memory used before",
    "bytes": "csf: get_bytes, the file as one object",
}
_DELTA_WAYS = ("safetensors", "load", "into")
"""The ways that are tried with the delta-coded checkpoint too."""


class Load(NamedTuple):
    """One way to get one checkpoint into memory.

    Attributes:
        checkpoint: ``base`` or ``delta-coded``.
        mode: the worker's name for the way.
        way: the way, in words.
        size: bytes of the checkpoint's tensors.
        seconds: one for each round.
    """

    checkpoint: str
    mode: str
    way: str
    size: int
    seconds: list[float]

    @property
    def speed(self) -> float:
        """GB/s, by the median."""
        return self.size / statistics.median(self.seconds) / 1e9


def measure_loads(inputs: Inputs, work: Path, rounds: int, say: Callable[[str], None]) -> list[Load]:
    """Every way for the base, and for the fine-tune stored as differences to it where that is built."""
    path = work / "memory"
    checkpoints = _fill(path, inputs)
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    sizes: dict[str, int] = {}
    settle()
    for number in range(rounds):
        say(f"memory, round {number + 1} of {rounds}")
        for checkpoint, (file, digest) in checkpoints.items():
            for mode in _WAYS if checkpoint == "base" else _DELTA_WAYS:
                where = [str(file)] if mode.startswith("safetensors") else [str(path), str(digest)]
                took, size = _run(mode, where)
                seconds[checkpoint, mode].append(took)
                sizes.setdefault(checkpoint, size)
    return [
        Load(checkpoint, mode, _WAYS[mode], sizes[checkpoint], times) for (checkpoint, mode), times in seconds.items()
    ]


def _fill(path: Path, inputs: Inputs) -> dict[str, tuple[Path, Digest]]:
    with Archive.open(path, create=True) as archive:
        base = archive.put_file(inputs.base_file)
        found = {"base": (inputs.base_file, base.digest)}
        if delta_is_built():
            tuned = archive.put_file(inputs.fine_tune_file, base=archive.base(base.digest))
            found["delta-coded"] = (inputs.fine_tune_file, tuned.digest)
    return found


def _run(mode: str, where: list[str]) -> tuple[float, int]:
    done = subprocess.run([sys.executable, str(_WORKER), mode, *where], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ToolFailedError(f"memory_worker {mode} failed: {done.stderr[-400:]}")
    answer = json.loads(done.stdout.splitlines()[-1])
    return float(answer["seconds"]), int(answer["bytes"])
