"""Thousands of broken containers, most with a true trailer: an error of ours, or exactly what was put in. Seeded."""

import hashlib
import json
import random
from pathlib import Path

from csfpack_maker import GOLDEN, SAMPLES, JsonObject, pack, seal, unpack

from csf_store import CorruptError, InvalidInputError
from csf_store.csfpack.container import CsfPack

HOSTILE = [
    -1, 0, 1, 2.5, True, None, 2**31, 2**32, 2**53, 2**63, 10**30, "", "..", "/", "a/b", "zlib", "zstd", "store",
    [], {}, "\ud800", "0" * 64,
]  # fmt: skip
ROUNDS = 4000


def _bytes_changed(chance: random.Random, data: bytes) -> bytes:
    """A few bytes overwritten, removed, added, or moved."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(changed) + 1)
        length = chance.choice([1, 1, 1, 2, 8, 100])
        match chance.randrange(5):
            case 0 | 1:
                changed[at : at + length] = chance.randbytes(min(length, len(changed) - at))
            case 2:
                del changed[at : at + length]
            case 3:
                changed[at:at] = chance.randbytes(length)
            case 4:
                other = chance.randrange(len(changed) + 1)
                changed[at : at + length] = changed[other : other + length]
    return bytes(changed)


def _fields_changed(chance: random.Random, data: bytes) -> bytes:
    """A manifest that is JSON and lies, over the same region."""
    manifest, region = unpack(data)
    files = manifest["files"]
    assert isinstance(files, list)
    for _ in range(chance.randint(1, 2)):
        shared = manifest.get("shared_dict")
        target: JsonObject = chance.choice([*files, manifest, *([shared] if isinstance(shared, dict) else [])])
        name = chance.choice(sorted(target))
        value = target[name]
        match chance.randrange(5):
            case 0:
                target[name] = chance.choice(HOSTILE)
            case 1:
                del target[name]
            case 2:
                target[name] = value + chance.choice([-1, 1, 7, 1000]) if isinstance(value, int | float) else value
            case 3:
                target[name] = chance.choice(files).get(name, 0) if isinstance(chance.choice(files), dict) else 0
            case 4:
                files.append(dict(chance.choice(files)))
        files = [row for row in files if isinstance(row, dict) and row]
        if not files or manifest.get("files") is None or not isinstance(manifest["files"], list):
            break
    return pack(json.dumps(manifest).encode(), region)


def _mutated(chance: random.Random, data: bytes) -> bytes:
    match chance.randrange(6):
        case 0:
            return _bytes_changed(chance, data)
        case 1:
            return seal(_bytes_changed(chance, data[:-40]))
        case 2 | 3:  # only the region, under a manifest that is right
            start = 12 + int.from_bytes(data[8:12], "big")
            return seal(data[:start] + _bytes_changed(chance, data[start:-40]))
        case _:
            return _fields_changed(chance, data)


def test_mutated_containers_are_refused_or_exact(tmp_path: Path) -> None:
    chance = random.Random(20260108)
    samples = [(GOLDEN / name).read_bytes() for name in SAMPLES]
    listed = json.loads((GOLDEN / "contents.json").read_text())
    known = {row["sha256"] for rows in listed.values() for row in rows}
    path = tmp_path / "m.csf"
    refused = {CorruptError: 0, InvalidInputError: 0}
    exact = 0
    for _ in range(ROUNDS):
        path.write_bytes(_mutated(chance, chance.choice(samples)))
        try:
            with CsfPack.open(path) as container:
                container.verify()
                for member in container.members:
                    content = container.source(member).read(0, member.size)
                    assert hashlib.sha256(content).hexdigest() in known
                exact += 1
        except (CorruptError, InvalidInputError) as error:
            assert str(path) in str(error)
            refused[CorruptError if isinstance(error, CorruptError) else InvalidInputError] += 1
    # All three outcomes are common, or the mutations reach nothing.
    assert min(exact, *refused.values()) > ROUNDS // 40, (exact, refused)
