"""The audit of a running server: which manifest it says it runs, and whether its live weights are those.

The auditor makes a nonce that never was, lets the server hash its live tensors with it, and compares with what the
archive says they must be. If they differ, it asks again tensor by tensor, so that the culprit can be named. A server
that does not answer proves nothing either way: UNKNOWN.
"""

from __future__ import annotations

import secrets
from collections.abc import Generator, Set
from dataclasses import dataclass

from csf_store import CsfError, Digest
from manifests.auditing.context import Context, Lines
from manifests.auditing.lines import AuditLine, Verdict
from manifests.auditing.live_weights import CAVEAT, LiveWeights, Server, ServerAnswer, culprits
from manifests.errors import InvalidDocumentError, ManifestError, NotServedError, ServerSilentError
from manifests.loading import load_manifest
from manifests.schema import Manifest
from manifests.statements import Attestation

NAMED = 4
"""Culprits that a line names; it counts the rest."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One question to a server and what is expected of it.

    Attributes:
        model: the name to ask under.
        ref: the ref of this archive that the name is, if it is one.
        target: the manifest that should answer, if somebody said so.
    """

    model: str
    ref: str | None = None
    target: Digest | None = None


@dataclass(slots=True)
class Heard:
    """What came of it: the manifest that answered, as far as it is known here, and a sound attestation to keep."""

    manifest: Digest | None = None
    attestation: Attestation | None = None


def check_server(context: Context, server: Server, asked: Asked, heard: Heard) -> Lines:
    """Ask once with a fresh nonce, and judge everything that the answer says.

    Args:
        context: the archive that the server is compared with.
        server: whom to ask.
        asked: about what.
        heard: filled with what was learned.
    """
    nonce = secrets.token_hex(32)
    try:
        answer = server.attest(asked.model, nonce)
        attestation = Attestation.from_bytes(answer.body)
    except NotServedError as error:
        yield AuditLine("endpoint", Verdict.FAIL, asked.target, f"{server.url}: {error}")
        return
    except ServerSilentError as error:
        yield AuditLine("endpoint", Verdict.UNKNOWN, asked.target, f"{server.url}: {error}")
        return
    except InvalidDocumentError as error:
        yield AuditLine("endpoint", Verdict.FAIL, asked.target, f"{server.url} answers with no attestation: {error}")
        return
    versions = ", ".join(f"{name} {version}" for name, version in attestation.libraries.items())
    text = f"{server.url} answers for {asked.model!r} on {attestation.device}, {versions}"
    yield AuditLine("endpoint", Verdict.PASS, attestation.digest, text)
    fresh = attestation.nonce == nonce
    said = "the answer is to the nonce just made" if fresh else "the answer is to another nonce: stale, or given before"
    yield AuditLine("nonce", Verdict.PASS if fresh else Verdict.FAIL, attestation.digest, said)
    served = yield from _serving(context, asked, answer, attestation, heard)
    if served is None or heard.manifest is None:
        return
    sound = fresh
    for line in _live(context, server, asked, served, attestation):
        sound = sound and line.verdict is Verdict.PASS
        yield line
    heard.attestation = attestation if sound else None


def _serving(
    context: Context, asked: Asked, answer: ServerAnswer, attestation: Attestation, heard: Heard
) -> Generator[AuditLine, None, Manifest | None]:
    """Whether what the server says it runs is what it should run; returns that manifest, if it is here."""
    try:
        digest = Digest.parse(answer.manifest)
        manifest = load_manifest(context.archive, digest)
    except (CsfError, ManifestError) as error:
        text = f"the server says it runs {answer.manifest[:80]!r}, of which this archive knows nothing: {error}"
        yield AuditLine("serving", Verdict.UNKNOWN, None, text)
        return None
    heard.manifest = digest
    if attestation.assembly != manifest.assembly.digest:
        text = f"it says it runs this manifest, and attests assembly {attestation.assembly}"
        yield AuditLine("serving", Verdict.FAIL, digest, text)
        return None
    if asked.ref is None and asked.target not in {None, digest}:
        yield AuditLine("serving", Verdict.FAIL, digest, f"it answers with this manifest, asked for {asked.target}")
    else:
        text = f"it says it runs this manifest, assembly {attestation.assembly.short}, which is in this archive"
        yield AuditLine("serving", Verdict.PASS, digest, text)
    if asked.ref is not None:
        yield _ref_line(context, asked.ref, digest)
    return manifest


def _ref_line(context: Context, ref: str, digest: Digest) -> AuditLine:
    moves = context.facts.moves.get(ref, [])
    there = context.repository.refs.find(ref)  # it may have moved since the ledger was read
    if digest in {there, moves[-1].target if moves else None}:
        return AuditLine("served-ref", Verdict.PASS, digest, f"ref {ref!r} points at it here, too")
    was = [number for number, move in enumerate(moves) if move.target == digest]
    if not was:
        text = f"ref {ref!r} is at {there or 'no manifest'} here, and was never at what the server runs"
    else:
        left = moves[was[-1] + 1].seq
        text = f"ref {ref!r} left it with event {left} and is at {there} now: the server runs what was before"
    return AuditLine("served-ref", Verdict.FAIL, digest, text)


def _live(
    context: Context,
    server: Server,
    asked: Asked,
    manifest: Manifest,
    attestation: Attestation,
) -> Lines:
    expected = expected_weights(context, manifest, attestation)
    subject = attestation.assembly
    if isinstance(expected, str):
        yield AuditLine("live", Verdict.UNKNOWN, subject, expected)
        return
    if expected.value == attestation.value and len(expected.tensors) == attestation.tensors:
        text = f"{attestation.tensors} live tensors hash to what the archive gives with recipe"
        yield AuditLine("live", Verdict.PASS, subject, f"{text} {attestation.recipe.short}; {CAVEAT}")
        return
    try:
        found = culprits(server.tensors(asked.model, attestation.nonce), expected.tensors)
    except ManifestError as error:
        text = f"the live weights are not those of the archive; which, the server does not say ({error})"
        yield _differs(expected, expected.quantized, attestation, text)
        return
    if not found:
        text = "each tensor is as recorded, and all of them together are not: another nonce, or changed in between"
        yield AuditLine("live", Verdict.FAIL, subject, text)
        return
    named = "; ".join(f"{name} {what}" for name, what in list(found.items())[:NAMED])
    more = f", and {len(found) - NAMED} more" if len(found) > NAMED else ""
    text = f"the live weights are not those of the archive: {named}{more}"
    yield _differs(expected, found.keys(), attestation, text)


def expected_weights(context: Context, manifest: Manifest, attestation: Attestation) -> LiveWeights | str:
    """What an attestation of a manifest must say, or why nobody here can tell."""
    if context.recompute is None:
        return "what the live weights must hash to was not computed"
    return context.recompute(context.archive, manifest, attestation.recipe, attestation.nonce)


def _differs(expected: LiveWeights, found: Set[str], attestation: Attestation, text: str) -> AuditLine:
    here, there = (each.get("bitsandbytes") for each in (expected.libraries, attestation.libraries))
    if found and found <= expected.quantized and here != there:
        # Another version may quantize to other numbers, and nothing would be wrong.
        text = f"{text}. It quantizes with bitsandbytes {there}, here is {here}: audit with the same version"
        return AuditLine("live", Verdict.UNKNOWN, attestation.assembly, text)
    return AuditLine("live", Verdict.FAIL, attestation.assembly, text)
