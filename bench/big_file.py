"""A checkpoint larger than memory should be: what putting, verifying and getting it costs in time and in memory.

Each step runs in a process of its own, so that its peak resident size is its own; pages of files that the kernel keeps
are not counted, arenas and buffers are. The checkpoint is made tensor by tensor from realistic bf16 weights.

    python bench/big_file.py --gigabytes 16 --directory /some/disk
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

TENSOR = 64 << 20
STEPS = ("put", "put again", "verify", "get", "compare")


def make(path: Path, size: int) -> None:
    """Writes about ``size`` bytes of bf16 tensors; all differ, none is kept in memory."""
    count = max(1, size // TENSOR)
    header = {
        f"model.layers.{number}.weight": {
            "dtype": "BF16",
            "shape": [TENSOR // 2 // 4096, 4096],
            "data_offsets": [number * TENSOR, (number + 1) * TENSOR],
        }
        for number in range(count)
    }
    text = json.dumps(header).encode()
    values = np.random.default_rng(7).standard_normal(TENSOR // 2).astype("<f4") * np.float32(0.02)
    mantissas = (values.view("<u4") >> 16).astype("<u2")
    with path.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for number in range(count):
            mantissas ^= np.uint16(number % 127 + 1)  # other low bits in every tensor, the exponents stay
            out.write(np.roll(mantissas, number).data)


def step(name: str, archive: Path, source: Path, out: Path) -> None:
    """Runs one step and prints what it took as JSON."""
    from csf_store import Archive, Digest  # noqa: PLC0415 - imports are part of no measurement

    size = source.stat().st_size
    with Archive.open(archive, create=True) as opened:
        digest = next((pin.digest for pin in opened.pins()), Digest(bytes(32)))
        begun = time.perf_counter()
        done = {"stored": 0}
        if name.startswith("put"):
            stored = opened.put_file(source)
            opened.pin(stored.digest, kind=stored.kind, name="big")
            done["stored"] = stored.stored
        elif name == "verify":
            report = opened.verify()
            if not report.ok:
                raise SystemExit(f"verify: {report.findings[0]}")
            size = report.bytes
        elif name == "get":
            opened.get_file(digest, out)
        elif subprocess.run(["cmp", str(source), str(out)], check=False).returncode:
            raise SystemExit("what came back differs")
        seconds = time.perf_counter() - begun
    print(json.dumps({"step": name, "seconds": seconds, "bytes": size, "rss": peak_bytes(), **done}))


def peak_bytes() -> int:
    """The most anonymous memory this process ever held resident; mapped files are not counted."""
    status = Path("/proc/self/status").read_text()
    fields = {line.split(":")[0]: line.split()[1] for line in status.splitlines() if line.endswith("kB")}
    return 1024 * (int(fields["VmHWM"]) - int(fields["RssFile"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=16)
    parser.add_argument("--directory", type=Path, help="where there is room for 3 times as much")
    parser.add_argument("--json", action="store_true", help="one object per step instead of the table")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        directory = arguments.directory
        step(arguments.step, directory / "archive", directory / "big.safetensors", directory / "out.safetensors")
        return
    directory = Path(tempfile.mkdtemp(prefix="csf-big-", dir=arguments.directory))
    try:
        make(directory / "big.safetensors", int(arguments.gigabytes * 1e9))
        command = [sys.executable, __file__, "--directory", str(directory), "--step"]
        done = [json.loads(subprocess.run([*command, name], check=True, capture_output=True).stdout) for name in STEPS]
    finally:
        shutil.rmtree(directory)
    if arguments.json:
        print("\n".join(map(json.dumps, done)))
        return
    print(f"{arguments.gigabytes:g} GB of bf16 tensors; {len(os.sched_getaffinity(0))} cores, {platform.machine()}\n")
    print("| step | s | GB/s | peak memory, MB | newly stored, GB |\n|---|---|---|---|---|")
    for each in done:
        rate = each["bytes"] / each["seconds"] / 1e9
        print(
            f"| {each['step']} | {each['seconds']:.1f} | {rate:.2f} | {each['rss'] / 1e6:.0f} "
            f"| {each['stored'] / 1e9:.2f} |"
        )


if __name__ == "__main__":
    main()
