"""Where the time of a put and a get goes: processor seconds a GB, step by step, on bf16 weights.

    python bench/steps.py [--megabytes 256] [--directory DIR]

Every step is run alone, on one thread, on chunks of 4 MiB as the archive cuts them, so the sum over the cores is what a
put or a get can not be faster than. Memory is measured in processes of their own: what a first touch costs depends on
what the kernel, and in a virtual machine the host, has at hand.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from blake3 import blake3

from csf_store.codecs import Hint, codec, encode
from csf_store.framing import CHUNK_SIZE

HINT = Hint("BF16")
ROUNDS = 5
TOUCH = """
import mmap, sys, time
size = int(sys.argv[2])
region = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
region.madvise(mmap.MADV_HUGEPAGE if sys.argv[1] == "large" else mmap.MADV_NOHUGEPAGE)
begun = time.process_time()
for place in range(0, size, 4096):
    region[place] = 1
print(time.process_time() - begun)
"""


def weights(chunks: int) -> list[bytes]:
    """Normal weights of a usual size, in bf16: the upper halves of floats."""
    draw = np.random.default_rng(1)
    made = []
    for _ in range(chunks):
        wide = (draw.standard_normal(CHUNK_SIZE // 2, np.float32) * 0.02).view(np.uint32)
        made.append(np.right_shift(wide, 16).astype(np.uint16).tobytes())
    return made


def seconds(step: Callable[[], object], size: int) -> float:
    """Processor seconds a GB: the median of some rounds."""
    taken = []
    for _ in range(ROUNDS):
        begun = time.process_time()
        step()
        taken.append(time.process_time() - begun)
    return statistics.median(taken) / size * 1e9


def touched(pages: str, size: int, *, rest: float = 0) -> float:
    """The same for memory that is touched for the first time, after ``rest`` seconds in which nobody freed any."""
    time.sleep(rest)
    done = subprocess.run([sys.executable, "-c", TOUCH, pages, str(size)], check=True, capture_output=True, text=True)
    return float(done.stdout) / size * 1e9


def measure(raw: list[bytes], directory: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Steps of a put, steps of a get."""
    size = sum(map(len, raw))
    number, _ = encode(raw[0], HINT)
    stored = [bytes(encode(each, HINT)[1]) for each in raw]
    share = sum(map(len, stored)) / size
    source, target = directory / "source", directory / "target"
    source.write_bytes(b"".join(raw))
    buffer, out = memoryview(bytearray(CHUNK_SIZE)), memoryview(bytearray(CHUNK_SIZE))
    reads = os.open(source, os.O_RDONLY)
    writes = os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        places = range(0, size, CHUNK_SIZE)
        put = {
            "read the file": seconds(lambda: [os.preadv(reads, [buffer], at) for at in places], size),
            "hash the whole": seconds(lambda: [blake3(each).digest() for each in raw], size),
            "hash each chunk": seconds(lambda: [blake3(each).digest() for each in raw], size),
            "look at a sample": seconds(lambda: [codec(number).plan(each, HINT) for each in raw], size),
            "encode": seconds(lambda: [encode(each, HINT) for each in raw], size),
            f"hash what is stored ({share:.2f})": seconds(lambda: [blake3(each).digest() for each in stored], size),
            f"write it ({share:.2f})": seconds(
                lambda: [os.pwrite(writes, each, at) for each, at in zip(stored, places, strict=True)], size
            ),
        }
        put["encode"] -= put["look at a sample"]
        get = {
            f"read what is stored ({share:.2f})": seconds(
                lambda: [os.preadv(writes, [buffer[: len(each)]], at) for each, at in zip(stored, places, strict=True)],
                size,
            ),
            "decode": seconds(lambda: [codec(number).decode_into(each, out) for each in stored], size),
            "hash the whole": put["hash the whole"],
        }
    finally:
        os.close(reads)
        os.close(writes)
    return put, get


def show(title: str, steps: dict[str, float], cores: int) -> None:
    print(f"\n| {title} | processor seconds a GB |\n|---|--:|")
    for name, taken in steps.items():
        print(f"| {name} | {taken:.3f} |")
    total = sum(steps.values())
    print(f"| **all** | **{total:.3f}** |")
    print(f"\nOn {cores} cores at best {cores / total:.2f} GB/s.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=256, help="of weights (default 256)")
    parser.add_argument("--directory", type=Path, help="where to work; default the system's temporary directory")
    asked = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    size = asked.megabytes << 20
    print(f"{asked.megabytes} MiB of bf16 weights; {platform.machine()}, {cores} cores")
    with tempfile.TemporaryDirectory(dir=asked.directory) as directory:
        put, get = measure(weights(size // CHUNK_SIZE), Path(directory))
    show("put", put, cores)
    show("get", get, cores)
    print("\n| memory touched for the first time | processor seconds a GB |\n|---|--:|")
    for pages in ("small", "large"):
        print(f"| {pages} pages, just freed by another process | {touched(pages, size):.3f} |")
        print(f"| {pages} pages, after 5 s | {touched(pages, size, rest=5):.3f} |")


if __name__ == "__main__":
    main()
