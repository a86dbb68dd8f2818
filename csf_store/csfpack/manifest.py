"""The manifest of a CSF-Pack container: what a stranger's JSON says, held to what can be.

Nothing here reads a file. ``parse_manifest`` turns the manifest's bytes into members whose every number was checked
against the blob region, and raises before anybody allocates or decodes by it. Ranges may not overlap: the old writer
put one after the other, and overlapping ones are how a small file unfolds into a huge one. The exception is a range
that is the same to the last field, which is one content under two names.
"""

from __future__ import annotations

import json
import re
from enum import StrEnum
from itertools import pairwise
from typing import Final, NamedTuple

from csf_store.errors import InvalidInputError
from csf_store.trees import check_names, check_path

MAX_DICTIONARY: Final = 16 << 20
"""The longest shared dictionary; zstd's own trainer makes 110 KiB."""
MAX_PATH: Final = 4096
"""The longest path in UTF-8 bytes; no system opens a longer one."""
SANE_TOTAL: Final = 1 << 30
SANE_RATIO: Final = 1000
"""All files together have at most ``SANE_TOTAL`` bytes or ``SANE_RATIO`` times the container's, whichever is more."""
_MAX_NUMBER: Final = (1 << 53) - 1
_SHA256: Final = re.compile(r"[0-9a-fA-F]{64}")
_FORMAT: Final = "csf-pack"


class PackCodec(StrEnum):
    """How a member is stored."""

    STORE = "store"
    ZLIB = "zlib"
    ZSTD = "zstd"


class Member(NamedTuple):
    """A file of a container.

    Attributes:
        path: relative, with forward slashes.
        size: bytes of the content.
        csize: bytes as stored.
        sha256: of the content.
        offset: of the stored bytes, in the blob region.
        codec: how they are stored.
    """

    path: str
    size: int
    csize: int
    sha256: bytes
    offset: int
    codec: PackCodec


class Span(NamedTuple):
    """Bytes of the blob region."""

    offset: int
    length: int


class PackManifest(NamedTuple):
    """What a container holds: its files in the manifest's order, and the dictionary they share, if any."""

    members: tuple[Member, ...]
    dictionary: Span | None


def parse_manifest(raw: bytes, *, region: int, container: int) -> PackManifest:
    """Reads a manifest.

    Args:
        raw: its bytes.
        region: length of the blob region in bytes.
        container: length of the whole container in bytes.

    Raises:
        InvalidInputError: naming the field and the path; nothing that it says can be relied on.
    """
    document = _object(_json(raw), "the manifest")
    if document.get("format", _FORMAT) != _FORMAT:
        raise InvalidInputError(f"the manifest's format is {_short(document['format'])}, not {_FORMAT!r}")
    files = document.get("files")
    if not isinstance(files, list):
        raise InvalidInputError(f"the manifest's files are {_short(files)}, not a list")
    count = document.get("file_count", len(files))
    if type(count) is not int or count != len(files):
        raise InvalidInputError(f"the manifest says file_count {_short(count)} and lists {len(files)} files")
    members = tuple(_member(row, f"file {number}", region) for number, row in enumerate(files))
    check_names(member.path for member in members)
    _check_total(members, container)
    dictionary = _dictionary(document.get("shared_dict"), region)
    _check_overlap(members, dictionary)
    return PackManifest(members, dictionary)


def _json(raw: bytes) -> object:
    """Strict JSON: UTF-8 and nothing else, no key twice (readers would differ on which one counts), no NaN."""
    try:
        parsed: object = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise InvalidInputError("the manifest is nested too deeply") from None
    except ValueError as error:  # bad UTF-8, bad JSON, and integers of thousands of digits
        raise InvalidInputError(f"the manifest is not JSON: {str(error)[:200]}") from None
    return parsed


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key is given twice in one object")
    return fields


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON number")


def _object(value: object, what: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise InvalidInputError(f"{what} is {_short(value)}, not an object")
    return value


def _short(value: object) -> str:
    """What was found instead, as long as a line of a message may be."""
    if isinstance(value, dict | list):
        return f"a {'list' if isinstance(value, list) else 'object'} of {len(value)}"
    text = repr(value[:80] if isinstance(value, str) else value)
    return text if len(text) <= 100 else text[:100] + "..."


def _member(row: object, what: str, region: int) -> Member:
    fields = _object(row, what)
    path = fields.get("path")
    if not isinstance(path, str):
        raise InvalidInputError(f"{what}: its path is {_short(path)}, not text")
    if len(path) > MAX_PATH or len(path.encode("utf-8", "surrogatepass")) > MAX_PATH:
        raise InvalidInputError(f"{what}: its path {_short(path)}... has more than {MAX_PATH} bytes")
    check_path(path)
    what = f"{what}, {path!r}"
    size, csize, offset = (_number(fields, name, what) for name in ("size", "csize", "offset"))
    _check_span(Span(offset, csize), region, what)
    codec = _codec(fields, what)
    if codec is PackCodec.STORE and csize != size:
        raise InvalidInputError(f"{what}: is stored as it is, but has csize {csize} and size {size}")
    sha256 = fields.get("sha256")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise InvalidInputError(f"{what}: its sha256 is {_short(sha256)}, not 64 hex digits")
    return Member(path, size, csize, bytes.fromhex(sha256), offset, codec)


def _number(fields: dict[str, object], name: str, what: str) -> int:
    value = fields.get(name)
    if type(value) is not int or not 0 <= value <= _MAX_NUMBER:  # a bool is an int to isinstance
        raise InvalidInputError(f"{what}: its {name} is {_short(value)}, not a whole number of bytes from 0 to 2^53")
    return value


def _codec(fields: dict[str, object], what: str) -> PackCodec:
    """The earliest containers have no ``codec``: there ``compressed`` means zlib."""
    if "codec" not in fields:
        compressed = fields.get("compressed", False)
        if not isinstance(compressed, bool):
            raise InvalidInputError(f"{what}: its compressed is {_short(compressed)}, not true or false")
        return PackCodec.ZLIB if compressed else PackCodec.STORE
    name = fields["codec"]
    if not isinstance(name, str) or name not in list(PackCodec):
        raise InvalidInputError(f"{what}: its codec is {_short(name)}; version 0.8 has {', '.join(PackCodec)}")
    return PackCodec(name)


def _check_span(span: Span, region: int, what: str) -> None:
    if span.offset > region or span.length > region - span.offset:
        raise InvalidInputError(
            f"{what}: {span.length} bytes at offset {span.offset} of the blob region, which has {region}"
        )


def _dictionary(value: object, region: int) -> Span | None:
    if value is None:
        return None
    what = "shared_dict"
    fields = _object(value, what)
    if fields.get("codec", PackCodec.ZSTD) != PackCodec.ZSTD:
        raise InvalidInputError(f"{what}: its codec is {_short(fields['codec'])}; only zstd shares a dictionary")
    span = Span(_number(fields, "offset", what), _number(fields, "size", what))
    if not 0 < span.length <= MAX_DICTIONARY:
        raise InvalidInputError(f"{what}: a dictionary of {span.length} bytes; from 1 to {MAX_DICTIONARY} are read")
    _check_span(span, region, what)
    return span


def _check_total(members: tuple[Member, ...], container: int) -> None:
    total, limit = sum(member.size for member in members), max(SANE_TOTAL, SANE_RATIO * container)
    if total > limit:
        largest = max(members, key=lambda member: member.size)
        raise InvalidInputError(
            f"a container of {container} bytes claims {total} bytes of files ({largest.path!r} alone {largest.size}); "
            f"more than {limit} is taken for a decompression bomb"
        )


def _check_overlap(members: tuple[Member, ...], dictionary: Span | None) -> None:
    # Keyed without the path: the same range read the same way is one content under several names.
    ranges = {(Span(each.offset, each.csize), each[1:]): each.path for each in members if each.csize}
    named = [(span, repr(path)) for (span, _), path in ranges.items()]
    if dictionary:
        named.append((dictionary, "shared_dict"))
    for (above, first), (below, second) in pairwise(sorted(named)):
        if above.offset + above.length > below.offset:
            raise InvalidInputError(
                f"{first} and {second} overlap at offset {below.offset} of the blob region; each range has one owner"
            )
