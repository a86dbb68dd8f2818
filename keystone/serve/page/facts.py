"""What the page shows, as JSON: refs and their moves, manifests with their scores, the tripwire's measures.

Everything is read from the archive when it is asked for; documents never change, so each is read once. What cannot be
read is shown as such, with the reason: an operator who looks at a damaged archive needs the page most.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from csf_store import Archive, CsfError, Digest
from manifests import (
    EvalSummary,
    JsonObject,
    Manifest,
    ManifestError,
    RefEvent,
    Repository,
    RollbackRefusedError,
    TripwirePolicy,
    TripwireReport,
    judge_tripwire,
)

MOST_MOVES = 200
"""Moves of one ref that the page lists; the newest are kept."""

MOST_CHOICES = 8
"""Earlier targets that a rollback offers."""


class Facts:
    """One archive, in the page's words.

    Args:
        archive: open; stays the caller's.
    """

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._repository = Repository(archive)
        self._load = lru_cache(maxsize=1024)(self._repository.load)

    def state(self) -> JsonObject:
        """The refs, every manifest they ever pointed at, and how long the ledger is."""
        refs = self._repository.refs
        size = self._archive.ledger.size
        found = [self._ref(name) for name in refs.names()]
        targets = {event.target for name in refs.names() for event in refs.history(name)[-MOST_MOVES:] if event.target}
        return {
            "archive": self._archive.path.name,
            "ledger": {"size": size, "root": self._archive.ledger.root(size).hex()},
            "refs": found,
            "manifests": {str(digest): self.summary(digest) for digest in sorted(targets)},
        }

    def _ref(self, name: str) -> JsonObject:
        refs = self._repository.refs
        history = refs.history(name)
        protected = refs.is_protected(name)
        earlier = dict.fromkeys(event.target for event in reversed(history))
        choices = [digest for digest in earlier if digest is not None and digest != history[-1].target][:MOST_CHOICES]
        # What is no good place to go back to is shown with the reason, as the command line would give it.
        refused = {digest: refs.why_not_good(digest) if protected else None for digest in choices}
        try:
            back: JsonObject = {"target": str(refs.rollback_target(name)), "why": None}
        except RollbackRefusedError as error:
            back = {"target": None, "why": str(error)}
        back = {**back, "choices": [{"target": str(digest), "refused": why} for digest, why in refused.items()]}
        return {
            "name": name,
            "target": str(history[-1].target) if history[-1].target else None,
            "protected": protected,
            "moved": history[-1].time.isoformat(),
            "back": back,
            "moves": len(history),
            "history": [_move(event) for event in history[-MOST_MOVES:]],
        }

    def summary(self, digest: Digest) -> JsonObject:
        """A manifest in a few words."""
        try:
            manifest = self._load(digest)
        except (CsfError, ManifestError) as error:
            return {"digest": str(digest), "problem": str(error)}
        return {
            "digest": str(digest),
            "problem": None,
            "base": str(manifest.assembly.base),
            "assembly": str(manifest.assembly.digest),
            "adapters": [{"adapter": str(u.adapter), "weight": u.weight} for u in manifest.assembly.adapters],
            "source": manifest.source.location,
            "licence": manifest.source.licence,
            "recipe": _recipe(manifest),
            "tripwire": manifest.tripwire.status,
            "parent": str(manifest.parent) if manifest.parent else None,
            "scores": [_score(score) for score in manifest.evals],
        }

    def detail(self, digest: Digest) -> JsonObject:
        """A manifest with its tripwire's measures and what was signed for it.

        Raises:
            manifests.NotFoundError, csf_store.CsfError: there is none, or it is damaged.
        """
        manifest = self._load(digest)
        return {
            **self.summary(digest),
            "tokenizer": str(manifest.assembly.tokenizer),
            "code": manifest.assembly.code,
            "approvals": [str(approval) for approval in manifest.approvals],
            "labels": dict(manifest.labels),
            "tripped": self._tripwire(manifest),
        }

    def _tripwire(self, manifest: Manifest) -> JsonObject:
        """The report behind a manifest's tripwire, each rule judged again."""
        told = manifest.tripwire
        if told.report is None:
            return {"status": told.status, "report": None, "rules": [], "problem": None}
        try:
            report = self._repository.load_record(told.report, TripwireReport)
            policy = self._repository.load_record(report.policy, TripwirePolicy)
        except (CsfError, ManifestError) as error:
            return {"status": told.status, "report": str(told.report), "rules": [], "problem": str(error)}
        return {
            "status": told.status,
            "report": str(told.report),
            "policy": policy.name,
            "rules": _rules(policy, report),
            "problem": None,
        }


def _rules(policy: TripwirePolicy, report: TripwireReport) -> list[JsonObject]:
    tripped = judge_tripwire(policy, report.measures)
    measures = {measure.title: measure for measure in report.measures}
    rows: list[JsonObject] = []
    for rule in policy.rules:
        measure = measures.get(rule.title)
        rows.append(
            {
                "rule": rule.title,
                "better": rule.better,
                "limit": rule.limit,
                "margin": rule.margin,
                "value": measure.value if measure else None,
                "incumbent": measure.incumbent_value if measure else None,
                "tripped": tripped.get(rule.title),
            }
        )
    return rows


def _move(event: RefEvent) -> JsonObject:
    return {
        "seq": event.seq,
        "time": event.time.isoformat(),
        "target": str(event.target) if event.target else None,
        "previous": str(event.previous) if event.previous else None,
        "reason": event.reason,
        "rollback": event.rollback,
        "approval": str(event.approval) if event.approval else None,
        "protects": event.protects,
    }


def _recipe(manifest: Manifest) -> str:
    recipe = manifest.recipe
    if recipe is None:
        return "the loader's default"
    return recipe.dtype if recipe.quantization == "none" else f"{recipe.quantization} from {recipe.dtype}"


def _score(score: EvalSummary) -> JsonObject:
    interval: Mapping[str, object] | None = None
    if score.interval is not None:
        interval = {
            "low": score.interval.low,
            "high": score.interval.high,
            "level": score.interval.level,
            "method": score.interval.method,
        }
    return {
        "suite": score.suite,
        "metric": score.metric,
        "n": score.n,
        "passed": score.passed,
        "score": score.score,
        "interval": interval,  # type: ignore[dict-item]
        "report": str(score.report),
    }
