"""From the archive to typed documents, with one meaning of "not found", "not one of ours" and "altered".

`csf_store` proves that the bytes are those the digest names; here they are proven to be a document of the kind asked
for. Everything above (refs, repository, audit) reads documents through these functions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from csf_store import Archive, Digest, Kind
from manifests.document import Document
from manifests.errors import CorruptDocumentError, InvalidDocumentError, NotFoundError
from manifests.schema import Manifest

D = TypeVar("D", bound=Document)


def load_document(archive: Archive, digest: Digest, document_type: type[D], *, kind: Kind = Kind.RECORD) -> D:
    """Read one document.

    Raises:
        NotFoundError: when the archive holds no object of that kind and digest.
        CorruptDocumentError: when the bytes read are not those the digest names.
        InvalidDocumentError: when they are not a document of that type.
        csf_store.CorruptError: when the archive cannot give the bytes it stored.
    """
    if not archive.contains(digest, kind=kind):
        raise NotFoundError(
            f"no {document_type.kind_name()} {digest} in {archive.path}; `csf --archive ... ls` shows what is there"
        )
    data = archive.get_bytes(digest, kind=kind)
    # The archive has checked this already. Doing it again costs microseconds and keeps the promise our own.
    if Digest.of(data) != digest:
        raise CorruptDocumentError(f"{kind.value} {digest}: the bytes read hash to {Digest.of(data)}")
    try:
        return document_type.from_bytes(data)
    except InvalidDocumentError as error:
        raise type(error)(f"{kind.value} {digest}: {error}") from error


def load_manifest(archive: Archive, digest: Digest) -> Manifest:
    """Read one manifest; see `load_document` for the errors."""
    return load_document(archive, digest, Manifest, kind=Kind.MANIFEST)


def objects_of(archive: Archive, digest: Digest, manifest: Manifest) -> Iterator[tuple[Digest, Kind]]:
    """Every object a manifest stands on, itself first: linked records, trees, and each blob of each tree, once."""
    seen: set[tuple[Digest, Kind]] = set()
    assembly = manifest.assembly
    trees = {assembly.base, assembly.tokenizer, *(step.adapter for step in manifest.lineage)}
    found = [(digest, Kind.MANIFEST)]
    found += [(link, Kind.TREE if link in trees else link_kind(manifest, link)) for link in manifest.links()]
    for tree in sorted(trees):
        found += [(entry.blob, Kind.BLOB) for entry in archive.tree(tree).entries]
    for item in found:
        if item not in seen:
            seen.add(item)
            yield item


def link_kind(manifest: Manifest, link: Digest) -> Kind:
    """The kind in which a manifest needs one of its links."""
    if link == manifest.parent:
        return Kind.MANIFEST
    assembly = manifest.assembly
    if link in (assembly.base, assembly.tokenizer) or any(step.adapter == link for step in manifest.lineage):
        return Kind.TREE
    return Kind.RECORD
