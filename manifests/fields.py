"""The field types that documents are made of: a digest, a name, a text, a number, a licence.

Two people must never see one document and read two things, so text is NFC and holds no invisible or
direction-changing characters, and names are plain ASCII. The character classes are fixed here rather than taken from
the interpreter's Unicode tables, which grow: what is valid today stays valid on every Python.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated

from pydantic import AfterValidator, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, PlainSerializer
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from csf_store import Digest
from manifests.canonical import MAX_INTEGER

_DIGEST_TEXT = re.compile(r"b3:[0-9a-f]{64}")


class _DigestAnnotation:
    """Teaches pydantic the digest: an object in Python, exactly `b3:<64 lower-case hex>` in JSON."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.json_or_python_schema(
            json_schema=core_schema.no_info_after_validator_function(
                _parse_digest, core_schema.str_schema(strict=True)
            ),
            python_schema=core_schema.is_instance_schema(Digest),
            serialization=core_schema.plain_serializer_function_ser_schema(str, return_schema=core_schema.str_schema()),
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"type": "string", "pattern": "^b3:[0-9a-f]{64}$", "description": "A BLAKE3 digest."}


def _parse_digest(text: str) -> Digest:
    # Stricter than Digest.parse, which serves people: in a document a digest has one spelling.
    if not _DIGEST_TEXT.fullmatch(text):
        raise ValueError(f"a digest is written b3:<64 lower-case hex>, not {text[:80]!r}")
    return Digest.parse(text)


DigestField = Annotated[Digest, _DigestAnnotation]
"""A `csf_store.Digest` in a document."""

# Soft hyphen, Arabic letter mark, zero-width and direction marks, embeddings and overrides, invisible operators,
# byte order mark, interlinear anchors, and the tag block: characters that change how other text is read.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0"
    "\ufff0-\uffff\U000e0000-\U000e0fff]"
)
_CONTROL = re.compile("[\u0000-\u0009\u000b-\u001f\u007f-\u009f\ud800-\udfff]")

MAX_TEXT = 4096
"""Characters in a free text."""


def _plain_text(text: str) -> str:
    for pattern, what in ((_CONTROL, "control"), (_INVISIBLE, "invisible or direction-changing")):
        if found := pattern.search(text):
            raise ValueError(f"the {what} character U+{ord(found[0]):04X} at {found.start()} is not allowed")
    if unicodedata.normalize("NFC", text) != text:
        raise ValueError("text must be in Unicode normal form C, so that equal looks mean equal bytes")
    return text


def _one_line(text: str) -> str:
    if "\n" in text:
        raise ValueError("this text is one line")
    return text


Text = Annotated[str, Field(max_length=MAX_TEXT), AfterValidator(_plain_text)]
"""Free text for people, line feeds allowed."""

Line = Annotated[Text, AfterValidator(_one_line)]
"""Free text on one line."""

_MACHINE_PATH = re.compile(r"[/\\~]|[A-Za-z]:[\\/]|file:", re.ASCII | re.IGNORECASE)


def _no_machine_path(text: str) -> str:
    if _MACHINE_PATH.match(text):
        raise ValueError(f"{text[:80]!r} is a path on one machine; a document must mean the same on every machine")
    return text


Location = Annotated[Line, AfterValidator(_no_machine_path)]
"""Where something came from, in words that hold everywhere: a URL, a Hub id with revision, a package and version."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@+/-]{0,127}$")]
"""A suite, metric, library or label name: ASCII without spaces."""

ModuleName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$", max_length=512)]
"""A dotted module path as `named_modules()` gives it."""

CodeId = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,63}/[1-9][0-9]{0,8}$")]
"""Modeling code and its generation, `keystone-plt/1`."""

Count = Annotated[int, Field(ge=0, le=MAX_INTEGER)]
"""A whole number that JSON holds exactly."""

Positive = Annotated[int, Field(ge=1, le=MAX_INTEGER)]
"""A whole number of at least one."""


Nonce = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""32 random bytes in lower-case hex."""

LedgerPoint = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,15}):[0-9a-f]{64}$")]
"""The ledger as it was at a moment, `SIZE:ROOT` as `csf log --checkpoint` prints it."""


def _canonical_zero(value: float) -> float:
    # RFC 8785 writes -0 as 0: hold what will be written, so that a document equals itself read back.
    return value + 0.0


Real = Annotated[float, Field(ge=-MAX_INTEGER, le=MAX_INTEGER, allow_inf_nan=False), AfterValidator(_canonical_zero)]
"""A finite number. Beyond 2^53 its canonical form would read as an integer that JSON cannot hold."""

_SPDX_TOKEN = re.compile(r"\(|\)|[A-Za-z0-9.+:-]+")
_SPDX_ID = re.compile(r"(DocumentRef-[A-Za-z0-9.-]+:)?[A-Za-z0-9][A-Za-z0-9.-]*\+?")
_SPDX_OPERATORS = ("AND", "OR", "WITH")


def _spdx(text: str) -> str:
    if "  " in text or text.strip() != text or not re.fullmatch(r"[A-Za-z0-9.+:() -]+", text, re.ASCII):
        raise ValueError(f"{text[:80]!r} is not an SPDX licence expression such as Apache-2.0 or MIT OR Apache-2.0")
    depth, expect_licence = 0, True
    for token in _SPDX_TOKEN.findall(text):
        if token == "(" and expect_licence:  # noqa: S105  # a parenthesis, not a secret
            depth += 1
        elif token == ")" and not expect_licence and depth:  # noqa: S105
            depth -= 1
        elif token in _SPDX_OPERATORS and not expect_licence:
            expect_licence = True
        elif token not in _SPDX_OPERATORS and expect_licence and _SPDX_ID.fullmatch(token):
            expect_licence = False
        else:
            raise ValueError(f"{text[:80]!r} is not an SPDX licence expression: unexpected {token!r}")
    if depth or expect_licence:
        raise ValueError(f"{text[:80]!r} is not an SPDX licence expression: it stops too early")
    return text


SpdxExpression = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_spdx)]
"""A licence by SPDX identifier or expression; `NOASSERTION` where it is not known."""


def frozen_mapping(labels: Mapping[str, str]) -> Mapping[str, str]:
    """A read-only, sorted copy: a frozen model must not hold a dict that a caller can still change."""
    return MappingProxyType(dict(sorted(labels.items())))


Labels = Annotated[
    Mapping[Name, Line],
    Field(max_length=64),
    AfterValidator(frozen_mapping),
    PlainSerializer(dict, return_type=dict[str, str]),
]
"""Free labels for finding things; they carry no authority."""
