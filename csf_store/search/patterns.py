"""What a person types to say which: a name pattern, a shape, a range of sizes. Parsed once, then asked many times.

- *Names* are globs over the whole name: ``*`` is any run of letters (dots and slashes too), ``?`` any one, ``[...]`` a
  choice. A regular expression, where one is asked for, may match anywhere in the name.
- *Shapes* are dimensions with ``x`` between: ``4096x*``, ``*x128``, ``3x...x3``. A ``*`` is any one dimension, ``...``
  any number of them, ``scalar`` none.
- *Sizes* are what the command line prints (``1.5 GiB``) or decimal (``1.5GB``), as a comparison or a range: ``>1GiB``,
  ``<=10MB``, ``10MB..2GiB``, ``100MB..``. A number alone is that number of bytes.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable
from typing import Final, NamedTuple

from csf_store.errors import InvalidInputError

_BINARY: Final = {unit: 1 << (10 * power) for power, unit in enumerate(("B", "KIB", "MIB", "GIB", "TIB", "PIB"))}
_DECIMAL: Final = {unit: 1000**power for power, unit in enumerate(("", "KB", "MB", "GB", "TB", "PB"))}
_SIZE: Final = re.compile(r"\s*([0-9]{1,20}(?:\.[0-9]{1,20})?)\s*([A-Za-z]*)\s*", re.ASCII)
_COMPARISON: Final = re.compile(r"\s*(>=|<=|>|<|=|)(.*)", re.DOTALL)
_DIMENSION: Final = re.compile(r"[0-9]{1,19}", re.ASCII)
_ANY: Final = "*"
_REST: Final = "..."
_SCALAR: Final = "scalar"


class NamePattern:
    """Which names: a glob over the whole name, or a regular expression found anywhere in it.

    Args:
        text: what was typed.
        regex: whether it is a regular expression.

    Raises:
        InvalidInputError: if it is a regular expression and can not be read as one.
    """

    def __init__(self, text: str, *, regex: bool = False) -> None:
        self.text = text
        self.regex = regex
        try:
            compiled = re.compile(text if regex else fnmatch.translate(text))
        except (re.error, RecursionError, OverflowError) as error:
            raise InvalidInputError(f"{text!r} is no regular expression: {error}") from error
        self._fits: Callable[[str], object] = compiled.search if regex else compiled.match

    def fits(self, name: str) -> bool:
        """Whether a name is meant."""
        return self._fits(name) is not None

    def __repr__(self) -> str:
        return f"NamePattern({self.text!r}{', regex=True' if self.regex else ''})"


class ShapePattern:
    """Which shapes.

    Raises:
        InvalidInputError: naming the part that is no dimension.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        inside = text.strip().removeprefix("[").removesuffix("]").strip()
        parts = [] if inside in ("", _SCALAR) else [part.strip() for part in re.split(r"[x,\u00d7]", inside)]
        if parts.count(_REST) > 1:
            raise InvalidInputError(f"shape {text!r} holds {_REST} twice; once is enough to stand for any dimensions")
        for part in parts:
            if part not in (_ANY, _REST) and not _DIMENSION.fullmatch(part):
                raise InvalidInputError(
                    f"shape {text!r}: {part!r} is no dimension; type numbers, {_ANY} and {_REST}, such as 4096x{_ANY}"
                )
        cut = parts.index(_REST) if _REST in parts else len(parts)
        self._first = _dimensions(parts[:cut])
        self._last = _dimensions(parts[cut + 1 :])
        self._open = cut < len(parts)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a shape is meant."""
        fixed = len(self._first) + len(self._last)
        if len(shape) < fixed or (len(shape) > fixed and not self._open):
            return False
        found = shape[: len(self._first)] + shape[len(shape) - len(self._last) :]
        return all(wanted in (None, size) for wanted, size in zip(self._first + self._last, found, strict=True))

    def __repr__(self) -> str:
        return f"ShapePattern({self.text!r})"


def _dimensions(parts: list[str]) -> tuple[int | None, ...]:
    return tuple(None if part == _ANY else int(part) for part in parts)


class SizeRange(NamedTuple):
    """Which numbers of bytes, both ends included; ``last`` is None without an upper end."""

    first: int
    last: int | None

    @classmethod
    def parse(cls, text: str) -> SizeRange:
        """Reads ``>1GiB``, ``<=10MB``, ``10MB..2GiB``, ``100MB..``, ``..1GiB``, ``=0`` or a number of bytes.

        Raises:
            InvalidInputError: saying what could be typed instead.
        """
        if ".." in text:
            low, _, high = text.partition("..")
            if low.strip() or high.strip():
                found = cls(_bytes(low, text) if low.strip() else 0, _bytes(high, text) if high.strip() else None)
                if found.last is not None and found.first > found.last:
                    raise InvalidInputError(f"size {text!r} begins above its end; type the smaller size first")
                return found
        sign, amount = _COMPARISON.fullmatch(text).groups()  # type: ignore[union-attr]  # matches any text
        size = _bytes(amount, text)
        if sign == "<" and size == 0:
            raise InvalidInputError(f"size {text!r}: nothing has fewer than 0 bytes")
        return {
            ">": cls(size + 1, None),
            ">=": cls(size, None),
            "<": cls(0, size - 1),
            "<=": cls(0, size),
        }.get(sign, cls(size, size))

    def fits(self, size: int) -> bool:
        """Whether a number of bytes is meant."""
        return self.first <= size and (self.last is None or size <= self.last)


def _bytes(text: str, whole: str) -> int:
    match = _SIZE.fullmatch(text)
    unit = match.group(2).upper() if match else ""
    scale = _BINARY.get(unit, _DECIMAL.get(unit))
    if match is None or scale is None:
        raise InvalidInputError(
            f"size {whole!r} can not be read; type a comparison or a range in B, KiB, MiB, GiB, TiB (or kB, MB, GB, "
            "TB), such as '>1GiB' or 10MB..2GiB"
        )
    number, _, fraction = match.group(1).partition(".")
    return int(number) * scale + int(fraction or 0) * scale // int("1" + "0" * len(fraction))  # a float is not exact
