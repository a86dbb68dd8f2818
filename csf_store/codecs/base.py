"""What a codec is: a name, a number that is in the format for ever, and two pure functions.

A codec knows nothing of files, digests or segments. It is given the raw bytes and a hint of what they are, and returns
the bytes to store; reading needs the stored bytes alone, or those and the base they are a difference to. Codecs are
stateless and called from many threads at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from csf_store.digest import Buffer


class CodecError(Exception):
    """Stored bytes can not be decoded; the caller knows digest, segment and offset and says so."""


WORTH: Final = 0.98
"""A codec that saves less than two percent is not worth the time it costs every reader."""


class Hint(NamedTuple):
    """What the writer knows of a chunk.

    Attributes:
        dtype: the safetensors code of the values, such as ``BF16``; empty where the bytes are no tensor.
        base: raw bytes of the same length that are probably much like these, if somebody named them.
        worth: share of the bytes that a stored form may take at most; the chunk is stored raw otherwise.
    """

    dtype: str = ""
    base: Buffer | None = None
    worth: float = WORTH


class Plan(NamedTuple):
    """What a codec would make of a chunk.

    Attributes:
        size: about how many bytes.
        encode: makes them.
    """

    size: float
    encode: Callable[[], Buffer]


class Codec(Protocol):
    """One way to hold bytes. ``number`` is stored in every record; 0-63 are this project's."""

    @property
    def number(self) -> int:
        """The codec's id in the format."""
        ...

    @property
    def name(self) -> str:
        """The codec's name, for people."""
        ...

    def accepts(self, raw: Buffer, hint: Hint) -> bool:
        """Whether it makes sense to try this codec on these bytes."""
        ...

    def plan(self, raw: Buffer, hint: Hint) -> Plan:
        """What to expect of ``encode``, from a sample, in a small part of its time."""
        ...

    def encode(self, raw: Buffer, hint: Hint) -> Buffer:
        """The bytes to store for ``raw``; may be longer than ``raw``, and then the caller stores something else."""
        ...

    def decode_into(self, stored: Buffer, out: memoryview, base: Buffer | None = None) -> None:
        """Fills ``out``, whose length is the raw length, exactly.

        Args:
            stored: what ``encode`` returned.
            out: where the raw bytes go.
            base: the raw bytes that were ``hint.base``, for a codec that stores differences; None for the others.

        Raises:
            CodecError: if ``stored`` does not decode to exactly that many bytes, or a base is missing.
        """
        ...
