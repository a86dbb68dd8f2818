"""`keystone experience` and `keystone adapter train`: the way a person goes, from a file to an adapter."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from learning_lab import HELD, HOLDOUTS, TASKS, Lab, make_lab

from keystone.cli import experience_lines, main
from keystone.evaluation import ProcessSandbox, Task, item_of_task
from keystone.evaluation.suite_format import item_fields

SANDBOX = ("--sandbox", "process")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with ProcessSandbox(workers=1) as sandbox:
        yield make_lab(tmp_path_factory.mktemp("learning"), sandbox)


@pytest.fixture(autouse=True)
def few_holdouts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Drawing the whole frozen hold-out takes seconds; a part of it will do here. State stays in the test's folder."""
    monkeypatch.setattr(experience_lines, "read_holdouts", lambda *_: HOLDOUTS)
    for module in ("experience", "training"):
        monkeypatch.setattr(f"keystone.cli.{module}.read_holdouts", lambda *_: HOLDOUTS)
        monkeypatch.setattr(f"keystone.cli.{module}.state_folder", lambda name: tmp_path / "state" / name)


def run(lab: Lab, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["--archive", str(lab.path), *arguments])


def lines(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def suite_file(path: Path, tasks: list[Task]) -> Path:
    rows = [item_fields(item_of_task(task)) for task in tasks]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_from_a_file_to_an_adapter_and_back(lab: Lab, tmp_path: Path) -> None:
    file = suite_file(tmp_path / "exercises.jsonl", TASKS[:4])
    added = lines(
        run(lab, "experience", "add", str(file), "--licence", "CC0-1.0", "--source", "set@1", *SANDBOX, "--json")
    )
    batch = added[-1]["batch"]
    assert [added[-1][key] for key in ("kept", "passed", "sampled", "refused")] == [4, 4, 4, 0]
    listed = lines(run(lab, "experience", "list", "--json"))
    assert (listed[-1]["batch"], listed[-1]["origin"]) == (batch, "added")
    shown = lines(run(lab, "experience", "show", batch[:12], "--json"))
    assert {line["record"] for line in shown[:-1]} == {line["record"] for line in added[:-1]}
    record = run(lab, "experience", "show", shown[0]["record"])
    assert "set@1, CC0-1.0" in record.stdout
    assert "def " in record.stdout

    report = lines(run(lab, "experience", "gate", batch, *SANDBOX, "--json"))[-1]
    picture = tmp_path / "loss.svg"
    options = ("--base", "one", "--rank", "2", "--steps", "3", "--batch-size", "2", "--seed", "5", "--json")
    made = lines(
        run(lab, "adapter", "train", "--data", batch, "--gate", report["report"], "--curve", str(picture), *options)
    )[-1]
    assert (made["external_share"], made["steps"]) == (1.0, 3)
    assert picture.read_text().startswith("<svg ")
    listing = tmp_path / "records.jsonl"
    listing.write_text("".join(json.dumps(line) + "\n" for line in added))
    again = lines(run(lab, "adapter", "train", "--records", str(listing), *SANDBOX, *options))[-1]
    assert again == made

    curve = lines(run(lab, "adapter", "curve", made["adapter"], "--json"))[0]
    assert len(curve["losses"]) == 3
    same = run(lab, "adapter", "reproduce", made["adapter"])
    assert same.exit_code == 0, same.output
    assert same.stdout.startswith("SAME  3 steps")


def test_the_gate_refuses_by_name_and_training_with_it(lab: Lab) -> None:
    good, bad = lab.record(TASKS[5]), lab.record(HELD[0])
    judged = run(lab, "experience", "gate", str(good), str(bad), *SANDBOX, "--json")
    assert judged.exit_code == 10
    said = [json.loads(line) for line in judged.stdout.splitlines()]
    assert [line["record"] for line in said if line.get("accepted") is False] == [str(bad)]
    assert said[-1]["data"] is None
    refused = run(lab, "adapter", "train", "--base", "one", "--data", str(bad), *SANDBOX)
    assert refused.exit_code == 10
    assert f"{bad}: it is from a hold-out" in refused.output


def test_what_is_missing_is_said(lab: Lab, tmp_path: Path) -> None:
    file = suite_file(tmp_path / "exercises.jsonl", TASKS[:1])
    for arguments, code, named in (
        (["experience", "add", str(file), "--source", "x"], 2, "--licence"),
        (["experience", "add", str(file), "--source", "x", "--licence", "NOASSERTION"], 7, "licence"),
        (["experience", "gate"], 2, "records or batches"),
        (["experience", "show", "b3:" + 64 * "0"], 5, "0000"),
        (["adapter", "train", "--base", "one", *SANDBOX], 2, "records or batches"),
        (["adapter", "train", "--base", "nobody", "--data", "b3:00000000", *SANDBOX], 5, "nobody"),
    ):
        extra = SANDBOX if "add" in arguments else ()
        result = run(lab, *arguments, *extra)
        assert result.exit_code == code, result.output
        assert named in result.output


def test_collecting_asks_the_model_and_stores_a_batch(lab: Lab, tmp_path: Path) -> None:
    item = replace(item_of_task(TASKS[6]), suite="exercises", name="one")
    file = tmp_path / "exercises.jsonl"
    file.write_text(json.dumps(item_fields(item)) + "\n")
    found = lines(
        run(
            lab, "experience", "collect", "one", "--suite", str(file), "--tasks", "1", "--samples", "2",
            "--max-new-tokens", "4", "--quantize", "none", *SANDBOX, "--json",
        )
    )  # fmt: skip
    assert (found[-1]["sampled"], found[-1]["kept"], found[-1]["passed"]) == (2, 0, 0)
    listed = lines(run(lab, "experience", "list", "--json"))
    assert listed[-1]["origin"] == "collected"
    assert listed[-1]["assembly"] == str(lab.repository.load(lab.base).assembly.digest)
    assert not list((tmp_path / "state" / "experience").iterdir())
