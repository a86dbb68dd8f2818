"""One byte form per document, and nothing else is read."""

from __future__ import annotations

import pytest

from csf_store import Digest
from manifests import NotCanonicalError, canonical_bytes, canonical_digest, parse_canonical
from manifests.canonical import MAX_DEPTH, MAX_DOCUMENT_BYTES


def test_keys_are_sorted_and_numbers_shortest() -> None:
    assert (
        canonical_bytes({"b": 1.0, "a": [1e-7, 1e21, True, None, "é\n"]})
        == '{"a":[1e-7,1e+21,true,null,"é\\n"],"b":1}'.encode()
    )


def test_keys_sort_by_utf16_as_the_rfc_says() -> None:
    # U+1F600 is a surrogate pair (D83D...), which sorts before U+FB33 although its code point is larger.
    assert canonical_bytes({"\ufb33": 1, "\U0001f600": 2}) == '{"\U0001f600":2,"\ufb33":1}'.encode()


def test_digest_is_of_the_bytes() -> None:
    assert canonical_digest({"v": 1}) == Digest.of(b'{"v":1}')


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b'{"b":1,"a":2}', "RFC 8785"),
        (b'{"a": 1}', "RFC 8785"),
        (b'{"a":1}\n', "RFC 8785"),
        (b'{"a":1.0}', "RFC 8785"),
        (b'{"a":1e0}', "RFC 8785"),
        (b'{"a":-0}', "RFC 8785"),
        (b'{"a":"\\u0061"}', "RFC 8785"),
        (b'{"a":1,"a":1}', "twice"),
        (b'{"x":{"a":1,"a":2}}', "twice"),
        (b'{"a":NaN}', "NaN"),
        (b'{"a":-Infinity}', "Infinity"),
        (b'{"a":1e999}', "RFC 8785"),
        (b'{"a":9007199254740992}', "2\\^53"),
        (b'{"a":-9007199254740992}', "2\\^53"),
        (b'{"a":' + b"9" * 100_000 + b"}", "100000 digits"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b'{"a":"\xff"}', "UTF-8 at byte 6"),
        (b'{"a":"\\ud800"}', "UTF-8|RFC 8785"),
        (b'{"a":"\x01"}', "not JSON"),
        (b"[]", "array"),
        (b"null", "null"),
        (b"1", "number"),
        (b"", "not JSON"),
        (b"{", "not JSON"),
    ],
)
def test_anything_else_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(NotCanonicalError, match=says) as caught:
        parse_canonical(data)
    assert caught.value.exit_code == 7


def test_depth_is_limited_before_parsing() -> None:
    for opening in (b'{"a":', b"["):
        with pytest.raises(NotCanonicalError, match="nested deeper"):
            parse_canonical(opening * 1_000_000)


def test_depth_counts_brackets_and_not_the_text_in_strings() -> None:
    text = '{"[' * 1000
    assert parse_canonical(canonical_bytes({"a": text})) == {"a": text}
    deepest = b'{"a":' + b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b"}"
    assert canonical_bytes(parse_canonical(deepest)) == deepest


def test_size_is_limited() -> None:
    with pytest.raises(NotCanonicalError, match="at most"):
        parse_canonical(b'{"a":"' + b"x" * MAX_DOCUMENT_BYTES + b'"}')


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**53, "\ud800"])
def test_what_has_no_canonical_form_is_not_written(value: float | str) -> None:
    with pytest.raises(NotCanonicalError):
        canonical_bytes({"a": value})
