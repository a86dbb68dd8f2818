"""The audit: from a manifest's digest to a verdict on everything it stands on.

An audit trusts nothing it can check. It reads every object again, decodes it, hashes it, reads the ledger line by line,
and walks the lineage by the records, not by what the manifest says of them. Each check gives lines with a verdict:

- PASS: checked, and as it was recorded.
- FAIL: checked, and not as it was recorded; the line names the culprit.
- UNKNOWN: nothing here proves it and nothing disproves it; a claim without a training record, for instance.
- UNSIGNED: true as far as hashes go, and nobody has signed it.

A check that cannot be made fails: an audit never passes by looking less. What a check raises becomes its line, so one
broken object does not hide the next.

Whether an adapter's tensors fit its base is a question about adapter formats, which live one floor up, so that check is
passed in (`adapters.fit_problem`); without it the line says UNKNOWN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from types import MappingProxyType

from csf_store import Archive, CsfError, Digest, Kind, NotFoundError
from manifests.auditing.context import Context, DocumentCheck, FitCheck, Lines, Subject
from manifests.auditing.document_checks import check_attestations, check_document
from manifests.auditing.evidence_checks import check_evals, check_tripwire
from manifests.auditing.ledger_checks import check_checkpoint, check_inclusion, check_ledger
from manifests.auditing.ledger_facts import read_ledger
from manifests.auditing.lineage_checks import (
    check_code,
    check_fit,
    check_lineage,
    check_objects,
    check_tokenizer,
    check_training,
)
from manifests.auditing.lines import AuditLine, AuditReport, Verdict
from manifests.auditing.live_weights import Recompute, Server
from manifests.auditing.objects import ObjectProver
from manifests.auditing.ref_checks import check_refs
from manifests.auditing.server_checks import Asked, Heard, check_server
from manifests.auditing.signature_checks import check_signatures
from manifests.auditing.state import AuditorState
from manifests.errors import InvalidNameError, ManifestError, RefNotFoundError, ServerSilentError
from manifests.loading import load_manifest
from manifests.ref_names import is_ref_name
from manifests.repository import Repository
from manifests.signing.keys import PublicKey
from manifests.statements import Attestation


class Auditor:
    """One look at one archive: the ledger is read once, and no object is hashed twice, however much is audited.

    Args:
        archive: what to audit.
        fit: whether an adapter's tensors fit a base.
        tied: tensors that a base may leave out of its files, and which tensor each is another name of.
        state: what this auditor remembers; without it nothing is compared with an earlier audit.
        quick: take as proven what was proven before and lies in files that did not change since.
        known: public keys of the auditor's own.
        documents: what is wrong with what a document of a higher floor claims.
        recompute: what a running model must answer; without it, what a server attests stays UNKNOWN.
        progress: called with bytes as they are hashed.
    """

    def __init__(
        self,
        archive: Archive,
        *,
        fit: FitCheck | None = None,
        tied: Mapping[str, str] = MappingProxyType({}),
        state: AuditorState | None = None,
        quick: bool = False,
        known: Mapping[Digest, PublicKey] = MappingProxyType({}),
        documents: DocumentCheck | None = None,
        recompute: Recompute | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self._state = state
        self._kept: set[Digest] = set()
        self._remembered = state.recall(archive) if state is not None else None
        known_sound = self._remembered.unchanged(archive) if quick and self._remembered is not None else {}
        facts = read_ledger(archive)
        prover = ObjectProver(archive, lambda digest: str(digest) in known_sound, progress)
        self._context = Context(
            archive, Repository(archive), facts, prover, fit, tied, known, documents, recompute, progress
        )

    def resolve(self, text: str) -> tuple[Digest, str | None]:
        """The manifest a person means, and the ref if they named one, by the lines of the ledger and no cache.

        Args:
            text: a digest or a unique prefix, a ref, or `REF@TIME`.

        Raises:
            RefNotFoundError, InvalidNameError, csf_store.CsfError: when nothing, or more than one manifest, is meant.
        """
        name, at, time = text.partition("@")
        if not is_ref_name(name):
            return self._context.repository.resolve(text), None
        moves = self._context.facts.moves.get(name, [])
        if at:
            moment = _moment(time)
            moves = [move for move in moves if datetime.fromisoformat(move.time) <= moment]
        if not moves or moves[-1].target is None:
            known = ", ".join(sorted(self._context.facts.moves)) or "none yet"
            raise RefNotFoundError(f"no ref {text!r} in {self._context.archive.path}; refs here: {known}")
        return moves[-1].target, name

    def audit_target(self, text: str) -> AuditReport:
        """Audit what a person means; see `resolve`. A digest that is no manifest's may be that of another document.

        Where the ledger is damaged and no longer says where a ref is, the report says that, and names no manifest.

        Raises:
            RefNotFoundError, InvalidNameError, csf_store.CsfError: when nothing, or more than one manifest, is meant.
        """
        try:
            digest, ref = self.resolve(text)
        except RefNotFoundError:
            lines = self._ledger_lines()
            if all(line.verdict is not Verdict.FAIL for line in lines):
                raise
            return AuditReport(manifest=None, lines=tuple(lines))
        except NotFoundError:
            if is_ref_name(text):
                raise
            return self.audit_document(self._context.archive.resolve(text, kind=Kind.RECORD))
        return self.audit(digest, ref=ref)

    def audit_document(self, digest: Digest) -> AuditReport:
        """Check one record by itself: a report, a policy, a Convergence Record, an attestation."""
        lines = [*self._ledger_lines(), *_told("document", digest, lambda: check_document(self._context, digest))]
        self._remember(lines)
        return AuditReport(manifest=None, lines=tuple(lines))

    def planned_bytes(self, text: str) -> int:
        """About how many bytes an audit of this target hashes, for a progress bar; 0 where it means nothing here."""
        context = self._context
        try:
            target, _ = self.resolve(text)
            manifest = load_manifest(context.archive, target)
            roots = [target]
            for name, moves in context.facts.moves.items():
                if moves[-1].target == target:
                    with suppress(CsfError, ManifestError):
                        roots.append(context.repository.refs.rollback_target(name))
            total = context.prover.planned_bytes({found for root in roots for found in context.prover.reach(root)})
            if manifest.lineage:  # what was trained on is compared tensor by tensor
                total += sum(entry.size for entry in context.archive.tree(manifest.assembly.base).entries)
        except (CsfError, ManifestError):
            return 0
        return total

    def audit_server(self, server: Server, text: str | None = None) -> ServerAudit:
        """Ask a running server what it runs, hold its live weights against the archive, and audit what it runs.

        Args:
            server: whom to ask.
            text: the ref or manifest that it should run, or a name of its own for one; everything in its memory if
                nothing is given.

        Raises:
            InvalidNameError: for `REF@TIME`: a server runs now.
        """
        if text is not None and "@" in text and is_ref_name(text.partition("@")[0]):
            raise InvalidNameError(f"a server runs now: leave the time out of {text!r}")
        lines: list[AuditLine] = []
        heard: list[Heard] = []
        try:
            questions = self._questions(server, text)
        except ServerSilentError as error:
            questions = []
            lines.append(AuditLine("endpoint", Verdict.UNKNOWN, None, f"{server.url}: {error}"))
        for asked in questions:
            heard.append(Heard())
            check = partial(check_server, self._context, server, asked, heard[-1])
            lines += _told("endpoint", asked.target, check)
        if text is None and not questions and not lines:
            text = f"{server.url} has no model in memory; name one, and it loads it"
            lines.append(AuditLine("endpoint", Verdict.UNKNOWN, None, text))
        manifests = list(dict.fromkeys(each.manifest for each in heard if each.manifest is not None))
        reports = [self.audit(manifest) for manifest in manifests]
        lines += dict.fromkeys(line for report in reports for line in report.lines) or self._ledger_lines()
        attestations = tuple(each.attestation for each in heard if each.attestation is not None)
        only = manifests[0] if len(manifests) == 1 else None
        return ServerAudit(AuditReport(manifest=only, lines=tuple(lines)), attestations)

    def _questions(self, server: Server, text: str | None) -> list[Asked]:
        if text is None:
            loaded = {model.name: model for model in server.models() if model.loaded}
            return [Asked(name, name if name in self._context.facts.moves else None) for name in loaded]
        try:
            target, ref = self.resolve(text)
        except (RefNotFoundError, CsfError):
            return [Asked(text)]  # a name of the server's own, or of a model that only the server has
        return [Asked(ref or str(target), ref, target)]

    def _ledger_lines(self) -> list[AuditLine]:
        context = self._context
        lines = _told("ledger", None, lambda: check_ledger(context))
        if self._state is not None:
            place = str(self._state.directory)
            lines += _told("checkpoint", None, lambda: check_checkpoint(context, self._remembered, place))
        return lines

    def audit(self, manifest: Digest, *, ref: str | None = None) -> AuditReport:
        """Check a manifest and everything under it.

        Args:
            manifest: its digest.
            ref: a ref whose moves are to be checked even if it is elsewhere now.
        """
        context = self._context
        lines = self._ledger_lines()
        try:
            loaded = load_manifest(context.archive, manifest)
        except (CsfError, ManifestError) as error:
            lines.append(AuditLine("manifest", Verdict.FAIL, manifest, str(error)))
            return AuditReport(manifest=manifest, lines=tuple(lines))
        text = f"canonical and well-formed, schema version {loaded.v}, assembly {loaded.assembly.digest.short}"
        lines.append(AuditLine("manifest", Verdict.PASS, manifest, text))
        subject = Subject(manifest, loaded)
        checks: dict[str, Callable[[], Lines]] = {
            "inclusion": lambda: check_inclusion(context, subject),
            "objects": lambda: check_objects(context, subject),
            "code": lambda: check_code(subject),
            "tokenizer": lambda: check_tokenizer(context, subject),
            "lineage": lambda: check_lineage(context, subject),
            "training": lambda: check_training(context, subject),
            "fit": lambda: check_fit(context, subject),
            "eval": lambda: check_evals(context, subject),
            "tripwire": lambda: check_tripwire(context, subject),
            "attestation": lambda: check_attestations(context, loaded),
            "approvals": lambda: check_signatures(context, subject),
            "ref": lambda: check_refs(context, subject, ref),
        }
        for name, check in checks.items():
            lines += _told(name, manifest, check)
        self._remember(lines)
        return AuditReport(manifest=manifest, lines=tuple(lines))

    def _remember(self, lines: list[AuditLine]) -> None:
        """Keep the checkpoint if the ledger is sound; a ledger that is not must not become what is compared with."""
        facts = self._context.facts
        bad = any(line.verdict is Verdict.FAIL and line.check in {"ledger", "checkpoint"} for line in lines)
        if self._state is None or bad or facts.checkpoint is None:
            return
        fresh = [digest for digest in self._context.prover.proven() if digest not in self._kept]
        if not fresh and self._remembered is not None and self._remembered.checkpoint == facts.checkpoint:
            return
        self._state.keep(self._context.archive, facts.checkpoint, fresh)
        self._kept.update(fresh)


@dataclass(frozen=True)
class ServerAudit:
    """What came of asking a server: the report, and the attestations that were right and may be kept as evidence."""

    report: AuditReport
    attestations: tuple[Attestation, ...]


def audit(archive: Archive, manifest: Digest, *, fit: FitCheck | None = None) -> AuditReport:
    """One audit without memory; see `Auditor`."""
    return Auditor(archive, fit=fit).audit(manifest)


def _told(check: str, subject: Digest | None, lines: Callable[[], Lines]) -> list[AuditLine]:
    """The lines of a check; what stopped it is its last line."""
    told: list[AuditLine] = []
    try:
        told.extend(lines())
    except (CsfError, ManifestError) as error:
        told.append(AuditLine(check, Verdict.FAIL, subject, f"the check could not be made: {error}"))
    return told


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise InvalidNameError(f"{text!r} is not a time; write REF@2026-01-31T12:00:00Z") from error
    if moment.tzinfo is None:
        raise InvalidNameError(f"{text!r} has no time zone; write REF@2026-01-31T12:00:00Z")
    return moment
