"""Writes the golden documents of schema version 1. Run once, by hand, when a kind is new; never when a test fails.

    python tests/golden/manifests/make_manifest_goldens.py

Every file is a document as it is stored, byte for byte; `digests.json` says what each must hash to. A release that
reads one of them differently, or hashes it differently, has broken every name that was ever given out. An existing file
is never overwritten.
"""

from __future__ import annotations

import json
from pathlib import Path

from adapters import (
    Claim,
    Confidence,
    Contrast,
    ConvergenceRecord,
    Evidence,
    FamilyLoss,
    GuardPolicy,
    GuardReport,
    RecordSource,
    ReferenceModel,
    SignalRule,
    SignalShift,
    Standing,
    conclude,
)
from csf_store import Digest
from manifests import (
    AcceptedRecord,
    AdapterRecord,
    AdapterUse,
    Approval,
    Assembly,
    Attestation,
    Contestant,
    ContestRules,
    Deliberation,
    Document,
    EvalReport,
    EvalSummary,
    HeadToHead,
    Interval,
    LineageStep,
    Manifest,
    ParityCase,
    ParityReport,
    Proposal,
    Recipe,
    RegistryDocument,
    RegistryEntry,
    RejectedRecord,
    Score,
    Seat,
    Source,
    SourceGateReport,
    TrainingConfig,
    TrainingRecord,
    Tripwire,
    TripwireMeasure,
    TripwirePolicy,
    TripwireReport,
    TripwireRule,
)

HERE = Path(__file__).parent


def d(text: str) -> Digest:
    return Digest.of(text.encode())


def documents() -> dict[str, Document]:
    bare = Assembly(base=d("base"), tokenizer=d("tokenizer"))
    tuned = bare.revised(
        adapters=(AdapterUse(adapter=d("child"), weight=0.5), AdapterUse(adapter=d("sibling"), weight=-1.25e-7))
    )
    nf4 = Recipe(
        dtype="bfloat16",
        quantization="nf4",
        modules=("model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"),
        double_quant=True,
        compute_dtype="bfloat16",
    )
    score = Score(
        suite="basics",
        suite_digest=d("suite"),
        metric="pass@1",
        n=150,
        passed=61,
        score=61 / 150,
        interval=Interval(low=0.331, high=0.487, level=0.95, method="wilson"),
    )
    report = EvalReport(
        assembly=tuned.digest, recipe=nf4.digest, result=score, items=d("items"), seeds=(0, 7), settings={"batch": "16"}
    )
    training = TrainingRecord(
        base=d("base"),
        base_before=d("tensors"),
        base_after=d("tensors"),
        adapter_tensors=d("adapter tensors"),
        data=(d("data 2"), d("data 1")),
        batches=d("batches"),
        examples=96,
        config=TrainingConfig(targets=("v_proj", "q_proj"), steps=3, warmup_steps=1),
        losses=(2.5, 1.75, 1.7000000476837158),
        final_loss=1.7000000476837158,
        device="cpu",
        threads=2,
        capability="x86_64 AVX512",
        libraries={"torch": "2.13.0+cpu", "peft": "0.21.2"},
    )
    record = AdapterRecord(
        adapter=d("child"),
        base=d("base"),
        parent=d("parent"),
        rank=8,
        alpha=16.0,
        targets=("model.layers.0.self_attn.v_proj", "model.layers.0.self_attn.q_proj"),
        training=training.digest,
        claim=False,
    )
    source = Source(kind="embedded", location="keystone-nano 0.1", licence="Apache-2.0")
    full = Manifest(
        assembly=tuned,
        recipe=nf4,
        source=source.revised(note="Zwei Schleifen,\nein \u201eKern\u201c \U0001f642"),
        evals=(
            EvalSummary(**dict(score), report=report.digest, recipe=nf4.digest),
            EvalSummary(
                suite="basics",
                suite_digest=d("suite"),
                metric="bits_per_byte",
                n=20,
                passed=None,
                score=1.5,
                report=d("another report"),
                recipe=Recipe(dtype="bfloat16").digest,
            ),
        ),
        tripwire=Tripwire(status="clear", report=d("tripwire report"), recipe=nf4.digest),
        approvals=(d("approval"),),
        lineage=(
            LineageStep(adapter=d("child"), parent=d("parent"), record=record.digest),
            LineageStep(adapter=d("parent"), parent=None, record=d("parent record")),
            LineageStep(adapter=d("sibling"), parent=None, record=d("sibling record")),
        ),
        parent=d("parent manifest"),
        labels={"stage": "candidate", "owner": "ops"},
    )
    return {
        **evidence(tuned, nf4),
        "assembly-bare": bare,
        "assembly-adapters": tuned,
        "recipe-none": Recipe(dtype="bfloat16"),
        "recipe-int8": Recipe(dtype="float32", quantization="int8", modules=("lm_head",)),
        "recipe-nf4": nf4,
        "eval-report": report,
        "training-record": training,
        "adapter-record": record,
        "adapter-record-claim": AdapterRecord(
            adapter=d("sibling"), base=d("base"), rank=4, alpha=0.5, targets=("lm_head",), claim=True
        ),
        "manifest-bare": Manifest(assembly=bare, source=source),
        "manifest-full": full,
    }


def evidence(assembly: Assembly, recipe: Recipe) -> dict[str, Document]:
    """What gates and people say; bound to one assembly and recipe."""
    rules = (
        TripwireRule(
            suite="sentinel", suite_digest=d("suite"), metric="pass@1", better="higher", limit=0.3, margin=0.02
        ),
        TripwireRule(suite="prose", suite_digest=d("prose"), metric="bits_per_byte", better="lower", margin=0.125),
        TripwireRule(suite="prose", suite_digest=d("prose"), metric="distinct-3", better="higher", limit=0.5),
    )
    policy = TripwirePolicy(name="weekly/1", rules=rules, note="Fixed before the run.")
    clear = (
        TripwireMeasure(
            suite="sentinel",
            suite_digest=d("suite"),
            metric="pass@1",
            value=61 / 150,
            report=d("report a"),
            incumbent_value=0.42,
            incumbent_report=d("report b"),
        ),
        TripwireMeasure(
            suite="prose",
            suite_digest=d("prose"),
            metric="bits_per_byte",
            value=1.5,
            report=d("report c"),
            incumbent_value=1.4375,
            incumbent_report=d("report d"),
        ),
        TripwireMeasure(suite="prose", suite_digest=d("prose"), metric="distinct-3", value=0.75, report=d("report e")),
    )
    began = f"41:{'5a' * 32}"
    report = TripwireReport(
        assembly=assembly.digest,
        recipe=recipe.digest,
        policy=policy.digest,
        incumbent=d("parent manifest"),
        began=began,
        measures=clear,
        status="clear",
    )
    gate = SourceGateReport(
        gate="source-gate/1",
        settings={"sandbox": "process"},
        accepted=(
            AcceptedRecord(record=d("record 1"), ground="tests-passed", evidence=d("run 1")),
            AcceptedRecord(record=d("record 2"), ground="operator-approved"),
        ),
        rejected=(RejectedRecord(record=d("record 3"), reason="raw model output"),),
        data=(d("data 1"), d("data 2")),
    )
    approval = Approval(
        ref="nano/main",
        assembly=assembly.digest,
        recipe=recipe.digest,
        incumbent=d("parent manifest"),
        reports=(d("report a"), d("tripwire report")),
        policies=(policy.digest,),
        ledger=f"57:{'c3' * 32}",
        note="Better on the draw, nothing lost on the sentinels.",
    )
    attestation = Attestation(
        assembly=assembly.digest,
        recipe=recipe.digest,
        nonce="0f" * 32,
        value=d("live tensors"),
        tensors=93,
        device="cpu",
        libraries={"torch": "2.13.0+cpu", "bitsandbytes": "0.50.2"},
    )
    return {
        "tripwire-policy": policy,
        "tripwire-report-clear": report,
        "tripwire-report-tripped": report.revised(
            incumbent=None, measures=clear[2:], tripped=("sentinel pass@1", "prose bits_per_byte"), status="tripped"
        ),
        "tripwire-report-detail": report.revised(detail=guard_report().digest),
        "guard-policy": guard_policy(),
        "guard-report": guard_report(),
        "convergence-record": convergence_record(),
        "source-gate-report": gate,
        "approval": approval,
        "approval-first": Approval(ref="prod", assembly=assembly.digest, ledger=began),
        "attestation": attestation,
        "parity-report": parity_report(),
        "head-to-head": head_to_head(),
        "model-registry": model_registry(),
        "model-registry-empty": RegistryDocument(),
        "deliberation": deliberation(),
    }


def guard_policy() -> GuardPolicy:
    return GuardPolicy(
        name="weekly/1",
        sentinel=d("sentinel"),
        fresh_suite="basics",
        signals=(SignalRule(name="length", harm="either", tolerance=0.25, relative=True, noise=0.5),),
    )


def guard_report() -> GuardReport:
    policy = guard_policy()
    even = Contrast(800, 40, 0.0, 0.01, 0.5, 0.5, 0.0001)
    better = Contrast(800, 40, 0.125, 0.015625, 0.9999, 0.0001, 0.0001)
    loss = FamilyLoss("lists", 2, 2, 30, 0.7)
    shift = SignalShift("length", 20.0, 20.125, 0.1, 0.1, -0.1, 0.3, 5.0)

    def standing(name: str) -> Standing:
        return Standing(name, better, even, loss, 0, 0.75, (-0.125, 0.0625), (shift,))

    standings = tuple(standing(name) for name in policy.references)
    return GuardReport(
        policy=policy.digest,
        assembly=d("assembly"),
        recipe=d("recipe"),
        draw="week-31",
        commitment=d("sealed"),
        references=tuple(ReferenceModel(name=name, assembly=d(name)) for name in policy.references),
        look=3,
        standings=standings,
        judgement=conclude(policy, standings),
    )


def convergence_record() -> ConvergenceRecord:
    return ConvergenceRecord(
        claim=Claim(suite="basics", task="reverse a list", prompt="def turned(x):\n", answer="    return x[::-1]\n"),
        evidence=Evidence(ground="tests-passed", check=d("hidden tests"), checker="sandbox/1"),
        confidence=Confidence(passed=12, total=12),
        source=RecordSource(
            kind="model", name="nano/main", licence="Apache-2.0", assembly=d("assembly"), recipe=d("recipe"), seed=7
        ),
    )


def parity_report() -> ParityReport:
    exact = {"dtype": "float32", "metric": "max-abs-delta", "bar": 5e-4}
    return ParityReport(
        base=d("base"),
        code="keystone-plt/1",
        code_source=d("modeling source"),
        reference=d("reference.safetensors"),
        inputs=d("spec.json"),
        engine="transformers 4.57.0, torch 2.8.0, cuda",
        device="cpu",
        cases=(
            ParityCase(name="text-0.float32", tokens=47, prefill=31, worst=6.5e-4, passed=False, **exact),
            ParityCase(name="random.float32", tokens=200, prefill=200, worst=1.25e-5, passed=True, **exact),
            ParityCase(
                name="random.bfloat16",
                dtype="bfloat16",
                metric="relative-frobenius",
                tokens=200,
                prefill=200,
                bar=0.045,
                worst=None,
                passed=False,
            ),
        ),
    )


def head_to_head() -> HeadToHead:
    ours = Contestant(
        assembly=d("assembly"), recipe=d("recipe"), api="local", style="completion", passed=61, items=d("ours")
    )
    theirs = Contestant(
        endpoint="http://127.0.0.1:11434", model="coder:7b", api="ollama", style="completion", passed=40, items=d("its")
    )
    return HeadToHead(
        candidate=ours,
        opponent=theirs,
        suite="humaneval",
        suite_digest=d("humaneval"),
        n=164,
        units=164,
        rules=ContestRules(look=2, seed=7),
        difference=21 / 164,
        error=0.03125,
        p_worse=0.9999,
        p_better=0.0001,
        p_inferior=0.0001,
        minimal_effect=0.09375,
        verdict="IMPROVED",
        settings={"decoding": "greedy", "sandbox": "bwrap"},
    )


def model_registry() -> RegistryDocument:
    ours = RegistryEntry(
        id="nano",
        endpoint="keystone:nano",
        assembly=d("assembly"),
        recipe=d("recipe"),
        self_converges=True,
        vram_bytes=612_345_678,
        vram_source="fit",
        ctx_tokens=2048,
        task_types=("kernel", "coding"),
        report=d("report"),
        note="The embedded base.",
    )
    theirs = RegistryEntry(
        id="coder:7b",
        endpoint="http://127.0.0.1:11434",
        model="coder:7b",
        tool_calling=True,
        rank=3,
        capability=88.5,
    )
    return RegistryDocument(models=(ours, theirs))


def deliberation() -> Deliberation:
    seats = (
        Seat(id="nano", manifest=d("manifest"), assembly=d("assembly"), recipe=d("recipe")),
        Seat(id="coder:7b", endpoint="http://127.0.0.1:11434", model="coder:7b"),
    )
    return Deliberation(
        task=d("task"),
        check=d("check"),
        members=seats,
        proposals=(
            Proposal(
                member=0, sample=0, seed=1, verdict="failed", detail="not so", answer=d("a"), program=d("a program")
            ),
            Proposal(member=1, sample=0, seed=2, verdict="passed", answer=d("b"), program=d("b program")),
            Proposal(member=0, sample=1, seed=3, verdict="unanswered", detail="it took too long"),
        ),
        cited=(d("record two"), d("record one")),
        context=d("context"),
        mode="best",
        agreement="one",
        winner=1,
        record=d("record"),
        sandbox="bwrap",
        settings={"samples": "2"},
    )


def main() -> None:
    known = HERE / "digests.json"
    digests = json.loads(known.read_text()) if known.exists() else {}
    for name, document in documents().items():
        path = HERE / f"{name}.v1.json"
        if not path.exists():
            path.write_bytes(document.to_bytes())
            digests[path.name] = str(document.digest)
    known.write_text(json.dumps(digests, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
