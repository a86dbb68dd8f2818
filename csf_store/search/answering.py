"""Search: which objects meet a query, answered from the catalogue in the order that leaves the least to look at.

Patterns are tried on what is distinct: names, specs, layouts, paths, labels. What fits them leads by number to headers,
from there to blobs, and up through links to trees and documents. Only what is shown is spelled out.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Final, NamedTuple

from csf_store.digest import DIGEST_SIZE, Digest, hex_digits
from csf_store.errors import AmbiguousPrefixError, InvalidInputError, NotFoundError
from csf_store.objects import KINDS, Kind
from csf_store.search.catalogue import with_catalogue
from csf_store.search.catalogue_file import KEY_BYTES, OBJECT_COLUMNS, Catalogue, check, checked
from csf_store.search.catalogue_intake import PIN, REF
from csf_store.search.collector import collector_at_rest
from csf_store.search.facts import Observer
from csf_store.search.links import FileAt, LinkSearch
from csf_store.search.names import Names
from csf_store.search.query import Findings, Hit, Order, Query, TensorAddress
from csf_store.search.tensor_keys import content_key
from csf_store.search.tensors import Matched, TensorSearch

if TYPE_CHECKING:
    from csf_store.archive import Archive

_BLOB: Final = Kind.BLOB.number
_BLOBS: Final = frozenset([Kind.BLOB])
_NOTHING: Final = Matched(0, (), 0)


def find(
    archive: Archive,
    query: Query,
    *,
    order: Order = Order.NAME,
    limit: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Findings:
    """Finds what meets a query.

    Args:
        archive: where.
        query: what.
        order: how findings are sorted.
        limit: the most to give; all without it.
        progress: called with the number of objects just taken into the catalogue.

    Raises:
        NotFoundError: if a blob, tree or tensor that the query names is not there.
    """

    def ask(catalogue: Catalogue, unreadable: tuple[Digest, ...]) -> Findings:
        return Findings(*_Run(catalogue, query, keys).answer(order, limit), unreadable)

    with collector_at_rest():
        keys = _asked_keys(archive, query)
        return with_catalogue(archive, ask, progress)


def resolve_name(archive: Archive, text: str) -> Digest:
    """The digest that a digest, a unique prefix of one, or the name of a pin or a ref stands for.

    Raises:
        NotFoundError: if it is none of these.
        AmbiguousPrefixError: if several objects are pinned under that name, or begin with those digits.
    """
    named = {pin.digest for pin in archive.pins() if pin.name == text}
    moves = archive.ledger.refs().get(text)
    if moves and moves[-1].target is not None:
        named.add(moves[-1].target)
    if len(named) > 1:
        some = ", ".join(digest.short for digest in sorted(named)[:4])
        raise AmbiguousPrefixError(f"{len(named)} objects are called {text!r} ({some} ...); name one by its digest")
    if named:
        return named.pop()
    try:
        return archive.resolve(text)
    except InvalidInputError:
        raise NotFoundError(
            f"{text!r} is neither a digest nor the name of a pin or a ref; csf ls shows names"
        ) from None


def find_tensor(archive: Archive, digest: Digest, name: str) -> TensorAddress:
    """Where a tensor of a blob, or of some file of a tree, is.

    Raises:
        NotFoundError: if there is none of that name.
        AmbiguousPrefixError: if files of the tree hold different ones.
    """
    blobs = {digest: ""}
    if archive.contains(digest, Kind.TREE):
        blobs = {entry.blob: entry.path for entry in archive.tree(digest).entries}
    holding = [blob for blob in blobs if archive.is_safetensors(blob) and name in archive.tensors(blob)]
    if not holding:
        raise NotFoundError(f"{digest} holds no tensor {name!r}; csf find --tensors lists what there is")
    observer = Observer(archive)
    if len({_key_of(observer, TensorAddress(blob, name)) for blob in holding}) > 1:
        some = ", ".join(blobs[blob] for blob in holding[:4])
        raise AmbiguousPrefixError(f"{digest} holds several tensors {name!r} ({some}); name the file by its digest")
    return TensorAddress(holding[0], name)


class _Keys(NamedTuple):
    """Content keys that a query asks for, and blobs that are no answer to it."""

    same: frozenset[bytes] | None
    shared: frozenset[bytes] | None
    left_out: frozenset[bytes]


def _asked_keys(archive: Archive, query: Query) -> _Keys:
    """Computed from the archive, not from the catalogue: what is asked for must be right."""
    observer = Observer(archive)
    same = frozenset([_key_of(observer, query.same_as)]) if query.same_as else None
    if query.shares is None:
        return _Keys(same, None, frozenset())
    if archive.contains(query.shares, Kind.TREE):
        blobs = {bytes(entry.blob) for entry in archive.tree(query.shares).entries}
    else:
        blobs = {bytes(query.shares)}
    shared: set[bytes] = set()
    for blob in blobs:
        facts = observer.facts(blob, Kind.BLOB)
        if facts.header:
            tensors = facts.header.content.tensors.values()
            shared.update(key for key, tensor in zip(facts.keys, tensors, strict=True) if tensor.nbytes)
    return _Keys(same, frozenset(shared), frozenset(blobs))


def _key_of(observer: Observer, address: TensorAddress) -> bytes:
    facts = observer.facts(bytes(address.blob), Kind.BLOB)
    tensors = list(facts.header.content.tensors) if facts.header else []
    if address.name not in tensors:
        raise NotFoundError(f"{address.blob} holds no tensor {address.name!r}; csf ls lists its tensors")
    return facts.keys[tensors.index(address.name)]


class _Object(NamedTuple):
    """A row of the catalogue's objects."""

    number: int
    kind: int
    size: int
    aligned: int
    header: int | None
    layout: int | None
    digest: bytes


class _Run:
    """One query against one catalogue."""

    def __init__(self, catalogue: Catalogue, query: Query, keys: _Keys) -> None:
        self._catalogue = catalogue
        self._query = query
        self._keys = keys
        self._links = LinkSearch(catalogue)
        self._tensors = TensorSearch(catalogue, query, [each for each in (keys.same, keys.shared) if each is not None])
        self._matched: dict[int, Matched] = {}
        self._files: list[FileAt] = []
        self._scope = self._labelled()

    def answer(self, order: Order, limit: int | None) -> tuple[tuple[Hit, ...], int]:
        """The hits in order, and how many there are without the limit."""
        found = self._found()
        # One key at a time, the last one first: plain numbers, bytes and text compare much faster than tuples of them.
        found.sort(key=attrgetter("digest"))
        found.sort(key=attrgetter("kind"))
        total = len(found)
        if order in (Order.SIZE, Order.SHARED):
            found.sort(key=lambda each: -(each.size if order == Order.SIZE else self._shared(each)))
        if order == Order.NAME:
            names = self._names(found)
            called = [(names.name(each.number, blob=each.kind == _BLOB), each) for each in found]
            called.sort(key=itemgetter(0))
            first = bisect_right(called, "", key=itemgetter(0))  # what has no name comes last
            found = [each for _, each in called[first:] + called[:first]][:limit]
        else:  # what is not shown needs no name
            found = found[:limit]
            names = self._names(found)
        return tuple(self._hit(each, names) for each in found), total

    # -- which -------------------------------------------------------------------------------------------------------

    def _found(self) -> list[_Object]:
        query = self._query
        allowed = self._scope
        if query.contains is not None:
            below = self._links.number(bytes(query.contains))
            holding = self._links.above([below]) if below is not None else set()
            allowed = holding if allowed is None else allowed & holding
        base = self._base()
        if base is None:
            return self._fitting(self._objects(query.wanted, allowed))
        numbers = {each.number for each in base}
        found = base
        if query.kinds - {Kind.BLOB}:
            others = self._objects(query.kinds - {Kind.BLOB}, self._above(numbers))
            found = [each for each in base if each.kind == _BLOB] + others
        wanted = {kind.number for kind in query.wanted}
        return self._fitting(
            [each for each in found if each.kind in wanted and (allowed is None or each.number in allowed)]
        )

    def _fitting(self, found: list[_Object]) -> list[_Object]:
        """The objects that have the size and the digest that are asked for."""
        size, digest = self._query.size, self._query.digest
        if size is not None:
            found = [each for each in found if size.fits(each.size)]
        if digest is not None:
            digits = hex_digits(digest)
            first, last = (bytes.fromhex(digits.ljust(2 * DIGEST_SIZE, end)) for end in "0f")
            found = [each for each in found if first <= each.digest <= last]
        return found

    def _above(self, base: set[int]) -> set[int]:
        """What needs those that meet the criteria by themselves: with a path, the trees that have them there."""
        if self._query.path is not None:
            trees = {file.tree for file in self._files}
            return trees | self._links.above(trees)
        above = self._links.above(base)
        # Other objects than blobs are made of chunks too.
        return above if self._query.of_blobs or self._query.chunk is None else above | base

    def _labelled(self) -> set[int] | None:
        """What is below the pins and refs that are asked for; None where none is."""
        scope: set[int] | None = None
        for pattern, source in ((self._query.tag, PIN), (self._query.ref, REF)):
            if pattern is not None:
                below = self._links.below(self._links.labelled(pattern, source))
                scope = below if scope is None else scope & below
        return scope

    def _base(self) -> list[_Object] | None:
        """What by itself meets the criteria of blobs, chunks and places; None where there are none."""
        query = self._query
        base = self._made_of(query.chunk) if query.chunk is not None else None
        if query.of_blobs:
            held = None if self._tensors.holders is None else set(self._tensors.holders)
            made = None if base is None else {each.number for each in base}
            limits = [each for each in (held, made, self._scope) if each is not None]
            base = []
            for each in self._candidates(set.intersection(*limits) if limits else None):
                matched = self._tensors.match(each.number, each.header, each.layout)
                if matched is not None and each.digest not in self._keys.left_out:
                    self._matched[each.number] = matched
                    base.append(each)
        if query.path is not None:
            blobs = None if base is None else {each.number for each in base}
            self._files = self._links.files(query.path, blobs, self._scope)
            placed = {file.blob for file in self._files}
            base = self._objects(_BLOBS, placed) if base is None else [each for each in base if each.number in placed]
            base = [each for each in base if each.kind == _BLOB]
        return base

    def _candidates(self, numbers: set[int] | None) -> list[_Object]:
        """Blobs worth a closer look: of these numbers, or by what fewest of them have in common."""
        tensors = self._tensors
        if numbers is not None:
            return self._objects(_BLOBS, numbers)
        if tensors.headers is not None:
            return self._objects(_BLOBS, tensors.headers, "header")
        return self._objects(_BLOBS, tensors.layouts, "layout")

    def _made_of(self, chunk: Digest) -> list[_Object]:
        """The objects that list a chunk: among others, as all of a tensor, or as all of a header."""
        key, alone = bytes(chunk)[:KEY_BYTES], content_key([bytes(chunk)])
        listed = set()
        for number, row_crc in self._catalogue.rows("SELECT object, crc FROM chunks WHERE key=?", (key,)):
            check(row_crc, key, number)
            listed.add(number)
        keyed = set(self._tensors.holding(frozenset([alone])))
        for number, row_crc in self._catalogue.rows("SELECT id, crc FROM headers WHERE key=?", (alone,)):
            check(row_crc, number, alone)
            keyed.update(row[0] for row in self._catalogue.rows("SELECT id FROM objects WHERE header=?", (number,)))
        found = self._objects(frozenset(Kind), listed | keyed)
        return [each for each in found if each.number in listed or each.aligned]

    def _objects(self, kinds: frozenset[Kind], numbers: set[int] | None, column: str = "id") -> list[_Object]:
        """Objects of some kinds and numbers (or headers, or layouts), or of all."""
        where = f"kind IN ({','.join(str(kind.number) for kind in kinds)})"
        if numbers is None:
            rows = self._catalogue.rows(f"SELECT {OBJECT_COLUMNS} FROM objects WHERE {where}")  # noqa: S608
        else:
            rows = self._catalogue.among(OBJECT_COLUMNS, "objects", column, numbers, where=where)
        return list(map(_Object._make, checked(rows)))

    # -- spelled out -------------------------------------------------------------------------------------------------

    def _names(self, found: list[_Object]) -> Names:
        """What the found are called, by places in the trees and at the paths that are asked for."""
        blobs = {each.number for each in found if each.kind == _BLOB}
        files = self._links.files_of(blobs) if self._query.path is None else self._files
        chosen = [file for file in files if file.blob in blobs and (self._scope is None or file.tree in self._scope)]
        return Names(self._links, {each.number for each in found}, chosen)

    def _shared(self, found: _Object) -> int:
        """Bytes of the tensors that met the criteria."""
        matched = self._matched.get(found.number) if found.kind == _BLOB else None
        return matched.nbytes if matched else 0

    def _hit(self, found: _Object, names: Names) -> Hit:
        if found.kind != _BLOB:
            return Hit(Digest(found.digest), KINDS[found.kind], found.size, names.labels(found.number), (), 0, 0, 0, ())
        matched = self._matched.get(found.number, _NOTHING)
        return Hit(
            Digest(found.digest),
            Kind.BLOB,
            found.size,
            names.labels(found.number),
            *names.places(found.number),
            len(matched.positions),
            matched.nbytes,
            self._tensors.spelled(matched) if self._query.list_tensors else (),
        )
