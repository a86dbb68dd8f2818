"""One line of the ledger: what it must look like, and how it proves that it follows the line before."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias

import rfc8785

from csf_store.errors import CorruptError
from csf_store.merkle import leaf_hash

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"
RESERVED: Final = frozenset({"event", "seq", "time", "prev"})
MAX_LINE: Final = 1 << 20
TIME: Final = "%Y-%m-%dT%H:%M:%S.%fZ"
_RFC3339: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


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


def parse_line(line: bytes, seq: int, previous: bytes, earliest: str) -> LedgerEntry:
    """Reads the line that must be number ``seq``, after the leaf ``previous`` and not before the time ``earliest``.

    Raises:
        CorruptError: naming the line that was altered.
    """
    try:
        document = json.loads(line)
        if not isinstance(document, dict) or rfc8785.dumps(document) != line:
            raise ValueError("it is not canonical JSON")
        event, time, stated = document["event"], document["time"], document["prev"]
        if not _RFC3339.fullmatch(time):
            raise ValueError(f"its time {time!r} is not RFC 3339 with microseconds")
        if not isinstance(event, str) or type(document["seq"]) is not int or document["seq"] != seq:
            raise ValueError(f"it says it is number {document['seq']}")
    except (ValueError, KeyError, TypeError, RecursionError, rfc8785.CanonicalizationError) as error:
        raise CorruptError(f"ledger line {seq} was altered: {error}; compare with a backup or a checkpoint") from error
    if stated != previous.hex():
        raise CorruptError(
            f"ledger line {seq - 1 if seq else 0} was altered, or lines around it were removed or added: line {seq} "
            "does not follow it by hash; compare with a backup or a checkpoint"
        )
    if time < earliest:
        raise CorruptError(f"ledger line {seq} was altered: its time {time} is before the line above it")
    fields = {key: value for key, value in document.items() if key not in RESERVED}
    return LedgerEntry(seq, time, event, fields, leaf_hash(line))
