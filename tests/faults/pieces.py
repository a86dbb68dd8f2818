"""Archives as dicts of files, and segments as lists of records: taken apart, and put together with true checksums."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeAlias

from csf_store.framing import (
    RECORD_HEADER_SIZE,
    SEGMENT_HEADER_SIZE,
    FooterEntry,
    FramingError,
    RecordHeader,
    RecordType,
    Trailer,
    pack_footer_entry,
    pack_record_header,
    pack_segment_header,
    pack_trailer,
    unpack_record_header,
)
from csf_store.segment import segment_id_of, stored_hash

Files: TypeAlias = dict[str, bytes]
"""An archive: content by path."""


class Piece(NamedTuple):
    """One record of a segment, taken apart."""

    header: RecordHeader
    payload: bytes


def load(path: Path) -> Files:
    """The files of an archive on disk."""
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def store(files: Files, path: Path) -> None:
    """Writes them to a directory that is not there."""
    (path / "segments").mkdir(parents=True)
    for name, content in files.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(content)


def take_apart(name: str, data: bytes) -> tuple[list[Piece], bool]:
    """The records of a sound segment, without the footer, and whether there was one."""
    segment_id = segment_id_of(Path(name).name) or b""
    pieces, at = [], SEGMENT_HEADER_SIZE
    while at < len(data):
        try:
            header = unpack_record_header(segment_id, data[at : at + RECORD_HEADER_SIZE])
        except FramingError:
            break
        start = at + RECORD_HEADER_SIZE
        if header.type == RecordType.FOOTER:
            return pieces, True
        if start + header.stored_length > len(data):
            break
        pieces.append(Piece(header, data[start : start + header.stored_length]))
        at = start + header.stored_length
    return pieces, False


def put_together(
    name: str,
    archive_id: bytes,
    pieces: list[Piece],
    *,
    sealed: bool,
    entry: Callable[[int, FooterEntry], FooterEntry] = lambda _, entry: entry,
    trailer: Callable[[Trailer], Trailer] = lambda trailer: trailer,
) -> bytes:
    """A segment with true checksums; ``entry`` and ``trailer`` may change what the end of a sealed one says."""
    segment_id = segment_id_of(Path(name).name) or b""
    out = bytearray(pack_segment_header(archive_id, segment_id))
    table = bytearray()
    for number, (header, payload) in enumerate(pieces):
        line = FooterEntry(len(out), header.stored_length, header.raw_length, header.type, header.kind, header.codec,
                           header.digest, header.base)  # fmt: skip
        table += pack_footer_entry(entry(number, line))
        out += pack_record_header(segment_id, header) + payload
    if sealed:
        digest = stored_hash(table)
        footer = RecordHeader(RecordType.FOOTER, 0, 0, len(table), len(table), digest, digest)
        size = len(out) + RECORD_HEADER_SIZE + len(table) + 64
        end = pack_trailer(segment_id, trailer(Trailer(len(out), len(pieces), size)))
        out += pack_record_header(segment_id, footer) + table + end
    return bytes(out)
