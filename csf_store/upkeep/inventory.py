"""What an archive really holds, by its segments alone, and what is missing from that: the ground of every repair.

No index is asked what is there. Every segment is read from front to back; of several records of a chunk one that stands
alone is preferred to a difference, which is only worth something with its base. What is missing follows from what is
there (objects list their chunks and links) and from what was promised (pins, refs, and what the index remembers).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from csf_store.durable import FileSystem, read_exact, storage_errors
from csf_store.framing import RECORD_HEADER_SIZE, ZERO_DIGEST, FooterEntry, FramingError, RecordType
from csf_store.index_rows import Location, Row
from csf_store.objects import ObjectBody, unpack_object

Key = tuple[bytes, int]
"""Digest, and number of the kind; 0 for a chunk."""


class Held(NamedTuple):
    """A record that is there: in which file, under which segment id its checksums are keyed, and where."""

    path: Path
    segment_id: bytes
    entry: FooterEntry

    def row(self) -> Row:
        """It, as the index would list it."""
        entry = self.entry
        kind = entry.kind if entry.type == RecordType.OBJECT else 0
        where = Location(0, entry.offset, entry.stored_length, entry.raw_length, entry.codec, entry.base, kind)
        return Row(entry.digest, where, 0)


class Inventory:
    """Chunks and objects that were seen to be sound.

    Attributes:
        chunks: by digest.
        objects: by digest and kind.
        bodies: what the objects are made of.
    """

    def __init__(self, fs: FileSystem) -> None:
        self._fs = fs
        self.chunks: dict[bytes, Held] = {}
        self.objects: dict[Key, Held] = {}
        self.bodies: dict[Key, ObjectBody] = {}

    def add(self, path: Path, segment_id: bytes, entries: Iterable[FooterEntry]) -> None:
        """Takes in the sound records of a segment. An object record that says nothing sensible is not taken."""
        objects = []
        for entry in entries:
            held = Held(path, segment_id, entry)
            if entry.type == RecordType.CHUNK:
                known = self.chunks.get(entry.digest)
                if known is None or (known.entry.base != ZERO_DIGEST and entry.base == ZERO_DIGEST):
                    self.chunks[entry.digest] = held
            elif (entry.digest, entry.kind) not in self.objects:
                objects.append(held)
        for held, payload in self.payloads(objects):
            key = held.entry.digest, held.entry.kind
            try:
                self.put_object(key, held, unpack_object(payload, held.entry.raw_length))
            except FramingError:
                continue

    def put_object(self, key: Key, held: Held, body: ObjectBody) -> None:
        """Takes in one object."""
        self.objects[key] = held
        self.bodies[key] = body

    def payloads(self, records: Iterable[Held]) -> Iterator[tuple[Held, bytes]]:
        """The stored bytes of records of one file."""
        fd = -1
        try:
            for held in records:
                with storage_errors(held.path):
                    if fd < 0:
                        fd = self._fs.open(held.path, os.O_RDONLY)
                    offset = held.entry.offset + RECORD_HEADER_SIZE
                    yield held, read_exact(self._fs, fd, held.entry.stored_length, offset)
        finally:
            if fd >= 0:
                self._fs.close(fd)

    def usable(self, digest: bytes, length: int | None = None) -> bool:
        """Whether a chunk (of that length) can be decoded: it is there, and so is what it is a difference to."""
        held = self.chunks.get(digest)
        if held is None or length not in (None, held.entry.raw_length):
            return False
        if held.entry.base == ZERO_DIGEST:
            return True
        base = self.chunks.get(held.entry.base)
        return base is not None and base.entry.base == ZERO_DIGEST and base.entry.raw_length == held.entry.raw_length

    def forget_unpromised(self, unsealed: Collection[Path], promised: Collection[Key], roots: Iterable[bytes]) -> None:
        """Drops incomplete objects that a crash left in unsealed segments: nobody was told of them."""
        reached = set(roots)
        waiting = [*reached, *(digest for digest, _ in promised)]
        kinds: dict[bytes, list[Key]] = {}
        for key in self.objects:
            kinds.setdefault(key[0], []).append(key)
        while waiting:
            for key in kinds.get(waiting.pop(), ()):
                fresh = {bytes(link) for link in self.bodies[key].links} - reached
                reached |= fresh
                waiting += fresh
        for key, held in list(self.objects.items()):
            body = self.bodies[key]
            if (
                held.path in unsealed
                and key not in promised
                and key[0] not in reached
                and not (
                    all(self.usable(chunk.digest, chunk.length) for chunk in body.chunks)
                    and all(bytes(link) in kinds for link in body.links)
                )
            ):
                del self.objects[key], self.bodies[key]

    def kinds(self, digest: bytes) -> list[int]:
        """As which kinds a digest is there."""
        return [kind for kind in range(256) if (digest, kind) in self.objects]

    def uses(self, held: Held) -> bool:
        """Whether a record is the one to keep of all that hold the same, and is worth keeping."""
        entry = held.entry
        if entry.type == RecordType.OBJECT:
            return self.objects.get((entry.digest, entry.kind)) == held
        return self.chunks.get(entry.digest) == held and self.usable(entry.digest)

    def missing(self, promised: Iterable[Key], needed: Iterable[bytes]) -> Missing:
        """What is not there.

        Args:
            promised: what somebody was told is stored; of chunks only those count that an object lists.
            needed: roots: digests that must be there as some kind.
        """
        there = {digest for digest, _ in self.objects}
        objects: dict[bytes, set[int]] = {}
        chunks: dict[bytes, int] = {}
        for digest, kind in promised:
            if kind and (digest, kind) not in self.objects:
                objects.setdefault(digest, set()).add(kind)
        links = {bytes(link) for body in self.bodies.values() for link in body.links}
        for digest in [*needed, *links]:
            if digest not in there:
                objects.setdefault(digest, set())
        for body in self.bodies.values():
            for chunk in body.chunks:
                if not self.usable(chunk.digest, chunk.length):
                    chunks[chunk.digest] = chunk.length
        return Missing(objects, chunks)


class Missing(NamedTuple):
    """What is not there: objects, with the kinds they were known as; chunks, with their lengths."""

    objects: Mapping[bytes, set[int]]
    chunks: Mapping[bytes, int]

    def __bool__(self) -> bool:
        return bool(self.objects or self.chunks)


class Hurt(NamedTuple):
    """An object that can not be read as it was, or that needs one which can not.

    Attributes:
        digest: of the object.
        kinds: numbers of the kinds it is known as.
        causes: the lost chunks and objects it needs, directly or not; a few of them.
    """

    digest: bytes
    kinds: tuple[int, ...]
    causes: tuple[bytes, ...]


def hurt_by(inventory: Inventory, missing: Missing) -> tuple[Hurt, ...]:
    """Everything that what is missing hurts: by chunk lists, by differences and by links, however far."""
    causes: dict[bytes, dict[bytes, None]] = {}
    needed_by: dict[bytes, list[bytes]] = {}
    for (digest, _), body in inventory.bodies.items():
        for link in body.links:
            needed_by.setdefault(bytes(link), []).append(digest)
        for chunk in body.chunks:
            if chunk.digest in missing.chunks:
                cause = _cause(inventory, chunk.digest)
                causes.setdefault(digest, {}).setdefault(cause)
    for digest in missing.objects:
        causes.setdefault(digest, {}).setdefault(digest)
    waiting = list(causes)
    while waiting:
        digest = waiting.pop()
        for parent in needed_by.get(digest, ()):
            known = causes.setdefault(parent, {})
            before = len(known)
            known.update(dict.fromkeys(list(causes[digest])[:_CAUSES]))
            if len(known) > before and before < _CAUSES:
                waiting.append(parent)
    return tuple(
        Hurt(
            digest,
            tuple(sorted({*inventory.kinds(digest), *missing.objects.get(digest, ())})),
            tuple(list(why)[:_CAUSES]),
        )
        for digest, why in sorted(causes.items())
    )


_CAUSES = 8


def _cause(inventory: Inventory, digest: bytes) -> bytes:
    """Of a difference without its base, the base is what is lost."""
    held = inventory.chunks.get(digest)
    if held is None or held.entry.base == ZERO_DIGEST:
        return digest
    return held.entry.base
