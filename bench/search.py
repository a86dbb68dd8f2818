"""What finding costs: the catalogue's first filling, and every kind of question, on an archive of 10,000 blobs.

    python bench/search.py [--blobs N] [--tensors N] [--directory DIR] [--json]

The archive is made of 500 checkpoints of 20 shards with 110 tensors each, every tensor a chunk of its own: a million
chunks. The bytes of a tensor do not matter for finding, so they are few, and the records are written below the
archive's door, where syncing each file would take hours. A tenth of the tensors is shared by all checkpoints.

Questions are asked of an archive opened for each: what one run of ``csf find`` costs beside starting Python. Times are
medians, in milliseconds.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from blake3 import blake3

from csf_store import Archive, Digest, Kind, TreeEntry
from csf_store.objects import ChunkRef, Form, Layout, ObjectBody, pack_object
from csf_store.search.answering import find
from csf_store.search.diff import compare
from csf_store.search.patterns import NamePattern, ShapePattern, SizeRange
from csf_store.search.query import MetadataPattern, Query, TensorAddress
from csf_store.segment import chunk_header, object_header

SHARDS = 20
WEIGHTS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "norm", "q_norm", "k_norm")
TENSOR_BYTES = 16
SHARED_EVERY = 10
SEAL_AT = 256 << 10  # as many records to a segment as full ones have with real chunks
REPEATS = 7


def header_of(shard: int, tensors: int, step: int) -> tuple[bytes, list[str]]:
    names = [
        f"model.layers.{(shard * tensors + number) // len(WEIGHTS)}.{WEIGHTS[number % len(WEIGHTS)]}.weight"
        for number in range(tensors)
    ]
    document: dict[str, object] = {"__metadata__": {"format": "pt", "step": str(step)}}
    for number, name in enumerate(names):
        offsets = [number * TENSOR_BYTES, (number + 1) * TENSOR_BYTES]
        shape = [2, 4] if number % 3 else [8]
        document[name] = {"dtype": "BF16", "shape": shape, "data_offsets": offsets}
    text = json.dumps(document).encode()
    return len(text).to_bytes(8, "little") + text, names


def fill(archive: Archive, blobs: int, tensors: int) -> None:
    """Writes the archive's records straight into its store."""
    store = archive._store
    draw = random.Random(2026)
    shared = [draw.randbytes(TENSOR_BYTES) for _ in range(SHARDS * tensors)]
    for checkpoint in range(blobs // SHARDS):
        entries = []
        for shard in range(SHARDS):
            head, _ = header_of(shard, tensors, checkpoint)
            parts = [head]
            for number in range(tensors):
                common = number % SHARED_EVERY == 0
                parts.append(shared[shard * tensors + number] if common else draw.randbytes(TENSOR_BYTES))
            chunks = []
            for part in parts:
                digest = blake3(part).digest()
                chunks.append(ChunkRef(digest, len(part)))
                if not store.find_chunk(digest):
                    store.append(chunk_header(digest, 0, len(part), part), part)
            content = b"".join(parts)
            blob = Digest.of(content)
            payload = pack_object(ObjectBody(Form.CHUNKED, Layout.SAFETENSORS, len(head), (), tuple(chunks), b""))
            store.append(object_header(blob, Kind.BLOB, 0, len(content), payload), payload)
            entries.append(TreeEntry(f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors", blob, len(content)))
        store.commit()
        tree = archive.put_tree_entries(entries)
        archive.pin(tree.digest, kind=Kind.TREE, name=f"run-{checkpoint // 10}/step-{checkpoint % 10}")


def questions(archive: Archive) -> dict[str, Query]:
    trees = sorted(archive.pins(), key=lambda pin: pin.name or "")
    tree = trees[len(trees) // 2].digest
    blob = archive.tree(tree).entries[3].blob
    tensors = list(archive.tensors(blob))
    chunk = archive.record(blob, Kind.BLOB).body.chunks[5].digest
    return {
        "tensor name, in some blobs": Query(tensor=NamePattern("model.layers.7.*")),
        "tensor name, in all blobs": Query(tensor=NamePattern("*.q_proj.weight")),
        "tensor name by regular expression": Query(tensor=NamePattern(r"layers\.1[0-3]\.k_norm", regex=True)),
        "dtype and shape, in all blobs": Query(dtypes=(NamePattern("BF16"),), shape=ShapePattern("*x4")),
        "size": Query(size=SizeRange.parse(">1KiB")),
        "metadata": Query(metadata=(MetadataPattern("step", NamePattern("77")),)),
        "path, in all trees": Query(path=NamePattern("model-00007-*")),
        "tag": Query(tag=NamePattern("run-1/*")),
        "tag, path and tensor": Query(
            tag=NamePattern("run-1/*"), path=NamePattern("*-00003-*"), tensor=NamePattern("*.norm.weight")
        ),
        "same tensor, in one blob": Query(same_as=TensorAddress(blob, tensors[1])),
        "same tensor, in 1 of 20 blobs": Query(same_as=TensorAddress(blob, tensors[0])),
        "shares tensors with a checkpoint": Query(shares=tree),
        "trees that hold a tensor": Query(tensor=NamePattern("model.layers.7.*"), kinds=frozenset([Kind.TREE])),
        "what needs a blob": Query(contains=blob),
        "what is made of a chunk": Query(chunk=Digest(chunk)),
        "digest prefix": Query(digest=blob.hex[:8]),
        "everything": Query(),
    }


def timed(work: Callable[[], object]) -> tuple[float, object]:
    started = time.perf_counter()
    outcome = work()
    return (time.perf_counter() - started) * 1000, outcome


def measure(path: Path) -> list[dict[str, str | int | float]]:
    rows: list[dict[str, str | int | float]] = []

    def opened_and_asked(query: Query, limit: int | None) -> int:
        with Archive.open(path) as archive:
            return find(archive, query, limit=limit).total

    def opened_and_compared(before: Digest, after: Digest) -> int:
        with Archive.open(path) as archive:
            return len(compare(archive, before, after).tensors)

    first, _ = timed(lambda: opened_and_asked(Query(tensor=NamePattern("nothing")), None))
    rows.append({"question": "the first ever: fills the catalogue", "found": 0, "ms": first})
    opening = statistics.median(timed(lambda: Archive.open(path).close())[0] for _ in range(REPEATS))
    rows.append({"question": "opening the archive, no question", "found": 0, "ms": opening})
    with Archive.open(path) as archive:
        asked, asked_pins = questions(archive), archive.pins()
    for name, query in asked.items():
        times = [timed(lambda query=query: opened_and_asked(query, None)) for _ in range(REPEATS)]
        short = [timed(lambda query=query: opened_and_asked(query, 20)) for _ in range(REPEATS)]
        found = times[0][1]
        rows.append(
            {
                "question": name,
                "found": found if isinstance(found, int) else 0,
                "ms": statistics.median(each[0] for each in times),
                "ms_limit_20": statistics.median(each[0] for each in short),
            }
        )
    trees = sorted(asked_pins, key=lambda pin: pin.name or "")
    changes = [timed(lambda: opened_and_compared(trees[0].digest, trees[1].digest)) for _ in range(REPEATS)]
    rows.append(
        {
            "question": "what differs between two checkpoints",
            "found": changes[0][1] if isinstance(changes[0][1], int) else 0,
            "ms": statistics.median(each[0] for each in changes),
        }
    )
    command = [sys.executable, "-m", "csf_store.cli", "--archive", str(path), "find", "--tag", "run-1/*", "--json"]
    whole = [timed(lambda: subprocess.run(command, check=True, capture_output=True))[0] for _ in range(REPEATS)]
    rows.append({"question": "csf find --tag, the whole command", "found": 0, "ms": statistics.median(whole)})
    return rows


def main() -> None:
    """Make the archive, ask, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blobs", type=int, default=10_000, help="safetensors blobs, 20 to a checkpoint")
    parser.add_argument("--tensors", type=int, default=110, help="tensors in each")
    parser.add_argument("--directory", type=Path, help="keep the archive here, and use it again if it is there")
    parser.add_argument("--json", action="store_true", help="print one JSON object per row")
    options = parser.parse_args()
    folder = options.directory or Path(tempfile.mkdtemp(prefix="csf-bench-search-"))
    path = folder / "archive"
    try:
        if not path.exists():
            Archive.create(path).close()
            with Archive.open(path, seal_at=SEAL_AT) as archive:
                fill(archive, options.blobs, options.tensors)
        for file in path.glob("catalogue.*"):
            file.unlink()
        rows = measure(path)
        size = sum(file.stat().st_size for file in path.glob("catalogue.sqlite*"))
        with Archive.open(path) as archive:
            chunks = len(archive._store.chunk_digests())
        where = f"{options.blobs:,} blobs, {chunks:,} chunks; catalogue of {size / 1e6:.1f} MB; "
        where += f"Python {platform.python_version()}, {platform.machine()}"
    finally:
        if options.directory is None:
            shutil.rmtree(folder)
    if options.json:
        for row in rows:
            print(json.dumps({**row, "where": where}))
        return
    print(f"{where}\n\n| question | found | ms | ms with --limit 20 |\n|---|---:|---:|---:|")
    for row in rows:
        short = f"{row['ms_limit_20']:.0f}" if "ms_limit_20" in row else ""
        print(f"| {row['question']} | {row['found']:,} | {row['ms']:.0f} | {short} |")


if __name__ == "__main__":
    main()
