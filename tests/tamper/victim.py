"""A small archive with everything in it that an audit looks at, audited once and found sound.

A base with real tensors, two adapters, one trained on the other, with training records, source-gate reports and
Convergence Records; evaluations with their items, a tripwire policy and its reports; approvals, signatures and a
protected ref that was promoted twice and rolled back; and an auditor who has seen it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from manifest_house import POLICY, RECIPE, House, put_tree, signer
from safetensors.numpy import save

from adapters import (
    Claim,
    Confidence,
    Contrast,
    ConvergenceRecord,
    Evidence,
    FamilyLoss,
    GuardPolicy,
    GuardReport,
    HoldoutBook,
    LedgerJournal,
    RecordSource,
    ReferenceModel,
    Secret,
    SignalRule,
    SignalShift,
    Standing,
    conclude,
    document_problem,
    fit_problem,
    tripwire_evidence,
    tripwire_policy,
)
from adapters.holdouts import commitment
from csf_store import Archive, CsfError, Digest
from manifests import (
    AcceptedRecord,
    AdapterRecord,
    Attestation,
    Auditor,
    AuditorState,
    AuditReport,
    Manifest,
    ManifestError,
    RejectedRecord,
    Repository,
    SourceGateReport,
    TrainingConfig,
    TrainingRecord,
    Tripwire,
    Verdict,
    manifest_statement,
    put_envelope,
    revoke_key,
    seal,
    trust_key,
)
from manifests.auditing.base_forms import archived_tensor_set, tensor_sets_in_memory

MODULE = "model.layers.0.self_attn.q_proj"
REFS = ("main", "prod", "guarded")
WIDTH, RANK = 8, 2
TOKENIZER = {"model": {"type": "BPE", "merges": [["a", "b"], ["ab", "c"], ["abc", "d"]]}}


@dataclass
class Victim:
    """Where things are in it; every mutation works on a copy."""

    base: Digest
    tokenizer: Digest
    adapters: tuple[Digest, Digest]
    bare: Digest
    first: Digest
    second: Digest
    approvals: tuple[Digest, Digest]


def noise(seed: int, *shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def base_tree(archive: Archive, seed: int = 0) -> Digest:
    tensors = {"model.embed_tokens.weight": noise(seed, 16, WIDTH), f"{MODULE}.weight": noise(seed + 1, WIDTH, WIDTH)}
    return put_tree(archive, {"config.json": b'{"model_type":"llama"}', "model.safetensors": save(tensors)})


def adapter_tree(archive: Archive, seed: int) -> Digest:
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 4, "target_modules": ["q_proj"]}
    name = f"base_model.model.{MODULE}"
    tensors = {f"{name}.lora_A.weight": noise(seed, RANK, WIDTH), f"{name}.lora_B.weight": noise(seed + 1, WIDTH, RANK)}
    files = {"adapter_config.json": json.dumps(config).encode(), "adapter_model.safetensors": save(tensors)}
    return put_tree(archive, files)


def experience(archive: Archive, tag: str, **changes: object) -> ConvergenceRecord:
    """A Convergence Record whose check is in the archive."""
    check = archive.put_bytes(f"tests of {tag}".encode()).digest
    return ConvergenceRecord(
        claim=Claim(suite="basics", task=tag, prompt="def f():", answer=" return 1"),
        evidence=Evidence(ground="tests-passed", check=check, checker="sandbox/1"),
        confidence=Confidence(passed=3, total=3),
        source=RecordSource(kind="person", name="alice", licence="Apache-2.0"),
    ).revised(**changes)


def gate_report(repository: Repository, tag: str, record: ConvergenceRecord) -> tuple[SourceGateReport, Digest]:
    """A report that lets one Convergence Record in as if it stood on tests, and that record."""
    stored = repository.put_record(record)
    check = experience(repository.archive, tag).evidence.check
    report = SourceGateReport(
        gate="source-gate/1",
        accepted=(AcceptedRecord(record=stored, ground="tests-passed", evidence=check),),
        rejected=(RejectedRecord(record=Digest.of(tag.encode()), reason="raw model output"),),
        data=(Digest.of(f"data of {tag}".encode()),),
    )
    return report, stored


def training_record(
    repository: Repository, base: Digest, adapter: Digest, parent: Digest | None, **experienced: object
) -> TrainingRecord:
    archive, tag = repository.archive, str(adapter)
    report, record = gate_report(repository, tag, experience(archive, tag, **experienced))
    weights = next(tensor_sets_in_memory(archive, base, {}))
    return TrainingRecord(
        base=base,
        parent=parent,
        base_before=weights,
        base_after=weights,
        adapter_tensors=archived_tensor_set(archive, adapter),
        data=report.data,
        experience=(record,),
        gate=repository.put_record(report),
        batches=Digest.of(b"batches"),
        examples=1,
        config=TrainingConfig(targets=("q_proj",), rank=RANK, steps=1),
        losses=(1.0,),
        final_loss=1.0,
        device="cpu",
        threads=1,
        capability="x86_64",
        libraries={"torch": "2"},
    )


def adapter_record(base: Digest, adapter: Digest, parent: Digest | None, training: Digest) -> AdapterRecord:
    return AdapterRecord(
        adapter=adapter,
        base=base,
        parent=parent,
        rank=RANK,
        alpha=4.0,
        targets=(MODULE,),
        training=training,
        claim=False,
    )


def trained(house: House, seed: int, parent: Digest | None = None) -> Digest:
    """An adapter with a training record that proves it."""
    adapter = adapter_tree(house.archive, seed)
    training = house.repository.put_record(training_record(house.repository, house.base, adapter, parent))
    house.repository.put_adapter_record(adapter_record(house.base, adapter, parent, training))
    return adapter


def sign(house: House, digest: Digest, name: str = "alice") -> Digest:
    archive = house.archive
    statement = manifest_statement(digest, house.repository.load(digest), str(archive.ledger.checkpoint()))
    return put_envelope(archive, seal(statement, signer(name)))


def promote(house: House, manifest: Manifest) -> tuple[Digest, Digest]:
    """Approve, name the approval in the manifest that is promoted, promote; the manifest and the approval."""
    target = house.repository.put(manifest)
    approval = house.approve("prod", target, signer())
    approved = house.repository.put(manifest.revised(approvals=(approval,), parent=manifest.parent))
    house.repository.refs.promote("prod", approved, approval=approval)
    return approved, approval


SECRET = Secret("week-31", 31, "5a" * 32)
ITEMS = tuple(f"lists/{number:03}" for number in range(800))
SEALED = commitment("basics", len(ITEMS), SECRET.seed, SECRET.salt)
GUARD = GuardPolicy(
    name="weekly/1",
    sentinel=Digest.of(b"sentinel"),
    fresh_suite="basics",
    signals=(SignalRule(name="length", harm="either", tolerance=0.25, relative=True, noise=0.5),),
)


def guard_report(manifest: Manifest, draw: str = SECRET.draw, sealed: Digest = SEALED) -> GuardReport:
    """The guard's full word on a manifest's assembly: better on the draw, nothing lost."""
    even = Contrast(800, 40, 0.0, 0.01, 0.5, 0.5, 0.0001)
    better = Contrast(800, 40, 0.125, 0.015625, 0.9999, 0.0001, 0.0001)
    shift = SignalShift("length", 20.0, 20.125, 0.1, 0.1, -0.1, 0.3, 5.0)
    standings = tuple(
        Standing(name, better, even, FamilyLoss("lists", 2, 2, 30, 0.7), 0, 0.75, (-0.125, 0.0625), (shift,))
        for name in GUARD.references
    )
    return GuardReport(
        policy=GUARD.digest,
        assembly=manifest.assembly.digest,
        recipe=RECIPE.digest,
        draw=draw,
        commitment=sealed,
        references=tuple(ReferenceModel(name=name, assembly=Digest.of(name.encode())) for name in GUARD.references),
        look=1,
        standings=standings,
        judgement=conclude(GUARD, standings),
    )


def guarded(
    house: House,
    manifest: Manifest,
    *,
    forge: Callable[[GuardReport], GuardReport] = lambda report: report,
    began: str | None = None,
    draw: str = SECRET.draw,
    sealed: Digest = SEALED,
    consume: bool = True,
) -> Manifest:
    """The same with the guard's report and the tripwire's over it, policies first, its fresh draw consumed."""
    repository = house.repository
    true = guard_report(manifest, draw, sealed)
    repository.put_record(tripwire_policy(GUARD, commitment=true.commitment))
    began = began or str(repository.archive.ledger.checkpoint())
    repository.put_record(GUARD)
    book = HoldoutBook(LedgerJournal(repository.archive))
    if consume:
        book.open(SECRET, lambda *_: ITEMS, candidate=true.assembly, policy=GUARD.digest)
    found = tripwire_evidence(GUARD, true, incumbent=None, began=began)
    assert found is not None
    detail = repository.put_record(forge(true))
    for number in found.numbers:
        repository.put_record(number)
    stored = repository.put_record(found.report.revised(detail=detail))
    wire = Tripwire(status=found.report.status, report=stored, recipe=RECIPE.digest)
    return manifest.revised(tripwire=wire, recipe=RECIPE)


def attestation(manifest: Manifest, **changes: object) -> Attestation:
    """What a server may have said of a manifest."""
    recipe = manifest.recipe or RECIPE
    return Attestation(
        assembly=manifest.assembly.digest,
        recipe=recipe.digest,
        nonce="0f" * 32,
        value=Digest.of(b"live tensors"),
        tensors=3,
        device="cpu",
        libraries={"torch": "2"},
    ).revised(**changes)


def build(path: Path) -> Victim:
    """Make it, in a directory that is not there."""
    with Archive.create(path) as archive:
        house = House(Repository(archive), base_tree(archive), put_tree(archive, {"tokenizer.json": merges()}))
        refs = house.repository.refs
        for name in ("alice", "bob"):
            trust_key(archive, signer(name).public)
        house.repository.put_record(POLICY)
        bare = house.repository.put(house.wired(house.manifest()))
        refs.set("prod", bare, expected=None)
        refs.protect("prod")
        parent = trained(house, 10)
        child = trained(house, 20, parent)
        sign(house, bare, "bob")
        revoke_key(archive, signer("bob").public.id, reason="left")
        plan = house.manifest(parent).revised(parent=bare)
        first, one = promote(house, house.wired(plan, passed=4))
        second, two = promote(house, house.wired(house.manifest(child).revised(parent=first), passed=3))
        refs.rollback("prod", reason="rehearsal")
        refs.rollback("prod", reason="and forward again")
        sign(house, second)
        refs.set("main", first, expected=None)
        refs.set("main", second, expected=first)
        house.repository.put_record(tripwire_policy(GUARD, commitment=SEALED))
        house.repository.put_record(GUARD)
        book = HoldoutBook(LedgerJournal(archive))
        book.commit(SECRET.draw, suite="basics", count=len(ITEMS), policy=GUARD.digest, secret=SECRET)
        watched = house.repository.put(guarded(house, house.manifest(child)))
        refs.set("guarded", watched, expected=None)
        sign(house, watched)
        house.repository.put_record(attestation(house.repository.load(second)))
        return Victim(house.base, house.tokenizer, (parent, child), bare, first, second, (one, two))


def merges(changed: bool = False) -> bytes:
    told = json.loads(json.dumps(TOKENIZER))
    if changed:
        told["model"]["merges"][1] = ["a", "bc"]
    return json.dumps(told).encode()


def audit_all(path: Path, state: Path, also: Sequence[Digest] = ()) -> list[AuditReport]:
    """What an auditor does: open, audit every ref, and whatever else is asked about."""
    with Archive.open(path) as archive:
        auditor = Auditor(archive, fit=fit_problem, documents=document_problem, state=AuditorState(state))
        return [*(auditor.audit_target(name) for name in REFS), *(auditor.audit(each) for each in also)]


def faults(path: Path, state: Path, also: Sequence[Digest] = ()) -> list[str]:
    """What an audit says is wrong; that the archive cannot be opened at all is said, too."""
    try:
        reports = audit_all(path, state, also)
    except (CsfError, ManifestError) as error:
        return [f"{type(error).__name__}: {error}"]
    return [
        f"{line.check} {line.subject} {line.message}"
        for report in reports
        for line in report.lines
        if line.verdict is Verdict.FAIL
    ]
