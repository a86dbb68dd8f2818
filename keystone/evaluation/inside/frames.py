"""Frames on pipes and sockets: a 4-byte big-endian length and UTF-8 JSON."""

from __future__ import annotations

import json
import os

HEADER = 4


class OversizeError(ValueError):
    """A frame announces more than its reader accepts."""


def send(descriptor: int, message: object) -> None:
    """Write one frame, however often the pipe is full."""
    data = json.dumps(message).encode()
    data = len(data).to_bytes(HEADER, "big") + data
    while data:
        data = data[os.write(descriptor, data) :]


def receive(descriptor: int, most: int = 1 << 30) -> object | None:
    """Read one frame and not a byte more; None at the end of the stream.

    Raises:
        OversizeError: It announces more than `most` bytes.
        ValueError, RecursionError: It is not JSON.
    """
    head = _exactly(descriptor, HEADER)
    size = int.from_bytes(head, "big")
    if size > most:
        raise OversizeError(f"a frame of {size} bytes; the limit is {most}")
    body = _exactly(descriptor, size) if head else b""
    return json.loads(body) if body else None


def _exactly(descriptor: int, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = os.read(descriptor, min(size - len(data), 1 << 20))
        if not piece:
            return b""
        data += piece
    return bytes(data)
