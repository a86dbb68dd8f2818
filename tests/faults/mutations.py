"""Broken archives, made from sound ones: bytes, fields, records and whole files, with and without true checksums.

An archive is a dict of files here. A mutation of raw bytes mostly meets a checksum; to reach what is behind them, other
mutations take segments apart, change a field, a record or a payload, and put them together again with every checksum
and hash as it must be.
"""

from __future__ import annotations

import contextlib
import json
import random
import struct
from collections.abc import Callable
from typing import Final

import rfc8785
from pieces import Files, Piece, put_together, take_apart

from csf_store.digest import Digest
from csf_store.framing import FooterEntry, RecordType, Trailer
from csf_store.ledger.merkle import leaf_hash
from csf_store.segment import stored_hash

EDGES: Final = [0, 1, 2, 63, 64, 2**16 - 1, 2**16, 2**22, 2**22 + 1, 2**27, 2**30, 2**31 - 1, 2**31, 2**32 - 1, 2**32,
                2**53, 2**62, 2**62 + 1, 2**63 - 1, 2**63, 2**64 - 121, 2**64 - 1]  # fmt: skip


class Mutator:
    """Draws mutations; the same seed draws the same."""

    def __init__(self, corpus: dict[str, Files], chance: random.Random) -> None:
        self._corpus = corpus
        self.chance = chance

    def draw(self) -> tuple[str, Files]:
        """A broken archive, and what was done to which."""
        names = sorted(self._corpus)
        origin = self.chance.choices(names, [3 if name.startswith("whole") else 1 for name in names])[0]
        files = dict(self._corpus[origin])
        done = []
        for _ in range(self.chance.choice((1, 1, 1, 2, 3))):
            change = self.chance.choice(_CHANGES)
            try:
                change(self, files)
            except (ValueError, IndexError, struct.error, OverflowError, RecursionError):
                continue  # it does not apply to what the change before it left, or no field can hold it
            done.append(change.__name__.removeprefix("_"))
        return f"{origin}: {', '.join(done)}", files

    # -- drawing -----------------------------------------------------------------------------------------------------

    def bytes_changed(self, data: bytes) -> bytes:
        """A few bytes flipped, overwritten, zeroed, removed, added, doubled or moved; or the end cut off."""
        changed = bytearray(data)
        for _ in range(self.chance.choice((1, 1, 2, 5))):
            at = self.chance.randrange(len(changed) + 1)
            length = min(self.chance.choice((1, 1, 1, 2, 4, 8, 32, 100, 512, 4096)), len(changed) - at)
            other = self.chance.randrange(len(changed) + 1)
            old = changed[at : at + length]
            new = self.chance.choice(
                (
                    bytes(byte ^ 1 << self.chance.randrange(8) for byte in old[:1]) + old[1:],
                    bytes(byte ^ 1 << self.chance.randrange(8) for byte in old[:1]) + old[1:],
                    self.chance.randbytes(length),
                    bytes(length),
                    b"",
                    self.chance.randbytes(self.chance.choice((1, 2, 8, 100))) + old,
                    old + old,
                    changed[other : other + length],
                )
            )
            changed[at : at + length] = new
            if self.chance.random() < 0.1:
                del changed[at:]
        return bytes(changed)

    def number(self, old: int, bits: int) -> int:
        """Another number for a field of so many bits."""
        near = [old + 1, old - 1, old * 2, old ^ 1 << self.chance.randrange(bits), self.chance.getrandbits(bits)]
        return self.chance.choice([edge for edge in [*EDGES, *near, *near] if 0 <= edge < 1 << bits])

    def segment(self, files: Files) -> str:
        """One of the segments."""
        return self.chance.choice(sorted(name for name in files if name.endswith(".csfs")))

    def digest(self) -> bytes:
        """A digest that may mean something."""
        known = [piece.header.digest for files in self._corpus.values() for piece in _all_pieces(files)]
        return self.chance.choice([*known, bytes(32), self.chance.randbytes(32)])


def _all_pieces(files: Files) -> list[Piece]:
    return [piece for name in sorted(files) if name.endswith(".csfs") for piece in take_apart(name, files[name])[0]]


def _archive_id(files: Files) -> bytes:
    try:
        return bytes.fromhex(json.loads(files["csf.json"])["archive"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return bytes(16)


# -- bytes and files --------------------------------------------------------------------------------------------------


def _any_bytes(mutator: Mutator, files: Files) -> None:
    name = mutator.chance.choice(sorted(files))
    files[name] = mutator.bytes_changed(files[name])


def _segment_bytes(mutator: Mutator, files: Files) -> None:
    name = mutator.segment(files)
    files[name] = mutator.bytes_changed(files[name])


def _a_file_gone_or_doubled(mutator: Mutator, files: Files) -> None:
    name = mutator.chance.choice(sorted(files))
    match mutator.chance.randrange(3):
        case 0:
            del files[name]
        case 1:
            files[f"segments/{mutator.chance.randbytes(16).hex()}.csfs"] = files[name]
        case _:
            files[mutator.chance.choice(["ledger.jsonl", "csf.json", "index.sqlite", "collecting.json"])] = files[name]


def _files_swapped(mutator: Mutator, files: Files) -> None:
    one, two = mutator.segment(files), mutator.segment(files)
    files[one], files[two] = files[two], files[one]


def _a_file_of_another_archive(mutator: Mutator, files: Files) -> None:
    other = mutator._corpus[mutator.chance.choice(sorted(mutator._corpus))]
    name = mutator.chance.choice(sorted(other))
    files[name if mutator.chance.random() < 0.5 or not name.endswith(".csfs") else mutator.segment(files)] = other[name]


# -- records with true checksums --------------------------------------------------------------------------------------


def _rebuilt(mutator: Mutator, files: Files, change: Callable[[list[Piece]], None]) -> None:
    name = mutator.segment(files)
    pieces, sealed = take_apart(name, files[name])
    change(pieces)
    files[name] = put_together(name, _archive_id(files), pieces, sealed=sealed and mutator.chance.random() < 0.9)


def _record_field(mutator: Mutator, files: Files) -> None:
    def change(pieces: list[Piece]) -> None:
        at = mutator.chance.randrange(len(pieces))
        header, payload = pieces[at]
        match mutator.chance.randrange(8):
            case 0:
                header = header._replace(type=mutator.chance.choice([*RecordType, 0, 4, 255]))  # type: ignore[arg-type]
            case 1:
                header = header._replace(codec=mutator.chance.choice([0, 1, 2, 3, 4, 63, 255]))
            case 2:
                header = header._replace(kind=mutator.chance.choice([0, 1, 2, 3, 4, 5, 255]))
            case 3 | 4:
                header = header._replace(raw_length=mutator.number(header.raw_length, 64))
            case 5:
                header = header._replace(stored_length=mutator.number(header.stored_length, 64))
            case 6:
                header = header._replace(digest=mutator.digest())
            case _:
                header = header._replace(base=mutator.digest())
        pieces[at] = Piece(header, payload)

    _rebuilt(mutator, files, change)


def _payload(mutator: Mutator, files: Files) -> None:
    def change(pieces: list[Piece]) -> None:
        at = mutator.chance.randrange(len(pieces))
        header, payload = pieces[at]
        payload = mutator.bytes_changed(payload)
        pieces[at] = Piece(header._replace(stored_length=len(payload), stored_hash=stored_hash(payload)), payload)

    _rebuilt(mutator, files, change)


def _payload_head(mutator: Mutator, files: Files) -> None:
    """Numbers where codecs and objects keep their lengths and counts."""

    def change(pieces: list[Piece]) -> None:
        at = mutator.chance.randrange(len(pieces))
        header, payload = pieces[at]
        size = mutator.chance.choice((1, 2, 4, 8))
        place = mutator.chance.randrange(min(len(payload), 160))
        changed = bytearray(payload)
        old = int.from_bytes(changed[place : place + size], "little")
        changed[place : place + size] = mutator.number(old, 8 * size).to_bytes(size, "little")
        payload = bytes(changed)
        pieces[at] = Piece(header._replace(stored_length=len(payload), stored_hash=stored_hash(payload)), payload)

    _rebuilt(mutator, files, change)


def _object_lists(mutator: Mutator, files: Files) -> None:
    """Links and chunks exchanged, doubled, dropped, reordered; the counts kept true or not."""

    def change(pieces: list[Piece]) -> None:
        objects = [number for number, piece in enumerate(pieces) if piece.header.type == RecordType.OBJECT]
        at = mutator.chance.choice(objects)
        header, payload = pieces[at]
        links, chunks = struct.unpack_from("<II", payload, 4)
        if 24 + 32 * links + 36 * chunks > len(payload):
            raise ValueError("its counts were changed before")
        head, rest = bytearray(payload[:24]), payload[24:]
        linked = [rest[32 * number : 32 * number + 32] for number in range(links)]
        listed = [rest[32 * links + 36 * number :][:36] for number in range(chunks)]
        which = mutator.chance.choice([linked, listed])
        match mutator.chance.randrange(5):
            case 0:
                which.append(mutator.digest() + (b"" if which is linked else struct.pack("<I", header.raw_length & ~0)))
            case 1:
                which.append(mutator.chance.choice(which))
            case 2:
                which.pop(mutator.chance.randrange(len(which)))
            case 3:
                mutator.chance.shuffle(which)
            case 4:
                spot = mutator.chance.randrange(len(which))
                which[spot] = mutator.digest() + which[spot][32:]
        if mutator.chance.random() < 0.8:
            linked.sort()
            struct.pack_into("<II", head, 4, len(linked), len(listed))
        payload = bytes(head) + b"".join(linked) + b"".join(listed) + rest[32 * links + 36 * chunks :]
        size = sum(int.from_bytes(each[32:], "little") for each in listed) if listed else header.raw_length
        header = header._replace(raw_length=size, stored_length=len(payload), stored_hash=stored_hash(payload))
        pieces[at] = Piece(header, payload)

    _rebuilt(mutator, files, change)


def _records_moved(mutator: Mutator, files: Files) -> None:
    """Records dropped, doubled, reordered, or spliced in from anywhere."""

    def change(pieces: list[Piece]) -> None:
        match mutator.chance.randrange(4):
            case 0:
                pieces.pop(mutator.chance.randrange(len(pieces)))
            case 1:
                pieces.insert(mutator.chance.randrange(len(pieces) + 1), mutator.chance.choice(pieces))
            case 2:
                mutator.chance.shuffle(pieces)
            case _:
                other = mutator._corpus[mutator.chance.choice(sorted(mutator._corpus))]
                pieces.insert(mutator.chance.randrange(len(pieces) + 1), mutator.chance.choice(_all_pieces(other)))

    _rebuilt(mutator, files, change)


def _bases(mutator: Mutator, files: Files) -> None:
    """Chunks made differences to each other, in chains and circles."""

    def change(pieces: list[Piece]) -> None:
        chunks = [number for number, piece in enumerate(pieces) if piece.header.type == RecordType.CHUNK]
        for at in mutator.chance.sample(chunks, min(len(chunks), 2)):
            base = pieces[mutator.chance.choice(chunks)].header.digest
            pieces[at] = pieces[at]._replace(header=pieces[at].header._replace(base=base, codec=3))

    _rebuilt(mutator, files, change)


def _content(mutator: Mutator, files: Files) -> None:
    """The content of an inline object, changed, with a digest that fits: trees and safetensors that lie."""

    def change(pieces: list[Piece]) -> None:
        inline = [n for n, p in enumerate(pieces) if p.header.type == RecordType.OBJECT and p.payload[2:3] == b"\1"]
        at = mutator.chance.choice(inline)
        header, payload = pieces[at]
        start = 24 + 32 * int.from_bytes(payload[4:8], "little")
        content = payload[start:] if header.codec == 0 else b'{"entries":[["a","b3:%s",3,false]],"v":1}' % (b"0" * 64)
        content = mutator.bytes_changed(content)
        if mutator.chance.random() < 0.3:
            content = mutator.chance.choice(
                [b"[" * 50_000, b'{"entries":' + b"[" * 30_000, b'{"entries":[[1e999]],"v":1}', b'{"v":1,"entries":[]}',
                 b'{"entries":[["../x","b3:' + b"0" * 64 + b'",9223372036854775807,false]],"v":1}']
            )  # fmt: skip
        payload = payload[:start] + content
        pieces[at] = Piece(
            header._replace(
                codec=0,
                raw_length=len(content),
                stored_length=len(payload),
                stored_hash=stored_hash(payload),
                digest=bytes(Digest.of(content)),
            ),
            payload,
        )

    _rebuilt(mutator, files, change)


def _footer(mutator: Mutator, files: Files) -> None:
    """What the end of a sealed segment says, changed in one field, its checksums true."""
    name = mutator.segment(files)
    pieces, _ = take_apart(name, files[name])
    which = mutator.chance.randrange(len(pieces) + 1)
    field = mutator.chance.choice(("offset", "stored_length", "raw_length", "kind", "codec", "digest", "base", "type"))

    def changed(number: int, entry: FooterEntry) -> FooterEntry:
        if number != which:
            return entry
        old = getattr(entry, field)
        if isinstance(old, bytes):
            return entry._replace(**{field: mutator.digest()})
        return entry._replace(**{field: mutator.number(int(old), 64 if field in FooterEntry._fields[:3] else 8)})

    def trailer(trailer: Trailer) -> Trailer:
        if which < len(pieces):
            return trailer
        field = mutator.chance.choice(Trailer._fields)
        return trailer._replace(**{field: mutator.number(getattr(trailer, field), 64)})

    files[name] = put_together(name, _archive_id(files), pieces, sealed=True, entry=changed, trailer=trailer)


# -- the ledger and the marker ----------------------------------------------------------------------------------------

_ODD: Final = [
    None, True, 0, -1, 2**53, 2**63, 10**30, 1.5, "", "x" * 500, "b3:" + "0" * 64, "b3:", [], {}, [[]],
    "\ud800", "0" * 64,
]  # fmt: skip


def _ledger_lines(mutator: Mutator, files: Files) -> None:
    """Lines dropped, doubled, swapped, or with other fields; hashed together again, or not."""
    chance = mutator.chance
    lines = files.get("ledger.jsonl", b"").splitlines()
    at = chance.randrange(len(lines))
    match chance.randrange(5):
        case 0:
            del lines[at]
        case 1:
            lines.insert(at, chance.choice(lines))
        case 2:
            chance.shuffle(lines)
        case _:
            try:
                document = json.loads(lines[at])
                key = chance.choice([*sorted(document), "event", "digest", "to", "segments"])
                document[key] = chance.choice([*_ODD, str(Digest(mutator.digest())), "pin", "unpin", "ref.set"])
                lines[at] = json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
            except (ValueError, TypeError):
                return
    if chance.random() < 0.8:
        lines = _chained(lines)
    files["ledger.jsonl"] = b"".join(line + b"\n" for line in lines)


def _chained(lines: list[bytes]) -> list[bytes]:
    """Lines that follow each other by number and hash, as far as they are lines at all."""
    chained: list[bytes] = []
    previous = bytes(32)
    for line in lines:
        chained.append(line)
        with contextlib.suppress(ValueError, TypeError, rfc8785.CanonicalizationError):
            document = {**json.loads(line), "seq": len(chained) - 1, "prev": previous.hex()}
            chained[-1] = rfc8785.dumps(document)
        previous = leaf_hash(chained[-1])
    return chained


def _marker(mutator: Mutator, files: Files) -> None:
    chance = mutator.chance
    try:
        document = json.loads(files["csf.json"])
        document[chance.choice(["archive", "format", "version"])] = chance.choice([*_ODD, "00" * 16, 2, "csf"])
        files["csf.json"] = json.dumps(document).encode()
    except (ValueError, KeyError, TypeError):
        files["csf.json"] = chance.choice([b"[" * 4000, b"", b"null", b'{"format":"csf"}'])


_CHANGES: Final[list[Callable[[Mutator, Files], None]]] = [
    _any_bytes, _segment_bytes, _a_file_gone_or_doubled, _files_swapped, _a_file_of_another_archive, _record_field,
    _record_field, _payload, _payload, _payload_head, _payload_head, _object_lists, _records_moved, _bases, _content,
    _footer, _ledger_lines, _marker,
]  # fmt: skip
