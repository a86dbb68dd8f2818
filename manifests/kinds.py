"""Every kind of document by name, and its JSON Schema for programs that are not ours.

A JSON Schema says what fields there are and of which type. It cannot say all of SPEC.md: that a score is
`passed / n`, that a lineage has no circle, that the bytes are canonical. Who accepts a document by schema alone has
checked its shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeVar

from pydantic.json_schema import JsonSchemaValue

from csf_store import Archive, Digest, Kind
from manifests import canonical
from manifests.deliberation import Deliberation
from manifests.document import Document
from manifests.errors import InvalidDocumentError, NotFoundError, SchemaVersionError
from manifests.evidence import AdapterRecord, EvalReport, TrainingRecord
from manifests.head_to_head import HeadToHead
from manifests.model_registry import RegistryDocument
from manifests.parity import ParityReport
from manifests.schema import Assembly, Manifest, Recipe
from manifests.statements import Approval, Attestation, SourceGateReport
from manifests.tripwires import TripwirePolicy, TripwireReport

D = TypeVar("D", bound=Document)

_kinds: dict[str, type[Document]] = {
    kind.kind_name(): kind
    for kind in (
        AdapterRecord,
        Approval,
        Assembly,
        Attestation,
        Deliberation,
        EvalReport,
        HeadToHead,
        Manifest,
        ParityReport,
        Recipe,
        RegistryDocument,
        SourceGateReport,
        TrainingRecord,
        TripwirePolicy,
        TripwireReport,
    )
}

KINDS: Mapping[str, type[Document]] = MappingProxyType(_kinds)
"""kind -> its model; those of higher floors are among them once their package is imported."""


def register_kind(model: type[D]) -> type[D]:
    """Makes a kind of a higher floor known by its name; for use as a decorator.

    Raises:
        InvalidDocumentError: when another model has that kind already.
    """
    name = model.kind_name()
    if _kinds.setdefault(name, model) is not model:
        raise InvalidDocumentError(f"two models of the document kind {name!r}: {_kinds[name]!r} and {model!r}")
    return model


_NULL = {"type": "null"}


def json_schema(kind: str) -> JsonSchemaValue:
    """The JSON Schema (draft 2020-12) of a kind, as it is written: every field required, no other allowed.

    Raises:
        NotFoundError: naming the kinds there are.
    """
    model = KINDS.get(kind)
    if model is None:
        raise NotFoundError(f"no document kind {kind!r}; there are {', '.join(sorted(KINDS))}")
    schema = model.model_json_schema(mode="serialization")
    for field in model.OPTIONAL:  # left out where there is nothing to say, never null
        (schema["properties"][field],) = (each for each in schema["properties"][field]["anyOf"] if each != _NULL)
        schema["required"].remove(field)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:keystone-sigma0:schema:{kind}:{model.VERSION}",
        **schema,
    }


def read_any(data: bytes) -> Document:
    """Read a document of whatever kind it says it is.

    Raises:
        NotCanonicalError, InvalidDocumentError: when it is none of ours, or breaks its rules.
    """
    kind = canonical.parse(data).get("kind")
    model = KINDS.get(kind) if isinstance(kind, str) else None
    if model is None:
        raise SchemaVersionError(f"a document of kind {str(kind)[:80]!r}; this release reads {', '.join(KINDS)}")
    return model.from_bytes(data)


def load_any(archive: Archive, digest: Digest) -> Document:
    """Read a manifest or record from an archive, of whatever kind it says it is.

    Raises:
        NotFoundError: when the archive holds neither.
        InvalidDocumentError: when it is no document of ours.
    """
    for kind in (Kind.MANIFEST, Kind.RECORD):
        if archive.contains(digest, kind=kind):
            return read_any(archive.get_bytes(digest, kind=kind))
    raise NotFoundError(f"no document {digest} in {archive.path}; `csf --archive ... ls` shows what is there")
