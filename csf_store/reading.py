"""Half of an archive: everything that reads. It changes nothing, and gives out nothing that is not proven.

``Archive`` adds the other half. They are one object to its users and two files to its readers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from csf_store.digest import MIN_PREFIX_HEX, Digest, hex_digits
from csf_store.durable import FileSystem
from csf_store.errors import AmbiguousPrefixError, CorruptError, InvalidInputError, NotFoundError
from csf_store.framing import RECORD_HEADER_SIZE
from csf_store.ingest import Progress
from csf_store.memory import allocate
from csf_store.objects import Kind, Layout, ObjectInfo
from csf_store.output import write_file, write_tree
from csf_store.pipeline import Pipeline
from csf_store.retrieve import OpenObject, Retrieve
from csf_store.safetensors_layout import SafetensorsHeader, TensorInfo
from csf_store.store import Store
from csf_store.trees import Tree, TreeEntry, decode_tree

_CACHED_OBJECTS: Final = 64


class Reading:
    """The reading half of ``Archive``."""

    def __init__(self, fs: FileSystem, store: Store, pipeline: Pipeline) -> None:
        self._fs = fs
        self._store = store
        self._pipeline = pipeline
        self._retrieve = Retrieve(store, pipeline)
        self._opened: dict[Digest, tuple[OpenObject, SafetensorsHeader]] = {}

    # -- getting -----------------------------------------------------------------------------------------------------

    def get_bytes(self, digest: Digest, *, kind: Kind | None = None) -> bytes:
        """The content of an object, proven against its digest.

        Raises:
            NotFoundError: if it is not there as that kind.
            CorruptError: if any byte of it is not what was put.
        """
        return self._retrieve.content_bytes(self._retrieve.open(digest, kind))

    def pieces(self, digest: Digest, *, kind: Kind | None = None) -> Iterator[memoryview]:
        """The content of an object in pieces, each good until the next is taken; all proven before the first is given.

        It is read twice, which is the price of a stream that can not be taken back.
        """
        found = self._retrieve.open(digest, kind)
        for _ in self._retrieve.content(found):
            pass
        yield from self._retrieve.content(found)

    def get_file(
        self, digest: Digest, out: str | Path, *, overwrite: bool = False, progress: Progress | None = None
    ) -> None:
        """Writes a blob (or the bytes of another object) to a file, complete and proven or not at all.

        Raises:
            ConflictError: if ``out`` exists and ``overwrite`` is not set.
        """
        found = self._retrieve.open(digest, None)
        content = self._retrieve.content
        write_file(self._fs, Path(out), lambda: _counted(content(found), progress), overwrite=overwrite)

    def get_tree(
        self, digest: Digest, out: str | Path, *, overwrite: bool = False, progress: Progress | None = None
    ) -> None:
        """Writes a tree to a directory, complete and proven or not at all.

        Raises:
            ConflictError: if ``out`` exists, is not an empty directory, and ``overwrite`` is not set.
        """
        tree = self.tree(digest)
        write_tree(self._fs, Path(out), tree, self._blob_content, overwrite=overwrite, progress=progress)

    def _blob_content(self, entry: TreeEntry) -> Iterator[memoryview]:
        found = self._retrieve.open(entry.blob, Kind.BLOB)
        if found.size != entry.size:
            raise CorruptError(f"{entry.path}: blob {entry.blob} has {found.size} bytes, the tree says {entry.size}")
        return self._retrieve.content(found)

    def tree(self, digest: Digest) -> Tree:
        """The entries of a tree."""
        return decode_tree(self.get_bytes(digest, kind=Kind.TREE), digest)

    # -- tensors -----------------------------------------------------------------------------------------------------

    def tensors(self, blob: Digest) -> Mapping[str, TensorInfo]:
        """The tensors of a safetensors blob by name, in the order of their data."""
        return self._safetensors(blob)[1].tensors

    def metadata(self, blob: Digest) -> Mapping[str, str]:
        """The ``__metadata__`` of a safetensors blob."""
        return self._safetensors(blob)[1].metadata

    def read_tensor(self, blob: Digest, name: str, out: bytearray | memoryview | None = None) -> bytearray | memoryview:
        """The bytes of one tensor, reading only its chunks; each is checked against its own digest.

        Args:
            blob: a safetensors blob.
            name: which tensor.
            out: a writable, contiguous buffer of exactly its size to decode into; a new one without it.

        Raises:
            NotFoundError: if there is no such tensor.
            CorruptError: if a chunk is damaged; ``out`` may then hold anything.
        """
        found, header = self._safetensors(blob)
        tensor = header.tensors.get(name)
        if tensor is None:
            raise NotFoundError(f"{blob} holds no tensor {name!r}; csf ls lists its tensors")
        target = bytearray(tensor.nbytes) if out is None else out
        view = memoryview(target).cast("B") if tensor.nbytes or len(target) else memoryview(bytearray())
        if view.readonly or len(view) != tensor.nbytes:
            raise InvalidInputError(f"out takes {len(view)} bytes; tensor {name!r} needs {tensor.nbytes} writable ones")
        self._retrieve.read_into(found, tensor.offset, view)
        return target

    def read_tensors(self, blob: Digest, place: Callable[[TensorInfo], memoryview]) -> None:
        """Every tensor of a safetensors blob, decoded in place; the whole blob is proven, its header included.

        Args:
            blob: a safetensors blob.
            place: gives the writable, contiguous buffer of ``info.nbytes`` bytes that a tensor is decoded into.

        Raises:
            CorruptError: if any byte of the blob is not what was put; the buffers may then hold anything.
        """
        found, header = self._safetensors(blob)
        self._retrieve.read_tensors_into(found, header, place)

    def load_tensors(self, blob: Digest) -> Mapping[str, memoryview]:
        """Every tensor of a safetensors blob by name, in fresh memory of large pages; the whole blob is proven.

        The views are writable and live in one mapping, which goes when the last of them does.

        Raises:
            CorruptError: if any byte of the blob is not what was put.
            StorageError: if there is not enough memory.
        """
        infos = self.tensors(blob)
        places = dict(zip(infos, allocate(info.nbytes for info in infos.values()), strict=True))
        self.read_tensors(blob, lambda info: places[info.name])
        return places

    def _safetensors(self, blob: Digest) -> tuple[OpenObject, SafetensorsHeader]:
        cached = self._opened.get(blob)
        if cached is None:
            found = self._retrieve.open(blob, Kind.BLOB)
            cached = (found, self._retrieve.header(found))
            if len(self._opened) >= _CACHED_OBJECTS:
                self._opened.clear()
            self._opened[blob] = cached
        return cached

    # -- looking -----------------------------------------------------------------------------------------------------

    def contains(self, digest: Digest, kind: Kind | None = None) -> bool:
        """Whether an object is there (as that kind)."""
        if kind is not None:
            return self._store.find_object(bytes(digest), kind) is not None
        return bool(self._store.kinds(bytes(digest)))

    def stat(self, digest: Digest) -> ObjectInfo:
        """What is known of an object without reading its content.

        Raises:
            NotFoundError: if it is not there.
        """
        kinds = tuple(self._store.kinds(bytes(digest)))
        opened = [self._retrieve.open(digest, kind) for kind in kinds] or [self._retrieve.open(digest, None)]
        chunks = {chunk.digest for each in opened for chunk in each.body.chunks}
        wheres = [self._store.find_object(bytes(digest), kind) for kind in kinds]
        wheres += [self._store.find_chunk(chunk) for chunk in chunks]
        stored = sum(RECORD_HEADER_SIZE + where.stored for where in wheres if where)
        links = tuple(sorted({link for each in opened for link in each.body.links}))
        return ObjectInfo(digest, kinds, opened[0].size, stored, max(len(each.body.chunks) for each in opened), links)

    def content_size(self, digest: Digest) -> int:
        """Bytes of an object's content; of a tree, of all its files."""
        if self.contains(digest, Kind.TREE):
            return self.tree(digest).size
        return self._retrieve.open(digest, None).size

    def is_safetensors(self, digest: Digest) -> bool:
        """Whether an object is a blob whose tensors can be read one by one."""
        return self.contains(digest, Kind.BLOB) and (
            self._retrieve.open(digest, Kind.BLOB).body.layout == Layout.SAFETENSORS
        )

    def segment_bytes(self) -> int:
        """Bytes of all segments together: what a full verification reads."""
        return sum(state.size for state in self._store.segments().values())

    def links(self, digest: Digest) -> tuple[Digest, ...]:
        """The digests an object needs, ascending."""
        return self.stat(digest).links

    def objects(self, kind: Kind | None = None) -> Iterator[ObjectInfo]:
        """Every object (of a kind), in the order of digests."""
        seen: Digest | None = None
        for raw, found in self._store.objects():
            digest = Digest(raw)
            if (kind is None or found == kind) and digest != seen:
                seen = digest
                yield self.stat(digest)

    def resolve(self, text: str, *, kind: Kind | None = None) -> Digest:
        """The digest that a full digest or a unique prefix (8 hex digits or more) stands for.

        Raises:
            NotFoundError: if nothing begins with it.
            AmbiguousPrefixError: if several objects do.
        """
        digits = hex_digits(text)
        if len(digits) < MIN_PREFIX_HEX:
            raise InvalidInputError(f"{text!r} has {len(digits)} hex digits; type at least {MIN_PREFIX_HEX}")
        first, last = bytes.fromhex(digits.ljust(64, "0")), bytes.fromhex(digits.ljust(64, "f"))
        rows = self._store.objects(first, last, 64)
        fitting = sorted({raw for raw, found in rows if kind is None or found == kind})
        if not fitting:
            raise NotFoundError(f"no {kind or 'object'} here begins with {text}; see csf ls")
        if len(fitting) > 1:
            some = ", ".join(Digest(raw).hex[: len(digits) + 8] for raw in fitting[:4])
            raise AmbiguousPrefixError(f"{text} fits several objects ({some} ...); type more digits")
        return Digest(fitting[0])

    def segments_of(self, digest: Digest) -> frozenset[str]:
        """The file names of all segments that an object is read from, as every kind it is known as.

        Raises:
            NotFoundError: if it is not there.
        """
        names = {state.id: name for name, state in self._store.segments().items()}
        wheres = [self._store.find_object(bytes(digest), kind) for kind in self._store.kinds(bytes(digest))]
        for kind in self._store.kinds(bytes(digest)):
            for chunk in self._retrieve.open(digest, kind).body.chunks:
                where = self._store.find_chunk(chunk.digest)
                wheres.append(where)
                if where is not None and where.is_difference:
                    wheres.append(self._store.find_chunk(where.base))
        if not wheres:
            raise NotFoundError(f"{digest} is not in this archive; see csf ls")
        return frozenset(names[where.segment] for where in wheres if where is not None)

    # -- below the content: what search and comparison stand on -------------------------------------------------------

    @property
    def fs(self) -> FileSystem:
        """The file system all of it goes through."""
        return self._fs

    def listing(self) -> list[tuple[bytes, Kind]]:
        """Digest and kind of every object, in the order of digests, from the index alone."""
        return self._store.objects()

    def record(self, digest: Digest, kind: Kind | None = None) -> OpenObject:
        """An object's record: its size, links and chunk list. The chunk list is a claim, its chunks are not looked at.

        Raises:
            NotFoundError: if it is not there as that kind.
        """
        return self._retrieve.open(digest, kind)

    def header(self, found: OpenObject) -> SafetensorsHeader:
        """The checked header of a safetensors blob that was opened with ``record``.

        Raises:
            InvalidInputError: if the blob is something else.
        """
        return self._retrieve.header(found)

    def read_range(self, found: OpenObject, start: int, out: memoryview) -> None:
        """Fills ``out`` with the content from byte ``start`` on; only chunks it lies in are read, each is checked."""
        self._retrieve.read_into(found, start, out)


def _counted(pieces: Iterator[memoryview], progress: Progress | None) -> Iterator[memoryview]:
    for piece in pieces:
        yield piece
        if progress:
            progress(len(piece))
