"""What a large archive costs: opening it, putting a checkpoint and getting it back, up to a million chunks.

The archive is filled with chunks of 16 bytes below the layer that cuts files (see ``workers/growth_worker.py``). At
each size, processes of their own open it, put a checkpoint that it does not know and get that back; their peak memory
beyond their start is theirs alone. Flat lines are what is promised.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.storage.inputs import draw, write_safetensors
from bench.storage.place import ToolFailedError, settle
from csf_store import Archive

CHUNKS = (1_000, 10_000, 100_000, 300_000, 1_000_000)
QUICK_CHUNKS = (1_000, 10_000, 50_000)
_WORKER = Path(__file__).parent / "workers" / "growth_worker.py"
_REPEATS = 5
_TENSORS = 8
_SHAPE = (2048, 1024)
CHECKPOINT_MB = _TENSORS * 2 * _SHAPE[0] * _SHAPE[1] / 1e6


class Size(NamedTuple):
    """An archive of one size; times are medians in seconds, memory is the largest of the repeats, in bytes.

    Attributes:
        chunks: how many chunks it holds, besides those of the checkpoints put here.
        segment_bytes: of its segments.
        index_bytes: of its index.
        open: opening it and finding one chunk.
        put: putting a checkpoint of ``CHECKPOINT_MB``, opening and closing included.
        get: getting that to a file, opening and closing included.
        open_memory: peak memory that opening adds to the process.
        put_memory: the same for the put.
    """

    chunks: int
    segment_bytes: int
    index_bytes: int
    open: float
    put: float
    get: float
    open_memory: int
    put_memory: int


class _Answer(NamedTuple):
    seconds: float
    grown: int
    digest: str


def measure_growth(work: Path, sizes: Sequence[int], say: Callable[[str], None]) -> list[Size]:
    """One row for each size, ascending."""
    path = work / "growing"
    Archive.create(path).close()
    rows = []
    held = 0
    for chunks in sizes:
        say(f"an archive of {chunks:,} chunks")
        _run("fill", path, str(held), str(chunks))
        held = chunks
        rows.append(_look(path, work, chunks))
    return rows


def _look(path: Path, work: Path, chunks: int) -> Size:
    settle()
    opens, puts, gets = [], [], []
    for number in range(_REPEATS):
        file, out = work / "new.safetensors", work / "back.safetensors"
        names = [f"growth.{chunks}.{number}.{part}" for part in range(_TENSORS)]
        write_safetensors(file, {name: draw(name, _SHAPE) for name in names})
        settle()
        opens.append(_run("open", path))
        puts.append(_run("put", path, str(file)))
        gets.append(_run("get", path, puts[-1].digest, str(out)))
        if out.read_bytes() != file.read_bytes():
            raise ToolFailedError("the growing archive gave back other bytes than were put")
        out.unlink()
    return Size(
        chunks,
        segment_bytes=sum(file.stat().st_size for file in (path / "segments").iterdir()),
        index_bytes=sum(file.stat().st_size for file in path.glob("index.sqlite*")),
        open=statistics.median(one.seconds for one in opens),
        put=statistics.median(one.seconds for one in puts),
        get=statistics.median(one.seconds for one in gets),
        open_memory=max(one.grown for one in opens),
        put_memory=max(one.grown for one in puts),
    )


def _run(verb: str, *arguments: str | Path) -> _Answer:
    command = [sys.executable, str(_WORKER), verb, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ToolFailedError(f"growth_worker {verb} failed: {done.stderr[-400:]}")
    answer = json.loads(done.stdout.splitlines()[-1])
    return _Answer(float(answer["seconds"]), int(answer["grown"]), str(answer.get("digest", "")))
