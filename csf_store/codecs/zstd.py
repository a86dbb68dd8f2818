"""Plain zstd, for text, integers, and whatever is not a float tensor.

One frame with its content size and without zstd's own checksum (the record carries two BLAKE3 hashes already). The
decoder insists on the size before it allocates, so a decompression bomb is refused by its first bytes.
"""

from __future__ import annotations

from functools import cache
from typing import Final

import zstandard

from csf_store.codecs.base import CodecError, Hint
from csf_store.digest import Buffer

LEVEL: Final = 3


@cache
def _parameters() -> zstandard.ZstdCompressionParameters:
    return zstandard.ZstdCompressionParameters.from_level(LEVEL, write_content_size=True, write_checksum=False)


def compress_frame(raw: Buffer, parameters: zstandard.ZstdCompressionParameters) -> bytes:
    """One frame that states its content size. A compressor is made per call because it is not thread-safe."""
    return zstandard.ZstdCompressor(compression_params=parameters).compress(raw)


def decompress_frame(stored: Buffer, size: int) -> bytes:
    """The content of exactly one frame of exactly ``size`` bytes.

    Raises:
        CodecError: if it is anything else.
    """
    try:
        claimed = zstandard.get_frame_parameters(stored).content_size
        if claimed != size:
            raise CodecError(f"a zstd frame of {claimed} bytes where {size} are expected")
        data = zstandard.ZstdDecompressor().decompress(stored, max_output_size=max(size, 1), allow_extra_data=False)
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

    def encode(self, raw: Buffer, hint: Hint) -> Buffer:  # noqa: ARG002 - the protocol
        """One zstd frame."""
        return compress_frame(raw, _parameters())

    def decode_into(self, stored: Buffer, out: memoryview, base: Buffer | None = None) -> None:  # noqa: ARG002
        """Decodes one frame."""
        out[:] = decompress_frame(stored, len(out))
