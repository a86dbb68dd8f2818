"""The way in: bytes become chunks, chunks become an object. Nothing here is durable; the archive commits.

A source is read once, front to back. While the pool hashes and encodes chunks, this thread feeds the hash of the whole,
so that the blob digest covers exactly the bytes that were stored.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, Protocol, TypeAlias

from blake3 import blake3

from csf_store.bases import Base
from csf_store.codecs import WORTH, Hint, encode, needs_base
from csf_store.digest import Buffer, Digest
from csf_store.durable import storage_errors
from csf_store.errors import ConflictError, CorruptError, InvalidInputError, PickleRefusedError
from csf_store.framing import CHUNK_SIZE, ZERO_DIGEST, RecordHeader
from csf_store.objects import INLINE_LIMIT, ChunkRef, Form, Kind, Layout, ObjectBody, Stored, ordered_links, pack_object
from csf_store.pickles import pickle_inside
from csf_store.pipeline import Pipeline
from csf_store.retrieve import Retrieve
from csf_store.safetensors_layout import (
    MAX_HEADER,
    PREFIX,
    Cut,
    SafetensorsHeader,
    header_length,
    parse_header,
    plain_cuts,
    tensor_cuts,
)
from csf_store.segment import chunk_header, object_header
from csf_store.store import Store

Progress: TypeAlias = Callable[[int], None]
"""Called with the number of bytes just done."""
_HEAD: Final = 64 << 10
SUFFIX: Final = ".safetensors"


class Source(Protocol):
    """Bytes to store, of a size known before."""

    @property
    def size(self) -> int:
        """How many bytes there are."""
        ...

    def read(self, offset: int, length: int, into: memoryview | None = None) -> Buffer:
        """Exactly these bytes; in ``into``, if they have to be put somewhere and it is given (``length`` bytes)."""
        ...


class NamedSource(Source, Protocol):
    """Bytes with a name, which says what they claim to be."""

    @property
    def path(self) -> Path:
        """The name, for the suffix and for messages."""
        ...


class BytesSource:
    """Bytes in memory; nothing is copied."""

    def __init__(self, data: Buffer) -> None:
        self._view = memoryview(data).cast("B")
        self.size = len(self._view)

    def read(self, offset: int, length: int, into: memoryview | None = None) -> Buffer:  # noqa: ARG002 - a Source
        """A view of these bytes."""
        return self._view[offset : offset + length]


class FileSource:
    """A file, open while it is read. A context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with storage_errors(path):
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self.size = os.fstat(self._fd).st_size

    def __enter__(self) -> FileSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        os.close(self._fd)

    def read(self, offset: int, length: int, into: memoryview | None = None) -> Buffer:
        """These bytes of the file.

        Raises:
            InvalidInputError: if the file became shorter.
        """
        view = memoryview(bytearray(length)) if into is None else into
        got = 0
        with storage_errors(self.path):
            while got < length:
                count = os.preadv(self._fd, [view[got:]], offset + got)
                if not count:
                    raise InvalidInputError(f"{self.path} became shorter while it was read; put it again when it rests")
                got += count
        return view


class Plan(NamedTuple):
    """How a source will be cut, decided and checked before anything is written."""

    layout: Layout
    header_length: int
    cuts: Iterable[Cut]


def plan_bytes(source: Source) -> Plan:
    """How to cut bytes of unknown origin: as safetensors if they are, to the last byte; else plainly."""
    header = _sniff(source)
    return _plan(header) if header else Plan(Layout.PLAIN, 0, plain_cuts(source.size))


def plan_file(source: NamedSource, *, allow_pickle: bool) -> Plan:
    """How to cut a file, or what was one.

    Raises:
        InvalidInputError: if it is named ``.safetensors`` and is malformed or truncated.
        PickleRefusedError: if it is a pickle and that was not asked for.
    """
    if source.path.suffix.lower() == SUFFIX:
        try:
            return _plan(_header(source))
        except InvalidInputError as error:
            raise InvalidInputError(
                f"{source.path} is not a sound safetensors file: {error}; nothing was stored"
            ) from error
    head = bytes(source.read(0, min(_HEAD, source.size)))
    found = None if allow_pickle else pickle_inside(source.read, source.size, head)
    if found:
        raise PickleRefusedError(
            f"{source.path} is {found}, which runs code when read; convert it to safetensors "
            "(or keep it as opaque bytes with --allow-pickle)"
        )
    return plan_bytes(source)


def _plan(header: SafetensorsHeader) -> Plan:
    return Plan(Layout.SAFETENSORS, header.length, tensor_cuts(header))


def _header(source: Source) -> SafetensorsHeader:
    length = header_length(bytes(source.read(0, min(PREFIX, source.size))), source.size)
    return parse_header(source.read(0, length), source.size)


def _sniff(source: Source) -> SafetensorsHeader | None:
    """The header of bytes that are safetensors without saying so by a name."""
    prefix = bytes(source.read(0, min(PREFIX + 1, source.size)))
    if len(prefix) <= PREFIX or prefix[PREFIX:] != b"{" or int.from_bytes(prefix[:PREFIX], "little") > MAX_HEADER:
        return None
    try:
        return _header(source)
    except InvalidInputError:
        return None


class _Piece(NamedTuple):
    """A chunk to be, read: its bytes, where they are from, and the memory they may be in."""

    data: Buffer
    cut: Cut
    buffer: memoryview


class _Prepared(NamedTuple):
    """A chunk, hashed and encoded; ``stored`` is None where the store has it already."""

    digest: bytes
    raw_length: int
    buffer: memoryview
    stored: Buffer | None = None
    header: RecordHeader | None = None


class Ingest:
    """Writes chunks and objects into a store, each once."""

    def __init__(self, store: Store, retrieve: Retrieve, pipeline: Pipeline) -> None:
        self._store = store
        self._retrieve = retrieve
        self._pipeline = pipeline

    def put(
        self,
        source: Source,
        plan: Plan,
        kind: Kind,
        links: Iterable[Digest],
        *,
        progress: Progress | None = None,
        base: Base | None = None,
        worth: float = WORTH,
    ) -> Stored:
        """Stores a source as an object of a kind; chunks may become differences to those of ``base``."""
        ordered = ordered_links(links)
        if plan.layout == Layout.PLAIN and source.size <= INLINE_LIMIT:
            data = source.read(0, source.size)
            if progress:
                progress(source.size)
            return self._put_inline(data, kind, ordered)
        whole = self._pipeline.hasher()
        chunks: list[ChunkRef] = []
        written = 0
        prepare = partial(self._prepare, base, worth)
        warm: list[memoryview] = []  # a buffer goes round as soon as its chunk is written
        for prepared in self._pipeline.ordered(prepare, self._pieces(source, plan, whole, warm)):
            chunks.append(ChunkRef(prepared.digest, prepared.raw_length))
            written += self._put_chunk(prepared)
            warm.append(prepared.buffer)
            if progress:
                progress(prepared.raw_length)
        digest = Digest(whole.digest())
        body = ObjectBody(Form.CHUNKED, plan.layout, plan.header_length, ordered, tuple(chunks), b"")
        return self._put_object(digest, kind, body, size=source.size, codec=0, written=written)

    def _pieces(self, source: Source, plan: Plan, whole: blake3, warm: list[memoryview]) -> Iterator[_Piece]:
        room = min(CHUNK_SIZE, source.size)
        for cut in plan.cuts:
            buffer = warm.pop() if warm else memoryview(bytearray(room))
            data = source.read(cut.offset, cut.length, buffer[: cut.length])
            whole.update(data)
            yield _Piece(data, cut, buffer)

    def _prepare(self, base: Base | None, worth: float, piece: _Piece) -> _Prepared:
        data, cut, buffer = piece
        digest = blake3(data).digest()
        if self._store.find_chunk(digest):
            return _Prepared(digest, len(data), buffer)
        hint = Hint(cut.tensor.dtype if cut.tensor else "", worth=worth)
        other = base.chunk_for(cut.tensor, cut.within, len(data)) if base and cut.tensor else None
        if other is not None:
            with contextlib.suppress(CorruptError):  # a damaged base is no reason to refuse what stands alone
                hint = hint._replace(base=self._retrieve.chunk(other, len(data)))
        codec, stored = encode(data, hint)
        against = other if other is not None and needs_base(codec) else ZERO_DIGEST
        header = chunk_header(digest, codec, len(data), stored, against)
        return _Prepared(digest, len(data), buffer, stored, header)

    def _put_chunk(self, prepared: _Prepared) -> int:
        # Asked again: the same chunk may have been in flight twice.
        if prepared.stored is None or prepared.header is None or self._store.find_chunk(prepared.digest):
            return 0
        return self._store.append(prepared.header, prepared.stored)

    def _put_inline(self, data: Buffer, kind: Kind, links: tuple[Digest, ...]) -> Stored:
        codec, stored = encode(data, Hint())
        body = ObjectBody(Form.INLINE, Layout.PLAIN, 0, links, (), bytes(stored))
        return self._put_object(Digest.of(data), kind, body, size=len(data), codec=codec, written=0)

    def _put_object(
        self, digest: Digest, kind: Kind, body: ObjectBody, *, size: int, codec: int, written: int
    ) -> Stored:
        known = self._store.find_object(bytes(digest), kind)
        payload = pack_object(body)
        if known is None:
            written += self._store.append(object_header(digest, kind, codec, size, payload), payload)
        elif body.links and links_of(self._store.read(known, bytes(digest)).payload) != body.links:
            raise ConflictError(
                f"{digest} is stored as a {kind} with other links; the same document must link the same"
            )
        else:
            self._store.touch(bytes(digest), kind)
        return Stored(digest, kind, size, written, len(body.chunks), known is None)


def links_of(payload: Buffer) -> tuple[Digest, ...]:
    """Just the links of an object record whose bytes were checked."""
    count = int.from_bytes(payload[4:8], "little")
    return tuple(Digest(bytes(payload[at : at + 32])) for at in range(24, 24 + 32 * count, 32))
