"""From the answers of one cycle to the guard's word, and to a manifest that carries it.

The chain that the guard looks over is a ref's own: every earlier cycle under the same policy, with none left out, and
whether its candidate was promoted. Both are read from the ledger, so nobody can forget a look that went badly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adapters import GuardPolicy, GuardReport, Measured, OpenedDraw, histories, judge_candidate, tripwire_evidence
from csf_store import Digest
from keystone.cycle.documents import keep, read_outcomes, read_signals
from keystone.cycle.steps import Cycle
from manifests import EvalReport, EvalSummary, Manifest, Recipe, Repository, Tripwire


@dataclass(frozen=True)
class Judged:
    """The guard's word on one candidate.

    Attributes:
        report: the guard report, stored.
        manifest: the candidate's manifest with its evidence, stored.
        verdict: IMPROVED, NON-INFERIOR, REGRESSED or UNDERPOWERED.
        status: what the manifest's tripwire says.
        look: which look of the chain it was.
    """

    report: Digest
    manifest: Digest
    verdict: str
    status: str
    look: int


def judge_cycle(
    repository: Repository,
    policy: GuardPolicy,
    cycle: Cycle,
    *,
    draw: OpenedDraw,
    earlier: Sequence[Cycle],
    recipe: Recipe,
) -> Judged:
    """Judge a cycle's candidate and store the evidence; doing it again gives the same digests.

    Args:
        repository: where everything is.
        policy: the guard's, recorded before the candidate was trained.
        cycle: all three models have answered.
        draw: the fresh draw, spent on this candidate.
        earlier: the ref's cycles before this one.
        recipe: how the candidate's numbers were held.

    Raises:
        adapters.InvalidEvidenceError: results that do not belong together.
        adapters.InvalidPolicyError: the policy's looks are used up.
    """
    assemblies = {role: cycle.digest(f"answered-{role}", "assembly") for role in ("base", "incumbent")}
    report = judge_candidate(
        policy,
        draw,
        measured(repository, cycle, "candidate"),
        {role: (assembly, measured(repository, cycle, role)) for role, assembly in assemblies.items()},
        recipe=recipe.digest,
        history=histories(chain(repository, policy, earlier)),
        sentinel=policy.sentinel,
    )
    kept = keep(repository, report)
    manifest = _with_evidence(repository, policy, cycle, report, recipe)
    judgement = report.judgement
    return Judged(kept, manifest, judgement.verdict, judgement.status, report.look)


def measured(repository: Repository, cycle: Cycle, role: str) -> Measured:
    """One model's results in a cycle."""
    step = f"answered-{role}"
    return Measured(
        read_outcomes(repository, cycle.digest(step, "fresh")),
        read_outcomes(repository, cycle.digest(step, "sentinel")),
        read_signals(repository, cycle.digest(step, "signals")),
    )


def chain(repository: Repository, policy: GuardPolicy, earlier: Sequence[Cycle]) -> list[tuple[GuardReport, bool]]:
    """The looks of a chain so far, oldest first, each with whether its candidate was promoted."""
    return [
        (repository.load_record(cycle.digest("judged", "report"), GuardReport), was_promoted(repository, cycle))
        for cycle in earlier
        if "judged" in cycle.steps and cycle.find("calibrated", "policy") == policy.digest
    ]


def was_promoted(repository: Repository, cycle: Cycle) -> bool:
    """Whether the ref ever held a cycle's candidate after it was judged."""
    wanted = cycle.find("trained", "assembly")
    return any(
        event.target is not None
        and event.seq > cycle.places["judged"]
        and not event.rollback
        and repository.load(event.target).assembly.digest == wanted
        for event in repository.refs.history(cycle.ref)
    )


def _with_evidence(
    repository: Repository, policy: GuardPolicy, cycle: Cycle, report: GuardReport, recipe: Recipe
) -> Digest:
    trained = cycle.digest("trained", "manifest")
    evidence = tripwire_evidence(
        policy, report, incumbent=cycle.digest("begun", "incumbent"), began=cycle.text("committed", "began")
    )
    tripwire = Tripwire()
    if evidence is not None:
        for number in evidence.numbers:
            repository.put_record(number)
        stored = repository.put_record(evidence.report)
        tripwire = Tripwire(status=evidence.report.status, report=stored, recipe=recipe.digest)
    candidate: Manifest = repository.load(trained)
    summaries = [
        _summary(repository, cycle.digest("answered-candidate", name), recipe.digest) for name in ("fresh", "sentinel")
    ]
    return repository.put(
        candidate.revised(
            recipe=recipe, evals=(*candidate.evals, *summaries), tripwire=tripwire, parent=trained, approvals=()
        )
    )


def _summary(repository: Repository, report: Digest, recipe: Digest) -> EvalSummary:
    result = repository.load_record(report, EvalReport).result
    return EvalSummary(**dict(result), report=report, recipe=recipe)
