"""What an entry is worth at this moment, found out anew each time somebody asks.

Verified is who won a head-to-head *here*: the report is in this archive, it is of this very model, its items give its
numbers, its verdict is IMPROVED, and an operator's trusted key signed it. Whatever of that fails is the reason, in
words. A ref that moved is another model than the one that won, and has to win again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from csf_store import CsfError, Digest
from keystone.evaluation.head_to_head import report_problem
from manifests import HeadToHead, ManifestError, RegistryEntry, Repository, head_to_head_statement, signatures_of

LOCAL: Final = "keystone:"
_SCALE: Final = 100


@dataclass(frozen=True)
class Standing:
    """An entry, judged.

    Attributes:
        entry: as registered.
        verified: whether it has won a head-to-head that holds up now.
        reason: why, or why not.
        capability: 0 to 100: the measured pass rate if verified, else what was claimed.
        current: the manifest that a model of this archive means now; None where there is none.
        stale: why what is registered is not what is there now; None where it is.
    """

    entry: RegistryEntry
    verified: bool
    reason: str
    capability: float | None
    current: Digest | None = None
    stale: str | None = None

    @property
    def vram_bytes(self) -> int | None:
        """What it takes; None where that is not known of what is there now."""
        return None if self.stale is not None else self.entry.vram_bytes


def standing_of(repository: Repository, entry: RegistryEntry) -> Standing:
    """Judge one entry."""
    current, stale = _current(repository, entry)
    if stale is not None:
        return Standing(entry, False, stale, entry.capability, current, stale)
    if entry.report is None:
        return Standing(entry, False, "it never won a head-to-head here", entry.capability, current)
    try:
        report = repository.load_record(entry.report, HeadToHead)
    except (CsfError, ManifestError) as error:
        return Standing(entry, False, f"its report cannot be read: {error}", entry.capability, current)
    problem = verification_problem(repository, entry, entry.report, report)
    if problem is not None:
        return Standing(entry, False, problem, entry.capability, current)
    rate = round(_SCALE * report.candidate.passed / report.n, 4)
    rival = report.opponent.model or f"assembly {report.opponent.assembly}"
    return Standing(entry, True, f"it won against {rival} on {report.suite}", rate, current)


def verification_problem(
    repository: Repository, entry: RegistryEntry, digest: Digest, report: HeadToHead
) -> str | None:
    """Why a report does not verify an entry, or None."""
    if report.candidate.identity != entry.identity:
        told = " ".join(report.candidate.identity)
        return f"report {digest.short} is of another model: {told[:200]}"
    if not report.won:
        return f"report {digest.short} is no win: {report.verdict}"
    if (problem := report_problem(repository, digest, report)) is not None:
        return f"report {digest.short} does not hold: {problem}"
    # A signature on something else that happens to name the report says nothing about who won.
    meant = head_to_head_statement(digest, report).to_bytes()
    found = [
        each
        for each in signatures_of(repository.archive, digest)
        if each.statement is not None and each.statement.statement.to_bytes() == meant
    ]
    if not any(each.problem is None and any(s.state.counts for s in each.signatures) for each in found):
        said = "; ".join(s.text for each in found for s in each.signatures) or "nobody signed it"
        return f"report {digest.short} bears no signature that counts: {said}"
    return None


def _current(repository: Repository, entry: RegistryEntry) -> tuple[Digest | None, str | None]:
    if not entry.is_local:
        return None, None
    name = entry.endpoint.removeprefix(LOCAL)
    try:
        digest = repository.resolve(name)
        manifest = repository.load(digest)
    except (CsfError, ManifestError) as error:
        return None, f"{name} is not in this archive: {error}"
    if manifest.assembly.digest != entry.assembly:
        return digest, f"{name} has moved to another assembly since it was registered; `keystone models refresh`"
    if manifest.recipe is not None and manifest.recipe.digest != entry.recipe:
        return digest, f"{name} is held by another recipe since it was registered; `keystone models refresh`"
    return digest, None
