"""The content of one file of a CSF-Pack container, decoded as it is read.

``MemberSource`` gives any range, and is meant to be read front to back: going back starts the decoder again. No more
than what was asked for is ever decoded at once, whatever the compressed bytes would unfold to, and the compressed bytes
come in small steps, so that a file of any size takes the memory of one step.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import IO, Final, Protocol, cast

import zstandard

from csf_store.csfpack.manifest import Member, PackCodec
from csf_store.digest import Buffer
from csf_store.errors import CorruptError
from csf_store.ingest import FileSource

STEP: Final = 1 << 20
_INPUT: Final = 64 << 10
_MAX_WINDOW: Final = 1 << 27
"""What zstd's own tools accept without being asked: the most that a decoder allocates."""


class _Undecodable(Exception):  # noqa: N818 - never leaves this module
    """Why stored bytes are not what their codec writes."""


class _Stream(Protocol):
    def read(self, length: int) -> Buffer:
        """At least one and at most ``length`` bytes; none at the end, once the end was found to be sound."""
        ...


class _Stored:
    """The stored bytes of a member, front to back."""

    def __init__(self, container: FileSource, offset: int, length: int) -> None:
        self._container = container
        self._offset = offset
        self.left = length

    def read(self, length: int) -> bytes:
        taken = min(length, self.left)
        data = bytes(self._container.read(self._offset, taken))
        self._offset += taken
        self.left -= taken
        return data


class _Inflated:
    def __init__(self, stored: _Stored) -> None:
        self._stored = stored
        self._inflate = zlib.decompressobj()

    def read(self, length: int) -> Buffer:
        try:
            while not self._inflate.eof:
                given = self._inflate.unconsumed_tail or self._stored.read(_INPUT)
                data = self._inflate.decompress(given, length)
                if data:
                    return data
                if not given:
                    raise _Undecodable("its zlib stream is cut short")
        except zlib.error as error:
            raise _Undecodable(f"zlib: {error}") from None
        if behind := len(self._inflate.unused_data) + self._stored.left:
            raise _Undecodable(f"{behind} bytes follow its zlib stream")
        return b""


class _Unpacked:
    """zstd, one frame or several. What follows a frame must be another one, so bytes behind the last are refused."""

    def __init__(self, stored: _Stored, dictionary: zstandard.ZstdCompressionDict | None) -> None:
        try:
            decompressor = zstandard.ZstdDecompressor(dict_data=dictionary, max_window_size=_MAX_WINDOW)
            file = cast("IO[bytes]", stored)  # only its read is called
            self._reader = decompressor.stream_reader(file, read_size=_INPUT, read_across_frames=True)
        except zstandard.ZstdError as error:
            raise _Undecodable(f"zstd: {error}") from None

    def read(self, length: int) -> Buffer:
        try:
            return self._reader.read(length)
        except zstandard.ZstdError as error:
            raise _Undecodable(f"zstd: {error}") from None


class MemberSource:
    """The content of a member, as a source to store. Not thread-safe.

    Args:
        container: the open container.
        base: where its blob region begins.
        member: which file.
        dictionary: what zstd members share.
    """

    def __init__(
        self, container: FileSource, base: int, member: Member, dictionary: zstandard.ZstdCompressionDict | None
    ) -> None:
        self.path = Path(f"{container.path}/{member.path}")
        self.size = member.size
        self.member = member
        self._container = container
        self._offset = base + member.offset
        self._dictionary = dictionary
        self._stream: _Stream | None = None
        self._at = 0

    def read(self, offset: int, length: int, into: memoryview | None = None) -> Buffer:  # noqa: ARG002 - a Source
        """Exactly these bytes of the content.

        Raises:
            CorruptError: if the stored bytes can not be decoded, or give fewer.
        """
        if self.member.codec is PackCodec.STORE:
            return self._container.read(self._offset + offset, length)
        if self._stream is None or offset < self._at:
            self._begin()
        while self._at < offset:
            self._next(min(STEP, offset - self._at))
        data = bytearray()
        while len(data) < length:
            data += self._next(length - len(data))
        return data

    def finish(self) -> None:
        """Insists that nothing follows what was read, which was everything.

        Raises:
            CorruptError: if the stored bytes give more than they should, or do not end as their codec ends.
        """
        if self.member.codec is PackCodec.STORE or not self.member.csize:
            return
        if self._stream is None:
            self._begin()
        if self._read(1):
            raise self._corrupt(f"it unfolds to more than its {self.size} bytes")

    def _begin(self) -> None:
        stored = _Stored(self._container, self._offset, self.member.csize)
        self._at = 0
        if self.member.codec is PackCodec.ZLIB:
            self._stream = _Inflated(stored)
            return
        try:
            self._stream = _Unpacked(stored, self._dictionary)
        except _Undecodable as error:
            raise self._corrupt(str(error)) from None

    def _next(self, length: int) -> Buffer:
        data = self._read(length)
        if not data:
            raise self._corrupt(f"it ends after {self._at} of {self.size} bytes")
        self._at += len(data)
        return data

    def _read(self, length: int) -> Buffer:
        assert self._stream is not None
        try:
            return self._stream.read(length)
        except _Undecodable as error:
            raise self._corrupt(str(error)) from None

    def _corrupt(self, why: str) -> CorruptError:
        return CorruptError(
            f"{self._container.path}: file {self.member.path!r} at offset {self._offset}: {why}; "
            "nothing was imported, take another copy of the container"
        )
