"""Makes the golden archives of format version 1. Run once, by hand; the archives are kept for ever.

    python tests/golden/archives/make_archives.py DIRECTORY

Readers of every later version must read what lies beside this file, byte for byte. So do not run this to "refresh"
them: when the format gains something, add an archive. ``expected.json`` beside them is written from what was put, not
from what was read back. Caches and locks are not kept.

- ``whole``: every codec, kind, form, layout and event; sealed segments and one that is not; links; a collection.
- ``plain``: chunks of plain files, raw and zstd, in one sealed segment.
- ``torn``: what a crash leaves: a segment and a ledger that end in the middle of a write.
- ``empty``: just made.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from pathlib import Path

import numpy as np

from csf_store import Archive, Digest, Kind, TreeEntry

Expected = dict[str, object]
_KEPT = ("csf.json", "ledger.jsonl", "segments/*.csfs")


def bf16(values: np.ndarray) -> bytes:
    """Float32 values as the upper halves of their bits."""
    return (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()


def safetensors(tensors: dict[str, tuple[str, list[int], bytes]], metadata: dict[str, str]) -> bytes:
    """A safetensors file."""
    header: dict[str, object] = {"__metadata__": metadata}
    at = 0
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(content)]}
        at += len(content)
    text = json.dumps(header, separators=(",", ":")).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(content for _, _, content in tensors.values())


def weights(seed: int, noise: float) -> dict[str, tuple[str, list[int], bytes]]:
    """Tensors of most dtypes; with the same seed and another noise, a little different ones."""
    base, other = np.random.default_rng(seed), np.random.default_rng(seed + 1)

    def values(count: int) -> np.ndarray:
        return base.standard_normal(count) * 0.02 * (1 + noise * other.standard_normal(count))

    return {
        "bf16": ("BF16", [40, 40], bf16(values(1600))),
        "f16": ("F16", [30, 20], values(600).astype("<f2").tobytes()),
        "f32": ("F32", [600], values(600).astype("<f4").tobytes()),
        "f64": ("F64", [300], values(300).astype("<f8").tobytes()),
        "f8": ("F8_E4M3", [3000], (values(3000).astype("<f2").view("<u2") >> 8).astype("u1").tobytes()),
        "i8": ("I8", [2000], np.clip(values(2000) * 1000, -127, 127).astype("i1").tobytes()),
        "i64": ("I64", [64], np.arange(64).astype("<i8").tobytes()),
        "scalar": ("F32", [], values(1).astype("<f4").tobytes()),
        "empty": ("BF16", [0, 7], b""),
    }


def _note(expected: Expected, digest: Digest, kind: Kind, content: bytes) -> Digest:
    assert digest == Digest.of(content)
    objects = expected.setdefault("objects", {})
    assert isinstance(objects, dict)
    told: dict[str, object] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "kinds": []}
    if len(content) < 200:
        told["content"] = content.hex()
    kinds = objects.setdefault(digest.hex, told)["kinds"]
    assert isinstance(kinds, list)
    if kind not in kinds:
        kinds.append(str(kind))
    return digest


def make_whole(path: Path) -> Expected:
    """Everything there is, in small."""
    expected: Expected = {}
    with Archive.open(path, create=True, seal_at=9000) as archive:

        def put(content: bytes, kind: Kind = Kind.BLOB, links: tuple[Digest, ...] = ()) -> Digest:
            return _note(expected, archive.put_bytes(content, kind=kind, links=links).digest, kind, content)

        garbage = archive.put_bytes(b"to be collected" * 40).digest
        archive.pin(garbage, kind=Kind.BLOB, name="for a while")
        empty = put(b"")
        text = put(b"keystone\n" * 60)
        archive.pin(put(b"x"), kind=Kind.BLOB)
        base_content = safetensors(weights(1, 0.0), {"format": "pt", "name": "b\u00e4se"})
        base = put(base_content)
        archive.pin(base, kind=Kind.BLOB, name="base")
        tuned_content = safetensors(weights(1, 1e-3), {"format": "pt", "name": "tuned"})
        directory = path.parent / "source"
        (directory / "deep" / "deeper").mkdir(parents=True)
        (directory / "model.safetensors").write_bytes(tuned_content)
        (directory / "deep" / "deeper" / "empty").touch()
        (directory / "\u00e9.json").write_text('{"hidden":256}')
        (directory / "run.sh").write_text("#!/bin/sh\nexit 0\n")
        (directory / "run.sh").chmod(0o755)
        tree = archive.put_tree(directory, base=archive.base(base)).digest
        entries = []
        for file in sorted(each for each in directory.rglob("*") if each.is_file()):
            _note(expected, Digest.of(file.read_bytes()), Kind.BLOB, file.read_bytes())
            name = str(file.relative_to(directory))
            entries.append(TreeEntry(name, Digest.of(file.read_bytes()), file.stat().st_size, name == "run.sh"))
        rows = sorted(([e.path, str(e.blob), e.size, e.executable] for e in entries), key=lambda row: row[0].encode())
        _note(
            expected,
            tree,
            Kind.TREE,
            json.dumps({"entries": rows, "v": 1}, ensure_ascii=False, separators=(",", ":")).encode(),
        )
        archive.pin(tree, kind=Kind.TREE, name="tuned")
        document = put(b'{"assembly":"nano"}', Kind.MANIFEST, (base, tree))
        put(b'{"assembly":"nano"}', Kind.RECORD)
        later = put(b'{"assembly":"nano","evals":[0.5]}', Kind.MANIFEST, (tree, document, text))
        move = {"reason": "it scored 0.5 \u2265 0.25", "scores": [0.5, 1e-7, 10**15], "nested": {"a": [None, True]}}
        archive.ledger.append("ref.set", ref="nano/main", **{"from": None, "to": str(document)})
        archive.ledger.append("ref.set", ref="nano/main", **{"from": str(document), "to": str(later)}, **move)
        archive.ledger.append("ref.set", ref="nano/old", **{"from": None, "to": str(document)})
        archive.ledger.append("ref.set", ref="nano/old", **{"from": str(document), "to": None})
        archive.ledger.append("note", text="\U0001f5dd \u4e2d\u6587 \x7f")
        archive.pin(empty, kind=Kind.BLOB, name="empty")
        archive.pin(text, kind=Kind.BLOB, name="text")
        archive.pin(Digest.of(b'{"assembly":"nano"}'), kind=Kind.RECORD, name="record")
        archive.unpin(garbage)
        archive.collect(grace=0, threshold=0)
        archive.pin(put(b"in a segment that is not sealed"), kind=Kind.BLOB, name="last")
        for file in directory.rglob("*"):
            file.is_file() and file.unlink()
    return expected | _ledger(path)


def make_plain(path: Path) -> Expected:
    """Plain files of more than a record holds itself."""
    expected: Expected = {}
    noise = random.Random(7).randbytes(66_000)
    choice = random.Random(8).choice
    words = b" ".join(choice([b"loop", b"base", b"weights", b"ledger"]) for _ in range(12_000))
    with Archive.open(path, create=True, seal_at=60_000) as archive:
        archive.pin(_note(expected, archive.put_bytes(noise).digest, Kind.BLOB, noise), kind=Kind.BLOB, name="noise")
        archive.pin(_note(expected, archive.put_bytes(words).digest, Kind.BLOB, words), kind=Kind.BLOB, name="words")
    return expected | _ledger(path)


def make_torn(path: Path) -> Expected:
    """Half a record at the end of a segment, a segment that was only begun, half a line at the end of the ledger."""
    expected: Expected = {}
    with Archive.open(path, create=True) as archive:
        for number in range(3):
            content = b"acknowledged %d" % number * 20
            digest = _note(expected, archive.put_bytes(content).digest, Kind.BLOB, content)
            archive.pin(digest, kind=Kind.BLOB, name=f"{number}")
        whole = expected | _ledger(path)
        segment = next((path / "segments").iterdir())
        end = segment.stat().st_size
        archive.put_bytes(b"never acknowledged" * 20)
        archive.ledger.append("note", text="never acknowledged")
    with segment.open("r+b") as file:
        file.truncate(end + 150)
    ledger = path / "ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes()[:-40])
    begun = path / "segments" / f"{'5e' * 16}.csfs"
    begun.write_bytes(segment.read_bytes()[:20])
    return whole


def make_empty(path: Path) -> Expected:
    """Nothing but its birth."""
    with Archive.open(path, create=True):
        pass
    return {"objects": {}} | _ledger(path)


def _ledger(path: Path) -> Expected:
    lines = (path / "ledger.jsonl").read_bytes()
    pins: dict[tuple[str, str, str | None], None] = {}
    refs: dict[str, str | None] = {}
    for line in map(json.loads, lines.splitlines()):
        match line["event"]:
            case "pin":
                pins[line["digest"], line["kind"], line["name"]] = None
            case "unpin":
                pins = {pin: None for pin in pins if pin[0] != line["digest"]}
            case "ref.set":
                refs[line["ref"]] = line["to"]
    return {"lines": len(lines.splitlines()), "pins": [list(pin) for pin in pins], "refs": refs}


MAKERS = {"whole": make_whole, "plain": make_plain, "torn": make_torn, "empty": make_empty}


def main(target: Path) -> None:
    """Makes all of them in a directory."""
    expected = {}
    for name, make in MAKERS.items():
        path = target / name
        expected[name] = make(path)
        kept = {file for pattern in _KEPT for file in path.glob(pattern)}
        for file in path.rglob("*"):
            if file.is_file() and file not in kept:
                file.unlink()
        (path / "segments" / ".keep").touch()  # version control keeps no empty directory
    for rest in sorted(target.glob("source/**"), reverse=True):
        rest.rmdir()
    (target / "expected.json").write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
