"""Checks on the ledger itself: every line, what the auditor saw last, and that the manifest is in it."""

from __future__ import annotations

from csf_store import CsfError
from manifests.auditing.context import Context, Lines, Subject
from manifests.auditing.lines import AuditLine, Verdict
from manifests.auditing.state import Remembered


def check_ledger(context: Context) -> Lines:
    """Every line follows the one before by hash, and the refs are where the lines say."""
    facts = context.facts
    for problem in facts.problems:
        yield AuditLine("ledger", Verdict.FAIL, None, problem)
    for seq, problem in facts.book.faults:
        yield AuditLine("ledger", Verdict.FAIL, None, f"{problem} (event {seq})")
    if not facts.problems and facts.checkpoint is not None:
        size, root = facts.checkpoint
        text = f"{size} entries, each naming the one before it; root {root.hex()}"
        yield AuditLine("ledger", Verdict.PASS, None, text)


def check_checkpoint(context: Context, remembered: Remembered | None, place: str) -> Lines:
    """The ledger still begins with what this auditor saw last."""
    now = context.facts.checkpoint
    if now is None or context.facts.problems:
        yield AuditLine("checkpoint", Verdict.FAIL, None, "the ledger cannot be read, so nothing can be compared")
        return
    if remembered is None:
        text = f"first sight of this ledger: {now.size} entries; its checkpoint is kept in {place}"
        yield AuditLine("checkpoint", Verdict.PASS, None, text)
        return
    last = remembered.checkpoint
    if last.size > now.size:
        text = f"the ledger had {last.size} entries when it was last audited, now {now.size}: its tail was cut off"
        yield AuditLine("checkpoint", Verdict.FAIL, None, text)
        return
    try:
        proof = context.archive.ledger.consistency_proof(last.size, now.size)
    except CsfError as error:
        yield AuditLine("checkpoint", Verdict.FAIL, None, str(error))
        return
    if proof.old == last and proof.checkpoint == now and proof.holds():
        text = f"begins with the {last.size} entries seen last; {now.size - last.size} are new"
        yield AuditLine("checkpoint", Verdict.PASS, None, text)
    else:
        text = (
            f"the ledger does not begin with the {last.size} entries seen last (root {last.root.hex()}): entries were"
            " altered, removed or replaced since; compare with a backup"
        )
        yield AuditLine("checkpoint", Verdict.FAIL, None, text)


def check_inclusion(context: Context, subject: Subject) -> Lines:
    """The event that brought the manifest in is in the ledger."""
    seq, now = context.facts.manifests.get(str(subject.digest)), context.facts.checkpoint
    if seq is None or now is None:
        text = "no event of the ledger tells of this manifest"
        yield AuditLine("inclusion", Verdict.UNKNOWN, subject.digest, text)
        return
    try:
        proof = context.archive.ledger.inclusion_proof(seq, now.size)
    except CsfError as error:
        yield AuditLine("inclusion", Verdict.FAIL, subject.digest, str(error))
        return
    holds = proof.checkpoint == now and proof.holds()
    text = f"event {seq} brought it in, proven by {len(proof.path)} hashes" if holds else f"event {seq} is not proven"
    yield AuditLine("inclusion", Verdict.PASS if holds else Verdict.FAIL, subject.digest, text)
