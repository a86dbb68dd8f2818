"""Experience: what is collected, what is added, and what the gate lets in when it executes all of it again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from learning_lab import HELD, HOLDOUTS, TASKS, Lab, Scripted, make_lab

from adapters import ConvergenceRecord, HeldOut, HoldoutIndex
from csf_store import Digest, Kind
from keystone.errors import InvalidInputError, RefusedError
from keystone.evaluation import ProcessSandbox, item_of_task
from keystone.evaluation.record_checks import check_of
from keystone.evaluation.suite_format import item_fields
from keystone.experience import (
    ExperienceBatch,
    add_external,
    collect,
    data_set_digest,
    experience_batches,
    known_holdouts,
    load_records,
    record_digests,
)
from keystone.experience.decontamination import basics_rule
from manifests import SourceGateReport


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with ProcessSandbox(workers=1) as sandbox:
        yield make_lab(tmp_path_factory.mktemp("experience"), sandbox)


def scripted(lab: Lab, answers: list[str], **options: Any) -> Any:
    return Scripted(lab.repository.load(lab.base), lab.base, answers, **options)


THREE = TASKS[:3]
ANSWERS = [THREE[0].solution, "    return None\n", THREE[0].solution, THREE[1].solution, "    import os\n", "x" * 10]
ANSWERS += [THREE[2].solution, THREE[2].solution, THREE[2].solution]


def collected(lab: Lab, model: Any, **options: Any) -> Any:
    settings: dict[str, Any] = {"samples": 3, "seed": 4, "sandbox": lab.sandbox, "holdouts": HOLDOUTS, "batch_size": 3}
    return collect(lab.repository, model, lab.base, THREE, **{**settings, **options})


def test_what_passes_is_kept_once_and_is_on_the_ledger(lab: Lab) -> None:
    report = collected(lab, scripted(lab, ANSWERS))
    assert (report.sampled, report.passed, report.duplicates, report.contaminated) == (9, 6, 3, ())
    records = load_records(lab.repository, report.records)
    assert [record.claim.task for record in records] == [task.name for task in THREE]
    assert {record.source.assembly for record in records} == {lab.repository.load(lab.base).assembly.digest}
    told = {str(entry.fields.get("record")) for entry in lab.repository.archive.ledger.entries()}
    assert {str(digest) for digest in report.records} <= told
    batch = lab.repository.load_record(report.batch, ExperienceBatch)
    assert (batch.records, batch.passed, batch.seed) == (tuple(sorted(report.records)), 6, 4)
    assert report.batch in {found.digest for found in experience_batches(lab.repository)}
    assert report.batch in {pin.digest for pin in lab.repository.archive.pins()}, "garbage collection spares it"
    again = collected(lab, scripted(lab, ANSWERS))
    assert again == report
    known = collected(lab, scripted(lab, ANSWERS), known=report.records[:2])
    assert known.records == report.records[2:]
    assert known.duplicates == 5


def test_a_killed_collection_goes_on_and_keeps_the_same(lab: Lab, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        collected(lab, scripted(lab, ANSWERS, fail_at=2), state=tmp_path / "state")
    model = scripted(lab, ANSWERS)
    model.asked = 2
    resumed = collected(lab, model, state=tmp_path / "state")
    assert model.asked == 3
    assert resumed.records == collected(lab, scripted(lab, ANSWERS)).records
    assert list((tmp_path / "state").iterdir()) == []


def test_what_comes_near_a_hold_out_is_left_out_by_name(lab: Lab) -> None:
    index = HoldoutIndex([HeldOut("mine", "the original", TASKS[1].prompt, TASKS[1].source)])
    report = collected(lab, scripted(lab, ANSWERS), holdouts=index)
    assert [each.task for each in report.contaminated] == [THREE[1].name]
    assert "the original" in report.contaminated[0].reason
    assert len(report.records) == 2
    batch = lab.repository.load_record(report.batch, ExperienceBatch)
    assert batch.contaminated == ((THREE[1].name, report.contaminated[0].reason),)


def test_held_out_tasks_are_refused_before_anything_is_sampled(lab: Lab) -> None:
    model = scripted(lab, ANSWERS)
    with pytest.raises(RefusedError, match=HELD[0].name):
        collect(
            lab.repository, model, lab.base, [*THREE, HELD[0]],
            samples=1, seed=1, sandbox=lab.sandbox, holdouts=known_holdouts(basics=0),
        )  # fmt: skip
    assert model.asked == 0
    with pytest.raises(InvalidInputError, match="no tasks"):
        collect(lab.repository, model, lab.base, [], samples=1, seed=1, sandbox=lab.sandbox, holdouts=HOLDOUTS)


def test_the_split_of_basics_is_a_rule_on_names() -> None:
    assert all(basics_rule("basics", task.name) is not None for task in HELD)
    assert all(basics_rule("basics", task.name) is None for task in TASKS)
    assert basics_rule("other", HELD[0].name) is None
    for odd in ("list_filter", "list_filter/xyz", "no_family/0123456789ab", "list_filter/0123"):
        assert basics_rule("basics", odd) is not None, odd


def test_a_model_of_another_assembly_is_refused(lab: Lab) -> None:
    model = scripted(lab, ANSWERS)
    assembly = model.manifest.assembly
    model.manifest = model.manifest.revised(assembly=assembly.revised(tokenizer=assembly.base))
    with pytest.raises(RefusedError, match="is not that of manifest"):
        collected(lab, model)


# -- from outside


def jsonl(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


NEXT = {"name": "next", "prompt": "def following(n):\n", "entry_point": "following", "solution": "    return n + 1\n"}
GOOD = {**NEXT, "test": "assert following(2) == 3"}


def added(lab: Lab, path: Path, licence: str = "MIT", source: str = "a-set@1") -> Any:
    return add_external(lab.repository, path, licence=licence, source=source, sandbox=lab.sandbox, holdouts=HOLDOUTS)


def test_external_data_is_executed_before_it_counts(lab: Lab, tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "set.jsonl",
        GOOD,
        {**GOOD, "name": "wrong", "solution": "    return n\n"},
        {**GOOD, "name": "toothless", "test": "assert True"},
        {key: value for key, value in {**GOOD, "name": "bare"}.items() if key != "solution"},
        {**GOOD, "name": "again", "prompt": "def following(n):\n\n"},
        {**item_fields(item_of_task(HELD[0])), "name": "stolen"},
    )
    report = added(lab, path)
    (record,) = load_records(lab.repository, report.records)
    assert record.source.licence == "MIT"
    assert (record.source.kind, record.source.name, record.claim.task) == ("external", "a-set@1", "next")
    said = {each.item: each.reason for each in report.refused}
    assert said.keys() == {"wrong", "toothless", "bare"}
    assert "does not pass its own tests" in said["wrong"]
    assert "returns nothing" in said["toothless"]
    assert report.duplicates == 1
    assert [each.task for each in report.contaminated] == ["stolen"]
    assert "hold-out" in report.contaminated[0].reason
    batch = lab.repository.load_record(report.batch, ExperienceBatch)
    assert batch.file is not None
    assert lab.repository.archive.get_bytes(batch.file, kind=Kind.BLOB) == path.read_bytes()
    assert lab.gated(*report.records).rejected == ()


@pytest.mark.parametrize("licence", ["", "NOASSERTION", "none", "my own words"])
def test_without_a_licence_nothing_is_added(lab: Lab, tmp_path: Path, licence: str) -> None:
    before = lab.repository.archive.ledger.size
    with pytest.raises(InvalidInputError, match="licence"):
        added(lab, jsonl(tmp_path / "set.jsonl", GOOD), licence=licence)
    with pytest.raises(InvalidInputError, match="source"):
        added(lab, jsonl(tmp_path / "set.jsonl", GOOD), source=" ")
    assert lab.repository.archive.ledger.size == before


def test_a_public_benchmark_is_turned_away_under_its_name(lab: Lab, tmp_path: Path) -> None:
    report = added(lab, jsonl(tmp_path / "set.jsonl", GOOD), source="openai/human-eval")
    assert report.records == ()
    assert "public benchmark" in report.contaminated[0].reason


# -- the gate


def test_the_gate_executes_again_and_stores_what_it_said(lab: Lab) -> None:
    records = [lab.record(TASKS[4]), lab.external(TASKS[5])]
    gated = lab.gated(*records)
    assert gated.data == data_set_digest(records) == data_set_digest(reversed(records))
    stored = lab.repository.load_record(gated.digest, SourceGateReport)
    assert stored == gated.report
    assert stored.settings["sandbox"] == "process"
    assert {each.record for each in stored.accepted} == set(records) == set(gated.accepted)
    assert lab.gated(*reversed(records)).digest == gated.digest


def test_each_kind_of_unfit_record_is_refused_by_name(lab: Lab) -> None:
    weaker = lab.repository.archive.put_bytes(
        check_of(replace(item_of_task(TASKS[8]), cases=item_of_task(TASKS[8]).cases[:1]))
    ).digest
    scorer = Digest.of(b"model")
    unfit = {
        "hold-out": lab.record(HELD[3]),
        "self-scored": lab.record(TASKS[6], evidence__scorer=scorer),
        "public benchmark": lab.record(TASKS[7], claim__suite="MBPP-plus"),
        "1 checks were run": lab.record(TASKS[8], evidence__check=weaker),
        "does not hold": lab.record(TASKS[9], claim__answer="    return object()\n"),
        "no licence": lab.record(
            TASKS[10], source__kind="external", source__assembly=None, source__licence="NOASSERTION"
        ),
        "unverified": lab.record(TASKS[11], evidence__ground="none", evidence__check=None),
        "cannot be read": Digest.of(b"never stored"),
    }
    good = lab.record(TASKS[4])
    gated = lab.gated(good, *unfit.values())
    said = {each.record: each.reason for each in gated.rejected}
    assert said.keys() == set(unfit.values())
    for reason, digest in unfit.items():
        assert reason in said[digest], said[digest]
    assert gated.accepted == (good,)
    assert gated.data is None
    assert gated.report.data == ()


def test_a_record_whose_tests_only_passed_once_is_found_out(lab: Lab) -> None:
    """The check is run now: a record that was edited to say it passed gains nothing."""
    lied = lab.record(TASKS[9], claim__answer="    return 17\n")
    assert "does not hold" in lab.gated(lied).rejected[0].reason


def test_files_of_digests(lab: Lab, tmp_path: Path) -> None:
    one, two = Digest.of(b"1"), Digest.of(b"2")
    path = tmp_path / "records"
    path.write_text(f"{one}\n\n" + json.dumps({"record": str(two)}) + "\n" + json.dumps({"records": [str(one)]}) + "\n")
    assert record_digests(path) == (one, two)
    path.write_text("b3:12\n")
    with pytest.raises(InvalidInputError, match="line 1"):
        record_digests(path)
    assert isinstance(lab.repository.load_record(lab.record(TASKS[4]), ConvergenceRecord), ConvergenceRecord)
