"""New evidence, new manifest: the same assembly, what was known of it, and what is known now.

A manifest never changes. When a report or an approval arrives, another manifest takes it in, with the first as its
parent. Only evidence of this very assembly is taken; what is of something else is refused here, not found by an audit.
"""

from __future__ import annotations

from collections.abc import Iterable

from csf_store import CsfError, Digest, Kind
from manifests.approvals import read_approval
from manifests.errors import InvalidDocumentError, ManifestError, RefusedError
from manifests.evidence import EvalReport
from manifests.kinds import load_any
from manifests.repository import Repository
from manifests.schema import EvalSummary, Manifest, Tripwire
from manifests.signing.envelopes import load_envelope
from manifests.tripwires import TripwireReport


def attach(repository: Repository, digest: Digest, records: Iterable[Digest]) -> Manifest:
    """A manifest with more evidence; it is not stored yet.

    Args:
        repository: where it and the evidence are.
        digest: the manifest.
        records: eval reports, a tripwire report, envelopes of approvals.

    Raises:
        RefusedError: when one is of another assembly, or of no kind that a manifest holds.
        NotFoundError: when one is not there.
    """
    manifest = repository.load(digest).revised(parent=digest)
    for record in records:
        manifest = _with(repository, manifest, record)
    return manifest


def _with(repository: Repository, manifest: Manifest, record: Digest) -> Manifest:
    try:
        document = load_any(repository.archive, record)
    except InvalidDocumentError:
        document = None  # an envelope is no document of ours
    assembly = manifest.assembly.digest
    if isinstance(document, EvalReport | TripwireReport) and document.assembly != assembly:
        raise RefusedError(f"{document.kind_name()} {record} is of assembly {document.assembly}, not of {assembly}")
    if isinstance(document, EvalReport):
        summary = EvalSummary(**dict(document.result), report=record, recipe=document.recipe)
        return manifest.revised(evals=(*manifest.evals, summary))
    if isinstance(document, TripwireReport):
        return manifest.revised(tripwire=Tripwire(status=document.status, report=record, recipe=document.recipe))
    if document is not None:
        raise RefusedError(f"{record} is a {document.kind_name()}; a manifest takes in reports and approvals")
    return manifest.revised(approvals=(*manifest.approvals, _approval_of(repository, manifest, record)))


def _approval_of(repository: Repository, manifest: Manifest, record: Digest) -> Digest:
    if not repository.archive.contains(record, Kind.RECORD):
        raise RefusedError(f"{record} is no record; put the evidence first")
    try:
        approval = read_approval(load_envelope(repository.archive, record))
    except (CsfError, ManifestError) as error:
        raise RefusedError(f"{record} is neither a report nor an approval: {error}") from error
    recipe = manifest.recipe.digest if manifest.recipe is not None else None
    if (approval.assembly, approval.recipe) != (manifest.assembly.digest, recipe):
        raise RefusedError(f"approval {record} is of assembly {approval.assembly} with recipe {approval.recipe}")
    return record
