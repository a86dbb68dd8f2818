"""The archive: the one door through which the rest of the project puts and gets.

An archive is a directory: ``csf.json`` says that it is one and which, ``segments/`` holds the data, ``ledger.jsonl``
what happened, ``index.sqlite`` a cache. What a method returned is durable: data first, then index, then ledger.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

from csf_store.bases import Base, base_of
from csf_store.codecs import WORTH
from csf_store.digest import Buffer, Digest
from csf_store.directories import Found, check_regular, list_directory
from csf_store.durable import FileSystem, OsFileSystem
from csf_store.errors import ConflictError, CorruptError, InvalidInputError, NotFoundError
from csf_store.framing import SEAL_AT
from csf_store.ingest import BytesSource, FileSource, Ingest, NamedSource, Progress, plan_bytes, plan_file
from csf_store.ledger.ledger import Ledger
from csf_store.ledger.state import Pin
from csf_store.marker import MARKER, make_archive, read_marker
from csf_store.objects import Kind, Layout, Stored
from csf_store.pipeline import Pipeline
from csf_store.trees import Tree, TreeEntry, decode_tree, encode_tree
from csf_store.upkeep.check import Check, VerifyReport
from csf_store.upkeep.upkeep import Upkeep, open_store


class Archive(Upkeep):
    """An open archive. Use it as a context manager, or call ``close``. Thread-safe."""

    def __init__(self, path: Path, archive_id: bytes, fs: FileSystem, seal_at: int) -> None:
        """Use ``Archive.open`` or ``Archive.create``."""
        self.path = path
        self.id = archive_id
        self.ledger = Ledger(fs, path, archive_id)
        try:
            store = open_store(fs, path, archive_id, seal_at, self.ledger)
        except BaseException:
            self.ledger.close()
            raise
        super().__init__(fs, store, Pipeline())
        self._ingest = Ingest(self._store, self._retrieve, self._pipeline)

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
        try:
            if create and self.ledger.size == 0:
                with self.ledger.locked():
                    pass  # taking the lock of an empty ledger writes its first line
        except BaseException:
            self.close()
            raise
        return self

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of files, locks and threads."""
        with contextlib.ExitStack() as all_of_them:  # whatever the others say
            all_of_them.callback(self.ledger.close)
            all_of_them.callback(self._store.close)
            all_of_them.callback(self._pipeline.close)

    def keeping(self) -> contextlib.AbstractContextManager[None]:
        """A block during which nothing is collected: what was found or put in it can be pinned in it.

        Every put and pin is one by itself. Blocks may nest and run in several threads; readers need none.
        """
        return self._store.keeping()

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
        with self.keeping():
            for link in links:
                if not self.contains(link):
                    raise NotFoundError(f"the {kind} links to {link}, which is not in this archive; put that first")
            try:
                return self._ingest.put(source, plan_bytes(source), kind, links)
            finally:
                self._store.commit()

    def base(self, *digests: Digest) -> Base:
        """The tensors of safetensors blobs, and of all those in trees, for puts to store differences to.

        Raises:
            NotFoundError: if one is not there.
            InvalidInputError: if there is no safetensors blob among them.
        """
        blobs: list[Digest] = []
        for digest in digests:
            if self.contains(digest, Kind.TREE):
                blobs += [entry.blob for entry in self.tree(digest).entries]
            else:
                blobs.append(digest)
        found = [self._retrieve.open(digest, Kind.BLOB) for digest in dict.fromkeys(blobs)]
        usable = [each for each in found if each.body.layout == Layout.SAFETENSORS]
        if not usable:
            names = ", ".join(map(str, digests))
            raise InvalidInputError(f"{names}: no safetensors blob, so nothing can be stored as a difference to it")
        return base_of(self._store, self._retrieve, usable)

    def last_under(self, name: str) -> Base | None:
        """The tensors of what was last pinned under a name, if it has any: most likely what a new version grew from."""
        for pin in reversed(self.pins()):
            if pin.name == name:
                try:
                    return self.base(pin.digest)
                except (NotFoundError, InvalidInputError, CorruptError):
                    return None
        return None

    def put_file(
        self,
        path: str | Path,
        *,
        base: Base | None = None,
        progress: Progress | None = None,
        allow_pickle: bool = False,
    ) -> Stored:
        """Stores a file as a blob; durable when this returns. Symbolic links are followed here, but not in trees.

        Args:
            path: the file.
            base: tensors that its own may be stored as differences to, where that is smaller.
            progress: called with the bytes of each chunk done.
            allow_pickle: keep pickles as opaque bytes.

        Raises:
            InvalidInputError: if it is a malformed safetensors file or no regular file; nothing is written.
            PickleRefusedError: if it is a pickle and ``allow_pickle`` is not set.
        """
        path = Path(path)
        check_regular(path)
        with FileSource(path) as source:
            return self.put_source(source, base=base, progress=progress, allow_pickle=allow_pickle)

    def put_source(
        self,
        source: NamedSource,
        *,
        base: Base | None = None,
        progress: Progress | None = None,
        allow_pickle: bool = False,
        commit: bool = True,
        worth: float = WORTH,
    ) -> Stored:
        """Stores a named source, held to the rules of a file; durable when this returns, unless ``commit`` is off.

        ``worth`` is the share of its bytes that a chunk's stored form may take at most; a smaller share than the usual
        one makes what is hard to compress larger and faster to read.

        Raises:
            InvalidInputError: if it is named as safetensors and malformed; nothing is written.
            PickleRefusedError: if it is a pickle and ``allow_pickle`` is not set.
        """
        plan = plan_file(source, allow_pickle=allow_pickle)
        with self.keeping():
            try:
                return self._ingest.put(source, plan, Kind.BLOB, (), progress=progress, base=base, worth=worth)
            finally:
                if commit:
                    self._store.commit()

    def put_tree(
        self,
        directory: str | Path,
        *,
        base: Base | None = None,
        progress: Progress | None = None,
        allow_pickle: bool = False,
    ) -> Stored:
        """Stores a directory as a tree. Everything in it is checked before the first byte is written.

        Raises:
            InvalidInputError: naming a symbolic link, a special file, a bad name or a malformed file in it.
        """
        found = list_directory(Path(directory), allow_pickle=allow_pickle)
        written = 0
        entries = []
        with self.keeping():
            try:
                for file in found:
                    entry, stored = self.put_found(
                        file, base=base, progress=progress, allow_pickle=allow_pickle, commit=False
                    )
                    entries.append(entry)
                    written += stored.stored
            finally:
                self._store.commit()
            tree = self.put_tree_entries(entries)
        return tree._replace(stored=tree.stored + written)

    def put_found(
        self,
        file: Found,
        *,
        base: Base | None = None,
        progress: Progress | None = None,
        allow_pickle: bool = False,
        commit: bool = True,
    ) -> tuple[TreeEntry, Stored]:
        """Stores one file of a listed directory; durable when this returns, unless ``commit`` is off."""
        with FileSource(file.source) as source:
            stored = self.put_source(source, base=base, progress=progress, allow_pickle=allow_pickle, commit=commit)
        return TreeEntry(file.path, stored.digest, stored.size, file.executable), stored

    def put_tree_entries(self, entries: Iterable[TreeEntry]) -> Stored:
        """Stores a tree of blobs that are in the archive already.

        Raises:
            NotFoundError: if a blob is not there.
            InvalidInputError: if a path is unsafe, or a size is not its blob's.
        """
        entries = tuple(entries)
        with self.keeping():
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
        with self.keeping():
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
            if not transaction.has_pin(digest):
                raise NotFoundError(f"{digest} is not pinned; csf ls shows what is")
            transaction.append("unpin", digest=str(digest))

    def pins(self) -> tuple[Pin, ...]:
        """What is pinned, in the order of pinning."""
        return self.ledger.pins()

    # -- checking ---------------------------------------------------------------------------------------------------

    def verify(
        self,
        digests: Iterable[Digest] | None = None,
        *,
        deep: bool = False,
        reachable_only: bool = False,
        follow: bool = True,
        progress: Progress | None = None,
    ) -> VerifyReport:
        """Checks the archive, or just some objects and what they need.

        Args:
            digests: which objects, decoded and hashed as a whole; without it, every byte of every segment, the index,
                the ledger, and whether everything that is pinned or a ref's target is complete.
            deep: also decode everything and hash it as a whole.
            reachable_only: leave out whether objects are complete that no pin and no ref leads to.
            follow: with ``digests``, also what they link to, and so on.
            progress: called with the bytes of each segment done; with ``digests``, of each piece decoded.
        """
        check = Check(self._store, self._retrieve, self.ledger, self._pipeline, progress)
        return (
            check.objects(list(digests), follow=follow)
            if digests is not None
            else check.everything(deep=deep, reachable_only=reachable_only)
        )


def _as_tree(data: bytes) -> Tree:
    try:
        return decode_tree(data, Digest.of(data))
    except CorruptError as error:
        raise InvalidInputError(f"these bytes are no tree: {error}") from error
