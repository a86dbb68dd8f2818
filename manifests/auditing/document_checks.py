"""The audit of one document by itself: a report, a policy, a record, an attestation.

Three questions are the same for every kind: is it canonical and well-formed, what does the ledger tell of it, and are
it and everything it names there and unaltered? The fourth is what the document claims, computed again where that is
possible: a score from its items, a verdict from its measures and its policy, live weights from the archive.
"""

from __future__ import annotations

from csf_store import CsfError, Digest, Kind
from manifests.auditing.context import Context, Lines
from manifests.auditing.evidence_checks import items_problem, wire_report_problem
from manifests.auditing.lines import AuditLine, Verdict
from manifests.auditing.server_checks import expected_weights
from manifests.auditing.signature_checks import verdict_of
from manifests.document import Document
from manifests.errors import InvalidDocumentError, ManifestError, SchemaVersionError
from manifests.evidence import EvalReport
from manifests.finding import ManifestQuery
from manifests.kinds import load_any
from manifests.schema import Manifest
from manifests.signing.envelopes import load_envelope
from manifests.signing.signatures import signatures_of
from manifests.statements import Attestation
from manifests.tripwires import TripwireReport


def check_document(context: Context, digest: Digest) -> Lines:
    """Everything that can be said of a stored record."""
    try:
        document = load_any(context.archive, digest)
    except SchemaVersionError as error:
        yield from _of_no_kind(context, digest, error)
        return
    except (CsfError, ManifestError) as error:
        yield AuditLine("document", Verdict.FAIL, digest, str(error))
        return
    text = f"a {document.kind_name()}, canonical and well-formed, schema version {document.VERSION}"
    yield AuditLine("document", Verdict.PASS, digest, text)
    yield _told(context, document, digest)
    yield from _objects(context, digest)
    yield from _claims(context, document, digest)


def _of_no_kind(context: Context, digest: Digest, error: ManifestError) -> Lines:
    """An envelope, which is no document of ours but a form of somebody else's; or a kind that has no rules here."""
    try:
        envelope = load_envelope(context.archive, digest)
    except InvalidDocumentError:
        yield AuditLine("document", Verdict.UNKNOWN, digest, f"nothing here has rules for it: {error}")
        yield from _objects(context, digest)
        return
    said = envelope.statement.predicate_type
    yield AuditLine("document", Verdict.PASS, digest, f"an envelope, canonical and well-formed, that says {said}")
    found = signatures_of(context.archive, digest, events=context.facts, known=context.known)
    if not found:
        yield AuditLine("inclusion", Verdict.UNKNOWN, digest, "no event of the ledger tells of this envelope")
    for each in found:
        if each.problem is not None:
            yield AuditLine("signature", Verdict.FAIL, digest, each.problem)
        else:
            text = "; ".join(judged.text for judged in each.signatures)
            yield AuditLine("signature", verdict_of(each.signatures), digest, f"event {each.seq}: {text}")
    yield from _objects(context, digest)


def _objects(context: Context, digest: Digest) -> Lines:
    objects = context.prover.reach(digest)
    problems = context.prover.problems(objects)
    for bad, problem in sorted(problems.items()):
        yield AuditLine("objects", Verdict.FAIL, bad, problem)
    if not problems:
        text = f"{len(objects)} objects decoded and re-hashed to their addresses"
        yield AuditLine("objects", Verdict.PASS, digest, text)


def _told(context: Context, document: Document, digest: Digest) -> AuditLine:
    seq = context.facts.evidence.get(str(digest))
    if seq is None:
        return AuditLine("inclusion", Verdict.UNKNOWN, digest, "no event of the ledger tells of this document")
    fields, told = document.to_json(), context.facts.entries[seq].fields
    for name in ("kind", "assembly", "recipe", "status"):
        if told.get(name) is not None and told.get(name) != fields.get(name):
            text = f"event {seq} tells of it with {name} {told.get(name)!r}, it says {fields.get(name)!r}"
            return AuditLine("inclusion", Verdict.FAIL, digest, text)
    return AuditLine("inclusion", Verdict.PASS, digest, f"event {seq} brought it in")


def _claims(context: Context, document: Document, digest: Digest) -> Lines:
    if isinstance(document, Attestation):
        yield _attested(context, document, digest)
        return
    problem, said = None, "nothing in it can be computed again"
    if isinstance(document, EvalReport):
        said = "its score was computed again from its items" if document.items is not None else "it keeps no items"
        problem = items_problem(context, document)
    elif isinstance(document, TripwireReport):
        said = "judged again by its policy, which came first"
        problem = wire_report_problem(context, digest, document)
    elif context.documents is None:
        yield AuditLine("claims", Verdict.UNKNOWN, digest, "what it claims was not checked")
        return
    if problem is None and context.documents is not None:
        problem = context.documents(context.archive, document, context.facts)
        said = "what it claims follows from what it names" if not isinstance(document, EvalReport) else said
    yield AuditLine("claims", Verdict.FAIL if problem else Verdict.PASS, digest, problem or said)


def check_attestations(context: Context, manifest: Manifest) -> Lines:
    """What servers attested of this assembly and was kept: each a sound document, and no nonce used twice.

    The live weights are not computed again here; that is the audit of the attestation itself.
    """
    nonces: dict[str, Digest] = {}
    for found in context.facts.attestations.get(str(manifest.assembly.digest), ()):
        problems = context.prover.problems([found])
        if problems or not context.archive.contains(found, Kind.RECORD):
            yield AuditLine("attestation", Verdict.FAIL, found, problems.get(found, "it is gone from the archive"))
            continue
        document = context.repository.load_record(found, Attestation)
        if document.assembly != manifest.assembly.digest:
            text = f"the ledger tells of it for this assembly, it is of {document.assembly}"
            yield AuditLine("attestation", Verdict.FAIL, found, text)
        elif (other := nonces.setdefault(document.nonce, found)) != found:
            text = f"it answers to the nonce of {other}: an answer that was given before proves nothing"
            yield AuditLine("attestation", Verdict.FAIL, found, text)
        else:
            text = f"a server on {document.device} attested recipe {document.recipe.short}; audit it to see it computed"
            yield AuditLine("attestation", Verdict.PASS, found, text)


def _attested(context: Context, document: Attestation, digest: Digest) -> AuditLine:
    manifest = next((m for _, m in context.repository.find(ManifestQuery(assembly=document.assembly))), None)
    if manifest is None:
        text = f"no manifest here runs assembly {document.assembly}, of which it speaks"
        return AuditLine("live", Verdict.UNKNOWN, digest, text)
    expected = expected_weights(context, manifest, document)
    if isinstance(expected, str):
        return AuditLine("live", Verdict.UNKNOWN, digest, expected)
    if (expected.value, len(expected.tensors)) == (document.value, document.tensors):
        text = "the archive gives the same value under its nonce: these weights were live when it was made"
        return AuditLine("live", Verdict.PASS, digest, text)
    here, there = (each.get("bitsandbytes") for each in (expected.libraries, document.libraries))
    if expected.quantized and here != there:
        text = f"the archive gives another value; it was quantized with bitsandbytes {there}, here is {here}"
        return AuditLine("live", Verdict.UNKNOWN, digest, text)
    text = f"the archive gives {expected.value} over {len(expected.tensors)} tensors, it says {document.value}"
    return AuditLine("live", Verdict.FAIL, digest, text)
