"""Knowing a pickle by its content, without ever reading one.

A pickle is a program. It hides behind any file name, alone, in a stream of several, or as ``data.pkl`` in the zip that
``torch.save`` writes. ``pickletools.genops`` lists the opcodes of a stream without running a single one.
"""

from __future__ import annotations

import io
import os
import pickletools
import struct
import zipfile
from collections.abc import Callable
from typing import Final

from csf_store.digest import Buffer
from csf_store.errors import InvalidInputError

_LOOK: Final = 64 << 10
_ENOUGH_OPCODES: Final = 8
_PROTO: Final = 0x80
_PROTOCOLS: Final = range(2, 6)
_MAX_ZIP_DIRECTORY: Final = 16 << 20
"""The longest zip directory that is looked through: some 150,000 names. Parsed, it is about twenty times as long."""


def pickle_inside(read: Callable[[int, int], Buffer], size: int, head: bytes) -> str | None:
    """What kind of pickle some bytes are, or None.

    Args:
        read: gives exactly these bytes, by offset and length.
        size: how many there are.
        head: the first 64 KiB of them.

    Raises:
        InvalidInputError: if they are a zip file with a directory too long to look through.
    """
    if head[:2] == b"PK":
        return _in_zip(_ZipView(read, size))
    return "a pickle stream" if _looks_pickled(head[:_LOOK]) else None


def _looks_pickled(head: bytes) -> bool:
    if len(head) < 2 or head[0] != _PROTO or head[1] not in _PROTOCOLS:
        return False
    seen = 0
    try:
        for opcode, _, _ in pickletools.genops(io.BytesIO(head)):
            seen += 1
            if opcode.name == "STOP" or seen >= _ENOUGH_OPCODES:
                return True
    except Exception:  # noqa: BLE001 - genops raises whatever a broken argument decodes to
        # Cut off by our own window, or no pickle after all: a FRAME or a global right after PROTO decides.
        return head[2:3] in (b"\x95", b"c", b"\x8a", b"}", b"]") and seen > 1
    return False


class _ZipView:
    """As much of a file as ``zipfile`` needs to list names, and no read longer than an honest directory.

    The length to read is a number in the zip file, and the bytes may come out of a decoder that makes a gigabyte of
    nothing: an end record that asks for all of them is refused before they exist.
    """

    def __init__(self, read: Callable[[int, int], Buffer], size: int) -> None:
        self._read = read
        self._size = size
        self._at = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        at = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence] + offset
        if at < 0:
            raise OSError("before the beginning")
        self._at = at
        return at

    def tell(self) -> int:
        return self._at

    def read(self, length: int | None = -1, /) -> bytes:
        left = max(self._size - self._at, 0)
        length = left if length is None or length < 0 else min(length, left)
        if length > _MAX_ZIP_DIRECTORY:
            raise InvalidInputError(
                f"a zip file's directory of {length} bytes is too long to be searched for pickles; "
                "unpack it (or keep it as opaque bytes with --allow-pickle)"
            )
        data = bytes(self._read(self._at, length)) if length else b""
        self._at += length
        return data


def _in_zip(file: _ZipView) -> str | None:
    try:
        with zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                if name.rsplit("/", 1)[-1] == "data.pkl" or name.endswith(".pkl"):
                    return f"a torch.save file (it holds {name})"
    except (zipfile.BadZipFile, struct.error, OSError, ValueError, NotImplementedError):
        return None
    return None
