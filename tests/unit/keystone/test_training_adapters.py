"""Training on an archived base: what gets in, what comes out, and what is refused when a guard has reason to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import torch
from learning_lab import SETTINGS, TASKS, Lab, make_lab

import keystone
from adapters import BaseChangedError, SourceRefusedError, archived_adapter, fit_problem
from csf_store import Digest, Kind
from keystone.errors import InvalidInputError, RefusedError
from keystone.evaluation import ProcessSandbox
from keystone.experience import Gated
from keystone.tied_weights import TIED
from keystone.training import Trained, TrainingRun, find_training_run, learning, reproduce, train_adapter
from keystone.training.curve import curve_svg, curve_text, smoothed
from manifests import AdapterRecord, Auditor, Repository, SourceGateReport, TrainingRecord, Verdict

KILLED = """
import os, signal
from keystone.cli.lean import import_lean
import_lean(bitsandbytes=True)
import torch
torch.set_num_threads({threads})
from pathlib import Path
from csf_store import Archive, Digest
from keystone.training import TrainSettings, train_adapter
from manifests import Repository
def kill(step, *_):
    if step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
repository = Repository(Archive.open({archive!r}))
train_adapter(repository, repository.resolve("one"), [Digest.parse(each) for each in {records!r}],
              Digest.parse({gate!r}), {settings}, checkpoint_dir=Path({directory!r}), progress=kill)
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with ProcessSandbox(workers=1) as sandbox:
        yield make_lab(tmp_path_factory.mktemp("training"), sandbox)


@pytest.fixture(scope="module")
def records(lab: Lab) -> list[Digest]:
    return [lab.record(task) for task in TASKS[:6]]


@pytest.fixture(scope="module")
def outside(lab: Lab) -> list[Digest]:
    return [lab.external(task) for task in TASKS[6:9]]


@pytest.fixture(scope="module")
def gated(lab: Lab, records: list[Digest]) -> Gated:
    return lab.gated(*records)


@pytest.fixture(scope="module")
def trained(lab: Lab, records: list[Digest], gated: Gated) -> Trained:
    return train_adapter(lab.repository, lab.base, records, gated.digest, SETTINGS)


def verdicts(lab: Lab, manifest: Digest) -> dict[str, Verdict]:
    found = Auditor(lab.repository.archive, fit=fit_problem, tied=TIED).audit(manifest).lines
    return {line.check: line.verdict for line in found}


def test_an_adapter_comes_with_its_proof_and_its_manifest(lab: Lab, trained: Trained, gated: Gated) -> None:
    record = lab.repository.load_record(trained.record, TrainingRecord)
    assert record.losses == trained.losses
    assert (len(record.experience), record.examples, record.gate) == (6, 6, gated.digest)
    assert record.data == (gated.data,)
    assert record.base_before == record.base_after
    manifest = lab.repository.load(trained.manifest)
    assert [use.adapter for use in manifest.assembly.adapters] == [trained.adapter]
    assert manifest.parent == lab.base
    said = verdicts(lab, trained.manifest)
    assert {check: verdict for check, verdict in said.items() if verdict is not Verdict.PASS} == {
        "tripwire": Verdict.UNKNOWN,
        "approvals": Verdict.UNSIGNED,
    }
    assert {"base", "training", "gate", "fit"} <= said.keys()


def test_the_run_keeps_what_it_takes_to_repeat_it(lab: Lab, trained: Trained, records: list[Digest]) -> None:
    digest, run = find_training_run(lab.repository, trained.adapter) or (None, None)
    assert digest == trained.run
    assert run is not None
    assert run.records == tuple(sorted(records))
    assert (run.external, run.external_share, run.modules_to_save) == ((), 0.0, ())
    assert run.held_before == run.held_after
    assert run.archived_before == run.archived_after
    lines = lab.repository.archive.get_bytes(run.curve, kind=Kind.BLOB).decode().splitlines()
    assert len(lines) == SETTINGS.steps
    assert lines[0].startswith('{"step":1,"loss":')
    assert {trained.run, trained.adapter} <= {pin.digest for pin in lab.repository.archive.pins()}


def test_the_same_records_and_seed_give_the_same_adapter_whatever_their_order(
    lab: Lab, trained: Trained, records: list[Digest], gated: Gated
) -> None:
    torch.manual_seed(99)
    again = train_adapter(lab.repository, lab.base, records[::-1], gated.digest, SETTINGS)
    assert again == trained
    other = train_adapter(lab.repository, lab.base, records, gated.digest, replace(SETTINGS, seed=8))
    assert other.adapter != trained.adapter


def test_killed_and_started_again_it_is_the_same_adapter(
    lab: Lab, trained: Trained, records: list[Digest], gated: Gated, tmp_path: Path
) -> None:
    program = KILLED.format(
        settings=repr(SETTINGS),
        threads=torch.get_num_threads(),
        archive=str(lab.path),
        records=[str(each) for each in records],
        gate=str(gated.digest),
        directory=str(tmp_path / "state"),
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, env=dict(os.environ), capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert len(list((tmp_path / "state").iterdir())) == 1
    steps: list[int] = []
    again = train_adapter(
        lab.repository, lab.base, records, gated.digest, SETTINGS,
        checkpoint_dir=tmp_path / "state", progress=lambda step, *_: steps.append(step),
    )  # fmt: skip
    assert again == trained
    assert steps == [4, 5, 6]
    assert list((tmp_path / "state").iterdir()) == []


def test_external_examples_are_mixed_in_and_their_share_is_recorded(
    lab: Lab, records: list[Digest], outside: list[Digest]
) -> None:
    report = lab.gated(*records, *outside).digest
    settings = replace(SETTINGS, steps=2)
    mixed = train_adapter(lab.repository, lab.base, records, report, settings, external=outside)
    assert mixed.external_share == 3 / 9
    run = lab.repository.load_record(mixed.run, TrainingRun)
    assert run.external == tuple(sorted(outside))
    assert reproduce(lab.repository, mixed.adapter).verdict == "SAME", "batches do not depend on who lists the records"
    quarter = train_adapter(
        lab.repository, lab.base, records, report, replace(settings, external_share=0.25), external=outside
    )
    assert quarter.external_share == 2 / 8
    with pytest.raises(RefusedError, match="takes 6 external ones, and 3 are given"):
        train_adapter(
            lab.repository, lab.base, records, report, replace(settings, external_share=0.5), external=outside
        )
    alone = lab.gated(*outside).digest
    with pytest.raises(RefusedError, match="all that are given are external"):
        train_adapter(lab.repository, lab.base, [], alone, replace(settings, external_share=0.5), external=outside)
    with pytest.raises(InvalidInputError, match="share"):
        train_adapter(lab.repository, lab.base, records, report, replace(settings, external_share=1.0))


def test_a_models_answer_is_no_external_data(lab: Lab, records: list[Digest], gated: Gated) -> None:
    with pytest.raises(SourceRefusedError, match=f"{sorted(records)[0]} is the answer of a model"):
        train_adapter(lab.repository, lab.base, [], gated.digest, SETTINGS, external=records)


def test_nothing_trains_that_the_gate_did_not_let_in(
    lab: Lab, records: list[Digest], outside: list[Digest], gated: Gated
) -> None:
    def trying(report: Digest, *chosen: Digest) -> None:
        train_adapter(lab.repository, lab.base, chosen, report, SETTINGS)

    bad = lab.record(TASKS[9], claim__answer="    return 17\n")
    refused = lab.gated(*records, bad)
    before = len(list(lab.repository.manifests()))
    with pytest.raises(SourceRefusedError, match=f"1 of 7 records may not train: {bad}"):
        trying(refused.digest, *records, bad)
    with pytest.raises(SourceRefusedError, match="may not train"):
        trying(refused.digest, *records)  # a set that shrank after it was judged
    with pytest.raises(SourceRefusedError, match="does not speak of record"):
        trying(gated.digest, *records, outside[0])
    with pytest.raises(SourceRefusedError, match="another set of records"):
        trying(gated.digest, *records[:3])
    with pytest.raises(SourceRefusedError, match="empty"):
        trying(gated.digest)
    other = lab.repository.put_record(gated.report.revised(gate="somebody-elses/1"))
    with pytest.raises(SourceRefusedError, match="is of gate somebody-elses/1"):
        trying(other, *records)
    entries = tuple(each.revised(evidence=Digest.of(b"x") if each.record == records[0] else each.evidence) for each in gated.report.accepted)  # fmt: skip # noqa: E501
    lab.repository.archive.put_bytes(b"x")
    swapped = lab.repository.put_record(gated.report.revised(accepted=entries))
    with pytest.raises(SourceRefusedError, match=f"record {records[0]} stands on other evidence"):
        trying(swapped, *records)
    assert len(list(lab.repository.manifests())) == before


def test_a_record_too_long_is_named_and_not_cut(lab: Lab, records: list[Digest], gated: Gated) -> None:
    with pytest.raises(RefusedError, match=r"record b3:[0-9a-f]{64} takes \d+ tokens, and 20 are allowed"):
        train_adapter(lab.repository, lab.base, records, gated.digest, replace(SETTINGS, max_tokens=20))


def test_a_base_that_changes_in_memory_or_in_the_archive_stops_it(
    lab: Lab, records: list[Digest], gated: Gated, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = len(list(lab.repository.manifests()))
    settings = replace(SETTINGS, steps=3, seed=11)
    assembled = learning.assemble
    held: list[torch.nn.Module] = []

    def remembering(*arguments: object, **options: object) -> object:
        found = assembled(*arguments, **options)  # type: ignore[arg-type]
        held.append(found.model)
        return found

    def meddle(*_: object) -> None:
        with torch.no_grad():
            held[0].get_parameter("model.norm.weight").mul_(1.01)

    with monkeypatch.context() as patch:
        patch.setattr(learning, "assemble", remembering)
        with pytest.raises(BaseChangedError, match=r"model\.norm\.weight changed during training"):
            train_adapter(lab.repository, lab.base, records, gated.digest, settings, progress=meddle)
    entries, looks = learning.archived_entries, []

    def drifting(*arguments: object) -> object:
        looks.append(1)
        found = entries(*arguments)  # type: ignore[arg-type]
        return found if len(looks) == 1 else {name: entry for name, entry in found.items() if "norm" not in name}

    with monkeypatch.context() as patch:
        patch.setattr(learning, "archived_entries", drifting)
        with pytest.raises(BaseChangedError, match=r"norm.* is gone"):
            train_adapter(lab.repository, lab.base, records, gated.digest, settings)
    assert len(list(lab.repository.manifests())) == before


def test_training_goes_on_from_a_parent_and_the_lineage_says_so(
    lab: Lab, trained: Trained, records: list[Digest], gated: Gated
) -> None:
    child = train_adapter(lab.repository, trained.manifest, records, gated.digest, replace(SETTINGS, rank=None, seed=9))
    record = lab.repository.adapter_record(child.adapter)
    assert record is not None
    assert (record.parent, record.rank, record.claim) == (trained.adapter, 2, False)
    manifest = lab.repository.load(child.manifest)
    assert [use.adapter for use in manifest.assembly.adapters] == [child.adapter]
    assert {step.adapter for step in manifest.lineage} == {child.adapter, trained.adapter}
    assert min(child.losses) < trained.losses[0]
    assert verdicts(lab, child.manifest)["lineage"] is Verdict.PASS
    assert reproduce(lab.repository, child.adapter).verdict == "SAME"
    with pytest.raises(RefusedError, match="rank 4 was asked for, and the parent adapter has 2"):
        train_adapter(lab.repository, trained.manifest, records, gated.digest, replace(SETTINGS, rank=4))
    weighed = lab.repository.load(trained.manifest)
    half = weighed.assembly.adapters[0].revised(weight=0.5)
    other = lab.repository.put(weighed.revised(assembly=weighed.assembly.revised(adapters=(half,))))
    with pytest.raises(RefusedError, match="one adapter at weight 1"):
        train_adapter(lab.repository, other, records, gated.digest, SETTINGS)


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_a_quantized_base_trains_and_its_proof_can_be_audited(
    lab: Lab, trained: Trained, records: list[Digest], gated: Gated, quantization: str
) -> None:
    settings = replace(SETTINGS, steps=2, quantization=quantization)  # type: ignore[arg-type]
    made = train_adapter(lab.repository, lab.base, records, gated.digest, settings)
    run = lab.repository.load_record(made.run, TrainingRun)
    record = lab.repository.load_record(made.record, TrainingRecord)
    assert run.recipe.quantization == quantization
    assert run.held_before == run.held_after != run.archived_before == record.base_before
    assert "bitsandbytes" in record.libraries
    assert verdicts(lab, made.manifest)["base"] is Verdict.PASS
    assert made.losses != trained.losses[:2]


def test_repacking_is_turned_off_before_a_four_bit_base_trains(
    lab: Lab, records: list[Digest], gated: Gated, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared: list[str] = []
    monkeypatch.setattr(learning, "prepare_for_training", lambda model: prepared.append(type(model).__name__))
    train_adapter(lab.repository, lab.base, records, gated.digest, replace(SETTINGS, steps=1))
    assert prepared == ["KeystoneForCausalLM"]


def test_loops_made_to_be_trained_are_trained_whole(tmp_path: Path, lab: Lab) -> None:
    two = make_lab(tmp_path, lab.sandbox, "--loops", "2", "--trainable", "--ref", "one")
    digests = [two.record(task) for task in TASKS[:3]]
    made = train_adapter(two.repository, two.base, digests, two.gated(*digests).digest, replace(SETTINGS, steps=2))
    settings = archived_adapter(two.repository.archive, made.adapter).settings
    assert settings.modules_to_save == ("loop_carry", "plt_gate")
    replaced = archived_adapter(two.repository.archive, made.adapter).replaced
    assert "model.loop_carry.weight" in replaced
    assert two.repository.load_record(made.run, TrainingRun).modules_to_save == ("loop_carry", "plt_gate")
    assert keystone.load(made.manifest, archive=two.repository.archive, quantization="none").complete(["def f("])
    assert reproduce(two.repository, made.adapter).verdict == "SAME"


# -- reproducing


def forged(lab: Lab, trained: Trained, **changes: object) -> Repository:
    """The repository with another training record in the place of the true one."""
    true = lab.repository.load_record(trained.record, TrainingRecord)
    digest = lab.repository.put_record(true.revised(**changes))
    record = lab.repository.adapter_record(trained.adapter)
    assert record is not None
    told = record.revised(training=digest)

    class Forged(Repository):
        def adapter_record(self, adapter: Digest) -> AdapterRecord | None:
            return told

    return Forged(lab.repository.archive)


def test_reproducing_says_same_different_or_unknown(lab: Lab, trained: Trained) -> None:
    same = reproduce(lab.repository, trained.adapter)
    assert (same.verdict, same.found, same.differences) == ("SAME", same.expected, ())
    true = lab.repository.load_record(trained.record, TrainingRecord)
    lied = forged(lab, trained, adapter_tensors=Digest.of(b"other"))
    different = reproduce(lied, trained.adapter)
    assert different.verdict == "DIFFERENT"
    assert "same libraries" in different.reason
    elsewhere = {"adapter_tensors": Digest.of(b"other"), "libraries": {**true.libraries, "torch": "1.0"}}
    unknown = reproduce(forged(lab, trained, **elsewhere), trained.adapter)
    assert unknown.verdict == "UNKNOWN"
    assert "torch 1.0 then" in unknown.reason
    older = reproduce(forged(lab, trained, capability="another processor"), trained.adapter)
    assert (older.verdict, len(older.differences)) == ("SAME", 1)


def test_what_cannot_be_made_again_is_unknown(lab: Lab, trained: Trained) -> None:
    nothing = reproduce(lab.repository, Digest.of(b"no adapter"))
    assert (nothing.verdict, nothing.found) == ("UNKNOWN", None)
    elsewhere = reproduce(forged(lab, trained, device="cuda NVIDIA Something"), trained.adapter)
    if not torch.cuda.is_available():
        assert elsewhere.verdict == "UNKNOWN"
        assert "is not on this box" in elsewhere.reason


# -- the curve


def test_the_curve_is_drawn_for_people_and_for_pages() -> None:
    losses = [4.0 - 0.05 * step for step in range(70)]
    text = curve_text(losses)
    assert text.splitlines()[0].startswith("   4.000 |")
    assert "70 steps, loss 4.000 to 0.550" in text
    page = ET.fromstring(curve_svg(losses, title='<b3:12> & "x"'))
    assert page.attrib["aria-label"] == '<b3:12> & "x"'
    points = [line.attrib["points"].split() for line in page.iter() if line.tag.endswith("polyline")]
    assert [len(each) for each in points] == [70, 40]
    assert smoothed([1.0, 3.0], 40) == [1.0, 3.0]
    assert curve_text([0.0]) != ""
    assert curve_svg([0.0], title="") != ""


def test_a_gate_report_is_evidence_in_the_archive(lab: Lab, gated: Gated) -> None:
    assert lab.repository.load_record(gated.digest, SourceGateReport).data == (gated.data,)
