"""One line of the ledger: what it must look like, and how it proves that it follows the line before."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias

import rfc8785

from csf_store.errors import CorruptError
from csf_store.ledger.merkle import HASH_SIZE, leaf_hash

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"
RESERVED: Final = frozenset({"event", "seq", "time", "prev"})
MAX_LINE: Final = 1 << 20
"""A line is shorter than this, its newline not counted."""
TIME: Final = "%Y-%m-%dT%H:%M:%S.%fZ"
NO_LEAF: Final = bytes(HASH_SIZE)
"""What ``prev`` says on the first line."""
_RFC3339: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
_LARGEST: Final = (1 << 53) - 1


class LedgerEntry(NamedTuple):
    """One event.

    Attributes:
        seq: its number, from 0.
        time: RFC 3339 UTC, microseconds.
        event: its type.
        fields: what it says.
        leaf: RFC 9162 leaf hash of the line.
    """

    seq: int
    time: str
    event: str
    fields: Mapping[str, JSON]
    leaf: bytes


class _NotPlainError(ValueError):
    """The line needs the slow way."""


def _whole(text: str) -> int:
    value = int(text) if len(text) <= 17 else _LARGEST + 1
    if abs(value) > _LARGEST:
        raise _NotPlainError
    return value


def _fraction(_: str) -> float:
    raise _NotPlainError


_PLAIN_DECODER: Final = json.JSONDecoder(parse_int=_whole, parse_float=_fraction, parse_constant=_fraction)
_PLAIN_ENCODER: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _plain(line: bytes) -> object:
    """Reads a line that the standard library can prove canonical: ASCII (so UTF-16 order is text order), no fractions.

    Nearly every line is like that, and ``rfc8785``, which is written in Python, takes four times as long.
    """
    if not line.isascii():
        raise _NotPlainError
    text = line.decode("ascii")
    document: object = _PLAIN_DECODER.decode(text)
    if _PLAIN_ENCODER.encode(document) != text:
        raise _NotPlainError
    return document


def _canonical(line: bytes) -> object:
    """Reads one canonical JSON value.

    Raises:
        ValueError: if it is none, or not in its canonical form.
    """
    try:
        return _plain(line)
    except (ValueError, RecursionError):  # ours, or a plain syntax error: the slow way says which
        document: object = json.loads(line)
        if rfc8785.dumps(document) != line:  # type: ignore[arg-type]
            raise ValueError("it is not canonical JSON") from None
        return document


def is_event(line: bytes) -> bool:
    """Whether a line is a whole event of some ledger, whatever it follows."""
    try:
        document = _canonical(line)
    except (ValueError, RecursionError, TypeError, rfc8785.CanonicalizationError):
        return False
    return isinstance(document, dict) and document.keys() >= RESERVED


def parse_line(line: bytes, seq: int, previous: bytes | None, earliest: str) -> LedgerEntry:
    """Reads the line that must be number ``seq``, after the leaf ``previous`` and not before the time ``earliest``.

    Without ``previous`` it may follow anything: the caller knows the line's own hash.

    Raises:
        CorruptError: naming the line that was altered.
    """
    try:
        if len(line) >= MAX_LINE:
            raise ValueError(f"it has more than {MAX_LINE - 1} bytes")
        document = _canonical(line)
        if not isinstance(document, dict):
            raise ValueError("it is not a JSON object")
        event, time, stated = document["event"], document["time"], document["prev"]
        if not _RFC3339.fullmatch(time):
            raise ValueError(f"its time {time!r} is not RFC 3339 with microseconds")
        if not isinstance(event, str) or type(document["seq"]) is not int or document["seq"] != seq:
            raise ValueError(f"it says it is number {document['seq']}")
    except (ValueError, KeyError, TypeError, RecursionError, rfc8785.CanonicalizationError) as error:
        raise CorruptError(f"ledger line {seq} was altered: {error}; compare with a backup or a checkpoint") from error
    if previous is not None and stated != previous.hex():
        raise CorruptError(
            f"ledger line {seq - 1 if seq else 0} was altered, or lines around it were removed or added: line {seq} "
            "does not follow it by hash; compare with a backup or a checkpoint"
        )
    if time < earliest:
        raise CorruptError(f"ledger line {seq} was altered: its time {time} is before the line above it")
    fields = {key: value for key, value in document.items() if key not in RESERVED}
    return LedgerEntry(seq, time, event, fields, leaf_hash(line))
