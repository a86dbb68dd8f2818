"""The archive: the one door through which the rest of the project puts and gets.

An archive is a directory: ``csf.json`` says that it is one and which, ``segments/`` holds the data, ``ledger.jsonl``
what happened, ``index.sqlite`` a cache. What a method returned is durable: data first, then index, then ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from csf_store.check import Check, VerifyReport
from csf_store.digest import MIN_PREFIX_HEX, Buffer, Digest, hex_digits
from csf_store.directories import Found, check_regular, list_directory
from csf_store.durable import FileSystem, OsFileSystem
from csf_store.errors import AmbiguousPrefixError, ConflictError, CorruptError, InvalidInputError, NotFoundError
from csf_store.framing import RECORD_HEADER_SIZE, SEAL_AT
from csf_store.ingest import BytesSource, FileSource, Ingest, Progress, plan_bytes, plan_file
from csf_store.ledger import Ledger
from csf_store.ledger_state import Pin
from csf_store.marker import MARKER, make_archive, read_marker
from csf_store.objects import Kind, Layout, ObjectInfo, Stored
from csf_store.output import write_file, write_tree
from csf_store.pipeline import Pipeline
from csf_store.retrieve import OpenObject, Retrieve
from csf_store.safetensors_layout import SafetensorsHeader, TensorInfo
from csf_store.store import Store
from csf_store.trees import Tree, TreeEntry, decode_tree, encode_tree

_CACHED_OBJECTS: Final = 64


class Archive:
    """An open archive. Use it as a context manager, or call ``close``. Thread-safe."""

    def __init__(self, path: Path, archive_id: bytes, fs: FileSystem, seal_at: int) -> None:
        """Use ``Archive.open`` or ``Archive.create``."""
        self.path = path
        self.id = archive_id
        self._fs = fs
        self._store = Store(fs, path, archive_id, seal_at=seal_at)
        self._pipeline = Pipeline()
        self._ingest = Ingest(self._store, self._pipeline)
        self._retrieve = Retrieve(self._store, self._pipeline)
        self._opened: dict[Digest, tuple[OpenObject, SafetensorsHeader]] = {}
        self.ledger = Ledger(fs, path, archive_id)

    @classmethod
    def open(
        cls,
        path: str | Path,
        create: bool = False,  # noqa: FBT001 - the one word everybody expects here
        *,
        fs: FileSystem | None = None,
        seal_at: int = SEAL_AT,
    ) -> Archive:
        """Opens an archive, bringing its index in line with its segments.

        Args:
            path: its directory.
            create: make it if it is not there.
            fs: the file system, for tests.
            seal_at: bytes at which a segment is sealed and the next begun.

        Raises:
            NotFoundError: if there is no archive.
        """
        path, fs = Path(path), fs or OsFileSystem()
        if create and not (path / MARKER).exists():
            make_archive(fs, path)
        return cls(path, read_marker(fs, path), fs, seal_at)._begun(create=create)

    @classmethod
    def create(cls, path: str | Path, *, fs: FileSystem | None = None) -> Archive:
        """Makes a new archive in a directory that is empty or not there.

        Raises:
            ConflictError: if there is an archive already.
        """
        path, fs = Path(path), fs or OsFileSystem()
        if (path / MARKER).exists() or not make_archive(fs, path):
            raise ConflictError(f"{path} is an archive already; open it, or choose another directory")
        return cls(path, read_marker(fs, path), fs, SEAL_AT)._begun(create=True)

    def _begun(self, *, create: bool) -> Archive:
        if create and self.ledger.size == 0:
            with self.ledger.locked():
                pass  # taking the lock of an empty ledger writes its first line
        return self

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of files, locks and threads."""
        self._pipeline.close()
        self._store.close()

    # -- putting -----------------------------------------------------------------------------------------------------

    def put_bytes(self, data: Buffer, *, kind: Kind = Kind.BLOB, links: Iterable[Digest] = ()) -> Stored:
        """Stores bytes as an object of a kind; durable when this returns.

        Raises:
            NotFoundError: if a link is not in the archive.
            InvalidInputError: if they are to be a tree and are none.
        """
        links = tuple(links)
        source = BytesSource(data)
        if kind == Kind.TREE:
            tree = _as_tree(bytes(data))
            links = tuple(entry.blob for entry in tree.entries)
        for link in links:
            if not self.contains(link):
                raise NotFoundError(f"the {kind} links to {link}, which is not in this archive; put that first")
        try:
            return self._ingest.put(source, plan_bytes(source), kind, links, None)
        finally:
            self._store.commit()

    def put_file(self, path: str | Path, *, progress: Progress | None = None, allow_pickle: bool = False) -> Stored:
        """Stores a file as a blob; durable when this returns. Symbolic links are followed here, but not in trees.

        Raises:
            InvalidInputError: if it is a malformed safetensors file or no regular file; nothing is written.
            PickleRefusedError: if it is a pickle and ``allow_pickle`` is not set.
        """
        path = Path(path)
        check_regular(path)
        with FileSource(path) as source:
            plan = plan_file(source, allow_pickle=allow_pickle)
            try:
                return self._ingest.put(source, plan, Kind.BLOB, (), progress)
            finally:
                self._store.commit()

    def put_tree(
        self, directory: str | Path, *, progress: Progress | None = None, allow_pickle: bool = False
    ) -> Stored:
        """Stores a directory as a tree. Everything in it is checked before the first byte is written.

        Raises:
            InvalidInputError: naming a symbolic link, a special file, a bad name or a malformed file in it.
        """
        found = list_directory(Path(directory), allow_pickle=allow_pickle)
        written = 0
        entries = []
        try:
            for file in found:
                entry, stored = self.put_found(file, progress=progress, allow_pickle=allow_pickle, commit=False)
                entries.append(entry)
                written += stored.stored
        finally:
            self._store.commit()
        tree = self.put_tree_entries(entries)
        return tree._replace(stored=tree.stored + written)

    def put_found(
        self, file: Found, *, progress: Progress | None = None, allow_pickle: bool = False, commit: bool = True
    ) -> tuple[TreeEntry, Stored]:
        """Stores one file of a listed directory; durable when this returns, unless ``commit`` is off."""
        with FileSource(file.source) as source:
            plan = plan_file(source, allow_pickle=allow_pickle)
            try:
                stored = self._ingest.put(source, plan, Kind.BLOB, (), progress)
            finally:
                if commit:
                    self._store.commit()
        return TreeEntry(file.path, stored.digest, stored.size, file.executable), stored

    def put_tree_entries(self, entries: Iterable[TreeEntry]) -> Stored:
        """Stores a tree of blobs that are in the archive already.

        Raises:
            NotFoundError: if a blob is not there.
            InvalidInputError: if a path is unsafe, or a size is not its blob's.
        """
        entries = tuple(entries)
        for entry in entries:
            where = self._store.find_object(bytes(entry.blob), Kind.BLOB)
            if where is None:
                raise NotFoundError(f"{entry.path}: blob {entry.blob} is not in this archive; put it first")
            if where.raw != entry.size:
                raise InvalidInputError(f"{entry.path}: blob {entry.blob} has {where.raw} bytes, not {entry.size}")
        stored = self.put_bytes(encode_tree(entries), kind=Kind.TREE)
        return stored._replace(size=sum(entry.size for entry in entries))

    # -- pins --------------------------------------------------------------------------------------------------------

    def pin(self, digest: Digest, *, kind: Kind, name: str | None = None) -> None:
        """Keeps an object: a ledger event, unless it is pinned under that name already.

        Raises:
            NotFoundError: if it is not in the archive.
        """
        if not self.contains(digest, kind):
            raise NotFoundError(f"{digest} is not in this archive as a {kind}; put it before you pin it")
        if self._is_pinned(digest, kind, name):
            return
        with self.ledger.locked() as transaction:
            if not self._is_pinned(digest, kind, name):
                transaction.append("pin", digest=str(digest), kind=str(kind), name=name)

    def _is_pinned(self, digest: Digest, kind: Kind, name: str | None) -> bool:
        return self.ledger.is_pinned(digest, kind, name)

    def unpin(self, digest: Digest) -> None:
        """Stops keeping an object, under whatever names it is pinned.

        Raises:
            NotFoundError: if it is not pinned.
        """
        with self.ledger.locked() as transaction:
            if all(pin.digest != digest for pin in transaction.pins()):
                raise NotFoundError(f"{digest} is not pinned; csf ls shows what is")
            transaction.append("unpin", digest=str(digest))

    def pins(self) -> tuple[Pin, ...]:
        """What is pinned, in the order of pinning."""
        return self.ledger.pins()

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

    def verify(
        self,
        digests: Iterable[Digest] | None = None,
        *,
        deep: bool = False,
        reachable_only: bool = False,
        progress: Progress | None = None,
    ) -> VerifyReport:
        """Checks the archive, or just some objects and what they need.

        Args:
            digests: which objects, decoded and hashed as a whole; without it, every byte of every segment, the index,
                the ledger, and whether everything that is pinned or a ref's target is complete.
            deep: also decode everything and hash it as a whole.
            reachable_only: leave out whether objects are complete that no pin and no ref leads to.
            progress: called with the bytes of each segment done.
        """
        check = Check(self._store, self._retrieve, self.ledger, progress)
        return (
            check.objects(list(digests))
            if digests is not None
            else check.everything(deep=deep, reachable_only=reachable_only)
        )


def _counted(pieces: Iterator[memoryview], progress: Progress | None) -> Iterator[memoryview]:
    for piece in pieces:
        yield piece
        if progress:
            progress(len(piece))


def _as_tree(data: bytes) -> Tree:
    try:
        return decode_tree(data, Digest.of(data))
    except CorruptError as error:
        raise InvalidInputError(f"these bytes are no tree: {error}") from error
