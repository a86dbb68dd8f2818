"""hf_xet with its ``local://`` store: one put or get in a process of its own, timed inside.

    python xet_worker.py put STORE NAME SOURCE
    python xet_worker.py get STORE NAME OUT

What a put returns for each file (a hash and a size) is all that a get needs; it is kept beside the store, uncounted,
since a Hub would keep it in git. The SHA-256 that the Hub wants is left out: a local store has no use for it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path


def main() -> None:
    verb, store, name, path = sys.argv[1], Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
    os.environ.setdefault("HF_XET_CACHE", str(store.parent / "home" / "xet"))
    import hf_xet  # type: ignore[import-untyped, unused-ignore]  # noqa: PLC0415 - it reads the environment then

    endpoint = f"local://{store}"
    pointers = store.parent / f"{name}.json"
    if verb == "put":
        files = sorted(path.iterdir())
        begun = time.perf_counter()
        made = hf_xet.upload_files([str(file) for file in files], endpoint, None, None, None, None, None, None, True)
        seconds = time.perf_counter() - begun
        known = [(file.name, one.hash, file.stat().st_size) for file, one in zip(files, made, strict=True)]
        pointers.write_text(json.dumps(known))
    else:
        wanted = [
            hf_xet.PyXetDownloadInfo(str(path / file), digest, size)
            for file, digest, size in json.loads(pointers.read_text())
        ]
        begun = time.perf_counter()
        hf_xet.download_files(wanted, endpoint, None, None, None)
        seconds = time.perf_counter() - begun
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()
