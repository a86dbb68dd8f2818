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
from manifests.finding import Difference, ManifestQuery, differences
from manifests.kinds import KINDS, json_schema, load_any, read_any
from manifests.parity import ParityCase, ParityReport
from manifests.ref_names import is_ref_name
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
    TripwireStatus,
)
from manifests.statements import AcceptedRecord, Approval, Attestation, RejectedRecord, SourceGateReport
from manifests.tensor_set import TensorEntry, tensor_set_digest
from manifests.tripwires import TripwireMeasure, TripwirePolicy, TripwireReport, TripwireRule
from manifests.tripwires import judge as judge_tripwire

__all__ = [
    "CODE_ID",
    "KINDS",
    "KNOWN_CODES",
    "AcceptedRecord",
    "AdapterRecord",
    "AdapterUse",
    "Approval",
    "Assembly",
    "Attestation",
    "AuditLine",
    "AuditReport",
    "BaseMismatchError",
    "CorruptDocumentError",
    "Difference",
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
    "ManifestQuery",
    "MissingLinkError",
    "MissingParentError",
    "ModuleName",
    "NotCanonicalError",
    "NotFoundError",
    "ParityCase",
    "ParityReport",
    "Recipe",
    "RefConflictError",
    "RefEvent",
    "RefNotFoundError",
    "Refs",
    "RefusedError",
    "RejectedRecord",
    "Repository",
    "RollbackRefusedError",
    "SchemaVersionError",
    "Score",
    "Source",
    "SourceGateReport",
    "TensorEntry",
    "TrainingConfig",
    "TrainingRecord",
    "Tripwire",
    "TripwireMeasure",
    "TripwirePolicy",
    "TripwireReport",
    "TripwireRule",
    "TripwireStatus",
    "Verdict",
    "audit",
    "canonical_bytes",
    "canonical_digest",
    "differences",
    "is_ref_name",
    "json_schema",
    "judge_tripwire",
    "load_any",
    "parse_canonical",
    "read_any",
    "tensor_set_digest",
]
