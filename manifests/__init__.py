"""Manifests: small immutable documents that say what a runnable model is."""

from manifests.audit import FitCheck, audit
from manifests.audit_lines import AuditLine, AuditReport, Verdict
from manifests.canonical import Json, JsonObject
from manifests.canonical import digest_of as canonical_digest
from manifests.canonical import encode as canonical_bytes
from manifests.canonical import parse as parse_canonical
from manifests.document import Document
from manifests.errors import (
    BaseMismatchError,
    CorruptDocumentError,
    InvalidDocumentError,
    InvalidNameError,
    LineageCycleError,
    LineageError,
    ManifestError,
    MissingLinkError,
    MissingParentError,
    NotCanonicalError,
    NotFoundError,
    RefConflictError,
    RefNotFoundError,
    RefusedError,
    RollbackRefusedError,
    SchemaVersionError,
)
from manifests.evidence import AdapterRecord, EvalReport, Interval, Score, TrainingConfig, TrainingRecord
from manifests.fields import DigestField, ModuleName
from manifests.refs import RefEvent, Refs
from manifests.repository import Repository
from manifests.schema import (
    CODE_ID,
    KNOWN_CODES,
    AdapterUse,
    Assembly,
    EvalSummary,
    LineageStep,
    Manifest,
    Recipe,
    Source,
    Tripwire,
)
from manifests.tensor_set import TensorEntry, tensor_set_digest

__all__ = [
    "CODE_ID",
    "KNOWN_CODES",
    "AdapterRecord",
    "AdapterUse",
    "Assembly",
    "AuditLine",
    "AuditReport",
    "BaseMismatchError",
    "CorruptDocumentError",
    "DigestField",
    "Document",
    "EvalReport",
    "EvalSummary",
    "FitCheck",
    "Interval",
    "InvalidDocumentError",
    "InvalidNameError",
    "Json",
    "JsonObject",
    "LineageCycleError",
    "LineageError",
    "LineageStep",
    "Manifest",
    "ManifestError",
    "MissingLinkError",
    "MissingParentError",
    "ModuleName",
    "NotCanonicalError",
    "NotFoundError",
    "Recipe",
    "RefConflictError",
    "RefEvent",
    "RefNotFoundError",
    "Refs",
    "RefusedError",
    "Repository",
    "RollbackRefusedError",
    "SchemaVersionError",
    "Score",
    "Source",
    "TensorEntry",
    "TrainingConfig",
    "TrainingRecord",
    "Tripwire",
    "Verdict",
    "audit",
    "canonical_bytes",
    "canonical_digest",
    "parse_canonical",
    "tensor_set_digest",
]
