"""A reader of CSF archives written from ``FORMAT.md`` alone: it uses nothing of this project.

Slow, plain, strict: every checksum, every hash, every reserved byte. That it reads the golden archives shows that the
text is complete; where the two disagree, one of them has to change.
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import zstandard
from blake3 import blake3

Words = npt.NDArray[Any]

SEGMENT_MAGIC, RECORD_MAGIC, TRAILER_MAGIC = b"\x89CSFSEG\n", b"\x89CSR", b"\x89CSFEND\n"
CHUNK, OBJECT, FOOTER = 1, 2, 3
KINDS = {1: "blob", 2: "tree", 3: "manifest", 4: "record"}
NO_BASE = bytes(32)


class FormatError(Exception):
    """The archive is not as the text says."""


def insist(holds: object, what: str) -> None:
    if not holds:
        raise FormatError(what)


class Record(NamedTuple):
    """A record: what its header says, and its payload."""

    offset: int
    type: int
    codec: int
    kind: int
    raw: int
    digest: bytes
    base: bytes
    payload: bytes


class Segment(NamedTuple):
    """The records of a segment, whether it is sealed, and how many bytes at its end are no record."""

    records: list[Record]
    sealed: bool
    tail: int


# -- segments ----------------------------------------------------------------------------------------------------------


def read_segment(path: Path, archive: bytes) -> Segment:
    data, name = path.read_bytes(), bytes.fromhex(path.stem)
    if len(data) < 64:
        return Segment([], sealed=False, tail=len(data))
    magic, version, size, zero, whose, who, check = struct.unpack("<8sHHI16s16s16s", data[:64])
    insist((magic, version, size, zero) == (SEGMENT_MAGIC, 1, 64, 0), "segment header")
    insist((whose, who) == (archive, name), "a segment of another name or archive")
    insist(check == blake3(name + data[:48]).digest(16), "segment header checksum")
    records: list[Record] = []
    at = 64
    while at < len(data):
        record = _record(data, at, name)
        if record is None:
            return Segment(records, sealed=False, tail=len(data) - at)
        if record.type == FOOTER:
            _footer(data, record, records, name)
            return Segment(records, sealed=True, tail=0)
        records.append(record)
        at += 128 + len(record.payload)
    return Segment(records, sealed=False, tail=0)


def _record(data: bytes, at: int, name: bytes) -> Record | None:
    head = data[at : at + 128]
    if len(head) < 128 or head[:4] != RECORD_MAGIC or head[120:] != blake3(name + head[:120]).digest(8):
        return None
    _, type_, codec, kind, zero, raw, stored, digest, hashed, base, _ = struct.unpack("<4sBBBBQQ32s32s32s8s", head)
    insist(type_ in (CHUNK, OBJECT, FOOTER) and zero == 0, "record header")
    insist((kind in KINDS) == (type_ == OBJECT), "a kind on what is no object")
    insist(base == NO_BASE or (type_ == CHUNK and codec == 3), "a base where none belongs")
    limits = {CHUNK: 4 << 20, OBJECT: 128 << 20, FOOTER: 1 << 30}
    insist(stored <= limits[type_] and (type_ != CHUNK or stored <= raw <= 4 << 20), "lengths of a record")
    payload = data[at + 128 : at + 128 + stored]
    if len(payload) < stored or blake3(payload).digest() != hashed:
        return None
    return Record(at, type_, codec, kind, raw, digest, base, payload)


def _footer(data: bytes, footer: Record, records: list[Record], name: bytes) -> None:
    table = footer.payload
    insist(footer.codec == 0 and footer.raw == len(table) == 96 * len(records), "footer record")
    insist(footer.digest == blake3(table).digest(), "footer digest")
    for number, record in enumerate(records):
        entry = struct.unpack_from("<QQQBBBBI32s32s", table, 96 * number)
        expected = (record.offset, len(record.payload), record.raw, record.type, record.kind, record.codec, 0, 0)
        insist(entry == (*expected, record.digest, record.base), f"footer entry {number}")
    end = data[footer.offset + 128 + len(table) :]
    insist(len(end) == 64, "a trailer ends the file")
    magic, offset, count, size, who, check = struct.unpack("<8sQQQ16s16s", end)
    insist(
        (magic, offset, count, size, who) == (TRAILER_MAGIC, footer.offset, len(records), len(data), name), "trailer"
    )
    insist(check == blake3(name + end[:48]).digest(16), "trailer checksum")


# -- codecs ------------------------------------------------------------------------------------------------------------


def unzstd(frame: bytes, size: int) -> bytes:
    insist(zstandard.get_frame_parameters(frame).content_size == size, "a frame that states another size")
    content = zstandard.ZstdDecompressor().decompress(frame, max_output_size=max(size, 1))
    insist(len(content) == size, "a frame of another size")
    return content


def read_plane(data: bytes, at: int, n: int) -> tuple[Words, int]:
    """The bytes of one plane record, and where it ends."""
    form, low, bits, zero, length = struct.unpack_from("<BBBBI", data, at)
    body = data[at + 8 : at + 8 + length]
    insist(zero == 0 and len(body) == length, "plane head")
    insist(form == 3 or bits == 0, "bits where none belong")
    insist(form in (0, 3) or low == 0, "a low byte where none belongs")
    if form == 0:
        insist(not body, "a constant with a body")
        content = bytes([low]) * n
    elif form == 1:
        content = body
    elif form == 2:
        content = unzstd(body, n)
    else:
        insist(form == 3, "plane form")
        return _fields(body, n, low, bits), at + 8 + length
    insist(len(content) == n, "a plane of another length")
    return np.frombuffer(content, np.uint8).copy(), at + 8 + length


def _fields(body: bytes, n: int, low: int, bits: int) -> Words:
    insist(bits in (0, 1, 2, 4), "bits of a field")
    frame, x, g = struct.unpack_from("<III", body)
    insist(x <= n // 8 and g <= n // 8 + n // 255 and (x or not g) and (bits or not frame), "a plane of fields")
    values = np.full(n, low, np.uint8)
    if bits:
        packed = np.frombuffer(unzstd(body[12 : 12 + frame], -(-n * bits // 8)), np.uint8)
        k = 8 // bits
        place = np.arange(n)
        values += (packed[place // k] >> (bits * (place % k)).astype(np.uint8)) & ((1 << bits) - 1)
    at = 12 + frame
    if x:
        gaps, at = read_plane(body, at, g)
        exceptions, at = read_plane(body, at, x)
        position, number = -1, 0
        gap = 0
        for byte in gaps.tolist():
            gap += byte
            if byte < 255:
                position += gap + 1
                values[position] = exceptions[number]
                number += 1
                gap = 0
        insist(number == x and gap == 0, "gaps and exceptions")
    insist(at == len(body), "bytes behind a plane of fields")
    return values


def read_values(data: bytes, at: int, n: int, width: int) -> tuple[Words, int]:
    """``n`` unsigned values of ``width`` bytes from their planes, rank 0 first."""
    values = np.zeros(n, f"<u{width}")
    for rank in range(width):
        plane, at = read_plane(data, at, n)
        values |= plane.astype(values.dtype) << np.array(8 * rank, values.dtype)
    return values, at


def unplanes(data: bytes, size: int) -> bytes:
    width, moved, zero = struct.unpack_from("<BBH", data)
    insist(width in (1, 2, 4, 8) and moved <= (width > 1) and zero == 0, "planes head")
    values, at = read_values(data, 4, size // width, width)
    if moved:
        low = 8 * width - 9
        one = values.dtype.type(1)
        sign = (values >> values.dtype.type(low)) & one
        top = values >> values.dtype.type(low + 1)
        values = (values & values.dtype.type((1 << low) - 1)) | (top << values.dtype.type(low))
        values |= sign << values.dtype.type(8 * width - 1)
    return _with_tail(values, data[at:], size)


def _with_tail(values: Words, tail: bytes, size: int) -> bytes:
    content = values.tobytes() + tail
    insist(len(content) == size, "the tail")
    return content


def undelta(data: bytes, base: bytes) -> bytes:
    width, m, e, shift, count, zero = struct.unpack_from("<BBBBHH", data)
    insist(width in (1, 2, 4, 8) and zero == 0 and shift < 8 * width and count <= 1 << e, "delta head")
    insist((m + e == 8 * width - 1 and e <= 11) or m == e == 0, "delta layout")
    n = len(base) // width
    unsigned, signed = np.dtype(f"<u{width}"), np.dtype(f"<i{width}")
    y = np.frombuffer(base, unsigned, n)
    exponents = (y >> unsigned.type(m)) & unsigned.type((1 << e) - 1)
    order = np.argsort(exponents, kind="stable")
    groups = [struct.unpack_from("<HHI", data, 8 + 8 * number) for number in range(count)]
    present, sizes = np.unique(exponents, return_counts=True)
    insist([(g[0], g[2]) for g in groups] == list(zip(present.tolist(), sizes.tolist(), strict=True)), "groups")
    runs: list[int] = []
    for number, (_, begins, size) in enumerate(groups):
        insist(begins <= 1 and (begins or number), "the first group begins a segment")
        if begins:
            runs.append(0)
        runs[-1] += size
    at, parts = 8 + 8 * count, []
    for run in runs:
        part, at = read_values(data, at, run, width)
        parts.append(part)
    z = np.zeros(n, unsigned)
    z[order] = np.concatenate(parts) if parts else np.zeros(0, unsigned)
    one = unsigned.type(1)
    d = (z >> one) ^ (unsigned.type(0) - (z & one))
    flip = unsigned.type((1 << (8 * width - 1 - shift)) - 1) if e else unsigned.type(0)

    def flipped(values: Words) -> Words:
        return np.where(values.view(signed) < 0, values ^ flip, values)

    s = flipped(flipped((y.view(signed) >> signed.type(shift)).view(unsigned)) + d)
    return _with_tail(s << unsigned.type(shift), data[at:], len(base))


# -- archives ----------------------------------------------------------------------------------------------------------


class Body(NamedTuple):
    """An object record, taken apart."""

    form: int
    layout: int
    header: int
    links: list[bytes]
    chunks: list[tuple[bytes, int]]
    inline: bytes


class PlainArchive:
    """An archive, read as a whole."""

    def __init__(self, path: Path) -> None:
        marker = (path / "csf.json").read_bytes()
        document = json.loads(marker)
        insist(document["format"] == "csf" and document["version"] == 1, "csf.json")
        insist(marker == json.dumps(document, separators=(",", ":"), sort_keys=True).encode() + b"\n", "its form")
        self.id = bytes.fromhex(document["archive"])
        self.segments = {file.name: read_segment(file, self.id) for file in sorted(path.glob("segments/*.csfs"))}
        self.chunks: dict[bytes, Record] = {}
        self.objects: dict[tuple[bytes, str], Record] = {}
        for record in (record for segment in self.segments.values() for record in segment.records):
            if record.type == OBJECT:
                self.objects.setdefault((record.digest, KINDS[record.kind]), record)
            elif self.chunks.setdefault(record.digest, record).base != NO_BASE and record.base == NO_BASE:
                self.chunks[record.digest] = record
        self.lines, self.torn = _ledger(path / "ledger.jsonl", self.id)

    def chunk(self, digest: bytes) -> bytes:
        record = self.chunks[digest]
        base = b""
        if record.base != NO_BASE:
            insist(self.chunks[record.base].base == NO_BASE, "a base that is a difference")
            base = self.chunk(record.base)
        content = decode(record.codec, record.payload, record.raw, base)
        insist(blake3(content).digest() == digest, "a chunk of other bytes")
        return content

    def body(self, digest: bytes, kind: str) -> Body:
        record = self.objects[digest, kind]
        data = record.payload
        version, form, layout, links, chunks, zero, header = struct.unpack_from("<HBBIIIQ", data)
        insist((version, zero) == (1, 0) and form in (1, 2) and layout in (0, 1), "object head")
        linked = [data[24 + 32 * number :][:32] for number in range(links)]
        insist(linked == sorted(set(linked)), "links")
        at = 24 + 32 * links
        listed = [struct.unpack_from("<32sI", data, at + 36 * number) for number in range(chunks)]
        return Body(form, layout, header, linked, listed, data[at + 36 * chunks :])

    def content(self, digest: bytes, kind: str) -> bytes:
        record, body = self.objects[digest, kind], self.body(digest, kind)
        if body.form == 1:
            insist(not body.chunks and record.raw <= 64 << 10, "inline")
            content = decode(record.codec, body.inline, record.raw, b"")
        else:
            insist(not body.inline, "bytes behind a chunk list")
            pieces = [self.chunk(chunk) for chunk, _ in body.chunks]
            insist([len(piece) for piece in pieces] == [length for _, length in body.chunks], "lengths of chunks")
            content = b"".join(pieces)
        insist(len(content) == record.raw and blake3(content).digest() == digest, "content of another digest")
        return content

    def tree(self, digest: bytes) -> list[tuple[str, bytes, int, bool]]:
        document = json.loads(self.content(digest, "tree"))
        insist(document["v"] == 1, "tree version")
        rows = [(path, bytes.fromhex(blob.removeprefix("b3:")), size, x) for path, blob, size, x in document["entries"]]
        insist([row[0] for row in rows] == sorted((row[0] for row in rows), key=str.encode), "order of a tree")
        insist(sorted({row[1] for row in rows}) == self.body(digest, "tree").links, "links of a tree")
        return rows

    def root(self) -> bytes:
        """The RFC 9162 root over the ledger's lines."""
        return _root([hashlib.sha256(b"\0" + line).digest() for line in self.lines])

    def pins(self) -> list[tuple[str, str, str | None]]:
        pins: dict[tuple[str, str, str | None], None] = {}
        for event in map(json.loads, self.lines):
            if event["event"] == "pin":
                pins.setdefault((event["digest"], event["kind"], event["name"]))
            elif event["event"] == "unpin":
                pins = {pin: None for pin in pins if pin[0] != event["digest"]}
        return list(pins)

    def refs(self) -> dict[str, str | None]:
        return {event["ref"]: event["to"] for event in map(json.loads, self.lines) if event["event"] == "ref.set"}


def decode(codec: int, stored: bytes, size: int, base: bytes) -> bytes:
    match codec:
        case 0:
            content = stored
        case 1:
            content = unzstd(stored, size)
        case 2:
            content = unplanes(stored, size)
        case 3:
            insist(len(base) == size, "a base of another length")
            content = undelta(stored, base)
        case _:
            raise FormatError(f"codec {codec}")
    insist(len(content) == size, "raw length")
    return content


def _ledger(path: Path, archive: bytes) -> tuple[list[bytes], bytes]:
    *lines, torn = path.read_bytes().split(b"\n")
    previous, time = bytes(32), ""
    for number, line in enumerate(lines):
        event = json.loads(line)
        insist(event["seq"] == number and event["prev"] == previous.hex() and event["time"] >= time, "ledger line")
        previous, time = hashlib.sha256(b"\0" + line).digest(), event["time"]
    first = json.loads(lines[0])
    insist((first["event"], first["archive"], first["format"]) == ("archive.created", archive.hex(), 1), "line 0")
    return lines, torn


def _root(leaves: list[bytes]) -> bytes:
    if len(leaves) < 2:
        return leaves[0] if leaves else hashlib.sha256(b"").digest()
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\1" + _root(leaves[:split]) + _root(leaves[split:])).digest()
