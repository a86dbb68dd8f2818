"""Approvals at work: what one must say to move a ref, and when it is void.

An approval moves one ref once. It counts when a trusted key signed it, when it speaks of this ref, of the assembly and
recipe of the target, of the manifest the ref holds now, and of every report the target carries; when the ledger still
begins with the lines it was given over; and when the ref has not moved since. Anything else is said by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from csf_store import Archive, Checkpoint, CsfError, Digest, RefMove
from manifests import canonical
from manifests.errors import ApprovalRefusedError, ManifestError
from manifests.events import events_of
from manifests.loading import load_document
from manifests.schema import Manifest
from manifests.signing.envelopes import Envelope, Judged, load_envelope
from manifests.signing.in_toto import APPROVAL
from manifests.statements import Approval
from manifests.tripwires import TripwireReport


@dataclass(frozen=True, slots=True)
class SignedApproval:
    """An approval with the event that brought it in and what its signatures are worth."""

    approval: Approval
    seq: int | None
    signatures: tuple[Judged, ...]

    @property
    def counts(self) -> bool:
        """Whether somebody trusted signed it."""
        return any(each.state.counts for each in self.signatures)


def reports_of(manifest: Manifest) -> frozenset[Digest]:
    """Every report a manifest carries: what its approval must have seen."""
    found = {summary.report for summary in manifest.evals}
    return frozenset(found | ({manifest.tripwire.report} if manifest.tripwire.report is not None else set()))


def draft_approval(
    archive: Archive, ref: str, manifest: Manifest, *, incumbent: Digest | None, note: str = ""
) -> Approval:
    """What an operator would sign to let a manifest take over a ref, with everything it depends on.

    Args:
        archive: where both live.
        ref: the ref.
        manifest: what is to take over.
        incumbent: what the ref holds now; None where it holds nothing yet.
        note: why.
    """
    policies = []
    if manifest.tripwire.report is not None:
        policies.append(load_document(archive, manifest.tripwire.report, TripwireReport).policy)
    return Approval(
        ref=ref,
        assembly=manifest.assembly.digest,
        recipe=manifest.recipe.digest if manifest.recipe is not None else None,
        incumbent=incumbent,
        reports=tuple(reports_of(manifest)),
        policies=tuple(policies),
        ledger=str(archive.ledger.checkpoint()),
        note=note,
    )


def read_approval(envelope: Envelope) -> Approval:
    """The approval inside an envelope.

    Raises:
        ApprovalRefusedError: when it says something else.
    """
    statement = envelope.statement
    if statement.predicate_type != APPROVAL:
        raise ApprovalRefusedError(f"this envelope says {statement.predicate_type!r}, which is no approval")
    approval = Approval.from_bytes(canonical.encode(statement.predicate))
    if (statement.subject("assembly"), statement.subject("recipe")) != (approval.assembly, approval.recipe):
        raise ApprovalRefusedError("this approval and its envelope name different assemblies or recipes")
    return approval


def find_approval(archive: Archive, digest: Digest) -> SignedApproval:
    """Read an approval from the archive and judge its signatures by the ledger.

    Raises:
        ApprovalRefusedError: when there is none of that digest.
    """
    try:
        envelope = load_envelope(archive, digest)
        approval = read_approval(envelope)
    except (CsfError, ManifestError) as error:
        raise ApprovalRefusedError(f"{digest} is not an approval: {error}") from error
    told = events_of(archive)
    seq = told.signed.get(str(digest))
    return SignedApproval(approval, seq, envelope.judge(seq, told.book) if seq is not None else ())


def approval_problem(
    digest: Digest, approval: Approval, ref: str, manifest: Manifest, history: Sequence[RefMove]
) -> str | None:
    """Why an approval does not allow a ref to move to a manifest, or None.

    Args:
        digest: of the envelope it came in.
        approval: what was signed.
        ref: the ref.
        manifest: where it is to go.
        history: every move of the ref so far, oldest first.
    """
    return next(_problems(digest, approval, ref, manifest, history), None)


def _problems(
    digest: Digest, approval: Approval, ref: str, manifest: Manifest, history: Sequence[RefMove]
) -> Iterator[str]:
    current = history[-1].target if history else None
    recipe = manifest.recipe.digest if manifest.recipe is not None else None
    if approval.ref != ref:
        yield f"it is for ref {approval.ref!r}, not {ref!r}"
    if approval.assembly != manifest.assembly.digest:
        yield f"it is for assembly {approval.assembly}, the target runs {manifest.assembly.digest}"
    if approval.recipe != recipe:
        yield f"it is for recipe {approval.recipe or 'none'}, the target asks for {recipe or 'none'}"
    for move in history:
        if move.fields.get("approval") == str(digest):
            yield f"it was spent by event {move.seq}"
    if approval.incumbent != current:
        yield f"it was given while the ref was at {approval.incumbent or 'no manifest'}, it is at {current or 'none'}"
    for move in history:
        if move.seq >= Checkpoint.parse(approval.ledger).size and move.fields.get("from") != move.fields["to"]:
            yield f"it is void: the ref moved with event {move.seq}, after the approval was given"
    for unseen in sorted(reports_of(manifest) - set(approval.reports)):
        yield f"whoever gave it did not see report {unseen}, which the target carries"


def ledger_problem(archive: Archive, point: str) -> str | None:
    """Why a ledger is not the one that a statement was made over, or None."""
    told = Checkpoint.parse(point)
    if told.size > archive.ledger.size:
        return f"it was given over a ledger of {told.size} events, this one has {archive.ledger.size}"
    found = archive.ledger.checkpoint(told.size)
    if found != told:
        return f"it was given over a ledger with root {told.root.hex()}, this one had {found.root.hex()} at that size"
    return None
