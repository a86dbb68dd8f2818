"""An archive with a story for the page to tell: a protected ref that was promoted, one that tripped, a merge."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from export_lab import put_adapter, put_base, write_base

from adapters import wilson
from csf_store import Archive, Digest
from keystone.combining import merge_adapters
from manifests import (
    AdapterUse,
    EvalReport,
    EvalSummary,
    Interval,
    Manifest,
    PublicKey,
    Recipe,
    Repository,
    Score,
    SigningKey,
    Source,
    Tripwire,
    TripwireMeasure,
    TripwirePolicy,
    TripwireReport,
    TripwireRule,
    approval_statement,
    draft_approval,
    judge_tripwire,
    put_envelope,
    seal,
    trust_key,
)

RECIPE = Recipe(dtype="float32")
SUITES = {name: Digest.of(name.encode()) for name in ("basics", "humaneval")}
POLICY = TripwirePolicy(
    name="weekly",
    rules=(
        TripwireRule(
            suite="basics", suite_digest=SUITES["basics"], metric="pass@1", better="higher", limit=0.4, margin=0.03
        ),
        TripwireRule(
            suite="humaneval", suite_digest=SUITES["humaneval"], metric="pass@1", better="higher", margin=0.05
        ),
    ),
)
HOSTILE = '<img src=x onerror="document.title=\'owned\'"> "quoted" & plain'


@dataclass(frozen=True)
class Told:
    """The manifests of the story."""

    bare: Digest
    first: Digest
    second: Digest
    bad: Digest
    both: Digest


def signer(name: str = "alice") -> SigningKey:
    private = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())
    return SigningKey(PublicKey(name, private.public_key().public_bytes_raw()), private)


def fill(archive: Archive, folder: Path) -> Told:
    """Tell the story from the start: base, two adapters, their merge; promoted, tripped, rolled back."""
    repository = Repository(archive)
    directory = write_base(folder / "base")
    base = repository.load(put_base(archive, directory)).assembly.base
    one, two, three = (
        put_adapter(archive, base, directory, folder, seed=seed, r=rank) for seed, rank in ((1, 4), (2, 4), (3, 2))
    )
    merged = merge_adapters(repository, [AdapterUse(adapter=one, weight=0.7), AdapterUse(adapter=two, weight=0.3)])
    story = _Story(repository, repository.load(put_base(archive, directory)))
    bare = story.put((), {"basics": 68, "humaneval": 41}, None)
    first = story.put((AdapterUse(adapter=one),), {"basics": 84, "humaneval": 44}, bare)
    second = story.put((AdapterUse(adapter=two),), {"basics": 97, "humaneval": 46}, first)
    bad = story.put((AdapterUse(adapter=three, weight=1.5),), {"basics": 52, "humaneval": 29}, second)
    both = story.put((AdapterUse(adapter=merged.adapter),), {"basics": 93, "humaneval": 47}, second)
    told = Told(bare, first, second, bad, both)
    _move(repository, told)
    return told


def _move(repository: Repository, told: Told) -> None:
    refs, key = repository.refs, signer()
    trust_key(repository.archive, key.public)
    refs.set("prod", told.bare, expected=None, reason="the frozen base, to begin with")
    refs.protect("prod", reason="customers are served from here")
    for target, reason in ((told.first, "first adapter, better on basics"), (told.second, "second cycle")):
        approval = draft_approval(repository.archive, "prod", repository.load(target), incumbent=refs.find("prod"))
        envelope = put_envelope(repository.archive, seal(approval_statement(approval), key))
        refs.promote("prod", target, approval=envelope, reason=reason)
    refs.set("canary", told.second, expected=None)
    refs.set("canary", told.bad, expected=told.second, reason="rank 2 at 1.5")
    refs.set("experiments/merge", told.both, expected=None, reason="0.7 of one, 0.3 of the other")
    refs.set("base", told.bare, expected=None)


class _Story:
    def __init__(self, repository: Repository, bare: Manifest) -> None:
        self._repository = repository
        source = Source(kind="hub", location="hf://org/elder-small@" + "0" * 40, licence="Apache-2.0")
        self._bare = bare.revised(recipe=RECIPE, source=source)

    def put(self, uses: tuple[AdapterUse, ...], passed: dict[str, int], parent: Digest | None) -> Digest:
        """A manifest that was measured and went through the tripwire."""
        repository, base = self._repository, self._bare.assembly.base
        assembly = self._bare.assembly.revised(adapters=uses)
        lineage = repository.trace((use.adapter for use in uses), base=base)
        manifest = self._bare.revised(assembly=assembly, lineage=lineage, parent=parent)
        policy = repository.put_record(POLICY)
        began = str(repository.archive.ledger.checkpoint())
        evals = tuple(self._measure(manifest, suite, count) for suite, count in passed.items())
        if parent is None:
            return repository.put(manifest.revised(evals=evals))
        before = {score.suite: score for score in repository.load(parent).evals}
        measures = tuple(
            TripwireMeasure(
                suite=score.suite, suite_digest=score.suite_digest, metric=score.metric,
                value=score.score, report=score.report,
                incumbent_value=before[score.suite].score, incumbent_report=before[score.suite].report,
            )
            for score in evals
        )  # fmt: skip
        tripped = tuple(judge_tripwire(POLICY, measures))
        report = TripwireReport(
            assembly=assembly.digest, recipe=RECIPE.digest, policy=policy, began=began, measures=measures,
            incumbent=parent, tripped=tripped, status="tripped" if tripped else "clear",
        )  # fmt: skip
        wire = Tripwire(status=report.status, report=repository.put_record(report), recipe=RECIPE.digest)
        return repository.put(manifest.revised(evals=evals, tripwire=wire))

    def _measure(self, manifest: Manifest, suite: str, passed: int) -> EvalSummary:
        n = 150 if suite == "basics" else 164
        lines = [
            f'{{"name":"{suite} {item}","verdict":"{"passed" if item < passed else "failed"}"}}\n' for item in range(n)
        ]
        items = self._repository.archive.put_bytes("".join(lines).encode()).digest
        low, high = wilson(passed, n)
        score = Score(
            suite=suite, suite_digest=SUITES[suite], metric="pass@1", n=n, passed=passed, score=passed / n,
            interval=Interval(low=low, high=high, level=0.95, method="wilson"),
        )  # fmt: skip
        report = EvalReport(assembly=manifest.assembly.digest, recipe=RECIPE.digest, result=score, items=items)
        return EvalSummary(**dict(score), report=self._repository.put_record(report), recipe=RECIPE.digest)
