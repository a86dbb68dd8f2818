"""Writes the golden documents of schema version 1. Run once, by hand, when a kind is new; never when a test fails.

    python tests/golden/manifests/make_manifest_goldens.py

Every file is a document as it is stored, byte for byte; `digests.json` says what each must hash to. A release that
reads one of them differently, or hashes it differently, has broken every name that was ever given out. An existing file
is never overwritten.
"""

from __future__ import annotations

import json
from pathlib import Path

from csf_store import Digest
from manifests import (
    AdapterRecord,
    AdapterUse,
    Assembly,
    Document,
    EvalReport,
    EvalSummary,
    Interval,
    LineageStep,
    Manifest,
    Recipe,
    Score,
    Source,
    TrainingConfig,
    TrainingRecord,
    Tripwire,
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
