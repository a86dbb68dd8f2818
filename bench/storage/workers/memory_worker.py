"""A checkpoint from disk into memory, once, in a process of its own: the way a loader does it when a model starts.

    python memory_worker.py safetensors FILE            load, then clone: the baseline
    python memory_worker.py safetensors-into FILE       load, then copy into memory that was written to before
    python memory_worker.py load ARCHIVE DIGEST         ``load_tensors``: memory of the archive's choice
    python memory_worker.py fresh ARCHIVE DIGEST        ``read_tensors`` into a fresh torch tensor each
    python memory_worker.py into ARCHIVE DIGEST         ``read_tensors`` into memory that was written to before
    python memory_worker.py bytes ARCHIVE DIGEST        ``get_bytes``: the whole file as one object

Plain ``safetensors`` maps the file, and a tensor "loaded" so is a promise of the page cache; the clone makes it
memory of the caller's own, as the other ways give it. It checks nothing. The archive hashes the whole blob before it
returns. Imports are over before the clock starts; opening the file or the archive is inside. The last line printed is
JSON: seconds, and bytes.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file

from csf_store import Archive, Digest, TensorInfo

Tensors = dict[str, torch.Tensor]


def touched(sizes: Mapping[str, int]) -> Tensors:
    """Memory that the kernel has handed out already."""
    return {name: torch.ones(size, dtype=torch.uint8) for name, size in sizes.items()}


def load_safetensors(path: Path) -> Callable[[], int]:
    return lambda: total({name: tensor.clone() for name, tensor in load_file(path).items()})


def copy_safetensors(path: Path) -> Callable[[], int]:
    memory = touched({name: tensor.nbytes for name, tensor in load_file(path).items()})

    def work() -> int:
        for name, tensor in load_file(path).items():
            memory[name].view(tensor.dtype).view(tensor.shape).copy_(tensor)
        return total(memory)

    return work


def load(path: Path, digest: Digest) -> Callable[[], int]:
    def work() -> int:
        with Archive.open(path) as archive:
            infos = archive.tensors(digest)
            views = archive.load_tensors(digest)
            memory = {name: torch.frombuffer(view, dtype=torch.uint8) for name, view in views.items()}
            return total({name: as_tensor(tensor, infos[name]) for name, tensor in memory.items()})

    return work


def read_into(path: Path, digest: Digest, *, fresh: bool) -> Callable[[], int]:
    with Archive.open(path) as archive:
        memory = {} if fresh else touched({info.name: info.nbytes for info in archive.tensors(digest).values()})

    def work() -> int:
        with Archive.open(path) as archive:
            infos = archive.tensors(digest)
            if fresh:
                memory.update({info.name: torch.empty(info.nbytes, dtype=torch.uint8) for info in infos.values()})
            archive.read_tensors(digest, lambda info: memory[info.name].numpy().data)
            return total({name: as_tensor(tensor, infos[name]) for name, tensor in memory.items()})

    return work


def whole(path: Path, digest: Digest) -> Callable[[], int]:
    def work() -> int:
        with Archive.open(path) as archive:
            return len(archive.get_bytes(digest))

    return work


def as_tensor(memory: torch.Tensor, info: TensorInfo) -> torch.Tensor:
    return memory.view(torch.bfloat16).view(info.shape)


def total(tensors: Tensors) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def prepare(mode: str, path: Path, digest: Digest | None) -> Callable[[], int]:
    """What is to be timed; everything that is not is done here."""
    if digest is None:
        return copy_safetensors(path) if mode == "safetensors-into" else load_safetensors(path)
    if mode == "load":
        return load(path, digest)
    if mode == "bytes":
        return whole(path, digest)
    return read_into(path, digest, fresh=mode == "fresh")


def main() -> None:
    digest = Digest.parse(sys.argv[3]) if len(sys.argv) > 3 else None
    work = prepare(sys.argv[1], Path(sys.argv[2]), digest)
    begun = time.perf_counter()
    size = work()
    print(json.dumps({"seconds": time.perf_counter() - begun, "bytes": size}))


if __name__ == "__main__":
    main()
