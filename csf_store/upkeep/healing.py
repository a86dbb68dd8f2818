"""Where lost chunks and objects can be had again: other archives, and what was set aside in this one.

Nothing is believed: a chunk counts when its decoded bytes hash to its digest, and an object of another archive when its
whole content does. What was set aside here was ours, and its records are proven by their own hashes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from csf_store.codecs import CodecError, Hint, encode
from csf_store.digest import Digest
from csf_store.durable import FileSystem
from csf_store.errors import CsfError, InvalidInputError
from csf_store.framing import ZERO_DIGEST, FramingError, RecordHeader
from csf_store.journal import QUARANTINE
from csf_store.marker import read_marker
from csf_store.objects import KINDS, Kind, ObjectBody
from csf_store.pipeline import Pipeline
from csf_store.recovery import entry_of, look
from csf_store.retrieve import Retrieve, decode_record
from csf_store.segment import chunk_header, object_header, segment_id_of
from csf_store.store import Store
from csf_store.upkeep.inventory import Held, Inventory, Missing
from csf_store.upkeep.rewrite import Rewriter


class Found(NamedTuple):
    """A record to be written: its header and payload; of an object also what it is made of."""

    header: RecordHeader
    payload: memoryview
    body: ObjectBody | None = None


class Source(Protocol):
    """Something that may have what is lost here."""

    name: str

    def chunk(self, digest: bytes, length: int) -> Found | None:
        """A chunk that decodes to its digest by itself."""
        ...

    def objects(self, digest: bytes) -> Iterator[Found]:
        """An object, as every kind it is known as."""
        ...


class OtherArchive:
    """Another archive, only read."""

    def __init__(self, name: str, store: Store, retrieve: Retrieve) -> None:
        self.name = name
        self._store = store
        self._retrieve = retrieve

    def chunk(self, digest: bytes, length: int) -> Found | None:
        """A chunk, written anew so that it stands alone."""
        try:
            data = self._retrieve.chunk(digest, length)
        except CsfError:
            return None
        codec, stored = encode(data, Hint())
        return Found(chunk_header(digest, codec, length, stored), memoryview(stored))

    def objects(self, digest: bytes) -> Iterator[Found]:
        """An object whose whole content was read and hashed."""
        for kind in self._store.kinds(digest):
            try:
                found = self._retrieve.open(Digest(digest), kind)
                for _ in self._retrieve.content(found):
                    pass
                where = self._store.find_object(digest, kind)
                if where is None:
                    continue
                payload = self._store.read(where, digest).payload
            except CsfError:
                continue
            header = object_header(found.digest, kind, found.codec, found.size, payload)
            yield Found(header, payload, found.body)


@contextlib.contextmanager
def other_archive(fs: FileSystem, path: Path, own: Path) -> Iterator[OtherArchive]:
    """Opens another archive to heal from.

    Raises:
        NotFoundError: if there is none.
        InvalidInputError: if it is the very archive to be healed.
    """
    archive_id = read_marker(fs, path)
    if path.resolve() == own.resolve():
        raise InvalidInputError(f"{path} is the archive to be repaired; name another one")
    store, pipeline = Store(fs, path, archive_id), Pipeline()
    try:
        yield OtherArchive(str(path), store, Retrieve(store, pipeline))
    finally:
        pipeline.close()
        store.close()


class SetAside:
    """The sound records of segments that earlier repairs moved to quarantine."""

    name = QUARANTINE

    def __init__(self, fs: FileSystem, root: Path) -> None:
        self._fs = fs
        self._held = Inventory(fs)
        for directory in sorted((root / QUARANTINE).glob("*/")):
            for path in sorted(directory.glob("*.csfs")):
                looked = look(fs, path)
                if looked is not None:
                    self._held.add(path, segment_id_of(path.name) or b"", looked.scan.records)

    def chunk(self, digest: bytes, length: int) -> Found | None:
        """A chunk that stands alone."""
        held = self._held.chunks.get(digest)
        if held is None or held.entry.base != ZERO_DIGEST or held.entry.raw_length != length:
            return None
        for _, payload in self._held.payloads([held]):
            header = chunk_header(digest, held.entry.codec, length, payload)
            out = memoryview(bytearray(length))
            try:
                decode_record(header, payload, out)
            except (CodecError, FramingError):
                return None
            return Found(header, memoryview(payload)) if Digest.of(out) == Digest(digest) else None
        return None

    def objects(self, digest: bytes) -> Iterator[Found]:
        """An object as it was."""
        for kind in KINDS:
            held = self._held.objects.get((digest, kind))
            if held is None:
                continue
            for _, payload in self._held.payloads([held]):
                header = object_header(Digest(digest), Kind.of(kind), held.entry.codec, held.entry.raw_length, payload)
                yield Found(header, memoryview(payload), self._held.bodies[digest, kind])


class Healed(NamedTuple):
    """Something lost that was found elsewhere: its digest, kind (0 for a chunk), and where."""

    digest: bytes
    kind: int
    source: str


class Healer:
    """Looks for what is missing, and writes what it finds."""

    def __init__(self, inventory: Inventory, sources: Iterable[Source], rewriter: Rewriter | None) -> None:
        """Without a ``rewriter`` it only says what it would find."""
        self._inventory = inventory
        self._sources = list(sources)
        self._rewriter = rewriter
        self.healed: list[Healed] = []

    def heal(self, missing: Missing) -> bool:
        """Looks for all of it; says whether something was found. What was found may need more."""
        before = len(self.healed)
        for digest, kinds in missing.objects.items():
            self._object(digest, kinds)
        for digest, length in missing.chunks.items():
            held = self._inventory.chunks.get(digest)
            # One base may heal many differences.
            if held is not None and held.entry.raw_length == length and self._chunk(held.entry.base, length):
                continue
            self._chunk(digest, length)
        return len(self.healed) > before

    def _chunk(self, digest: bytes, length: int) -> bool:
        if self._inventory.usable(digest, length):
            return True
        for source in self._sources:
            found = source.chunk(digest, length)
            if found is not None:
                self._inventory.chunks[digest] = self._take(found, 0, source)
                return True
        return False

    def _object(self, digest: bytes, kinds: set[int]) -> None:
        for source in self._sources:
            for found in source.objects(digest):
                kind = found.header.kind
                wanted = not kinds or kind in kinds
                if found.body is not None and wanted and (digest, kind) not in self._inventory.objects:
                    self._inventory.put_object((digest, kind), self._take(found, kind, source), found.body)

    def _take(self, found: Found, kind: int, source: Source) -> Held:
        if self._rewriter is not None:
            self._rewriter.add(found.header, found.payload)
        self.healed.append(Healed(found.header.digest, kind, source.name))
        return Held(Path(), b"", entry_of(found.header, 0))
