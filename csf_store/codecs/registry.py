"""The table of codecs, and the choice of one for a chunk.

Reading looks a number up. Writing asks each codec that accepts the bytes to encode a sample and takes the one that did
best, because trying all of them on everything would cost more than the encoding itself. A codec that saves less than
two percent is not worth the time it costs every reader, and raw is taken instead.
"""

from __future__ import annotations

from functools import cache
from typing import Final

from csf_store.codecs.base import Codec, CodecError, Hint
from csf_store.codecs.planes import PlanesCodec
from csf_store.codecs.raw import RawCodec
from csf_store.codecs.zstd import ZstdCodec
from csf_store.digest import Buffer

_SAMPLE: Final = 32 << 10
_SAMPLES: Final = 3
_WORTH: Final = 0.98

RAW: Final = RawCodec()


@cache
def codecs() -> dict[int, Codec]:
    """Every codec, by its number."""
    known: list[Codec] = [RAW, ZstdCodec(), PlanesCodec()]
    return {codec.number: codec for codec in known}


def codec(number: int) -> Codec:
    """The codec of a number read from a record.

    Raises:
        CodecError: if this version knows none.
    """
    try:
        return codecs()[number]
    except KeyError:
        raise CodecError(f"codec {number} is unknown to this version; a newer one may read it") from None


def _sample(raw: Buffer) -> memoryview:
    view = memoryview(raw)
    if len(view) <= _SAMPLE * _SAMPLES:
        return view
    stride = (len(view) // _SAMPLES) & ~7
    return memoryview(b"".join(view[stride * index : stride * index + _SAMPLE] for index in range(_SAMPLES)))


def choose(raw: Buffer, hint: Hint) -> Codec:
    """The codec to use, by what it makes of a sample. Ties go to the lower number, so the choice is repeatable."""
    candidates = [each for each in codecs().values() if each.number != RAW.number and each.accepts(raw, hint)]
    sample = _sample(raw)
    sizes = {each.number: len(each.encode(sample, hint)) for each in candidates}
    best = min(sizes, key=lambda number: (sizes[number], number), default=RAW.number)
    if best == RAW.number or sizes[best] > _WORTH * len(sample):
        return RAW
    return codecs()[best]


def encode(raw: Buffer, hint: Hint) -> tuple[int, Buffer]:
    """Encodes with the chosen codec, or raw where that is no smaller; returns codec number and bytes."""
    chosen = choose(raw, hint)
    stored = chosen.encode(raw, hint)
    return (chosen.number, stored) if len(stored) < len(raw) else (RAW.number, raw)
