"""ZipNN over whole files, as its own scripts use it: one put or get in a process of its own, timed inside.

    python zipnn_worker.py put STORE NAME SOURCE
    python zipnn_worker.py get STORE NAME OUT

Each file is read, compressed as bf16 on all cores and written beside the others; a get goes the other way. Nothing is
hashed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from zipnn import ZipNN  # type: ignore[import-not-found, unused-ignore]


def main() -> None:
    verb, store, name, path = sys.argv[1], Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
    files = sorted((path if verb == "put" else store / name).iterdir())
    coder = ZipNN(input_format="byte", bytearray_dtype="bfloat16", threads=len(os.sched_getaffinity(0)))
    if verb == "put":
        (store / name).mkdir()
    begun = time.perf_counter()
    for file in files:
        if verb == "put":
            (store / name / f"{file.name}.znn").write_bytes(coder.compress(bytearray(file.read_bytes())))
        else:
            (path / file.name.removesuffix(".znn")).write_bytes(coder.decompress(file.read_bytes()))
    print(json.dumps({"seconds": time.perf_counter() - begun}))


if __name__ == "__main__":
    main()
