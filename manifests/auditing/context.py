"""What every check looks at: one archive, its ledger as read once, and what was proven so far."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from csf_store import Archive, Digest
from manifests.auditing.ledger_facts import LedgerFacts
from manifests.auditing.lines import AuditLine
from manifests.auditing.live_weights import Recompute
from manifests.auditing.objects import ObjectProver
from manifests.document import Document
from manifests.lineage import FoundRecord
from manifests.repository import Repository
from manifests.schema import Manifest
from manifests.signing.keys import PublicKey

FitCheck: TypeAlias = Callable[[Archive, Digest, Digest], str | None]
"""(archive, adapter tree, base tree) -> what does not fit, or None when everything does."""

DocumentCheck: TypeAlias = Callable[[Archive, Document, LedgerFacts], str | None]
"""(archive, document, what the ledger says) -> what is wrong with what it claims, or None.

For kinds of higher floors, and for what those know of ours."""

Lines: TypeAlias = Iterator[AuditLine]


@dataclass
class Context:
    """Everything an audit has at hand.

    Attributes:
        archive: what is audited.
        repository: the same, seen as documents.
        facts: its ledger.
        prover: what its objects are.
        fit: whether an adapter's tensors fit a base; None where nobody can tell.
        tied: names of tensors that a base may leave out of its files, and the tensor each is another name of.
        known: public keys of the auditor's own.
        documents: what is wrong with what a document claims; None where nobody can tell.
        recompute: what a model's live tensors must hash to; None where nobody can tell.
        progress: called with bytes as they are hashed.
        base_sets: tensor sets a base may have in memory, found so far.
        found_records: adapters' records, found so far.
    """

    archive: Archive
    repository: Repository
    facts: LedgerFacts
    prover: ObjectProver
    fit: FitCheck | None = None
    tied: Mapping[str, str] = field(default_factory=dict)
    known: Mapping[Digest, PublicKey] = field(default_factory=dict)
    documents: DocumentCheck | None = None
    recompute: Recompute | None = None
    progress: Callable[[int], None] | None = None
    base_sets: dict[Digest, list[Digest]] = field(default_factory=dict)

    found_records: dict[Digest, FoundRecord | None] = field(default_factory=dict)

    def find_record(self, adapter: Digest) -> FoundRecord | None:
        """What is said of an adapter, looked for once in this audit.

        Raises:
            BaseMismatchError, LineageError: when records in the archive contradict each other.
        """
        if adapter not in self.found_records:
            self.found_records[adapter] = self.repository.find_adapter_record(adapter)
        return self.found_records[adapter]


@dataclass(frozen=True)
class Subject:
    """The manifest under audit."""

    digest: Digest
    manifest: Manifest
