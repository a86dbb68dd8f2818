"""The table of codecs, and the choice of one for a chunk.

Reading looks a number up. Writing asks each codec that accepts the bytes for a plan and takes the one that promises
most: each looks at a sample in its own way, because trying all of them on everything would cost more than the encoding
itself. Where none saves enough to be worth the time it costs every reader, raw is taken instead.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Final, NamedTuple

from csf_store.codecs.base import Codec, CodecError, Hint, Plan
from csf_store.digest import Buffer

_RAW: Final = 0


class _Entry(NamedTuple):
    """Where a codec lives, and what it needs. Its module is imported when it is first needed."""

    module: str
    name: str
    tensors_only: bool = False
    needs_base: bool = False


_TABLE: Final = {
    0: _Entry("raw", "RawCodec"),
    1: _Entry("zstd", "ZstdCodec"),
    2: _Entry("planes", "PlanesCodec", tensors_only=True),
    3: _Entry("delta", "DeltaCodec", tensors_only=True, needs_base=True),
}


@cache
def codec(number: int) -> Codec:
    """The codec of a number read from a record.

    Raises:
        CodecError: if this version knows none.
    """
    if number not in _TABLE:
        raise CodecError(f"codec {number} is unknown to this version; a newer one may read it")
    entry = _TABLE[number]
    made: Codec = getattr(import_module(f"csf_store.codecs.{entry.module}"), entry.name)()
    return made


def codecs() -> dict[int, Codec]:
    """Every codec, by its number."""
    return {number: codec(number) for number in _TABLE}


def needs_base(number: int) -> bool:
    """Whether what this codec stored can be read only together with a base."""
    return _TABLE[number].needs_base


def plan(raw: Buffer, hint: Hint) -> tuple[int, Plan]:
    """The codec to use and its plan, by what each expects. Ties go to the lower number, so the choice is repeatable."""
    numbers = [number for number, entry in _TABLE.items() if hint.dtype or not entry.tensors_only]
    if hint.base is None:
        numbers = [number for number in numbers if not needs_base(number)]
    plans = {each.number: each.plan(raw, hint) for each in map(codec, numbers) if each.accepts(raw, hint)}
    best = min(plans, key=lambda number: (plans[number].size, number))
    best = best if plans[best].size <= hint.worth * len(raw) else _RAW
    return best, plans[best]


def encode(raw: Buffer, hint: Hint) -> tuple[int, Buffer]:
    """Encodes with the chosen codec, or raw where that is no smaller; returns codec number and bytes."""
    number, planned = plan(raw, hint)
    stored = planned.encode()
    return (number, stored) if len(stored) < len(raw) else (_RAW, raw)
