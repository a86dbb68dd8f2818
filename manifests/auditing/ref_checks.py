"""Checks on the names that lead here: every move, the approvals behind them, and the way back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from csf_store import CsfError, Digest, RefMove
from manifests.approvals import approval_problem, ledger_problem
from manifests.auditing.context import Context, Lines, Subject
from manifests.auditing.lines import AuditLine, Verdict
from manifests.auditing.signature_checks import judged_approval
from manifests.errors import ManifestError
from manifests.loading import load_manifest
from manifests.schema import Manifest


def check_refs(context: Context, subject: Subject, asked: str | None = None) -> Lines:
    """Every ref that is at the manifest now, and the one that was asked about."""
    for name, moves in sorted(context.facts.moves.items()):
        if moves[-1].target != subject.digest and name != asked:
            continue
        faults = list(_move_faults(context, name, moves))
        yield from faults
        if not faults:
            guarded = any(move.fields.get("protected") is True for move in moves)
            text = f"ref {name!r}: {len(moves)} moves, each from where the last ended"
            said = f"{text}; protected, and every move since was approved or went back" if guarded else text
            yield AuditLine("ref", Verdict.PASS, moves[-1].target, said)
        if moves[-1].target == subject.digest:
            yield _way_back(context, name, moves)


def _move_faults(context: Context, name: str, moves: Sequence[RefMove]) -> Lines:
    before: Digest | None = None
    protected = False
    for number, move in enumerate(moves):
        told = move.fields.get("from")
        if told != (str(before) if before is not None else None):
            text = f"ref {name!r}: ledger entry {move.seq} moves it from {told}, it was at {before}"
            yield AuditLine("ref", Verdict.FAIL, move.target, text)
        moved = move.target != before
        if protected and moved and (problem := _unapproved(context, name, moves[:number], move)):
            text = f"ref {name!r}: ledger entry {move.seq} moves a protected ref: {problem}"
            yield AuditLine("ref", Verdict.FAIL, move.target, text)
        protected = protected or move.fields.get("protected") is True
        before = move.target


def _unapproved(context: Context, name: str, history: Sequence[RefMove], move: RefMove) -> str | None:
    """Why a move of a protected ref should not have been possible, or None."""
    if move.target is None:
        return "the name was taken away"
    try:
        manifest = load_manifest(context.archive, move.target)
        if move.fields.get("rollback") is True:
            known = any(earlier.target == move.target for earlier in history)
            good = not manifest.assembly.adapters or (known and manifest.tripwire.status == "clear")
            return None if good else f"as a rollback, to {move.target}, which was no safe place"
        return next(_approval_problems(context, name, history, move, manifest), None)
    except (CsfError, ManifestError) as error:
        return str(error)


def _approval_problems(
    context: Context, name: str, history: Sequence[RefMove], move: RefMove, manifest: Manifest
) -> Iterator[str]:
    told = move.fields.get("approval")
    if not isinstance(told, str):
        yield "without an approval"
        return
    digest = Digest.parse(told)
    approval, signatures, seq = judged_approval(context, digest)
    for problem in (
        approval_problem(digest, approval, name, manifest, history),
        ledger_problem(context.archive, approval.ledger),
    ):
        if problem:
            yield f"approval {digest}: {problem}"
    if seq is None or seq > move.seq:
        yield f"approval {digest} was not in the ledger before it"
    if not any(each.state.counts for each in signatures):
        yield f"approval {digest} is {'; '.join(each.text for each in signatures)}"


def _way_back(context: Context, name: str, moves: Sequence[RefMove]) -> AuditLine:
    current = moves[-1].target
    if all(move.target in {None, current} for move in moves):
        text = f"ref {name!r} has only ever been here: nothing to roll back to yet"
        return AuditLine("rollback", Verdict.PASS, current, text)
    try:
        target = context.repository.refs.rollback_target(name)
        load_manifest(context.archive, target)
        problems = context.prover.problems(context.prover.reach(target))
    except (CsfError, ManifestError) as error:
        return AuditLine("rollback", Verdict.FAIL, current, f"ref {name!r}: {error}")
    for digest, problem in sorted(problems.items()):
        text = f"ref {name!r}: {target} is not a sound target: {problem} ({digest})"
        return AuditLine("rollback", Verdict.FAIL, target, text)
    return AuditLine("rollback", Verdict.PASS, target, f"ref {name!r} can go back to {target.short}, verified")
