"""What differs between two checkpoints, tensor by tensor, whatever files the tensors are in.

No tensor data is read for it: chunk lists say which tensors are the same bytes, under the same name or another. How far
those moved that changed is for ``measure`` to say, which reads them.

A tensor is known by its name. Where a checkpoint holds a name twice (a base and its copy), path and name together say
which is meant. Metadata of safetensors files is compared over all files of a side, other files by path.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from csf_store.digest import Digest
from csf_store.errors import InvalidInputError
from csf_store.objects import Kind, Layout
from csf_store.reading import Reading
from csf_store.retrieve import OpenObject
from csf_store.safetensors_layout import TensorInfo
from csf_store.search.collector import collector_at_rest
from csf_store.search.patterns import NamePattern
from csf_store.search.tensor_keys import Cuts, tensor_chunks

if TYPE_CHECKING:
    from csf_store.search.tensor_values import Distance


class Change(StrEnum):
    """What became of a tensor, a file or an entry of metadata."""

    SAME = "same"
    CHANGED = "changed"
    RETYPED = "retyped"
    RESHAPED = "reshaped"
    RENAMED = "renamed"
    ADDED = "added"
    REMOVED = "removed"


class TensorVersion(NamedTuple):
    """A tensor on one side.

    Attributes:
        blob: the file it is in.
        path: the path of the file in its tree; empty where a file was compared, not a tree.
        info: name, dtype, shape and place in the file.
        chunks: digests of its bytes, cut every 4 MiB.
    """

    blob: Digest
    path: str
    info: TensorInfo
    chunks: tuple[bytes, ...]

    def alike(self, other: TensorVersion) -> bool:
        """Whether dtype, shape and bytes are the same."""
        return self.info[1:3] == other.info[1:3] and self.chunks == other.chunks


class TensorDifference(NamedTuple):
    """What became of one tensor.

    Attributes:
        change: what.
        name: its name, with its path in front where the name alone is not enough; the new one if it was renamed.
        before: on the first side; None if it was added.
        after: on the second side; None if it was removed.
        distance: how far it moved, where ``measure`` was asked and can tell.
    """

    change: Change
    name: str
    before: TensorVersion | None
    after: TensorVersion | None
    distance: Distance | None = None

    @property
    def measurable(self) -> bool:
        """Whether there is a distance to measure: it changed, value for value."""
        return (
            self.change in (Change.CHANGED, Change.RETYPED)
            and self.before is not None
            and self.after is not None
            and all(version.info.dtype not in _UNSETTLED for version in (self.before, self.after))
        )


class FileDifference(NamedTuple):
    """What became of a file that holds no tensors; empty paths where files were compared, not trees."""

    change: Change
    path: str
    old_path: str
    before: Digest | None
    after: Digest | None


class MetadataDifference(NamedTuple):
    """What became of an entry of safetensors metadata: its values over all files of a side."""

    change: Change
    key: str
    before: tuple[str, ...]
    after: tuple[str, ...]


class Comparison(NamedTuple):
    """Two checkpoints side by side.

    Attributes:
        tensors: every tensor, in the order of the first side, then what was added in the order of the second.
        files: every other file, by path.
        metadata: every entry of metadata, by key.
    """

    tensors: tuple[TensorDifference, ...]
    files: tuple[FileDifference, ...]
    metadata: tuple[MetadataDifference, ...]

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        changes = [each.change for each in self.tensors]
        changes += [each.change for each in self.files]
        changes += [each.change for each in self.metadata]
        return set(changes) <= {Change.SAME}

    @property
    def tensor_counts(self) -> Mapping[Change, int]:
        """How many tensors there are of each change."""
        return Counter(each.change for each in self.tensors)

    @property
    def bytes_to_measure(self) -> int:
        """Bytes on the first side of what ``measure`` would read."""
        return sum(each.before.info.nbytes for each in self.tensors if each.measurable and each.before)


_UNSETTLED = ("F6_E2M3", "F6_E3M2")
"""Formats whose packing of values into bytes nobody has settled."""


class _Side:
    """What one of the two holds."""

    def __init__(self, archive: Reading, digest: Digest, pattern: NamePattern | None) -> None:
        self.tensors: list[TensorVersion] = []
        self.files: dict[str, Digest] = {}
        self._metadata: defaultdict[str, set[str]] = defaultdict(set)
        if archive.contains(digest, Kind.TREE):
            for entry in archive.tree(digest).entries:
                self._take(archive, archive.record(entry.blob, Kind.BLOB), entry.path)
        elif archive.contains(digest, Kind.BLOB):
            self._take(archive, archive.record(digest, Kind.BLOB), "")
        else:
            kind = archive.record(digest).kind
            raise InvalidInputError(
                f"{digest} is a {kind}; compare trees and blobs, csf ls {digest.short} names its own"
            )
        if pattern is not None:
            self.tensors = [version for version in self.tensors if pattern.fits(version.info.name)]
            self.files, self._metadata = {}, defaultdict(set)

    def _take(self, archive: Reading, found: OpenObject, path: str) -> None:
        if found.body.layout != Layout.SAFETENSORS:
            self.files[path] = found.digest
            return
        header = archive.header(found)
        chunks = tensor_chunks(archive, found, header, Cuts.of(header))
        for info, digests in zip(header.tensors.values(), chunks, strict=True):
            self.tensors.append(TensorVersion(found.digest, path, info, tuple(digests)))
        for key, value in header.metadata.items():
            self._metadata[key].add(value)

    def doubled(self) -> set[str]:
        """Names that stand for several tensors."""
        counts = Counter(version.info.name for version in self.tensors)
        return {name for name, count in counts.items() if count > 1}

    def named(self, doubled: set[str]) -> dict[str, TensorVersion]:
        """Every tensor by what it is known as."""
        return {
            f"{version.path}:{version.info.name}" if version.info.name in doubled else version.info.name: version
            for version in self.tensors
        }

    def metadata(self) -> dict[str, tuple[str, ...]]:
        """Every key of metadata with its values, each once."""
        return {key: tuple(sorted(values)) for key, values in self._metadata.items()}


@collector_at_rest()
def compare(archive: Reading, before: Digest, after: Digest, *, pattern: NamePattern | None = None) -> Comparison:
    """Says what became of every tensor and every file, without reading tensor data.

    Args:
        archive: where both are.
        before: a tree or a blob.
        after: a tree or a blob.
        pattern: compare only tensors of such names, and no files and no metadata.

    Raises:
        NotFoundError: if one of them, or a file of a tree, is not in the archive.
        InvalidInputError: if one of them is neither tree nor blob.
    """
    first, second = _Side(archive, before, pattern), _Side(archive, after, pattern)
    doubled = first.doubled() | second.doubled()
    old, new = first.named(doubled), second.named(doubled)
    tensors = [_tensor_difference(name, old[name], new.get(name)) for name in old]
    tensors += [TensorDifference(Change.ADDED, name, None, new[name]) for name in new if name not in old]
    return Comparison(
        tuple(_with_renames(tensors)),
        tuple(_file_differences(first.files, second.files)),
        tuple(_metadata_differences(first.metadata(), second.metadata())),
    )


def _tensor_difference(name: str, before: TensorVersion, after: TensorVersion | None) -> TensorDifference:
    if after is None:
        change = Change.REMOVED
    elif before.alike(after):
        change = Change.SAME
    elif before.info.shape != after.info.shape:
        change = Change.RESHAPED
    elif before.info.dtype != after.info.dtype:
        change = Change.RETYPED
    else:
        change = Change.CHANGED
    return TensorDifference(change, name, before, after)


def _with_renames(tensors: list[TensorDifference]) -> Iterator[TensorDifference]:
    """Pairs what was removed with what was added, where dtype, shape and bytes are the same."""
    added: defaultdict[tuple[object, ...], list[TensorDifference]] = defaultdict(list)
    for each in tensors:
        if each.change == Change.ADDED and each.after and each.after.info.nbytes:
            added[_identity(each.after)].append(each)
    paired: set[str] = set()
    found = []
    for each in tensors:
        if each.change == Change.REMOVED and each.before and (twins := added.get(_identity(each.before))):
            twin = twins.pop(0)
            paired.add(twin.name)
            found.append(TensorDifference(Change.RENAMED, twin.name, each.before, twin.after))
        else:
            found.append(each)
    yield from (each for each in found if each.change != Change.ADDED or each.name not in paired)


def _identity(version: TensorVersion) -> tuple[object, ...]:
    return (version.info.dtype, version.info.shape, version.chunks)


def _file_differences(old: Mapping[str, Digest], new: Mapping[str, Digest]) -> list[FileDifference]:
    arrived: defaultdict[Digest, list[str]] = defaultdict(list)
    for path in sorted(new.keys() - old.keys()):
        arrived[new[path]].append(path)
    found = []
    for path, before in sorted(old.items()):
        after = new.get(path)
        if after is not None:
            change = Change.SAME if before == after else Change.CHANGED
            found.append(FileDifference(change, path, path, before, after))
        elif arrived[before]:
            found.append(FileDifference(Change.RENAMED, arrived[before].pop(0), path, before, before))
        else:
            found.append(FileDifference(Change.REMOVED, path, path, before, None))
    for digest, paths in arrived.items():
        found += [FileDifference(Change.ADDED, path, path, None, digest) for path in paths]
    return sorted(found, key=lambda each: each.path)


def _metadata_differences(
    old: Mapping[str, tuple[str, ...]], new: Mapping[str, tuple[str, ...]]
) -> Iterator[MetadataDifference]:
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key, ()), new.get(key, ())
        if before == after:
            change = Change.SAME
        else:
            change = Change.CHANGED if before and after else Change.REMOVED if before else Change.ADDED
        yield MetadataDifference(change, key, before, after)
