"""Knowing a pickle by its content, without ever reading one.

A pickle is a program. It hides behind any file name, alone, in a stream of several, or as ``data.pkl`` in the zip that
``torch.save`` writes. ``pickletools.genops`` lists the opcodes of a stream without running a single one.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from pathlib import Path
from typing import Final

_LOOK: Final = 64 << 10
_ENOUGH_OPCODES: Final = 8
_PROTO: Final = 0x80
_PROTOCOLS: Final = range(2, 6)


def pickle_inside(path: Path, head: bytes) -> str | None:
    """What kind of pickle a file is, or None. ``head`` is its first 64 KiB."""
    if head[:2] == b"PK":
        return _in_zip(path)
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


def _in_zip(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.rsplit("/", 1)[-1] == "data.pkl" or name.endswith(".pkl"):
                    return f"a torch.save file (it holds {name})"
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return None
    return None
