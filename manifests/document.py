"""`Document`: what every stored JSON object has in common.

A document is an immutable pydantic model that *is* its RFC 8785 bytes: `to_bytes` gives them, `digest` names them,
`from_bytes` accepts nothing else. Every field is always written, defaults and nulls included, and ordered sets are put
in order when the model is made, so equal facts give equal bytes and one digest. There are no timestamps inside: when a
thing was said is the ledger's to know, and with a clock inside no two runs could agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError

from csf_store import Digest
from manifests import canonical
from manifests.canonical import JsonObject
from manifests.errors import InvalidDocumentError, NotCanonicalError
from manifests.migrations import upgrade

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass as _PydanticMeta
else:
    _PydanticMeta = type(BaseModel)  # it has no public name

_SHOWN_ERRORS = 4


class _SpeaksOurErrors(_PydanticMeta):
    """Turns pydantic's error into ours where a caller makes a document; a traceback is no answer on a command line.

    A wrap validator would be the documented place, and pydantic then validates JSON input as if it were Python objects,
    which strict mode refuses.
    """

    if not TYPE_CHECKING:  # type checkers should see the fields of each model, not this pass-through

        def __call__(cls, *args: object, **fields: object) -> object:  # noqa: N805  # a metaclass
            with _our_errors(cls.__name__):
                return super().__call__(*args, **fields)


class Part(BaseModel, metaclass=_SpeaksOurErrors):
    """A piece of a document: frozen, strict, and closed to fields it does not know."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
        json_schema_serialization_defaults_required=True,
    )

    def to_json(self) -> JsonObject:
        """The JSON object, digests as text."""
        return self.model_dump(mode="json")

    def revised(self, **changes: object) -> Self:
        """A copy with some fields changed, every rule checked again (`model_copy` would check none)."""
        with _our_errors(type(self).__name__):
            return type(self).model_validate({**dict(self), **changes})


class Document(Part):
    """A piece that stands alone: it has a kind, a schema version and a digest.

    Subclasses fix `kind` and `v` as literals with a default, and set `VERSION`. A field that came when documents
    without it were already stored is one of `OPTIONAL`: it is written only where it says something, so that the older
    documents keep their one form and their digest.
    """

    VERSION: ClassVar[int] = 1
    OPTIONAL: ClassVar[frozenset[str]] = frozenset()

    _name: Digest | None = PrivateAttr(default=None)

    def to_json(self) -> JsonObject:
        """The JSON object, digests as text, without optional fields that are null."""
        fields = super().to_json()
        return {name: value for name, value in fields.items() if value is not None or name not in self.OPTIONAL}

    def to_bytes(self) -> bytes:
        """The RFC 8785 bytes: what is stored, hashed and signed."""
        return canonical.encode(self.to_json())

    @property
    def digest(self) -> Digest:
        """BLAKE3 of `to_bytes()`; a document read through a migration keeps the name of its stored bytes."""
        return self._name or Digest.of(self.to_bytes())

    @classmethod
    def kind_name(cls) -> str:
        """The text of the `kind` field."""
        kind: object = cls.model_fields["kind"].default
        return str(kind)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read stored bytes.

        Raises:
            NotCanonicalError: when the bytes are not the one form of what they say.
            SchemaVersionError: for another kind or an unknown version.
            InvalidDocumentError: for missing, surplus or malformed fields, each named.
        """
        # The proof that these are the document's own bytes is to write it again, below. Where that fails, or cannot be
        # tried, `canonical.parse` says first whether they are canonical JSON at all.
        found = canonical.parse_unproven(data)
        current = upgrade(found, kind=cls.kind_name(), version=cls.VERSION)
        migrated = current is not found
        if migrated:
            canonical.parse(data)
        try:
            with _our_errors(cls.__name__):
                document = cls.model_validate_json(canonical.encode(current) if migrated else data)
        except InvalidDocumentError:
            canonical.parse(data)
            raise
        # Canonical JSON can still be a second spelling of the same facts: a field left to its default, a set out of
        # order. Only the form we would write ourselves has the digest that other documents link to.
        if not migrated and document.to_bytes() != data:
            canonical.parse(data)
            raise NotCanonicalError(
                f"this {cls.kind_name()} is not in its one form: every field must be written, and lists that are sets"
                " must be sorted without repeats"
            )
        if migrated:
            document._name = Digest.of(data)
        return document

    def links(self) -> tuple[Digest, ...]:
        """The digests of every object this document needs, sorted; the archive keeps them while it keeps this."""
        return ()


@contextmanager
def _our_errors(name: str) -> Iterator[None]:
    try:
        yield
    except ValidationError as error:
        raise InvalidDocumentError(_explain(name, error)) from error


def _explain(name: str, error: ValidationError) -> str:
    problems = []
    for item in error.errors(include_url=False, include_context=False)[:_SHOWN_ERRORS]:
        where = ".".join(str(part) for part in item["loc"]) or "the document"
        value = repr(item["input"])
        shown = value if len(value) <= 80 else f"{value[:77]}..."
        problems.append(f"{where}: {item['msg'].removeprefix('Value error, ')} (got {shown})")
    more = error.error_count() - _SHOWN_ERRORS
    if more > 0:
        problems.append(f"and {more} more")
    return f"{name} breaks its schema: " + "; ".join(problems)
