"""Reading the older container, CSF-Pack 0.8: one file that holds a directory. It is read, never written.

``CsfPack.open`` proves the container as a whole (size and SHA-256 in its trailer) and then its manifest; ``verify``
decodes every file and proves it against its own SHA-256. Only then is anything stored: a container is imported whole or
not at all. It comes from anywhere, so each number in it is an attacker's until checked, the whole is never in memory,
and nothing is decoded beyond its declared size. ``FORMAT.md``, "The older container", is the table of bytes.
"""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import Final

import zstandard
from blake3 import blake3

from csf_store.csfpack.manifest import Member, PackManifest, parse_manifest
from csf_store.csfpack.member import STEP, MemberSource
from csf_store.digest import Digest
from csf_store.errors import CorruptError, InvalidInputError, NotFoundError
from csf_store.ingest import SUFFIX, FileSource, Progress, plan_file
from csf_store.safetensors_layout import MAX_HEADER, PREFIX

MAGIC: Final = b"CSF\0"
VERSION: Final = (0, 8)
MAX_MANIFEST: Final = 16 << 20
"""The longest manifest that is read: some 70,000 files. Parsed, JSON can be twenty times as long."""
_COMPRESSED: Final = 1
_HEADER: Final = struct.Struct(">4sBBHI")
_TRAILER: Final = struct.Struct(">32sQ")
_MAX_TENSOR_HEADER: Final = 16 << 20


class CsfPack:
    """An open container, proven but for the content of its files. A context manager.

    Attributes:
        path: the file.
        members: its files, in the manifest's order.
    """

    def __init__(self, source: FileSource, base: int, manifest: PackManifest) -> None:
        """Use ``CsfPack.open``."""
        self.path = source.path
        self.members = manifest.members
        self._source = source
        self._base = base
        self._dictionary: zstandard.ZstdCompressionDict | None = None
        if manifest.dictionary:
            content = source.read(base + manifest.dictionary.offset, manifest.dictionary.length)
            self._dictionary = zstandard.ZstdCompressionDict(content)

    @classmethod
    def open(cls, path: str | Path, *, progress: Progress | None = None) -> CsfPack:
        """Opens a container and proves its header, trailer and manifest.

        Args:
            path: the file.
            progress: called with the bytes just hashed; they add up to the size of the file.

        Raises:
            NotFoundError: if it is not there.
            InvalidInputError: if it is no such container, or says what can not be.
            CorruptError: if it is not as it was written.
        """
        path = Path(path)
        if not path.exists():
            raise NotFoundError(f"{path} does not exist; check the path")
        if not path.is_file():
            raise InvalidInputError(f"{path} is not a regular file; csf import takes CSF-Pack 0.8 containers")
        source = FileSource(path)
        try:
            length = _read_header(source)
            _check_trailer(source, progress)
            base = _HEADER.size + length
            try:
                manifest = parse_manifest(
                    bytes(source.read(_HEADER.size, length)),
                    region=source.size - _TRAILER.size - base,
                    container=source.size,
                )
            except InvalidInputError as error:
                raise InvalidInputError(f"{path}: manifest at offset {_HEADER.size}: {error}") from error
            return cls(source, base, manifest)
        except BaseException:
            source.close()
            raise

    def __enter__(self) -> CsfPack:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the file."""
        self._source.close()

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(member.size for member in self.members)

    def source(self, member: Member) -> MemberSource:
        """The content of a file, decoded as it is read. It is proven by ``verify``, not by reading."""
        return MemberSource(self._source, self._base, member, self._dictionary)

    def verify(self, *, allow_pickle: bool = False, progress: Progress | None = None) -> tuple[Digest, ...]:
        """Proves the content of every file and that ``csf put`` would take it.

        Returns:
            The digests under which they will be stored, in the order of ``members``.

        Raises:
            CorruptError: if a file does not decode to its size and SHA-256.
            InvalidInputError: if it is malformed for what its name says.
            PickleRefusedError: if it is a pickle and ``allow_pickle`` is not set.
        """
        digests = tuple(self._verify(member, progress) for member in self.members)
        for member in self.members:
            source = self.source(member)
            _check_tensor_header(source)
            plan_file(source, allow_pickle=allow_pickle)
        return digests

    def _verify(self, member: Member, progress: Progress | None) -> Digest:
        source = self.source(member)
        sha256, digest = hashlib.sha256(), blake3()
        for offset in range(0, member.size, STEP):
            data = source.read(offset, min(STEP, member.size - offset))
            sha256.update(data)
            digest.update(data)
            if progress:
                progress(len(data))
        source.finish()
        if sha256.digest() != member.sha256:
            raise CorruptError(
                f"{self.path}: file {member.path!r} at offset {self._base + member.offset} has SHA-256 "
                f"{sha256.hexdigest()}, the manifest says {member.sha256.hex()}; nothing was imported"
            )
        return Digest(digest.digest())


def _read_header(source: FileSource) -> int:
    """The length of the manifest, which is known to fit."""
    path, fixed = source.path, _HEADER.size + _TRAILER.size
    head = bytes(source.read(0, min(_HEADER.size, source.size)))
    if head[: len(MAGIC)] != MAGIC:
        raise InvalidInputError(f"{path} is no CSF-Pack container: it does not begin with CSF and a zero byte")
    if source.size < fixed:
        raise CorruptError(f"{path} has {source.size} bytes, a container at least {fixed}; it is truncated")
    length: int
    _, major, minor, flags, length = _HEADER.unpack(head)
    if (major, minor) != VERSION:
        raise InvalidInputError(f"{path}: version {major}.{minor} at offset 4; only 0.8 is read")
    if flags & ~_COMPRESSED:
        raise InvalidInputError(f"{path}: flags 0x{flags:04x} at offset 6; version 0.8 has only bit 0")
    if length > source.size - fixed:
        raise CorruptError(f"{path}: a manifest of {length} bytes at offset 8 does not fit; the file is truncated")
    if length > MAX_MANIFEST:
        raise InvalidInputError(f"{path}: a manifest of {length} bytes at offset 8; at most {MAX_MANIFEST} are read")
    return length


def _check_trailer(source: FileSource, progress: Progress | None) -> None:
    path, end = source.path, source.size - _TRAILER.size
    expected, total = _TRAILER.unpack(bytes(source.read(end, _TRAILER.size)))
    if total != source.size:
        raise CorruptError(
            f"{path}: the trailer at offset {end} says {total} bytes, the file has {source.size}; "
            "it is truncated, or something was added behind it"
        )
    sha256 = hashlib.sha256()
    for offset in range(0, end, STEP):
        data = source.read(offset, min(STEP, end - offset))
        sha256.update(data)
        if progress:
            progress(len(data))
    if sha256.digest() != expected:
        raise CorruptError(
            f"{path}: its first {end} bytes have SHA-256 {sha256.hexdigest()}, the trailer at offset {end} says "
            f"{expected.hex()}; take another copy of the container"
        )


def _check_tensor_header(source: MemberSource) -> None:
    """Bounds the JSON that a safetensors header can make us parse, which costs nothing to compress."""
    prefix = bytes(source.read(0, min(PREFIX + 1, source.size)))
    length = int.from_bytes(prefix[:PREFIX], "little")
    claims = source.path.suffix.lower() == SUFFIX or prefix[PREFIX:] == b"{"
    if claims and _MAX_TENSOR_HEADER < length <= MAX_HEADER:
        raise InvalidInputError(
            f"{source.path}: a safetensors header of {length} bytes; an import reads at most {_MAX_TENSOR_HEADER}"
        )
