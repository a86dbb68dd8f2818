"""Values on their way out of a sandbox: an exact form to compare, and a plain form to rebuild.

`encode` is for values that are compared by our own process and never rebuilt: equal text means equal value and type.
`pack` and `unpack` carry values between the process of the code under test and the process of its judge. What is
unpacked is made of plain builtins only, whatever class it had: an object that claims to equal everything does not
survive the journey.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from itertools import islice
from typing import Any

NAME_LENGTH = 200
LONGEST_ITERATOR = 100_000


def encode(value: object) -> list[object]:  # noqa: PLR0911 - one line per type
    """A value with its exact types, as JSON can carry it; the rest is `opaque`, equal to nothing expected."""
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return [kind.__name__, value]
    if kind is int:
        return ["int", hex(value)]  # type: ignore[arg-type]  # exact type checked above; hex has no digit limit
    if kind is float:
        return ["float", value.hex()]  # type: ignore[attr-defined]
    if kind is bytes:
        return ["bytes", value.hex()]  # type: ignore[attr-defined]
    if kind is list or kind is tuple:
        return [kind.__name__, [encode(item) for item in value]]  # type: ignore[attr-defined]
    if kind is set or kind is frozenset:
        return [kind.__name__, sorted((encode(item) for item in value), key=json.dumps)]  # type: ignore[attr-defined]
    if kind is dict:
        pairs = [[encode(key), encode(item)] for key, item in value.items()]  # type: ignore[attr-defined]
        return ["dict", sorted(pairs, key=json.dumps)]
    return ["opaque", kind.__name__[:NAME_LENGTH]]


class Opaque:
    """Stands for a value that cannot travel; equal to nothing but itself."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __repr__(self) -> str:
        return f"<a {self.kind} that cannot leave its process>"


class CannotTravelError(TypeError):
    """A test hands over something that only exists in its own process, a function for instance."""


def pack(value: object) -> list[object]:  # noqa: PLR0911, PLR0912, C901 - one branch per type
    """A value as JSON can carry it, order kept, subclasses as what they extend; see `unpack`."""
    if value is None or isinstance(value, bool):
        return ["plain", value]
    if isinstance(value, str):
        return ["plain", str.__str__(value)]
    if isinstance(value, int):
        return ["int", hex(int.__index__(value))]
    if isinstance(value, float):
        return ["float", float.hex(value)]
    if isinstance(value, complex):
        return ["complex", [value.real.hex(), value.imag.hex()]]
    if isinstance(value, Fraction):
        return ["fraction", [hex(value.numerator), hex(value.denominator)]]
    if isinstance(value, Decimal):
        return ["decimal", Decimal.__str__(value)]
    if isinstance(value, bytes | bytearray):
        return ["bytes" if isinstance(value, bytes) else "bytearray", value.hex()]
    if isinstance(value, dict):
        return ["dict", [[pack(key), pack(item)] for key, item in dict.items(value)]]
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            own: Any = kind.__iter__  # not a subclass's, which may show other items
            return [kind.__name__, [pack(item) for item in own(value)]]
    if isinstance(value, range):
        return ["range", [hex(value.start), hex(value.stop), hex(value.step)]]
    if hasattr(type(value), "__next__"):
        return ["iterator", [pack(item) for item in islice(value, LONGEST_ITERATOR)]]  # type: ignore[call-overload]
    return ["opaque", type(value).__name__[:NAME_LENGTH]]


def pack_sendable(value: object) -> list[object]:
    """Like `pack`, refusing what would arrive as `Opaque`.

    Raises:
        CannotTravelError: The value, or one inside it, has no plain form.
    """
    packed = pack(value)
    pending: list[object] = [packed]
    while pending:
        item = pending.pop()
        if isinstance(item, list):
            if len(item) == 2 and item[0] == "opaque":
                raise CannotTravelError(f"a {item[1]} cannot be handed to code in another process")
            pending.extend(item)
    return packed


def unpack(packed: object) -> object:
    """The plain value that `pack` wrote.

    Raises:
        ValueError, TypeError: It is not in that form; whoever sent it may have written anything.
    """
    match packed:
        case ["plain", (None | bool() | str()) as value]:
            return value
        case ["opaque", str(kind)]:
            return Opaque(kind)
        case [str(kind), body] if kind in _READERS:
            return _READERS[kind](body)
    raise ValueError("this is no packed value")


def _items(body: object) -> list[object]:
    if not isinstance(body, list):
        raise TypeError("a packed collection is a list")
    return [unpack(item) for item in body]


def _integers(body: object) -> list[int]:
    if not isinstance(body, list):
        raise TypeError("packed integers are a list")
    return [int(item, 16) for item in body]


def _dict(body: object) -> dict[object, object]:
    if not isinstance(body, list):
        raise TypeError("a packed dict is a list of pairs")
    return {unpack(key): unpack(item) for key, item in body}


_READERS: dict[str, Callable[..., object]] = {
    "int": lambda body: int(body, 16),
    "float": float.fromhex,
    "complex": lambda body: complex(*(float.fromhex(part) for part in body)),
    "fraction": lambda body: Fraction(*_integers(body)),
    "decimal": Decimal,
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "dict": _dict,
    "list": _items,
    "tuple": lambda body: tuple(_items(body)),
    "set": lambda body: set(_items(body)),
    "frozenset": lambda body: frozenset(_items(body)),
    "range": lambda body: range(*_integers(body)),
    "iterator": lambda body: iter(_items(body)),
}
