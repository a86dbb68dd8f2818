"""What is known of a manifest, collected and checked before any of it is written in another format.

A document in somebody else's format is read where no audit can follow, so nothing goes into it on a manifest's word
alone: a score is taken from its report, the report from its items, the tripwire from its report, an approval from its
envelope with the worth of each signature. What does not add up is refused here and explained by `keystone audit`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from csf_store import Archive, Digest, Kind
from manifests.approvals import SignedApproval, find_approval
from manifests.errors import RefusedError
from manifests.evidence import AdapterRecord, EvalReport, TrainingRecord
from manifests.interchange.contents import HashedFile, Progress, hash_pieces, hash_tree, tree_bytes
from manifests.items import read_items, score_problem
from manifests.repository import Repository
from manifests.schema import AdapterUse, EvalSummary, Manifest
from manifests.tripwires import TripwireReport


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """One adapter of the lineage: how it is used (None: only as an ancestor), its record, and what proves that."""

    adapter: Digest
    use: AdapterUse | None
    record: AdapterRecord
    training: TrainingRecord | None


@dataclass(frozen=True, slots=True)
class Facts:
    """A manifest and everything that was checked about it.

    Attributes:
        digest: its digest.
        manifest: the manifest.
        document: its bytes, with both hashes.
        arrived: when the ledger first heard of it; None where it never did.
        adapters: every adapter in use, in order, then their ancestors.
        wire: the tripwire's report, if it was run.
        approvals: (envelope, what was signed and by whom).
        trees: each tree of the assembly with its files, both hashes of each.
    """

    digest: Digest
    manifest: Manifest
    document: HashedFile
    arrived: datetime | None
    adapters: tuple[AdapterFacts, ...]
    wire: TripwireReport | None
    approvals: tuple[tuple[Digest, SignedApproval], ...]
    trees: tuple[tuple[Digest, tuple[HashedFile, ...]], ...]

    def files(self, tree: Digest) -> tuple[HashedFile, ...]:
        """The files of one tree."""
        return dict(self.trees)[tree]


def planned_hashing(archive: Archive, manifest: Manifest) -> int:
    """Bytes that `collect_facts` streams out of the archive, for a progress bar."""
    return sum(tree_bytes(archive, tree) for tree in _trees(manifest))


def collect_facts(archive: Archive, digest: Digest, *, progress: Progress | None = None) -> Facts:
    """Read a manifest, check the evidence it carries, and hash every file it runs from.

    Raises:
        RefusedError: when evidence does not say what the manifest says of it.
        ManifestError, csf_store.CsfError: when something is missing or altered.
    """
    repository = Repository(archive)
    manifest = repository.load(digest)
    for summary in manifest.evals:
        _check_score(repository, manifest, summary)
    wire = _wire(repository, manifest)
    return Facts(
        digest=digest,
        manifest=manifest,
        document=hash_pieces("manifest", archive.pieces(digest, kind=Kind.MANIFEST)),
        arrived=_arrival(archive, digest),
        adapters=_adapters(repository, manifest),
        wire=wire,
        approvals=tuple((approval, find_approval(archive, approval)) for approval in manifest.approvals),
        trees=tuple((tree, hash_tree(archive, tree, progress)) for tree in _trees(manifest)),
    )


def _trees(manifest: Manifest) -> Sequence[Digest]:
    assembly = manifest.assembly
    return tuple(dict.fromkeys((assembly.base, assembly.tokenizer, *(use.adapter for use in assembly.adapters))))


def _arrival(archive: Archive, digest: Digest) -> datetime | None:
    """When a manifest was pinned first; its own bytes hold no clock."""
    told = str(digest)
    for entry in archive.ledger.entries():
        if entry.event == "pin" and entry.fields.get("digest") == told:
            return datetime.fromisoformat(entry.time)
    return None


def _check_score(repository: Repository, manifest: Manifest, summary: EvalSummary) -> None:
    report = repository.load_record(summary.report, EvalReport)
    told = EvalSummary(**dict(report.result), report=summary.report, recipe=report.recipe)
    problem = None if told == summary else "it does not say what the manifest says of it"
    if report.assembly != manifest.assembly.digest:
        problem = f"it measured assembly {report.assembly}, this is {manifest.assembly.digest}"
    if problem is None and report.items is not None:
        problem = score_problem(report.result, read_items(repository.archive.get_bytes(report.items)))
    if problem is not None:
        raise RefusedError(f"eval report {summary.report}: {problem}; `keystone audit` says more")


def _wire(repository: Repository, manifest: Manifest) -> TripwireReport | None:
    told = manifest.tripwire
    if told.report is None:
        return None
    report = repository.load_record(told.report, TripwireReport)
    said = report.assembly, report.recipe, report.status
    if said != (manifest.assembly.digest, told.recipe, told.status):
        raise RefusedError(
            f"tripwire report {told.report} does not say what the manifest says of it; `keystone audit` says more"
        )
    return report


def _adapters(repository: Repository, manifest: Manifest) -> tuple[AdapterFacts, ...]:
    records = {step.adapter: step.record for step in manifest.lineage}
    uses = {use.adapter: use for use in manifest.assembly.adapters}
    found = []
    for adapter in [*uses, *sorted(records.keys() - uses.keys())]:
        record = repository.load_record(records[adapter], AdapterRecord)
        training = repository.load_record(record.training, TrainingRecord) if record.training is not None else None
        found.append(AdapterFacts(adapter, uses.get(adapter), record, training))
    return tuple(found)
