"""The way out: an object becomes bytes again, and not one unproven byte is called its content.

Content read as a whole is hashed as a whole against its digest: a chunk list is a claim until then, and so is every
stored byte. Reads of a part check each chunk against the chunk's own digest. Either proves the stored bytes too, so
these are hashed only when something does not fit, to name the record that is to blame.

Each thread decodes out of memory of its own that stays warm, and into the memory of whoever asked.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator
from io import BytesIO
from itertools import accumulate
from typing import NamedTuple

from blake3 import blake3

from csf_store.codecs import CodecError, codec
from csf_store.digest import Buffer, Digest
from csf_store.errors import CorruptError, InvalidInputError, NotFoundError, StorageError
from csf_store.framing import CHUNK_SIZE, RAW_CODEC, ZERO_DIGEST, FramingError, RecordHeader, RecordType
from csf_store.index_rows import Location
from csf_store.objects import Form, Kind, Layout, ObjectBody, unpack_object
from csf_store.pipeline import Pipeline
from csf_store.safetensors_layout import SafetensorsHeader, TensorInfo, parse_header
from csf_store.segment import damage
from csf_store.store import Store


class OpenObject(NamedTuple):
    """An object record, read and checked: everything but the content of its chunks."""

    digest: Digest
    kind: Kind
    size: int
    codec: int
    body: ObjectBody


class _Part(NamedTuple):
    """A piece of a chunk to be decoded: which, how long it is, which bytes of it, and where to."""

    digest: bytes
    length: int
    start: int
    out: memoryview


class _Warm(threading.local):
    """One thread's memory for the stored bytes of a chunk, of its base, and for the base decoded."""

    def __init__(self) -> None:
        self.stored = memoryview(bytearray(CHUNK_SIZE))
        self.base_stored = memoryview(b"")
        self.base = memoryview(b"")

    def with_base(self) -> _Warm:
        """Itself, with the memory that only differences need."""
        if not self.base:
            self.base_stored, self.base = memoryview(bytearray(CHUNK_SIZE)), memoryview(bytearray(CHUNK_SIZE))
        return self


class Retrieve:
    """Reads objects and chunks out of a store."""

    def __init__(self, store: Store, pipeline: Pipeline) -> None:
        self._store = store
        self._pipeline = pipeline
        self._warm = _Warm()

    def open(self, digest: Digest, kind: Kind | None) -> OpenObject:
        """Finds and reads an object record.

        Raises:
            NotFoundError: if there is none of that kind.
        """
        raw = bytes(digest)
        kinds = [kind] if kind else self._store.kinds(raw)
        where = self._store.find_object(raw, kinds[0]) if kinds else None
        if where is None:
            raise NotFoundError(f"{digest} is not in this archive{f' as a {kind}' if kind else ''}; see csf ls")
        record = self._store.read(where, raw)
        header = record.header
        place = self._store.directory / self._store.segment_name(where.segment)
        try:
            if header.type != RecordType.OBJECT or header.kind != kinds[0].number:
                raise FramingError("the record is not the object the index says")
            body = unpack_object(bytes(record.payload), header.raw_length)
            return OpenObject(digest, kinds[0], header.raw_length, header.codec, body)
        except FramingError as error:
            raise damage(place, where.offset, str(error), digest) from error

    def content_bytes(self, found: OpenObject) -> bytes:
        """The whole content, proven."""
        if found.body.form == Form.INLINE:
            return b"".join(self.content(found))
        if not found.size:
            return b"".join(self.content(found))
        memory = BytesIO()  # the one way to fill bytes in place: what it gives out at the end is not copied
        try:
            memory.seek(found.size - 1)
            memory.write(b"\0")
        except (MemoryError, OverflowError) as error:
            raise StorageError(f"{found.digest} has {found.size} bytes, more than memory; get it to a file") from error
        whole = self._pipeline.hasher()
        with memory.getbuffer() as view:
            for piece in self._pipeline.ordered(self._decode, self._parts(found.body, 0, view)):
                whole.update(piece)
                piece.release()
        if whole.digest() != bytes(found.digest):
            self._name_culprit(found)
        return memory.getvalue()

    def content(self, found: OpenObject) -> Iterator[memoryview]:
        """The content in pieces, each good until the next is taken. Only when all were taken is it proven.

        Raises:
            CorruptError: if a record is damaged, or the whole does not hash to the digest.
        """
        whole = self._pipeline.hasher()
        for piece in self._pieces(found):
            whole.update(piece)
            yield piece
        if whole.digest() != bytes(found.digest):
            self._name_culprit(found)

    def _pieces(self, found: OpenObject) -> Iterator[memoryview]:
        if found.body.form == Form.INLINE:
            out = memoryview(bytearray(found.size))
            try:
                codec(found.codec).decode_into(found.body.inline, out)
            except CodecError as error:
                raise CorruptError(f"{found.digest}: its inline content can not be decoded: {error}") from error
            yield out
            return
        # Fresh memory is what costs time: a buffer goes round as soon as its piece was taken.
        spare: list[memoryview] = []

        def parts() -> Iterator[_Part]:
            for chunk in found.body.chunks:
                buffer = spare.pop() if spare else memoryview(bytearray(min(CHUNK_SIZE, found.size)))
                yield _Part(chunk.digest, chunk.length, 0, buffer[: chunk.length])

        for piece in self._pipeline.ordered(self._decode, parts()):
            yield piece
            spare.append(memoryview(piece.obj))

    def _name_culprit(self, found: OpenObject) -> None:
        """The whole does not hash to its digest: find the chunk that does not, or blame the chunk list."""
        for chunk in found.body.chunks:
            self._decode_checked(_Part(chunk.digest, chunk.length, 0, memoryview(bytearray(chunk.length))))
        raise CorruptError(
            f"{found.digest}: its content does not hash to it although every piece is sound: the chunk list is forged "
            "or wrong; put the file again"
        )

    def read_into(self, found: OpenObject, start: int, out: memoryview) -> None:
        """Fills ``out`` with the content from ``start`` on, reading only the chunks it lies in, each checked.

        Raises:
            CorruptError: naming the chunk; ``out`` may then hold anything.
        """
        if found.body.form == Form.INLINE:
            out[:] = b"".join(self.content(found))[start : start + len(out)]
            return
        for _ in self._pipeline.ordered(self._decode_checked, self._parts(found.body, start, out)):
            pass

    def read_tensors_into(
        self, found: OpenObject, header: SafetensorsHeader, place: Callable[[TensorInfo], memoryview]
    ) -> None:
        """Decodes every tensor of a safetensors blob where ``place`` says, and proves the blob as a whole.

        Raises:
            CorruptError: if a record is damaged, or the whole does not hash to the digest.
        """
        targets = [(info.offset, _writable(info, place(info))) for info in header.tensors.values() if info.nbytes]
        if found.body.form == Form.INLINE:
            content = self.content_bytes(found)
            for start, out in targets:
                out[:] = content[start : start + len(out)]
            return
        head = memoryview(bytearray(found.body.header_length))
        regions = [(0, head), *targets]  # header.tensors is in data order and leaves no gap
        whole = self._pipeline.hasher()

        def parts() -> Iterator[_Part]:
            end = 0
            numbered = iter(regions)
            start, out = next(numbered)
            for chunk in found.body.chunks:
                while end >= start + len(out):
                    start, out = next(numbered)
                inside = out[end - start : end - start + chunk.length]
                # No writer lets a chunk straddle two tensors: such a list is not worth decoding.
                if len(inside) != chunk.length:
                    raise CorruptError(
                        f"{found.digest}: its chunk list does not follow its tensors; put the file again"
                    )
                yield _Part(chunk.digest, chunk.length, 0, inside)
                end += chunk.length

        for piece in self._pipeline.ordered(self._decode, parts()):
            whole.update(piece)
        if whole.digest() != bytes(found.digest):
            self._name_culprit(found)

    def _parts(self, body: ObjectBody, start: int, out: memoryview) -> Iterator[_Part]:
        ends = list(accumulate(chunk.length for chunk in body.chunks))
        number = bisect_right(ends, start)
        done = 0
        while done < len(out):
            chunk = body.chunks[number]
            skip = start + done - (ends[number] - chunk.length)
            take = min(chunk.length - skip, len(out) - done)
            yield _Part(chunk.digest, chunk.length, skip, out[done : done + take])
            done += take
            number += 1

    def _decode_checked(self, part: _Part) -> memoryview:
        target = part.out if len(part.out) == part.length else memoryview(bytearray(part.length))
        self._decode(part._replace(start=0, out=target))
        self._check_decoded(part, target)
        if target is not part.out:
            part.out[:] = target[part.start : part.start + len(part.out)]
        return part.out

    def _check_decoded(self, part: _Part, target: memoryview) -> None:
        if blake3(target).digest() == part.digest:
            return
        where = self._find(part.digest)
        record = self._store.read(where, part.digest)  # hashes the stored bytes, and names them if they are to blame
        if record.header.base != ZERO_DIGEST:
            self._store.read(self._find_base(record.header), record.header.base)
        raise self._damage(where, "it decodes to other bytes", part.digest)

    def _damage(self, where: Location, what: str, digest: bytes) -> CorruptError:
        place = self._store.directory / self._store.segment_name(where.segment)
        return damage(place, where.offset, what, Digest(digest))

    def _find(self, digest: bytes) -> Location:
        where = self._store.find_chunk(digest)
        if where is None:
            raise CorruptError(f"chunk {Digest(digest)} is missing from every segment; put its file again")
        return where

    def _find_base(self, header: RecordHeader) -> Location:
        where = self._store.find_chunk(header.base)
        if where is None:
            raise CorruptError(
                f"chunk {Digest(header.digest)} is a difference to chunk {Digest(header.base)}, "
                "which is missing from every segment; put its file again"
            )
        return where

    def _decode(self, part: _Part) -> memoryview:
        """Decodes a whole chunk into ``part.out``. Nothing is proven yet but the record's header."""
        where = self._find(part.digest)
        in_place = where.codec == RAW_CODEC and where.stored == len(part.out)
        try:
            payload = part.out if in_place else _room(self._warm.stored, where)
            header = self._store.read_into(where, part.digest, payload)
            if not in_place:
                base = self._base(header) if header.base != ZERO_DIGEST else None
                decode_record(header, payload, part.out, base)
            elif (header.type, header.codec, header.raw_length) != (RecordType.CHUNK, RAW_CODEC, len(part.out)):
                raise FramingError("the record is another one than the index says")
        except (CodecError, FramingError) as error:
            self._store.read(where, part.digest)
            raise self._damage(where, str(error), part.digest) from error
        return part.out

    def _base(self, header: RecordHeader) -> memoryview:
        """The raw bytes of the chunk that a record is a difference to; good until this thread decodes the next."""
        where = self._find_base(header)
        warm = self._warm.with_base()
        out = warm.base[: header.raw_length]
        try:
            payload = _room(warm.base_stored, where)
            found = self._store.read_into(where, header.base, payload)
            # One deep, whatever an index or a forger says: so no chain can be long, and none can be a circle.
            if found.base != ZERO_DIGEST:
                raise FramingError(f"it is the base of chunk {Digest(header.digest)} and a difference itself")
            decode_record(found, payload, out)
        except (CodecError, FramingError) as error:
            self._store.read(where, header.base)
            raise self._damage(where, str(error), header.base) from error
        return out

    def chunk(self, digest: bytes, length: int) -> memoryview:
        """A whole chunk, proven against its own digest.

        Raises:
            CorruptError: if it is missing or damaged.
        """
        return self._decode_checked(_Part(digest, length, 0, memoryview(bytearray(length))))

    def check_chunk(self, digest: bytes) -> int:
        """Decodes a chunk and hashes it; returns its length."""
        where = self._store.find_chunk(digest)
        length = where.raw if where and where.raw <= CHUNK_SIZE else 0
        self.chunk(digest, length)
        return length

    def header(self, found: OpenObject) -> SafetensorsHeader:
        """The header of a safetensors blob.

        Raises:
            InvalidInputError: if the blob is something else.
        """
        if found.body.layout != Layout.SAFETENSORS:
            raise InvalidInputError(f"{found.digest} is not a safetensors blob; csf stat shows what it is")
        head = bytearray(found.body.header_length)
        self.read_into(found, 0, memoryview(head))
        try:
            return parse_header(head, found.size)
        except InvalidInputError as error:
            raise CorruptError(f"{found.digest}: {error}; put the file again") from error


def _room(memory: memoryview, where: Location) -> memoryview:
    if where.stored > len(memory):
        raise FramingError(f"a chunk of {where.stored} stored bytes is impossible")
    return memory[: where.stored]


def _writable(info: TensorInfo, out: memoryview) -> memoryview:
    view = out.cast("B")
    if view.readonly or len(view) != info.nbytes:
        raise InvalidInputError(f"tensor {info.name!r} needs {info.nbytes} writable bytes; got {len(view)}")
    return view


def decode_record(header: RecordHeader, payload: Buffer, out: memoryview, base: Buffer | None = None) -> None:
    """Decodes a chunk record into ``out``; ``base`` is the raw chunk it is a difference to.

    Raises:
        FramingError: if the record is no chunk of that length.
        CodecError: if its bytes do not decode.
    """
    if header.type != RecordType.CHUNK or header.raw_length != len(out):
        raise FramingError(f"the chunk has {header.raw_length} bytes where {len(out)} are expected")
    codec(header.codec).decode_into(payload, out, base)
