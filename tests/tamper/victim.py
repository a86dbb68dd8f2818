"""A small archive with everything in it that an audit looks at, audited once and found sound.

A base with real tensors, two adapters, one trained on the other, with training records, source-gate reports and
Convergence Records; evaluations with their items, a tripwire policy and its reports; approvals, signatures and a
protected ref that was promoted twice and rolled back; and an auditor who has seen it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from manifest_house import POLICY, House, put_tree, signer
from safetensors.numpy import save

from adapters import fit_problem
from csf_store import Archive, CsfError, Digest, Kind
from manifests import (
    AcceptedRecord,
    AdapterRecord,
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
    Verdict,
    manifest_statement,
    put_envelope,
    revoke_key,
    seal,
    trust_key,
)
from manifests.auditing.base_forms import archived_tensor_set, tensor_sets_in_memory

MODULE = "model.layers.0.self_attn.q_proj"
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


def gate_report(archive: Archive, tag: str) -> tuple[SourceGateReport, Digest]:
    """A report that lets one Convergence Record in, and that record."""
    claim = {"claim": f"{tag} passes", "evidence": "tests", "confidence": 1, "source": "sandbox"}
    record = archive.put_bytes(json.dumps(claim).encode(), kind=Kind.RECORD).digest
    report = SourceGateReport(
        gate="source-gate/1",
        accepted=(AcceptedRecord(record=record, ground="tests-passed"),),
        rejected=(RejectedRecord(record=Digest.of(tag.encode()), reason="raw model output"),),
        data=(Digest.of(f"data of {tag}".encode()),),
    )
    return report, record


def training_record(repository: Repository, base: Digest, adapter: Digest, parent: Digest | None) -> TrainingRecord:
    archive = repository.archive
    report, record = gate_report(archive, str(adapter))
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
        return Victim(house.base, house.tokenizer, (parent, child), bare, first, second, (one, two))


def merges(changed: bool = False) -> bytes:
    told = json.loads(json.dumps(TOKENIZER))
    if changed:
        told["model"]["merges"][1] = ["a", "bc"]
    return json.dumps(told).encode()


def audit_all(path: Path, state: Path, also: Sequence[Digest] = ()) -> list[AuditReport]:
    """What an auditor does: open, audit every ref, and whatever else is asked about."""
    with Archive.open(path) as archive:
        auditor = Auditor(archive, fit=fit_problem, state=AuditorState(state))
        return [*(auditor.audit_target(name) for name in ("main", "prod")), *(auditor.audit(each) for each in also)]


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
