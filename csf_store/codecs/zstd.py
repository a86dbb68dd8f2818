"""Plain zstd, for text, integers, and whatever is not a float tensor; and the frames that the other codecs are made of.

One frame with its content size and without zstd's own checksum (the record carries two BLAKE3 hashes already). The
decoder insists on the size before it allocates, so a decompression bomb is refused by its first bytes.

Contexts are kept, one set per thread: they are not thread-safe, and making one costs more than a small frame does.
"""

from __future__ import annotations

import threading
from enum import Enum
from functools import partial
from typing import Final

import zstandard

from csf_store.codecs.base import CodecError, Hint, Plan
from csf_store.digest import Buffer

LEVEL: Final = 3
_REPEATS: Final = 0.9
_PIECE: Final = 32 << 10
_PIECES: Final = 3


class Effort(Enum):
    """How a frame is made. Every reader of zstd reads both."""

    MATCHES = "level 3"
    HUFFMAN = "Huffman only: the matcher finds nothing in noise, and costs most of the time"
    PROBE = "matches only, and fast: whether level 3 would find any"


def _parameters(effort: Effort) -> zstandard.ZstdCompressionParameters:
    if effort != Effort.HUFFMAN:
        level = LEVEL if effort == Effort.MATCHES else -1
        return zstandard.ZstdCompressionParameters.from_level(level, write_content_size=True, write_checksum=False)
    return zstandard.ZstdCompressionParameters(
        strategy=zstandard.STRATEGY_FAST,
        window_log=17,
        hash_log=6,
        min_match=7,
        target_length=0,
        chain_log=6,
        search_log=1,
        write_content_size=True,
        write_checksum=False,
    )


class _Contexts(threading.local):
    """One thread's compressors and its decompressor."""

    def __init__(self) -> None:
        self.compressors = {each: zstandard.ZstdCompressor(compression_params=_parameters(each)) for each in Effort}
        self.decompressor = zstandard.ZstdDecompressor()


_CONTEXTS: Final = _Contexts()


def compress_frame(raw: Buffer, effort: Effort) -> bytes:
    """One frame that states its content size."""
    return _CONTEXTS.compressors[effort].compress(raw)


def decompress_frame(stored: Buffer, size: int) -> bytes:
    """The content of exactly one frame of exactly ``size`` bytes.

    Raises:
        CodecError: if it is anything else.
    """
    try:
        claimed = zstandard.get_frame_parameters(stored).content_size
        if claimed != size:
            raise CodecError(f"a zstd frame of {claimed} bytes where {size} are expected")
        data = _CONTEXTS.decompressor.decompress(stored, max_output_size=max(size, 1), allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CodecError(f"zstd: {error}") from error
    if len(data) != size:
        raise CodecError(f"zstd gave {len(data)} bytes where {size} are expected")
    return data


class ZstdCodec:
    """zstd level 3."""

    number = 1
    name = "zstd"

    def accepts(self, raw: Buffer, hint: Hint) -> bool:  # noqa: ARG002 - the protocol
        """Anything that is long enough for a frame header to pay."""
        return len(raw) >= 32

    def plan(self, raw: Buffer, hint: Hint) -> Plan:
        """By a few stretches. Of a tensor without repetition planes makes as little, so that is not looked into."""
        view = memoryview(raw)
        stride = max(len(view) // _PIECES, _PIECE)
        pieces = [view[start : start + _PIECE] for start in range(0, len(view), stride)]
        size: float = len(view)
        if not hint.dtype or any(len(compress_frame(piece, Effort.PROBE)) < _REPEATS * len(piece) for piece in pieces):
            stored = sum(len(compress_frame(piece, Effort.MATCHES)) for piece in pieces)
            size = stored * len(view) / max(1, sum(map(len, pieces)))
        return Plan(size, partial(self.encode, raw, hint))

    def encode(self, raw: Buffer, hint: Hint) -> Buffer:  # noqa: ARG002 - the protocol
        """One zstd frame."""
        return compress_frame(raw, Effort.MATCHES)

    def decode_into(self, stored: Buffer, out: memoryview, base: Buffer | None = None) -> None:  # noqa: ARG002
        """Decodes one frame."""
        out[:] = decompress_frame(stored, len(out))
