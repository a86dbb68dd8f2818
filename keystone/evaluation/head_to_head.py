"""From two sides' results to a verdict, and from a stored verdict back to its items.

The unit of the test is the family, as everywhere here, because tasks made from one template rise and fall together.
Where a suite has one family only, nothing is known of how its items hang together, and each counts by itself: that is
HumanEval. The test is the paired one of `adapters.statistics`; its level shrinks with every further look at the same
pair on the same suite, so that asking again until luck strikes is no way to lead.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from adapters import Outcome, contrast, minimal_effect, pair_outcomes
from csf_store import Archive, CsfError, Digest, Kind
from keystone.errors import InvalidInputError
from keystone.evaluation.journal import Line
from keystone.evaluation.scoring import Verdict
from keystone.evaluation.suites import Suite
from manifests import Contestant, ContestRules, HeadToHead, ManifestError, Repository, contest_verdict

POWER: Final = 0.8
PIN_PREFIX: Final = "head-to-head/"
_CLOSE: Final = 1e-9
_MOST_ERROR: Final = 2.0


@dataclass(frozen=True)
class Side:
    """One side after the run: the fields that name it, and its results."""

    identity: Mapping[str, str]
    lines: Sequence[Line]


@dataclass(frozen=True)
class _Numbers:
    units: int
    difference: float
    error: float
    p_worse: float
    p_better: float
    p_inferior: float
    effect: float


def compare(
    repository: Repository,
    suite: Suite,
    candidate: Side,
    opponent: Side,
    *,
    margin: float,
    alpha: float,
    settings: Mapping[str, str],
    seed: int = 0,
) -> HeadToHead:
    """The report of a head-to-head; the per-item results of both sides are stored, the report is not yet.

    Args:
        repository: where results go, and where earlier looks are counted.
        suite: what both were asked.
        candidate: the side that wants to lead.
        opponent: the other.
        margin: the largest fall that still counts as none.
        alpha: chance of any wrong word over all looks at this pair.
        settings: how both were asked, for people.
        seed: of the sign flips.

    Raises:
        adapters.InvalidEvidenceError: the two did not answer the same items.
        InvalidInputError: one side's answers came by two APIs, which are two tests.
    """
    sides = []
    for side in (candidate, opponent):
        data = "".join(json.dumps(line, sort_keys=True, separators=(",", ":")) + "\n" for line in side.lines)
        items = repository.archive.put_bytes(data.encode()).digest
        sides.append(_contestant(side, items))
    first, second = sides
    look = 1 + sum(1 for _ in earlier_looks(repository, first, second, suite.digest))
    rules = ContestRules(margin=margin, alpha=alpha, look=look, seed=seed)
    numbers = _numbers(_outcomes(candidate.lines), _outcomes(opponent.lines), rules)
    return HeadToHead(
        candidate=first,
        opponent=second,
        suite=suite.name,
        suite_digest=suite.digest,
        n=len(candidate.lines),
        units=numbers.units,
        rules=rules,
        difference=numbers.difference,
        error=numbers.error,
        p_worse=numbers.p_worse,
        p_better=numbers.p_better,
        p_inferior=numbers.p_inferior,
        minimal_effect=numbers.effect,
        verdict=contest_verdict(rules, numbers.p_worse, numbers.p_better, numbers.p_inferior),
        settings=dict(settings),
    )


def keep_report(repository: Repository, report: HeadToHead) -> Digest:
    """Store a report as evidence and pin it; storing it again changes nothing."""
    with repository.archive.keeping():
        digest = repository.put_record(report)
        repository.archive.pin(digest, kind=Kind.RECORD, name=PIN_PREFIX + digest.hex[:16])
    return digest


def report_problem(repository: Repository, digest: Digest, report: HeadToHead) -> str | None:
    """What of a stored report its own items, or the ledger, do not bear out; None where all holds.

    Args:
        repository: where it and its items are.
        digest: of the report.
        report: the report, as read from there.
    """
    archive = repository.archive
    try:
        first, second = (_stored(archive, side.items) for side in (report.candidate, report.opponent))
        numbers = _numbers(first, second, report.rules)
    except (CsfError, ManifestError, InvalidInputError) as error:
        return f"its items cannot be read: {error}"
    except Exception as error:  # noqa: BLE001 - items that cannot be compared have proven nothing, whatever they do
        return f"its items cannot be compared: {type(error).__name__}: {error}"
    for name, side, outcomes in (("candidate", report.candidate, first), ("opponent", report.opponent, second)):
        passed = sum(outcome.passed for outcome in outcomes)
        if (passed, len(outcomes)) != (side.passed, report.n):
            return (
                f"it says that the {name} passed {side.passed} of {report.n}, its items say {passed} of {len(outcomes)}"
            )
    told = (report.units, report.difference, report.error, report.p_worse, report.p_better, report.p_inferior)
    found = (numbers.units, numbers.difference, numbers.error, numbers.p_worse, numbers.p_better, numbers.p_inferior)
    if not all(math.isclose(a, b, rel_tol=_CLOSE, abs_tol=_CLOSE) for a, b in zip(told, found, strict=True)):
        return "its numbers are not those that its items give"
    before = sum(1 for _ in earlier_looks(repository, report.candidate, report.opponent, report.suite_digest, digest))
    if report.rules.look <= before:
        return f"it calls itself look {report.rules.look}, and the ledger has {before} earlier ones of this pair"
    return None


def earlier_looks(
    repository: Repository, candidate: Contestant, opponent: Contestant, suite: Digest, until: Digest | None = None
) -> Sequence[Digest]:
    """The reports of the same pair on the same suite, in the order of the ledger, up to the one named `until`."""
    found: list[Digest] = []
    for entry in repository.archive.ledger.entries():
        if entry.event != "evidence" or entry.fields.get("kind") != HeadToHead.kind_name():
            continue
        digest = Digest.parse(str(entry.fields.get("record")))
        if digest == until:
            break
        try:
            report = repository.load_record(digest, HeadToHead)
        except (CsfError, ManifestError):
            continue  # it was collected, or never was one
        same = (report.candidate.identity, report.opponent.identity) == (candidate.identity, opponent.identity)
        if same and report.suite_digest == suite and digest not in found:
            found.append(digest)
    return found


def _contestant(side: Side, items: Digest) -> Contestant:
    apis = {(str(line.get("api", "local")), str(line.get("style", "completion"))) for line in side.lines}
    if len(apis) != 1:
        told = ", ".join(" ".join(each) for each in sorted(apis)) or "none"
        raise InvalidInputError(f"one side's answers came by {told}: one API for all of them, or they are two tests")
    ((api, style),) = apis
    about = side.identity
    return Contestant(
        assembly=Digest.parse(about["assembly"]) if "assembly" in about else None,
        recipe=Digest.parse(about["recipe"]) if "recipe" in about else None,
        endpoint=about.get("endpoint"),
        model=about.get("model"),
        api=api,
        style=style,
        passed=sum(outcome.passed for outcome in _outcomes(side.lines)),
        items=items,
    )


def _outcomes(lines: Sequence[Line]) -> list[Outcome]:
    return [Outcome(str(line["name"]), str(line["family"]), line["verdict"] == Verdict.PASSED) for line in lines]


def _stored(archive: Archive, items: Digest) -> list[Outcome]:
    lines = []
    for number, text in enumerate(archive.get_bytes(items, kind=Kind.BLOB).splitlines(), start=1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidInputError(f"line {number} of {items} is no JSON") from error
        if not isinstance(line, dict) or not {"name", "family", "verdict"} <= line.keys():
            raise InvalidInputError(f"line {number} of {items} has no name, family and verdict")
        lines.append(line)
    return _outcomes(lines)


def _numbers(candidate: list[Outcome], opponent: list[Outcome], rules: ContestRules) -> _Numbers:
    if len({outcome.family for outcome in candidate}) == 1:
        candidate, opponent = (
            [Outcome(each.item, each.item, each.passed) for each in side] for side in (candidate, opponent)
        )
    found = contrast(pair_outcomes(candidate, opponent, what="head-to-head"), margin=rules.margin, seed=rules.seed)
    effect = minimal_effect(found.error, families=found.families, alpha=rules.level, power=POWER)
    return _Numbers(
        found.families,
        found.difference,
        found.error,
        found.p_worse,
        found.p_better,
        found.p_inferior,
        min(effect, _MOST_ERROR),
    )
