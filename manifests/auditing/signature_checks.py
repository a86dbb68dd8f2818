"""Checks on people's words: approvals and signatures, by keys that were trusted when they were given."""

from __future__ import annotations

from csf_store import CsfError, Digest
from manifests import canonical
from manifests.approvals import ledger_problem, read_approval, reports_of
from manifests.auditing.context import Context, Lines, Subject
from manifests.auditing.lines import AuditLine, Verdict
from manifests.canonical import Json
from manifests.errors import ManifestError
from manifests.signing.envelopes import Envelope, Judged, SignatureState, load_envelope
from manifests.signing.in_toto import MANIFEST
from manifests.signing.signatures import FoundSignature, signatures_of
from manifests.statements import Approval

_GRAVE = {SignatureState.BAD, SignatureState.REVOKED}


def verdict_of(signatures: tuple[Judged, ...]) -> Verdict:
    """PASS if one signature counts and none is false; FAIL for a false one; else nobody known has spoken."""
    states = {each.state for each in signatures}
    if states & _GRAVE:
        return Verdict.FAIL
    return Verdict.PASS if any(state.counts for state in states) else Verdict.UNKNOWN


def check_signatures(context: Context, subject: Subject) -> Lines:
    """Approvals that the manifest names, and signatures on the manifest itself."""
    found = signatures_of(context.archive, subject.digest, events=context.facts, known=context.known)
    approvals = subject.manifest.approvals
    for digest in approvals:
        yield _approval(context, subject, digest)
    for each in found:
        yield _signature(subject, each)
    if not approvals and not found:
        yield AuditLine("approvals", Verdict.UNSIGNED, subject.digest, "nobody has signed this manifest")


def judged_approval(context: Context, digest: Digest) -> tuple[Approval, tuple[Judged, ...], int | None]:
    """An approval, what its signatures are worth, and the event that brought it in.

    Raises:
        ManifestError, csf_store.CsfError: when there is no approval of that digest.
    """
    envelope: Envelope = load_envelope(context.archive, digest)
    seq = context.facts.signed.get(str(digest))
    signatures = envelope.judge(seq, context.facts.book, context.known) if seq is not None else ()
    return read_approval(envelope), signatures, seq


def _approval(context: Context, subject: Subject, digest: Digest) -> AuditLine:
    manifest = subject.manifest
    recipe = manifest.recipe.digest if manifest.recipe is not None else None
    try:
        approval, signatures, seq = judged_approval(context, digest)
    except (CsfError, ManifestError) as error:
        return AuditLine("approvals", Verdict.FAIL, digest, f"it cannot be read: {error}")
    problem = None
    if approval.assembly != manifest.assembly.digest:
        problem = f"it was given for assembly {approval.assembly}, this manifest runs {manifest.assembly.digest}"
    elif approval.recipe != recipe:
        problem = f"it was given for recipe {approval.recipe or 'none'}, this manifest asks for {recipe or 'none'}"
    elif unseen := sorted(reports_of(manifest) - set(approval.reports)):
        problem = f"whoever gave it did not see report {unseen[0]}, which this manifest carries"
    elif seq is None:
        problem = "the ledger never heard of it"
    else:
        problem = ledger_problem(context.archive, approval.ledger)
    if problem:
        return AuditLine("approvals", Verdict.FAIL, digest, problem)
    text = f"for ref {approval.ref!r}, by {'; '.join(each.text for each in signatures)}"
    return AuditLine("approvals", verdict_of(signatures), digest, text)


def _signature(subject: Subject, found: FoundSignature) -> AuditLine:
    if found.problem is not None or found.statement is None:
        return AuditLine("signature", Verdict.FAIL, found.envelope, found.problem or "it cannot be read")
    statement = found.statement.statement
    if statement.predicate_type == MANIFEST and (problem := _manifest_problem(subject, statement.predicate)):
        return AuditLine("signature", Verdict.FAIL, found.envelope, problem)
    text = "; ".join(each.text for each in found.signatures)
    return AuditLine("signature", verdict_of(found.signatures), found.envelope, text)


def _manifest_problem(subject: Subject, predicate: canonical.JsonObject) -> str | None:
    manifest = subject.manifest
    recipe: Json = str(manifest.recipe.digest) if manifest.recipe is not None else None
    if (predicate.get("assembly"), predicate.get("recipe")) != (str(manifest.assembly.digest), recipe):
        return "it speaks of another assembly or recipe than the manifest it names"
    return None
