"""Objects: what has a digest that people use. Blobs, trees, manifests and records, each with the digests it links to.

An object record is either a list of chunks or, when it is small, its content itself. It also carries explicit links, so
that reachability can be followed without understanding the content. The kind is stored with the object and never
guessed from bytes; one digest may be known as several kinds.

Stored form (little-endian), the payload of an object record::

    0   2  version: 1
    2   1  form: 1 = content inline, 2 = chunk list
    3   1  layout: 0 = plain, 1 = safetensors
    4   4  number of links, u32
    8   4  number of chunks, u32
    12  4  zero
    16  8  length of the safetensors header with its 8-byte prefix, u64; 0 for plain
    24  .  links, 32 bytes each, ascending, no two alike
    .   .  chunks: digest (32 bytes), raw length (u32)
    .   .  inline content, encoded with the record's codec
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from enum import IntEnum, StrEnum
from typing import Final, NamedTuple

from csf_store.digest import Digest
from csf_store.framing import CHUNK_SIZE, FramingError
from csf_store.safetensors_layout import MAX_HEADER, PREFIX

INLINE_LIMIT: Final = 64 << 10
"""Content up to this many bytes lives inside its object record."""
_VERSION: Final = 1
_HEAD: Final = struct.Struct("<HBBIIIQ")
_CHUNK: Final = struct.Struct("<32sI")


class Kind(StrEnum):
    """What an object is."""

    BLOB = "blob"
    TREE = "tree"
    MANIFEST = "manifest"
    RECORD = "record"

    @property
    def number(self) -> int:
        """The number in the format."""
        return _NUMBERS[self]

    @classmethod
    def of(cls, number: int) -> Kind:
        """The kind of a number read from disk.

        Raises:
            FramingError: if there is none.
        """
        if number not in KINDS:
            raise FramingError(f"unknown object kind {number}")
        return KINDS[number]


_NUMBERS: Final = {Kind.BLOB: 1, Kind.TREE: 2, Kind.MANIFEST: 3, Kind.RECORD: 4}
KINDS: Final = {number: kind for kind, number in _NUMBERS.items()}


class Form(IntEnum):
    """Where an object's content is."""

    INLINE = 1
    CHUNKED = 2


class Layout(IntEnum):
    """How a blob was cut."""

    PLAIN = 0
    SAFETENSORS = 1


class ChunkRef(NamedTuple):
    """One entry of a chunk list: which chunk, and how many raw bytes it contributes."""

    digest: bytes
    length: int


class ObjectBody(NamedTuple):
    """An object record, parsed.

    Attributes:
        form: inline or chunked.
        layout: plain or safetensors.
        header_length: bytes of the safetensors header including its prefix, else 0.
        links: digests this object needs, ascending.
        chunks: the content in order, when chunked.
        inline: the encoded content, when inline.
    """

    form: Form
    layout: Layout
    header_length: int
    links: tuple[Digest, ...]
    chunks: tuple[ChunkRef, ...]
    inline: bytes


def ordered_links(links: Iterable[Digest]) -> tuple[Digest, ...]:
    """Links as they are stored: ascending, each once."""
    return tuple(sorted(set(links)))


def pack_object(body: ObjectBody) -> bytes:
    """The payload of an object record."""
    head = _HEAD.pack(_VERSION, body.form, body.layout, len(body.links), len(body.chunks), 0, body.header_length)
    return b"".join([head, *map(bytes, body.links), *(_CHUNK.pack(*chunk) for chunk in body.chunks), body.inline])


def unpack_object(payload: bytes, size: int) -> ObjectBody:
    """Reads the payload of an object record whose content has ``size`` bytes.

    Raises:
        FramingError: saying what does not hold together.
    """
    if len(payload) < _HEAD.size:
        raise FramingError("the object record is incomplete")
    version, form, layout, link_count, chunk_count, zero, header_length = _HEAD.unpack_from(payload)
    if version != _VERSION or zero or form not in tuple(Form) or layout not in tuple(Layout):
        raise FramingError(f"object record version {version}, form {form}, layout {layout} is unknown")
    links_end = _HEAD.size + 32 * link_count
    chunks_end = links_end + _CHUNK.size * chunk_count
    if chunks_end > len(payload):
        raise FramingError("the object record is shorter than its lists")
    if header_length > min(size, PREFIX + MAX_HEADER):
        raise FramingError(f"a safetensors header of {header_length} bytes is impossible")
    links = tuple(Digest(payload[at : at + 32]) for at in range(_HEAD.size, links_end, 32))
    if links != ordered_links(links):
        raise FramingError("the object record's links are out of order")
    chunks = tuple(ChunkRef(*chunk) for chunk in _CHUNK.iter_unpack(payload[links_end:chunks_end]))
    inline = payload[chunks_end:]
    if form == Form.INLINE:
        if chunks or size > INLINE_LIMIT or len(inline) > INLINE_LIMIT:
            raise FramingError("an inline object with chunks or of too many bytes")
    elif (
        inline
        or sum(chunk.length for chunk in chunks) != size
        or any(not 0 < chunk.length <= CHUNK_SIZE for chunk in chunks)
    ):
        raise FramingError("the chunk list does not add up to the object's size")
    return ObjectBody(Form(form), Layout(layout), header_length, links, chunks, inline)


class Stored(NamedTuple):
    """What a put did.

    Attributes:
        digest: the address.
        kind: as what it is stored.
        size: bytes of the content (of a tree: of all its files).
        stored: bytes newly added to the segments by this call; 0 for what was there.
        chunks: chunks the content consists of; 0 when it is inline.
        new: whether the object was not there before.
    """

    digest: Digest
    kind: Kind
    size: int
    stored: int
    chunks: int
    new: bool


class ObjectInfo(NamedTuple):
    """What is known of a digest without reading its content.

    Attributes:
        digest: the address.
        kinds: as what it is stored.
        size: bytes of the content.
        stored: bytes its records take in the segments, shared chunks included.
        chunks: chunks the content consists of; 0 when it is inline.
        links: the digests it needs.
    """

    digest: Digest
    kinds: tuple[Kind, ...]
    size: int
    stored: int
    chunks: int
    links: tuple[Digest, ...]
