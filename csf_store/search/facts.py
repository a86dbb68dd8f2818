"""What can be known of an object from its record and its header: the facts that the catalogue keeps.

No tensor data is read for it, except where a chunk list does not say a tensor's chunks (see ``tensor_keys``). Headers
repeat from checkpoint to checkpoint; one that was seen is not read again.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from csf_store.digest import Digest
from csf_store.objects import Kind, Layout
from csf_store.reading import Reading
from csf_store.retrieve import OpenObject
from csf_store.safetensors_layout import SafetensorsHeader
from csf_store.search.tensor_keys import Cuts, content_key, follows, header_chunks, tensor_chunks

_REMEMBERED_TENSORS: Final = 200_000
"""Headers with this many tensors together are remembered, about 100 MB of memory."""


class Link(NamedTuple):
    """A digest that an object needs; of a tree, at which path."""

    target: bytes
    path: str | None


class Header(NamedTuple):
    """A safetensors header and the key of its bytes: the ``content_key`` of its chunks."""

    key: bytes
    content: SafetensorsHeader
    cuts: Cuts


class ObjectFacts(NamedTuple):
    """What is known of an object of a kind.

    Attributes:
        digest: the address.
        kind: as what it is stored.
        size: bytes of the content; of a tree, of all its files.
        aligned: whether its chunks begin and end where its tensors do, so that keys may stand for chunks.
        links: what it needs.
        header: of a safetensors blob.
        keys: content keys of its tensors, in the order of the header.
        chunks: digests of its chunks; where it is aligned without those that are all of a tensor or of a header.
    """

    digest: bytes
    kind: Kind
    size: int
    aligned: bool
    links: tuple[Link, ...]
    header: Header | None
    keys: tuple[bytes, ...]
    chunks: tuple[bytes, ...]


class Observer:
    """Reads facts out of an archive; keep one for many objects."""

    def __init__(self, archive: Reading) -> None:
        self._archive = archive
        self._headers: dict[bytes, Header] = {}
        self._remembered = 0

    def facts(self, digest: bytes, kind: Kind) -> ObjectFacts:
        """The facts of one object.

        Raises:
            NotFoundError: if it is gone.
            CorruptError: if its record, its header or its list of files is damaged.
        """
        found = self._archive.record(Digest(digest), kind)
        if kind == Kind.TREE:
            tree = self._archive.tree(found.digest)
            files = tuple(Link(bytes(entry.blob), entry.path) for entry in tree.entries)
            return ObjectFacts(digest, kind, tree.size, False, files, None, (), _chunks(found))
        links = tuple(Link(bytes(link), None) for link in found.body.links)
        if kind != Kind.BLOB or found.body.layout != Layout.SAFETENSORS:
            return ObjectFacts(digest, kind, found.size, False, links, None, (), _chunks(found))
        header = self._header(found)
        tensors = tensor_chunks(self._archive, found, header.content, header.cuts)
        keys = tuple(content_key(chunks) for chunks in tensors)
        aligned = follows(found, header.cuts)
        if aligned:
            runs = [header_chunks(found) or [], *tensors]
            crowded = tuple(dict.fromkeys(chunk for run in runs if len(run) > 1 for chunk in run))
        else:
            crowded = _chunks(found)
        return ObjectFacts(digest, kind, found.size, aligned, links, header, keys, crowded)

    def _header(self, found: OpenObject) -> Header:
        chunks = header_chunks(found)
        known = self._headers.get(content_key(chunks)) if chunks else None
        if (
            known is not None
            and known.content.length == found.body.header_length
            and sum(known.cuts.lengths) == found.size
        ):
            return known
        content = self._archive.header(found)
        # Without chunks of its own no other blob shares the header's key, but the blob has one all the same.
        key = content_key(chunks or [bytes(found.digest)])
        header = Header(key, content, Cuts.of(content))
        if chunks:
            self._remember(header)
        return header

    def _remember(self, header: Header) -> None:
        self._remembered += len(header.content.tensors) + 1
        if self._remembered > _REMEMBERED_TENSORS:
            self._headers.clear()
            self._remembered = len(header.content.tensors) + 1
        self._headers[header.key] = header


def _chunks(found: OpenObject) -> tuple[bytes, ...]:
    return tuple(dict.fromkeys(chunk.digest for chunk in found.body.chunks))
