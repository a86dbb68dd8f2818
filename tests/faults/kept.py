"""A small archive with all sorts in it, and what must hold of it whatever happened."""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from csf_store import Archive, Digest, Kind
from csf_store.journal import JOURNAL

INDEX = ("index.sqlite", "index.sqlite-wal", "index.sqlite-shm")
SEAL = 60_000


def _safetensors(values: np.ndarray) -> bytes:
    header = b'{"t":{"dtype":"BF16","shape":[%d],"data_offsets":[0,%d]}}' % (values.size, values.nbytes)
    return len(header).to_bytes(8, "little") + header + values.tobytes()


def _bf16(values: np.ndarray) -> np.ndarray:
    return (values.astype("<f4").view("<u4") >> 16).astype("<u2")


def make(path: Path) -> tuple[dict[Digest, bytes], list[bytes]]:
    """Sealed and unsealed segments with what is pinned, what is garbage, and a pinned difference whose base is not."""
    chance = random.Random(5)
    noise = np.random.default_rng(5)
    kept: dict[Digest, bytes] = {}
    garbage = []
    base = noise.standard_normal(40_000) * 0.02
    tuned = base + noise.standard_normal(40_000) * 0.02e-3
    with Archive.open(path, create=True, seal_at=SEAL) as archive:
        for number in range(9):
            content = chance.randbytes(chance.choice([40, 9000, 70_000]))
            digest = archive.put_bytes(content).digest
            if number % 2:
                archive.pin(digest, kind=Kind.BLOB, name=str(number))
                kept[digest] = content
            else:
                garbage.append(content)
        source = path.parent / "tuned.safetensors"
        source.write_bytes(_safetensors(_bf16(tuned)))
        first = archive.put_bytes(_safetensors(_bf16(base))).digest
        garbage.append(_safetensors(_bf16(base)))
        stored = archive.put_file(source, base=archive.base(first))
        archive.pin(stored.digest, kind=Kind.BLOB, name="tuned")
        kept[stored.digest] = source.read_bytes()
        blob = archive.put_bytes(b"linked" * 20).digest
        manifest = archive.put_bytes(b"manifest", kind=Kind.MANIFEST, links=[blob]).digest
        archive.ledger.append("ref.set", ref="prod", **{"from": None, "to": str(manifest)})
        kept[blob], kept[manifest] = b"linked" * 20, b"manifest"
    return kept, garbage


def names(path: Path) -> set[str]:
    return {each.name for each in (path / "segments").iterdir()}


def index_files(path: Path) -> dict[str, bytes]:
    return {name: (path / name).read_bytes() for name in INDEX[:2] if (path / name).exists()}


def indexes(path: Path, before: dict[str, bytes]) -> Iterator[str]:
    """The index as it was left; deleted; and as it was before the collection."""
    yield "left"
    for name in INDEX:
        (path / name).unlink(missing_ok=True)
    yield "deleted"
    for name in INDEX:
        (path / name).unlink(missing_ok=True)
    for name, content in before.items():
        (path / name).write_bytes(content)
    yield "from before"


def sound(path: Path, kept: dict[Digest, bytes], label: str) -> None:
    with Archive.open(path, seal_at=SEAL) as archive:
        for digest, content in kept.items():
            assert archive.get_bytes(digest) == content, label
        report = archive.verify(deep=True)
        assert report.findings == (), (label, report)
        assert not (path / JOURNAL).exists()
