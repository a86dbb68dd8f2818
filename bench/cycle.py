"""Two arms on the embedded base: guarded cycles that learn, and an unguarded one that feeds on itself.

    python bench/cycle.py [--cycles N] [--generations N] [--into DIR] [--svg DIR] [--json]

**Guarded**: cycles on a protected ref, with the policy below and nothing relaxed: sample answers to practice
tasks, keep what passes its tests, have the source gate execute it again, mix in a share of exercises that no model
wrote, train, measure on a fresh draw that was committed to before, judge, have a throw-away operator key sign, promote,
check.

**Unguarded**: the same base, tasks, training and measuring, but it trains on whatever it writes, verified by nobody,
and each generation takes over from the last. The same tripwire looks at each and has no power here; after the last
generation the ref is restored by the rule that a cycle uses.

A process that is killed goes on where it was when it is started again with the same --into. Everything printed was
measured in this run, on one core unless OMP_NUM_THREADS says otherwise.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import torch

from adapters import (
    Claim,
    Confidence,
    ConvergenceRecord,
    Evidence,
    GuardPolicy,
    GuardReport,
    HoldoutEvent,
    ParentAdapter,
    RecordSource,
    add_adapter,
    train_lora,
    wilson,
    write_adapter,
)
from csf_store import Archive, Digest
from keystone import import_nano
from keystone.checkpoints import archived_tokenizer, assemble_base, read_adapter_tensors
from keystone.cli.quiet import quiet_libraries
from keystone.cycle.documents import CycleRecords, read_outcomes, read_signals
from keystone.cycle.draw_key import DrawKey
from keystone.cycle.hands import Gated, Trained
from keystone.cycle.models import ModelHands
from keystone.cycle.plan import CyclePlan, GuardRules, PracticeRules, SamplingRules, TrainingRules
from keystone.cycle.restoring import restore
from keystone.cycle.running import Listener, Runner
from keystone.cycle.steps import Cycle, CycleLog, Fields
from keystone.cycle.switching import promote_and_check
from keystone.cycle.telling import Gain
from keystone.evaluation.extraction import program_source
from keystone.evaluation.opening import open_sandbox
from keystone.evaluation.suites import item_of_task
from keystone.training.examples import batches_of
from manifests import (
    AdapterUse,
    EvalReport,
    KeyStore,
    Manifest,
    Repository,
    SourceGateReport,
    approval_statement,
    draft_approval,
    put_envelope,
    seal,
    trust_key,
)

PLAN = CyclePlan(
    name="bench",
    guard=GuardRules(looks=6),
    practice=PracticeRules(tasks=600, samples=8, temperature=0.9),
    training=TrainingRules(steps=100, batch=16, learning_rate=2e-3, external=0.25),
    sampling=SamplingRules(prompts=200, samples=2, reruns=6, batch=256, quantization="none"),
)
ANSWERS = 240
"""Of its own that a generation of the unguarded arm trains on."""
GUARDED, WILD = "prod", "wild"


class UnguardedHands(ModelHands):
    """Trains on whatever the model writes."""

    def collect(self, incumbent: Digest, *, seed: int, opened: Sequence[HoldoutEvent]) -> CycleRecords:  # noqa: ARG002
        """One answer to each practice task, at temperature 1, kept as it is and said to be unverified."""
        items = [item_of_task(task) for task in self._pool.practice(ANSWERS, seed)]
        model = self.model(incumbent)
        texts = model.complete(
            [item.prompt for item in items], max_new_tokens=64, temperature=1.0, seed=seed, batch_size=256
        )
        found = []
        for item, text in zip(items, texts, strict=True):
            record = ConvergenceRecord(
                claim=Claim(
                    suite=item.suite,
                    task=item.name,
                    prompt=item.prompt,
                    answer=program_source(item, text, "completion").removeprefix(item.prompt),
                ),
                evidence=Evidence(ground="none", checker="nobody"),
                confidence=Confidence(passed=0, total=0),
                source=RecordSource(
                    kind="model",
                    name=WILD,
                    licence="Apache-2.0",
                    assembly=model.manifest.assembly.digest,
                    recipe=model.recipe.digest,
                    seed=seed,
                ),
            )
            found.append(self._repository.put_record(record))
        return CycleRecords(records=tuple(found), sampled=len(found), passed=0, duplicates=0, contaminated=0)

    def gate(self, records: CycleRecords, *, opened: Sequence[HoldoutEvent]) -> Gated:  # noqa: ARG002
        """No gate: a report that accepts nothing, to say so."""
        return Gated(self._repository.put_record(SourceGateReport(gate="none")), records)

    def train(self, incumbent: Digest, records: CycleRecords, gate: Digest, *, seed: int, work: Path) -> Trained:  # noqa: ARG002
        """The same training, with nobody asking what it is trained on."""
        repository = self._repository
        archive, manifest = repository.archive, repository.load(incumbent)
        assembly = manifest.assembly
        above = assembly.adapters[0].adapter if assembly.adapters else None
        parent = None if above is None else ParentAdapter(above, read_adapter_tensors(archive, above)[1])
        documents = [repository.load_record(each, ConvergenceRecord) for each in records.records]
        batches = batches_of(archived_tokenizer(archive, assembly.tokenizer), documents, size=16, max_tokens=1024)
        config = PLAN.training.config(seed)
        base = assemble_base(archive, assembly.base)
        trained = train_lora(base, batches, config, base=assembly.base, data=[records.digest], parent=parent)
        with tempfile.TemporaryDirectory() as folder:
            directory = write_adapter(trained.model, Path(folder) / "adapter")
            adapter, _ = add_adapter(repository, directory, base=assembly.base, parent=above, training=trained.record)
        candidate = Manifest(
            assembly=assembly.revised(adapters=(AdapterUse(adapter=adapter),)),
            code_source=manifest.code_source,
            source=manifest.source,
            lineage=repository.trace([adapter], base=assembly.base),
            parent=incumbent,
        )
        return Trained(adapter, repository.put(candidate))


@dataclass(frozen=True)
class Row:
    """One cycle or generation; rates with Wilson's interval, on the same fresh items where they are compared."""

    arm: str
    number: int
    verdict: str
    status: str
    passed: int
    items: int
    low: float
    high: float
    incumbent: float
    base: float
    gain: str
    new_families: float
    sentinel: float
    distinct_2: float
    entropy: float
    kl: float
    kept: int
    sampled: int
    why: str


class Clock(Listener):
    """Says each step with its time."""

    def __init__(self) -> None:
        self.began = time.monotonic()

    def done(self, cycle: str, step: str, fields: Fields) -> None:
        """One line on standard error."""
        shown = {key: value for key, value in fields.items() if key in {"kept", "external", "passed", "verdict", "why"}}
        click.echo(f"{time.monotonic() - self.began:7.1f} s  {cycle}  {step}  {shown or ''}", err=True)


NEW = {
    *("list_filter_map", "list_sum_where", "list_all", "list_max_where", "list_capped_sum"),
    *("word_any", "word_count", "word_first", "dict_count", "dict_choose"),
}


def row_of(repository: Repository, arm: str, cycle: Cycle) -> Row:
    def rate(role: str, what: str) -> float:
        return repository.load_record(cycle.digest(f"answered-{role}", what), EvalReport).result.score

    report = repository.load_record(cycle.digest("judged", "report"), GuardReport)
    fresh = read_outcomes(repository, cycle.digest("answered-candidate", "fresh"))
    new = [outcome.passed for outcome in fresh if outcome.family in NEW]
    passed = sum(outcome.passed for outcome in fresh)
    interval = wilson(passed, len(fresh))
    signals = read_signals(repository, cycle.digest("answered-candidate", "signals"))
    judgement = report.judgement
    reasons = [
        f"{reason.guard} ({reason.reference}): {reason.text}" for reason in (judgement.tripped or judgement.open)
    ]
    return Row(
        arm=arm,
        number=cycle.number,
        verdict=judgement.verdict,
        status=judgement.status,
        passed=passed,
        items=len(fresh),
        low=interval[0],
        high=interval[1],
        incumbent=rate("incumbent", "fresh"),
        base=rate("base", "fresh"),
        gain=str(Gain.of(repository.load_record(report.policy, GuardPolicy), report)),
        new_families=sum(new) / max(1, len(new)),
        sentinel=rate("candidate", "sentinel"),
        distinct_2=signals.level("distinct-2"),
        entropy=signals.level("entropy"),
        kl=signals.level("kl"),
        kept=int(cycle.text("collected", "kept") or 0),
        sampled=int(cycle.text("collected", "sampled") or 0),
        why="; ".join(reasons),
    )


def guarded(repository: Repository, hands: ModelHands, key: DrawKey, state: Path) -> None:
    """One cycle, and the operator behind it."""
    archive = repository.archive
    keys = KeyStore(state / "keys")
    if not keys.names():
        trust_key(archive, keys.new("throw-away", b"bench"))
    cycle = Runner(repository, PLAN, hands, key, state, Clock()).run(GUARDED)
    if cycle.text("judged", "status") != "clear":
        click.echo(f"{cycle.name}: {cycle.outcome} {cycle.text('finished', 'why')}", err=True)
        return
    target = cycle.digest("finished", "manifest")
    incumbent = repository.refs.find(GUARDED)
    draft = draft_approval(archive, GUARDED, repository.load(target), incumbent=incumbent, note="bench")
    envelope = put_envelope(archive, seal(approval_statement(draft), keys.unlock("throw-away", b"bench")))
    switched = promote_and_check(repository, GUARDED, target, approval=envelope, reason="bench")
    click.echo(f"promoted; check after the switch: {switched.problem or 'well'}", err=True)


def unguarded(repository: Repository, hands: ModelHands, key: DrawKey, state: Path) -> None:
    """One generation. Nobody asks the tripwire here: the candidate takes over, whatever was said of it."""
    cycle = Runner(repository, PLAN, hands, key, state, Clock()).run(WILD)
    target = cycle.digest("finished", "manifest")
    repository.refs.set(WILD, target, expected=repository.refs.get(WILD), reason="unguarded")


def restored(repository: Repository) -> None:
    """What the rule of a cycle does to the ref that the unguarded arm leaves behind."""
    last = CycleLog(repository.archive).cycles(WILD)[-1]
    if last.text("judged", "status") == "tripped":
        at = restore(repository, WILD, last.digest("trained", "assembly"))
        click.echo(f"{WILD} restored to {at.short}: {repository.refs.why_not_good(at) or 'good'}", err=True)


@click.command()
@click.option("--cycles", default=3, show_default=True)
@click.option("--generations", default=4, show_default=True)
@click.option(
    "--into", type=click.Path(path_type=Path), help="Where the archive is kept; a temporary place by default."
)
@click.option("--svg", type=click.Path(path_type=Path), help="Write the two plots into this directory.")
@click.option("--sandbox", default="bwrap", show_default=True, type=click.Choice(["bwrap", "process"]))
@click.option("--json", "as_json", is_flag=True, help="One object a line.")
def main(*, cycles: int, generations: int, into: Path | None, svg: Path | None, sandbox: str, as_json: bool) -> None:
    """Run both arms."""
    quiet_libraries()
    started = time.monotonic()
    place = into or Path(tempfile.mkdtemp(prefix="keystone-cycle-"))
    with Archive.open(place / "archive", create=True) as archive, open_sandbox(sandbox) as box:
        manifest = import_nano(archive)
        repository = Repository(archive)
        for ref in (GUARDED, WILD):
            if repository.refs.find(ref) is None:
                repository.refs.set(ref, manifest, expected=None, reason="the bare frozen base")
        repository.refs.protect(GUARDED, reason="bench")
        state = place / "state"
        key = DrawKey(state, archive)
        log = CycleLog(archive)

        def done(arm: str) -> int:
            return sum(cycle.is_finished for cycle in log.cycles(arm))

        while done(GUARDED) < cycles:
            guarded(repository, ModelHands(repository, PLAN, box, state), key, state)
        while done(WILD) < generations:
            unguarded(repository, UnguardedHands(repository, PLAN, box, state), key, state)
        if generations:
            restored(repository)
        rows = [
            row_of(repository, arm, cycle)
            for arm, ref in (("guarded", GUARDED), ("unguarded", WILD))
            for cycle in log.cycles(ref)
            if "judged" in cycle.steps
        ]
        policy = log.cycles()[0].text("calibrated", "policy")
    if as_json:
        for row in rows:
            click.echo(json.dumps(asdict(row)))
    else:
        click.echo(
            f"keystone-nano in bf16, {PLAN.guard.fresh_items} fresh items a cycle, torch {torch.__version__},"
            f" {torch.get_num_threads()} threads; policy {policy[:15]};"
            f" {(time.monotonic() - started) / 60:.0f} minutes\n"
        )
        table(rows)
    if svg is not None:
        from cycle_plots import write_plots  # noqa: PLC0415 - beside this script

        write_plots(rows, svg)


def table(rows: Sequence[Row]) -> None:
    click.echo(
        "| arm | cycle | fresh draw (95 %) | incumbent, same items | base, same items | against the base | new families"
        " | distinct-2 | entropy | KL to base | verdict |\n|---|---|---|---|---|---|---|---|---|---|---|"
    )
    for row in rows:
        click.echo(
            f"| {row.arm} | {row.number} | {row.passed / row.items:.1%} ({row.low:.0%} to {row.high:.0%}) |"
            f" {row.incumbent:.1%} | {row.base:.1%} | {row.gain} | {row.new_families:.0%} | {row.distinct_2:.3f} |"
            f" {row.entropy:.3f} | {row.kl:.3f} | {row.verdict} |"
        )
    for row in rows:
        click.echo(f"\n{row.arm} {row.number}: {row.kept} of {row.sampled} answers trained. {row.why or 'clear'}")


if __name__ == "__main__":
    main()
