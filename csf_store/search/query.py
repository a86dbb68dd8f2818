"""What can be asked of an archive, and what an answer is.

Criteria add up: an object is found if it meets all of them.

- *Of a tensor* (``tensor``, ``dtypes``, ``shape``, ``tensor_size``, ``same_as``, ``shares``): a blob meets them if one
  and the same tensor of it meets them all.
- *Of a blob*: those, and ``metadata`` and ``chunk``.
- *Of a place* (``path``): a blob meets it where a tree holds it; with ``tag`` or ``ref``, in a tree of theirs.
- *Of any object*: ``size``, ``digest``, ``tag``, ``ref``, ``contains``.

Where ``kinds`` asks for trees or documents, criteria of blobs and places are met by what needs such a blob, however far
below: the trees that hold it, the manifests that name those trees.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from csf_store.digest import Digest
from csf_store.objects import Kind
from csf_store.search.patterns import NamePattern, ShapePattern, SizeRange


class TensorAddress(NamedTuple):
    """One tensor: the blob it is in, and its name there."""

    blob: Digest
    name: str


class MetadataPattern(NamedTuple):
    """An entry of a safetensors file's ``__metadata__``; any value without a pattern for it."""

    key: str
    value: NamePattern | None = None


class Order(StrEnum):
    """How findings are sorted; kinds and digests decide between equals."""

    NAME = "name"
    SIZE = "size"
    SHARED = "shared"
    DIGEST = "digest"


@dataclass(frozen=True, kw_only=True)
class Query:
    """What to find; the module says how criteria add up.

    Attributes:
        tensor: pattern of a tensor's name.
        dtypes: patterns of its dtype, of which one must fit.
        shape: pattern of its shape.
        tensor_size: bytes of its data.
        same_as: it has the same bytes as this one.
        shares: it has the same bytes as some tensor of this blob or of this tree's, which themselves are left out.
        chunk: a chunk that the blob (or other object) is made of.
        metadata: entries of the blob's safetensors metadata, all of them.
        path: pattern of a path at which a tree holds the blob.
        tag: pattern of a pin's name: what is pinned, and everything that needs.
        ref: pattern of a ref's name: likewise, for what the ref points to now.
        size: bytes of the object's content; of a tree, of all its files.
        digest: first hex digits of the object's digest, with or without ``b3:``.
        contains: a digest that the object needs, however far below.
        kinds: what to find. Without it: blobs where something is asked of blobs or places, else every kind.
        list_tensors: also say which tensors met the criteria.
    """

    tensor: NamePattern | None = None
    dtypes: tuple[NamePattern, ...] = ()
    shape: ShapePattern | None = None
    tensor_size: SizeRange | None = None
    same_as: TensorAddress | None = None
    shares: Digest | None = None
    chunk: Digest | None = None
    metadata: tuple[MetadataPattern, ...] = ()
    path: NamePattern | None = None
    tag: NamePattern | None = None
    ref: NamePattern | None = None
    size: SizeRange | None = None
    digest: str | None = None
    contains: Digest | None = None
    kinds: frozenset[Kind] = frozenset()
    list_tensors: bool = False

    @property
    def of_specs(self) -> bool:
        """Whether it asks for dtype, shape or size of a tensor."""
        return bool(self.dtypes) or self.shape is not None or self.tensor_size is not None

    @property
    def of_content(self) -> bool:
        """Whether it asks for a tensor's bytes."""
        return self.same_as is not None or self.shares is not None

    @property
    def of_tensors(self) -> bool:
        """Whether it asks anything of tensors."""
        return self.tensor is not None or self.of_specs or self.of_content

    @property
    def of_blobs(self) -> bool:
        """Whether it asks anything that only a blob can meet by itself."""
        return self.of_tensors or bool(self.metadata)

    @property
    def wanted(self) -> frozenset[Kind]:
        """The kinds to find."""
        return self.kinds or (frozenset([Kind.BLOB]) if self.of_blobs or self.path else frozenset(Kind))


class Place(NamedTuple):
    """Where a tree holds a blob.

    Attributes:
        tree: which tree.
        labels: names of the tree's pins and refs, in order.
        path: the path in it.
    """

    tree: Digest
    labels: tuple[str, ...]
    path: str

    @property
    def name(self) -> str:
        """The tree's first label, or the beginning of its digest, and the path."""
        return place_name(self.labels, self.tree, self.path)


def place_name(labels: tuple[str, ...], tree: Digest, path: str) -> str:
    """What to call a place."""
    return f"{labels[0] if labels else tree.short}/{path}"


class TensorHit(NamedTuple):
    """A tensor that met the criteria."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


class Hit(NamedTuple):
    """An object that was found.

    Attributes:
        digest: the address.
        kind: as what it was found.
        size: bytes of its content; of a tree, of all its files.
        labels: names of its pins and of refs that point to it, in order.
        places: some of the places where trees hold it.
        place_count: how many places there are.
        tensor_count: how many of its tensors met the criteria; 0 where nothing was asked of tensors.
        tensor_bytes: bytes of their data.
        tensors: these tensors, if they were asked for, in the order of the file.
    """

    digest: Digest
    kind: Kind
    size: int
    labels: tuple[str, ...]
    places: tuple[Place, ...]
    place_count: int
    tensor_count: int
    tensor_bytes: int
    tensors: tuple[TensorHit, ...]

    @property
    def name(self) -> str:
        """What to call it: its label, or where it is; empty if it has neither."""
        if self.labels:
            return self.labels[0]
        return self.places[0].name if self.places else ""


class Findings(NamedTuple):
    """An answer.

    Attributes:
        hits: what was found, sorted, as many as were asked for.
        total: how many there are.
        unreadable: objects that could not be looked at because they are damaged; ``verify`` says how.
    """

    hits: tuple[Hit, ...]
    total: int
    unreadable: tuple[Digest, ...]
