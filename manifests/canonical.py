"""RFC 8785 bytes in, RFC 8785 bytes out: the one form that a digest is taken of.

A digest names a document only if one document has one byte form, so `parse` accepts *exactly* what `encode` writes:
no second spelling of a number, no duplicate key, no byte order mark, no white space, no reordered keys. Documents come
from anywhere, so size and depth are limited before the JSON parser sees a byte, and numbers stay inside the range that
RFC 8785 (IEEE 754 doubles, integers below 2^53) can hold without rounding.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import NoReturn, TypeAlias

import rfc8785

from csf_store import Digest
from manifests.errors import NotCanonicalError

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
"""Any JSON value."""

JsonObject: TypeAlias = Mapping[str, Json]
"""A JSON object, the only thing a document can be."""

MAX_DOCUMENT_BYTES = 16 * 2**20
"""A document is small by nature; what is larger belongs in a blob that the document names."""

MAX_DEPTH = 32
"""Nesting of `{` and `[`; our deepest document uses five levels."""

MAX_INTEGER = 2**53 - 1
"""The largest integer that every JSON implementation holds exactly."""

# A whole string is one token, so brackets inside strings do not count as nesting.
_STRING_OR_BRACKET = re.compile(rb'"(?:[^"\\]|\\.)*"?|[{}\[\]]', re.DOTALL)


def encode(value: JsonObject) -> bytes:
    """The RFC 8785 form of a JSON object.

    Raises:
        NotCanonicalError: for a number that is not finite or not below 2^53, or text that is not Unicode.
    """
    try:
        return rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, RecursionError) as error:
        raise NotCanonicalError(f"this value has no RFC 8785 form: {error}") from error


def digest_of(value: JsonObject) -> Digest:
    """BLAKE3 of the RFC 8785 form."""
    return Digest.of(encode(value))


def parse(data: bytes) -> JsonObject:
    """Read a canonical JSON object and prove that the bytes are its canonical form.

    Raises:
        NotCanonicalError: for anything that `encode` would not have written.
    """
    value = parse_unproven(data)
    again = encode(value)
    if again != data:
        at = next((i for i, (a, b) in enumerate(zip(again, data, strict=False)) if a != b), min(len(again), len(data)))
        raise NotCanonicalError(
            f"not in RFC 8785 form: byte {at} differs from the canonical form of the same value; write the document"
            " with sorted keys, no white space and shortest numbers"
        )
    return value


def parse_unproven(data: bytes) -> JsonObject:
    """Read a JSON object within our limits, for a caller who proves in another way that the bytes are canonical.

    Raises:
        NotCanonicalError: for what is no JSON object, or holds a duplicate key or a number that has no canonical form.
    """
    _check_limits(data)
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique_keys,
            parse_constant=_refuse_constant,
            parse_int=_bounded_integer,
        )
    except UnicodeDecodeError as error:
        raise NotCanonicalError(f"not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise NotCanonicalError(f"not JSON at character {error.pos}: {error.msg}") from error
    if not isinstance(value, dict):
        raise NotCanonicalError(f"a document is a JSON object, this is {_json_type(value)}")
    return value


def _check_limits(data: bytes) -> None:
    if len(data) > MAX_DOCUMENT_BYTES:
        raise NotCanonicalError(f"{len(data)} bytes; a document has at most {MAX_DOCUMENT_BYTES}")
    if data.count(b"{") + data.count(b"[") <= MAX_DEPTH:
        return  # it cannot be deeper than that, and most documents end here
    depth = 0
    for token in _STRING_OR_BRACKET.finditer(data):
        if token[0] in (b"{", b"["):
            depth += 1
            if depth > MAX_DEPTH:
                raise NotCanonicalError(f"nested deeper than {MAX_DEPTH} levels at byte {token.start()}")
        elif token[0] in (b"}", b"]"):
            depth -= 1


def _unique_keys(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    result: dict[str, Json] = {}
    for key, value in pairs:
        if key in result:
            raise NotCanonicalError(f"the key {key!r} appears twice in one object; which one is meant cannot be known")
        result[key] = value
    return result


def _refuse_constant(text: str) -> NoReturn:
    raise NotCanonicalError(f"{text} is not a JSON number")


def _bounded_integer(text: str) -> int:
    # Length first: int() of a million digits takes quadratic time (and Python refuses it with a plain ValueError).
    if len(text) > 17 or abs(int(text)) > MAX_INTEGER:
        shown = text if len(text) <= 24 else f"{text[:20]}... ({len(text)} digits)"
        raise NotCanonicalError(f"the integer {shown} is outside -(2^53-1)..2^53-1")
    return int(text)


def _json_type(value: Json) -> str:
    if value is None:
        return "null"
    return {bool: "a boolean", int: "a number", float: "a number", str: "a string"}.get(type(value), "an array")
