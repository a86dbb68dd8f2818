"""The CSF archive: checkpoints as BLAKE3-addressed blobs, in a compressed, append-only, crash-safe store."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from csf_store.archive import Archive
    from csf_store.cli.command_table import CommandTable
    from csf_store.cli.progress import progress_bar
    from csf_store.cli.session import Session, Value, human_size, json_option, pass_session
    from csf_store.digest import Digest
    from csf_store.errors import (
        AmbiguousPrefixError,
        ConflictError,
        CorruptError,
        CsfError,
        InvalidInputError,
        NotFoundError,
        PickleRefusedError,
        RefusedError,
        StorageError,
    )
    from csf_store.ledger.ledger import Ledger, LedgerTransaction
    from csf_store.ledger.line import JSON, LedgerEntry
    from csf_store.ledger.proofs import Checkpoint, ConsistencyProof, InclusionProof, read_proof
    from csf_store.ledger.reading import LedgerAudit
    from csf_store.ledger.state import Pin, RefMove
    from csf_store.marker import default_archive_path
    from csf_store.memory import allocate, give_back, hold_little_back
    from csf_store.objects import Kind, ObjectInfo, Stored
    from csf_store.safetensors_layout import TensorInfo
    from csf_store.search.answering import find, find_tensor, resolve_name
    from csf_store.search.diff import (
        Change,
        Comparison,
        FileDifference,
        MetadataDifference,
        TensorDifference,
        TensorVersion,
        compare,
    )
    from csf_store.search.distances import measure
    from csf_store.search.patterns import NamePattern, ShapePattern, SizeRange
    from csf_store.search.query import Findings, Hit, MetadataPattern, Order, Place, Query, TensorAddress, TensorHit
    from csf_store.search.tensor_values import Distance
    from csf_store.small_files import create_file, replace_file
    from csf_store.trees import Tree, TreeEntry
    from csf_store.upkeep.check import Finding, VerifyReport

_HOMES = {
    "archive": ("Archive",),
    "cli.command_table": ("CommandTable",),
    "cli.progress": ("progress_bar",),
    "cli.session": ("Session", "Value", "human_size", "json_option", "pass_session"),
    "upkeep.check": ("Finding", "VerifyReport"),
    "search.diff": (
        "Change",
        "Comparison",
        "FileDifference",
        "MetadataDifference",
        "TensorDifference",
        "TensorVersion",
        "compare",
    ),
    "digest": ("Digest",),
    "search.distances": ("measure",),
    "errors": (
        "AmbiguousPrefixError",
        "ConflictError",
        "CorruptError",
        "CsfError",
        "InvalidInputError",
        "NotFoundError",
        "PickleRefusedError",
        "RefusedError",
        "StorageError",
    ),
    "ledger.ledger": ("Ledger", "LedgerTransaction"),
    "ledger.line": ("JSON", "LedgerEntry"),
    "ledger.proofs": ("Checkpoint", "ConsistencyProof", "InclusionProof", "read_proof"),
    "ledger.reading": ("LedgerAudit",),
    "ledger.state": ("Pin", "RefMove"),
    "marker": ("default_archive_path",),
    "memory": ("allocate", "give_back", "hold_little_back"),
    "objects": ("Kind", "ObjectInfo", "Stored"),
    "search.patterns": ("NamePattern", "ShapePattern", "SizeRange"),
    "search.query": ("Findings", "Hit", "MetadataPattern", "Order", "Place", "Query", "TensorAddress", "TensorHit"),
    "safetensors_layout": ("TensorInfo",),
    "search.answering": ("find", "find_tensor", "resolve_name"),
    "search.tensor_values": ("Distance",),
    "small_files": ("create_file", "replace_file"),
    "trees": ("Tree", "TreeEntry"),
}

__all__ = [
    "JSON",
    "AmbiguousPrefixError",
    "Archive",
    "Change",
    "Checkpoint",
    "CommandTable",
    "Comparison",
    "ConflictError",
    "ConsistencyProof",
    "CorruptError",
    "CsfError",
    "Digest",
    "Distance",
    "FileDifference",
    "Finding",
    "Findings",
    "Hit",
    "InclusionProof",
    "InvalidInputError",
    "Kind",
    "Ledger",
    "LedgerAudit",
    "LedgerEntry",
    "LedgerTransaction",
    "MetadataDifference",
    "MetadataPattern",
    "NamePattern",
    "NotFoundError",
    "ObjectInfo",
    "Order",
    "PickleRefusedError",
    "Pin",
    "Place",
    "Query",
    "RefMove",
    "RefusedError",
    "Session",
    "ShapePattern",
    "SizeRange",
    "StorageError",
    "Stored",
    "TensorAddress",
    "TensorDifference",
    "TensorHit",
    "TensorInfo",
    "TensorVersion",
    "Tree",
    "TreeEntry",
    "Value",
    "VerifyReport",
    "allocate",
    "compare",
    "create_file",
    "default_archive_path",
    "find",
    "find_tensor",
    "give_back",
    "hold_little_back",
    "human_size",
    "json_option",
    "measure",
    "pass_session",
    "progress_bar",
    "read_proof",
    "replace_file",
    "resolve_name",
]


def __getattr__(name: str) -> object:
    """Imports a name's module on first use: ``csf --help`` must not pay for numpy and SQLite."""
    from importlib import import_module  # noqa: PLC0415 - part of the same laziness

    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"csf_store.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
