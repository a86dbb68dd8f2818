"""A digest is a type: 32 bytes of BLAKE3, compared by value, parsed once at the edge.

Inside the package nothing passes digests as ``str``. Hex exists for people, for JSON and for file listings, where it is
printed as ``b3:<64 hex>`` so that nobody takes it for a SHA-256.
"""

from __future__ import annotations

from functools import total_ordering
from typing import Final

from blake3 import blake3

from csf_store.errors import InvalidInputError

DIGEST_SIZE: Final = 32
MIN_PREFIX_HEX: Final = 8
"""The fewest hex digits accepted where a person types a digest."""
_PREFIX: Final = "b3:"
_HEX: Final = frozenset("0123456789abcdef")

Buffer = bytes | bytearray | memoryview


@total_ordering
class Digest:
    """An immutable BLAKE3 value; ordered and hashable by its 32 bytes."""

    __slots__ = ("_raw",)
    _raw: bytes

    def __init__(self, raw: bytes) -> None:
        if not isinstance(raw, bytes) or len(raw) != DIGEST_SIZE:
            raise InvalidInputError(f"a digest is {DIGEST_SIZE} bytes, not {raw!r}: use Digest.parse for text")
        object.__setattr__(self, "_raw", raw)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"Digest is immutable: cannot set {name}")

    def __reduce__(self) -> tuple[type[Digest], tuple[bytes]]:
        return (Digest, (self._raw,))

    @classmethod
    def of(cls, data: Buffer) -> Digest:
        """The digest of ``data``; large buffers are hashed on all cores."""
        return cls(blake3(data, max_threads=blake3.AUTO if len(data) > 1 << 20 else 1).digest())

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Reads ``b3:<64 hex>`` or the bare 64 hex digits.

        Raises:
            InvalidInputError: if it is anything else.
        """
        digits = hex_digits(text)
        if len(digits) != 2 * DIGEST_SIZE:
            raise InvalidInputError(f"{text!r} is not a full digest: expected b3: and 64 hex digits, got {len(digits)}")
        return cls(bytes.fromhex(digits))

    @property
    def hex(self) -> str:
        """The 64 hex digits, as ``b3sum`` prints them."""
        return self._raw.hex()

    @property
    def short(self) -> str:
        """``b3:`` and 12 digits, for people; never for machines."""
        return _PREFIX + self._raw.hex()[:12]

    def __bytes__(self) -> bytes:
        return self._raw

    def __str__(self) -> str:
        return _PREFIX + self._raw.hex()

    def __repr__(self) -> str:
        return f"Digest({self.short}…)"

    def __eq__(self, other: object) -> bool:
        return self._raw == other._raw if isinstance(other, Digest) else NotImplemented

    def __lt__(self, other: object) -> bool:
        return self._raw < other._raw if isinstance(other, Digest) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._raw)


def hex_digits(text: str) -> str:
    """The lower-case hex digits of a digest or a prefix of one, without ``b3:``.

    Raises:
        InvalidInputError: if there is anything but hex digits.
    """
    digits = text.strip().lower().removeprefix(_PREFIX)
    if not digits or len(digits) > 2 * DIGEST_SIZE or not _HEX.issuperset(digits):
        raise InvalidInputError(f"{text!r} is not a digest: expected hex digits, with or without b3: in front")
    return digits
