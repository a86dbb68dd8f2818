"""Archives made by hand, with true checksums over whatever lies one likes."""

from __future__ import annotations

import json
from pathlib import Path

from pieces import Piece, put_together

from csf_store import Digest, Kind
from csf_store.framing import ZERO_DIGEST, RecordHeader, RecordType
from csf_store.objects import ChunkRef, Form, Layout, ObjectBody, ordered_links, pack_object
from csf_store.segment import stored_hash

ARCHIVE_ID = bytes(range(16))
SEGMENT = f"{bytes(range(16, 32)).hex()}.csfs"


def address(content: bytes) -> bytes:
    return bytes(Digest.of(content))


def chunk(
    content: bytes,
    *,
    stored: bytes | None = None,
    codec: int = 0,
    raw: int | None = None,
    digest: bytes | None = None,
    base: bytes = ZERO_DIGEST,
) -> Piece:
    """A chunk record of ``content``, or one that says it is."""
    payload = content if stored is None else stored
    size = len(content) if raw is None else raw
    return Piece(
        RecordHeader(
            RecordType.CHUNK, codec, 0, size, len(payload), digest or address(content), stored_hash(payload), base
        ),
        payload,
    )


def inline(content: bytes, *, kind: Kind = Kind.BLOB, links: tuple[bytes, ...] = (), digest: bytes = b"") -> Piece:
    """An object record that holds its content."""
    body = ObjectBody(Form.INLINE, Layout.PLAIN, 0, ordered_links(map(Digest, links)), (), content)
    return thing(pack_object(body), len(content), digest or address(content), kind=kind)


def listing(
    digest: bytes,
    chunks: list[tuple[bytes, int]],
    *,
    kind: Kind = Kind.BLOB,
    links: tuple[bytes, ...] = (),
    layout: Layout = Layout.PLAIN,
    header_length: int = 0,
) -> Piece:
    """An object record that lists chunks: digest and raw length."""
    body = ObjectBody(
        Form.CHUNKED,
        layout,
        header_length,
        ordered_links(map(Digest, links)),
        tuple(ChunkRef(*each) for each in chunks),
        b"",
    )
    return thing(pack_object(body), sum(length for _, length in chunks), digest, kind=kind)


def thing(payload: bytes, size: int, digest: bytes, *, kind: Kind = Kind.BLOB, codec: int = 0) -> Piece:
    """An object record with any payload."""
    header = RecordHeader(
        RecordType.OBJECT, codec, kind.number, size, len(payload), digest, stored_hash(payload), ZERO_DIGEST
    )
    return Piece(header, payload)


def forge(path: Path, pieces: list[Piece], *, sealed: bool = True, **changes: object) -> Path:
    """An archive of one segment with these records. What a sealed one lists is believed at once."""
    (path / "segments").mkdir(parents=True)
    marker = {"archive": ARCHIVE_ID.hex(), "format": "csf", "version": 1}
    (path / "csf.json").write_text(json.dumps(marker))
    segment = put_together(SEGMENT, ARCHIVE_ID, pieces, sealed=sealed, **changes)  # type: ignore[arg-type]
    (path / "segments" / SEGMENT).write_bytes(segment)
    return path
