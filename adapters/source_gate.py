"""The source gate: only experience that stands up to being checked again, now, may train.

A training set is a list of record digests and nothing else. For each the gate asks, and the first no is the reason the
record is refused by name:

1. Is there such a record, is it whole, and is it here once?
2. Does it stand on a ground, rather than on a model's opinion of itself?
3. Is it from outside every public benchmark, by name?
4. If somebody else made it, under which licence? `NOASSERTION` is none.
5. Is it from outside every hold-out, exactly and nearly?
6. Does its evidence hold when it is run again? Whatever goes wrong there, a crash or a check that is gone, is a no.

The order puts what is cheap first and what executes code last. What a record says of its own confidence is compared
and never trusted. The report lists both sides; `admit` refuses the whole set if one record is refused, because a
training set that shrinks in silence is not the one that was approved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from adapters.contamination import HoldoutIndex
from adapters.errors import SourceRefusedError
from adapters.records import ConvergenceRecord
from csf_store import CsfError, Digest
from manifests import AcceptedRecord, ManifestError, RejectedRecord, SourceGateReport

GATE = "keystone-source-gate/2"
"""The rules above; they get another number when they change."""

PUBLIC_BENCHMARKS = frozenset(
    {
        "humaneval",
        "humanevalplus",
        "mbpp",
        "mbppplus",
        "livecodebench",
        "swebench",
        "apps",
        "codecontests",
        "bigcodebench",
    }
    | {
        "gsm8k",
        "math",
        "mmlu",
        "gpqa",
        "arc",
        "hellaswag",
        "truthfulqa",
        "winogrande",
        "bbh",
        "ifeval",
        "ds1000",
        "cruxeval",
    }
)
"""Suites that measure and never teach, written without case and punctuation; callers add their own."""

_NO_LICENCE = frozenset({"", "noassertion", "none", "unknown", "other", "unlicensed"})
_SHOWN = 5
_LONGEST = 400


@dataclass(frozen=True, slots=True)
class EvidenceRun:
    """What running a record's evidence again showed."""

    passed: int
    total: int
    detail: str = ""


class Executor(Protocol):
    """Runs a record's evidence again: tests in a sandbox, a grounding check, a signature."""

    def __call__(self, record: ConvergenceRecord) -> EvidenceRun:
        """Check one claim anew; raise where that cannot be done."""


Load = Callable[[Digest], ConvergenceRecord]
"""Reads a record by digest, and raises when there is none or it is not whole."""


@dataclass(frozen=True, slots=True)
class SourceGate:
    """A gate, ready to judge training sets.

    Attributes:
        load: where records come from.
        execute: runs evidence again.
        holdouts: every hold-out there is, consumed draws and sentinels included.
        public: names of suites that may not teach, in any case and punctuation.
        progress: told after each record how many are done.
    """

    load: Load
    execute: Executor
    holdouts: HoldoutIndex
    public: frozenset[str] = PUBLIC_BENCHMARKS
    progress: Callable[[int], None] | None = None

    def judge(self, records: Sequence[Digest], *, data: Iterable[Digest] = ()) -> SourceGateReport:
        """Look at every record of a training set.

        Args:
            records: the training set.
            data: digests of the data sets that are made of it.

        Raises:
            SourceRefusedError: for an empty training set; a report about nothing would let anything in.
        """
        if not records:
            raise SourceRefusedError("the training set is empty; collect verified experience first")
        accepted, rejected = [], []
        seen: dict[Digest, Digest] = {}
        for number, digest in enumerate(dict.fromkeys(records)):
            reason, record = self._problem(digest, seen)
            ground = None if record is None else record.evidence.training_ground
            if reason is None and record is not None and ground is not None:
                proof = record.evidence.check
                accepted.append(AcceptedRecord(record=digest, ground=ground, evidence=proof))
                seen[record.content] = digest
            else:
                rejected.append(RejectedRecord(record=digest, reason=_one_line(reason or "it has no ground")))
            if self.progress is not None:
                self.progress(number + 1)
        settings = {
            "holdouts": str(len(self.holdouts)),
            "holdouts-digest": str(self.holdouts.digest),
            "public-benchmarks": str(len(self.public)),
        }
        return SourceGateReport(
            gate=GATE,
            settings=settings,
            accepted=tuple(accepted),
            rejected=tuple(rejected),
            data=() if rejected else tuple(data),
        )

    def admit(self, records: Sequence[Digest], *, data: Iterable[Digest] = ()) -> SourceGateReport:
        """Judge a training set that must pass as a whole.

        Raises:
            SourceRefusedError: naming each refused record and why.
        """
        report = self.judge(records, data=data)
        require_admitted(report, records)
        return report

    def _problem(self, digest: Digest, seen: dict[Digest, Digest]) -> tuple[str | None, ConvergenceRecord | None]:
        try:
            record = self.load(digest)
        except (ManifestError, CsfError, LookupError) as error:
            return f"it cannot be read: {error}", None
        if record.digest != digest:
            return f"what is stored under this name is {record.digest}", None
        if record.content in seen:
            return f"it teaches the same as record {seen[record.content]}", record
        reason = (
            _ungrounded(record)
            or _benchmark(record, self.public)
            or _unlicensed(record)
            or _held_out(record, self.holdouts)
            or self._unproven(record)
        )
        return reason, record

    def _unproven(self, record: ConvergenceRecord) -> str | None:
        try:
            found = self.execute(record)
        except Exception as error:  # noqa: BLE001  # an executor that fails in any way has proven nothing
            return f"its evidence could not be run again: {type(error).__name__}: {error}"
        if not 0 < found.passed == found.total:
            return f"its evidence does not hold: {found.passed} of {found.total} checks passed {found.detail}".rstrip()
        if found.total != record.confidence.total:
            return f"its evidence is not what it says: {found.total} checks were run, {record.confidence.total} claimed"
        return None


def require_admitted(report: SourceGateReport, records: Sequence[Digest]) -> None:
    """Prove that a report lets a whole training set in.

    Raises:
        SourceRefusedError: naming what was refused, or what the report does not speak of.
    """
    if report.rejected:
        shown = "; ".join(f"{each.record}: {each.reason}" for each in report.rejected[:_SHOWN])
        more = f"; and {len(report.rejected) - _SHOWN} more" if len(report.rejected) > _SHOWN else ""
        raise SourceRefusedError(
            f"{len(report.rejected)} of {len(set(records))} records may not train: {shown}{more}; leave them out and"
            " have the set judged again"
        )
    if missing := sorted(set(records) - {each.record for each in report.accepted}):
        raise SourceRefusedError(f"the report does not speak of record {missing[0]}; have this very set judged")


def _ungrounded(record: ConvergenceRecord) -> str | None:
    evidence, source = record.evidence, record.source
    if evidence.ground == "none":
        return "it is unverified: no ground is named"
    if evidence.ground == "self-scored" or (evidence.scorer is not None and evidence.scorer == source.assembly):
        return "it is self-scored: the model that answered is the one that judged"
    if evidence.scorer is not None:
        return f"it is scored by a model, {evidence.scorer}, and a model's opinion is no ground"
    if not record.confidence.complete:
        return (
            f"it is unverified: {record.confidence.passed} of {record.confidence.total} checks passed when it was made"
        )
    return None


def _benchmark(record: ConvergenceRecord, public: frozenset[str]) -> str | None:
    names = {_plain(name) for name in public}
    for what in (record.claim.suite, record.claim.task, record.source.name):
        # "openai/HumanEval@v1", "mbpp-plus": each part of a name, and their sums, could be the benchmark's.
        parts = [part for part in "".join(c if c.isalnum() else " " for c in what.casefold()).split() if part]
        runs = {"".join(parts[a:b]) for a in range(len(parts)) for b in range(a + 1, len(parts) + 1)}
        if found := sorted(runs & names):
            return f"it is from the public benchmark {found[0]} ({what}), which measures and never teaches"
    return None


def _unlicensed(record: ConvergenceRecord) -> str | None:
    # What a model answered is covered by the base it runs on, whose licence the manifest states.
    if record.source.kind != "model" and record.source.licence.strip().casefold() in _NO_LICENCE:
        return f"it has no licence: {record.source.name} says {record.source.licence!r}; add it again with its own"
    return None


def _plain(name: str) -> str:
    return "".join(c for c in name.casefold() if c.isalnum())


def _held_out(record: ConvergenceRecord, holdouts: HoldoutIndex) -> str | None:
    match = holdouts.match_name(record.claim.suite, record.claim.task)
    match = match or holdouts.match(record.claim.prompt, record.program)
    if match is None:
        return None
    share = f" ({match.similarity:.0%} of it)" if match.similarity < 1 else ""
    return f"it is from a hold-out: {match.how} match with {match.suite} {match.item}{share}"


def _one_line(text: str) -> str:
    plain = "".join(c if c.isprintable() and ord(c) < 127 else " " for c in text)
    return " ".join(plain.split())[:_LONGEST]
