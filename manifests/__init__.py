"""Manifests: small immutable documents that say what a runnable model is."""

from manifests.approvals import SignedApproval, draft_approval, find_approval, read_approval
from manifests.attaching import attach
from manifests.auditing.auditor import Auditor, ServerAudit, audit
from manifests.auditing.context import DocumentCheck, FitCheck
from manifests.auditing.ledger_facts import LedgerFacts
from manifests.auditing.lines import AuditLine, AuditReport, Verdict
from manifests.auditing.live_weights import LiveWeights, Recompute, ServedModel, Server, ServerAnswer, culprits
from manifests.auditing.page import audit_page, lineage_svg
from manifests.auditing.state import AuditorState
from manifests.canonical import Json, JsonObject
from manifests.canonical import digest_of as canonical_digest
from manifests.canonical import encode as canonical_bytes
from manifests.canonical import parse as parse_canonical
from manifests.deliberation import Deliberation, Proposal, Seat
from manifests.document import Document
from manifests.errors import (
    ApprovalRefusedError,
    BadSignatureError,
    BaseMismatchError,
    CorruptDocumentError,
    InvalidDocumentError,
    InvalidKeyError,
    InvalidNameError,
    KeyExistsError,
    KeyLockedError,
    KeyNotFoundError,
    LineageCycleError,
    LineageError,
    ManifestError,
    MissingExtraError,
    MissingLinkError,
    MissingParentError,
    NotCanonicalError,
    NotFoundError,
    NotServedError,
    ProtectedRefError,
    RefConflictError,
    RefNotFoundError,
    RefusedError,
    RollbackRefusedError,
    SchemaVersionError,
    ServerSilentError,
)
from manifests.evidence import AdapterRecord, EvalReport, Interval, Score, TrainingConfig, TrainingRecord
from manifests.fields import DigestField, ModuleName
from manifests.finding import Difference, ManifestQuery, differences
from manifests.head_to_head import (
    Contestant,
    ContestRules,
    ContestVerdict,
    HeadToHead,
    contest_verdict,
    head_to_head_statement,
)
from manifests.interchange.checking import bill_differences, bill_subject
from manifests.interchange.contents import HashedFile, hash_pieces
from manifests.interchange.cyclonedx import (
    ExportedFiles,
    check_cyclonedx,
    cyclonedx_bill,
    cyclonedx_problem,
    write_cyclonedx,
)
from manifests.interchange.facts import Facts, collect_facts, planned_hashing
from manifests.interchange.hub import CLAIMED, claims_of, hub_claims, hub_id
from manifests.interchange.model_signing import (
    SIGNATURE_FILE,
    check_model_signing,
    check_signing_key,
    needs_passphrase,
    sign_directory,
    verify_directory,
)
from manifests.items import Item, read_items, score_problem
from manifests.kinds import KINDS, json_schema, load_any, read_any, register_kind
from manifests.measurement import Measurement
from manifests.model_registry import RegistryDocument, RegistryEntry
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
from manifests.signing.envelopes import Envelope, Judged, SignatureState, load_envelope, put_envelope, seal
from manifests.signing.in_toto import Statement, approval_statement, eval_statement, manifest_statement
from manifests.signing.keys import KeyStore, PublicKey, SigningKey
from manifests.signing.notes import CheckpointNote, ledger_origin
from manifests.signing.signatures import FoundSignature, signatures_of
from manifests.signing.trust import Standing, TrustBook, TrustSpan, revoke_key, trust_key
from manifests.statements import AcceptedRecord, Approval, Attestation, RejectedRecord, SourceGateReport
from manifests.tensor_set import TensorEntry, tensor_set_digest
from manifests.tripwires import TripwireMeasure, TripwirePolicy, TripwireReport, TripwireRule
from manifests.tripwires import judge as judge_tripwire

__all__ = [
    "CLAIMED",
    "CODE_ID",
    "KINDS",
    "KNOWN_CODES",
    "SIGNATURE_FILE",
    "AcceptedRecord",
    "AdapterRecord",
    "AdapterUse",
    "Approval",
    "ApprovalRefusedError",
    "Assembly",
    "Attestation",
    "AuditLine",
    "AuditReport",
    "Auditor",
    "AuditorState",
    "BadSignatureError",
    "BaseMismatchError",
    "CheckpointNote",
    "ContestRules",
    "ContestVerdict",
    "Contestant",
    "CorruptDocumentError",
    "Deliberation",
    "Difference",
    "DigestField",
    "Document",
    "DocumentCheck",
    "Envelope",
    "EvalReport",
    "EvalSummary",
    "ExportedFiles",
    "Facts",
    "FitCheck",
    "FoundSignature",
    "HashedFile",
    "HeadToHead",
    "Interval",
    "InvalidDocumentError",
    "InvalidKeyError",
    "InvalidNameError",
    "Item",
    "Json",
    "JsonObject",
    "Judged",
    "KeyExistsError",
    "KeyLockedError",
    "KeyNotFoundError",
    "KeyStore",
    "LedgerFacts",
    "LineageCycleError",
    "LineageError",
    "LineageStep",
    "LiveWeights",
    "Manifest",
    "ManifestError",
    "ManifestQuery",
    "Measurement",
    "MissingExtraError",
    "MissingLinkError",
    "MissingParentError",
    "ModuleName",
    "NotCanonicalError",
    "NotFoundError",
    "NotServedError",
    "ParityCase",
    "ParityReport",
    "Proposal",
    "ProtectedRefError",
    "PublicKey",
    "Recipe",
    "Recompute",
    "RefConflictError",
    "RefEvent",
    "RefNotFoundError",
    "Refs",
    "RefusedError",
    "RegistryDocument",
    "RegistryEntry",
    "RejectedRecord",
    "Repository",
    "RollbackRefusedError",
    "SchemaVersionError",
    "Score",
    "Seat",
    "ServedModel",
    "Server",
    "ServerAnswer",
    "ServerAudit",
    "ServerSilentError",
    "SignatureState",
    "SignedApproval",
    "SigningKey",
    "Source",
    "SourceGateReport",
    "Standing",
    "Statement",
    "TensorEntry",
    "TrainingConfig",
    "TrainingRecord",
    "Tripwire",
    "TripwireMeasure",
    "TripwirePolicy",
    "TripwireReport",
    "TripwireRule",
    "TripwireStatus",
    "TrustBook",
    "TrustSpan",
    "Verdict",
    "approval_statement",
    "attach",
    "audit",
    "audit_page",
    "bill_differences",
    "bill_subject",
    "canonical_bytes",
    "canonical_digest",
    "check_cyclonedx",
    "check_model_signing",
    "check_signing_key",
    "claims_of",
    "collect_facts",
    "contest_verdict",
    "culprits",
    "cyclonedx_bill",
    "cyclonedx_problem",
    "differences",
    "draft_approval",
    "eval_statement",
    "find_approval",
    "hash_pieces",
    "head_to_head_statement",
    "hub_claims",
    "hub_id",
    "is_ref_name",
    "json_schema",
    "judge_tripwire",
    "ledger_origin",
    "lineage_svg",
    "load_any",
    "load_envelope",
    "manifest_statement",
    "needs_passphrase",
    "parse_canonical",
    "planned_hashing",
    "put_envelope",
    "read_any",
    "read_approval",
    "read_items",
    "register_kind",
    "revoke_key",
    "score_problem",
    "seal",
    "sign_directory",
    "signatures_of",
    "tensor_set_digest",
    "trust_key",
    "verify_directory",
    "write_cyclonedx",
]
