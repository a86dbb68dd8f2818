"""The audit passes what is sound, and names what is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from manifest_house import House, signer

from csf_store import Archive, CsfError, Digest, Kind
from manifests import (
    AdapterRecord,
    Auditor,
    AuditReport,
    EvalReport,
    EvalSummary,
    Recipe,
    RefNotFoundError,
    Score,
    TrainingConfig,
    TrainingRecord,
    Tripwire,
    Verdict,
    audit,
    tensor_set_digest,
    trust_key,
)

RECIPE = Recipe(dtype="bfloat16")
SCORE = Score(suite="basics", suite_digest=Digest.of(b"suite"), metric="pass@1", n=4, passed=1, score=0.25)


def fits(archive: Archive, adapter: Digest, base: Digest) -> str | None:
    return None


def lines(report: AuditReport, check: str) -> list[tuple[Verdict, str]]:
    return [(line.verdict, line.message) for line in report.lines if line.check == check]


def culprits(report: AuditReport) -> list[str]:
    return [f"{line.check} {line.subject} {line.message}" for line in report.lines if line.verdict is Verdict.FAIL]


def proven_adapter(house: House, **changes: object) -> Digest:
    """An adapter with a training record behind it; its tree has no tensors, so the tensor set is the empty one."""
    adapter = house.tree(adapter_config=b"proven")
    record = TrainingRecord(
        base=house.base,
        base_before=Digest.of(b"weights"),
        base_after=Digest.of(b"weights"),
        adapter_tensors=tensor_set_digest([]),
        data=(),
        batches=Digest.of(b"batches"),
        examples=1,
        config=TrainingConfig(targets=("q_proj",), steps=1),
        losses=(1.0,),
        final_loss=1.0,
        device="cpu",
        threads=1,
        capability="x86_64",
        libraries={"torch": "2"},
    ).revised(**changes)
    proof = house.repository.put_record(record)
    house.repository.put_adapter_record(house.record(adapter).revised(training=proof, claim=False))
    return adapter


def test_a_bare_base_is_sound_and_unsigned(house: House) -> None:
    report = audit(house.archive, house.put())
    assert culprits(report) == []
    assert report.verdict is Verdict.UNSIGNED
    assert report.exit_code() == 0 and report.exit_code(require_signatures=True) == 4
    assert [line.check for line in report.lines] == [
        "ledger",
        "manifest",
        "inclusion",
        "objects",
        "code",
        "tokenizer",
        "lineage",
        "tripwire",
        "approvals",
    ]


def test_a_claim_is_unknown_and_a_proof_passes(house: House) -> None:
    claimed = audit(house.archive, house.put(house.adapter("one")), fit=fits)
    assert lines(claimed, "training")[0][0] is Verdict.UNKNOWN and claimed.exit_code() == 3
    proven = audit(house.archive, house.put(proven_adapter(house)), fit=fits)
    assert lines(proven, "training")[0][0] is Verdict.PASS and lines(proven, "lineage")[0][0] is Verdict.PASS


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"base_after": Digest.of(b"moved")}, "the base changed during training"),
        ({"adapter_tensors": Digest.of(b"other")}, "holds b3:"),
    ],
)
def test_a_training_record_that_does_not_prove_it_fails(house: House, changes: dict[str, object], says: str) -> None:
    report = audit(house.archive, house.put(proven_adapter(house, **changes)), fit=fits)
    assert [says in text for text in culprits(report)] == [True] and report.exit_code() == 1


def test_fit_is_unknown_without_the_check_and_fails_with_its_words(house: House) -> None:
    manifest = house.put(proven_adapter(house))
    assert lines(audit(house.archive, manifest), "fit")[0][0] is Verdict.UNKNOWN
    wrong = audit(house.archive, manifest, fit=lambda *_: "q_proj is too wide")
    assert lines(wrong, "fit") == [(Verdict.FAIL, "q_proj is too wide")]

    def broken(*_: object) -> str | None:
        raise CsfError("chunk gone")

    assert lines(audit(house.archive, manifest, fit=broken), "fit") == [(Verdict.FAIL, "chunk gone")]


def test_unknown_code_is_unknown(house: House) -> None:
    manifest = house.manifest()
    digest = house.repository.put(manifest.revised(assembly=manifest.assembly.revised(code="keystone-plt/9")))
    assert lines(audit(house.archive, digest), "code")[0][0] is Verdict.UNKNOWN


def evaluated(house: House, report: EvalReport, **changes: object) -> Digest:
    stored = house.repository.put_record(report)
    fields = {**dict(report.result), "report": stored, "recipe": report.recipe, **changes}
    return house.repository.put(house.manifest().revised(evals=(EvalSummary(**fields),)))  # type: ignore[arg-type]


def test_an_eval_is_compared_with_its_report(house: House) -> None:
    bare = EvalReport(assembly=house.manifest().assembly.digest, recipe=RECIPE.digest, result=SCORE)
    assert lines(audit(house.archive, evaluated(house, bare)), "eval")[0][0] is Verdict.UNKNOWN
    verdicts = ["passed", "failed", "failed", "error"]
    items = "".join(f'{{"name":"{n}","verdict":"{verdict}"}}\n' for n, verdict in enumerate(verdicts))
    good = bare.revised(items=house.archive.put_bytes(items.encode()).digest)
    assert lines(audit(house.archive, evaluated(house, good)), "eval")[0][0] is Verdict.PASS
    other = Digest.of(b"another assembly")
    cases = [
        (evaluated(house, good.revised(assembly=other)), str(other)),
        (evaluated(house, good, recipe=Recipe(dtype="float32").digest), "recipe"),
        (evaluated(house, good, passed=4, score=1.0), "passed 4, its report says 1"),
        (evaluated(house, good, n=8, passed=2), "n 8, its report says 4"),
        (evaluated(house, good, suite_digest=other), "suite_digest"),
    ]
    for manifest, says in cases:
        found = culprits(audit(house.archive, manifest))
        assert len(found) == 1 and says in found[0], (says, found)


def test_something_else_in_the_place_of_a_report_fails(house: House) -> None:
    adapter = house.adapter("one")
    found = house.repository.find_adapter_record(adapter)
    assert found is not None
    summary = EvalSummary(**dict(SCORE), report=found[0], recipe=RECIPE.digest)
    manifest = house.repository.put(house.manifest().revised(evals=(summary,)))
    assert "adapter-record" in culprits(audit(house.archive, manifest))[0]


def test_a_tripped_wire_fails(house: House) -> None:
    report = house.archive.put_bytes(b'{"kind":"tripwire-report"}', kind=Kind.RECORD).digest
    wire = Tripwire(status="tripped", report=report, recipe=RECIPE.digest)
    manifest = house.repository.put(house.manifest().revised(tripwire=wire))
    assert lines(audit(house.archive, manifest), "tripwire")[0][0] is Verdict.FAIL


def test_an_absent_manifest_fails_by_name(house: House) -> None:
    absent = Digest.of(b"?")
    report = audit(house.archive, absent)
    assert report.exit_code() == 1 and str(absent) in culprits(report)[0]


def test_forged_records_fail_the_lineage(house: House) -> None:
    adapter = house.adapter("one")
    manifest = house.put(adapter)
    forged = house.record(adapter, base=Digest.of(b"other base"))
    house.archive.put_bytes(forged.to_bytes(), kind=Kind.RECORD, links=[adapter])
    report = audit(house.archive, manifest, fit=fits)
    assert lines(report, "lineage")[0][0] is Verdict.FAIL and str(forged.base) in culprits(report)[0]


def test_a_manifest_that_went_round_the_repository_is_still_checked(house: House) -> None:
    parent, child = house.adapter("parent"), house.adapter("child")
    manifest = house.manifest(child)
    steps = {step.adapter: step for a in (parent, child) for step in house.repository.trace([a], base=house.base)}
    invented = manifest.revised(lineage=(steps[child].revised(parent=parent), steps[parent]))
    digest = house.archive.put_bytes(invented.to_bytes(), kind=Kind.MANIFEST, links=invented.links()).digest
    report = audit(house.archive, digest, fit=fits)
    assert any(text.startswith("lineage") for text in culprits(report))


def test_refs_and_their_rollback_targets(house: House) -> None:
    refs = house.repository.refs
    a, b = house.put(), house.put(name="b")
    refs.set("prod", a, expected=None)
    assert "nothing to roll back to" in lines(audit(house.archive, a), "rollback")[0][1]
    refs.set("prod", b, expected=a)
    assert lines(audit(house.archive, b), "rollback") == [
        (Verdict.PASS, f"ref 'prod' can go back to {a.short}, verified")
    ]
    house.archive.ledger.append("ref.set", **{"ref": "prod", "from": str(a), "to": str(a)})
    assert f"it was at {b}" in culprits(audit(house.archive, a))[0]


def test_the_report_is_plain_data(house: House) -> None:
    manifest = house.put()
    told = json.loads(json.dumps(audit(house.archive, manifest).to_json()))
    assert told["manifest"] == str(manifest) and told["verdict"] == "UNSIGNED"
    assert {"check", "verdict", "subject", "message"} == told["lines"][0].keys()
    assert AuditReport(manifest=manifest, lines=()).exit_code() == 3


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_any_flipped_byte_of_ledger_or_stored_content_is_found(house: House) -> None:
    manifest = house.put(proven_adapter(house))
    house.repository.refs.set("prod", manifest, expected=None)
    path = Path(house.archive.path)
    house.archive.close()
    (segment,) = (path / "segments").iterdir()
    places = [(segment, at) for at in range(100, segment.stat().st_size, 149)]
    places += [(path / "ledger.jsonl", at) for at in (5, 40, 120, 300)]
    for file, at in places:
        flip(file, at)
        try:
            with Archive.open(path) as archive:
                assert culprits(audit(archive, manifest, fit=fits)), f"{file.name} at {at} went unseen"
        except CsfError:
            pass  # refusing to open the archive at all is finding it, too
        finally:
            flip(file, at)
    with Archive.open(path) as archive:
        assert culprits(audit(archive, manifest, fit=fits)) == []


def test_adapter_records_can_be_loaded_by_type(house: House) -> None:
    adapter = house.adapter("one")
    found = house.repository.find_adapter_record(adapter)
    assert found is not None and house.repository.load_record(found[0], AdapterRecord) == found[1]


def test_evidence_for_another_recipe_than_the_one_to_be_served_clears_nothing(house: House) -> None:
    wired = house.wired(house.manifest(house.adapter("a")), passed=3)
    nf4 = Recipe(dtype="bfloat16", quantization="nf4", modules=("m",), double_quant=True, compute_dtype="bfloat16")
    told = {}
    for manifest in (wired, wired.revised(recipe=nf4)):
        report = audit(house.archive, house.repository.put(manifest))
        told[manifest.recipe] = {line.check: line for line in report.lines}
    assert told[wired.recipe]["tripwire"].verdict is Verdict.PASS
    assert told[nf4]["tripwire"].verdict is Verdict.UNKNOWN
    assert str(nf4.digest) in told[nf4]["tripwire"].message
    assert told[wired.recipe]["eval"].message.endswith("this assembly and recipe, scored again from them")
    assert "not the one to be served with" in told[nf4]["eval"].message


def test_one_record_by_itself(house: House) -> None:
    trust_key(house.archive, signer().public)
    wired = house.wired(house.manifest(house.adapter("a")), passed=3)
    manifest = house.repository.put(wired)
    report, wire = wired.evals[0].report, wired.tripwire.report
    assert wire is not None
    good = house.approve("prod", manifest, signer())
    strange = house.approve("prod", manifest, signer("mallory"))
    other = house.archive.put_bytes(b'{"kind":"shopping-list"}', kind=Kind.RECORD).digest
    broken = house.archive.put_bytes(b'{"kind": "shopping-list"}', kind=Kind.RECORD).digest
    auditor = Auditor(house.archive)
    told = {
        digest: {line.check: line.verdict for line in auditor.audit_target(str(digest)).lines}
        for digest in (report, wire, good, strange, other, broken)
    }
    common = {"ledger": Verdict.PASS, "document": Verdict.PASS, "objects": Verdict.PASS}
    assert told[report] == told[wire] == {**common, "inclusion": Verdict.PASS, "claims": Verdict.PASS}
    assert told[good] == {**common, "signature": Verdict.PASS}
    assert told[strange] == {**common, "signature": Verdict.UNKNOWN}
    assert told[other] == {**common, "document": Verdict.UNKNOWN}
    assert told[broken] == {"ledger": Verdict.PASS, "document": Verdict.FAIL}
    with pytest.raises(CsfError):
        auditor.audit_target("b3:" + "0" * 64)
    with pytest.raises(RefNotFoundError):
        auditor.audit_target("nowhere")


def test_a_record_that_the_ledger_tells_of_otherwise(house: House) -> None:
    report = EvalReport(assembly=house.manifest().assembly.digest, recipe=RECIPE.digest, result=SCORE)
    stored = house.archive.put_bytes(report.to_bytes(), kind=Kind.RECORD).digest
    about = str(Digest.of(b"another"))
    house.archive.ledger.append("evidence", kind="eval-report", record=str(stored), assembly=about)
    (line,) = (line for line in Auditor(house.archive).audit_document(stored).lines if line.check == "inclusion")
    assert line.verdict is Verdict.FAIL and about in line.message
