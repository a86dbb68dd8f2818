"""`keystone eval`: from a suite to a manifest that carries the score, killed and resumed on the way."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from csf_store import Archive, Digest, Kind
from keystone import evaluation
from keystone.cli.app import main
from keystone.errors import InvalidInputError, RefusedError
from keystone.evaluation import ProcessSandbox, SandboxMissingError, bubblewrap
from keystone.evaluation.journal import Journal
from keystone.evaluation.recording import record, scores
from keystone.evaluation.running import Settings, batch_seed, evaluate, journal_key
from keystone.evaluation.suites import Suite, load_suite
from keystone.loader import LoadedModel
from keystone.nano.embedded import import_nano
from manifests import EvalReport, Recipe, Repository, audit
from manifests import Verdict as AuditVerdict

RIGHT, WRONG = "    return n + 1\n", "    return n\n"


@dataclass
class Scripted:
    """Answers by a rule of its own, from the seed and the place, and remembers what it was asked."""

    manifest: Any
    digest: Any
    recipe: Recipe = field(default_factory=lambda: Recipe(dtype="float32"))
    model: nn.Module = field(default_factory=lambda: nn.Linear(1, 1))
    tokenizer: Any = None
    fail_at: int | None = None
    seeds: list[int] = field(default_factory=list)

    def complete(self, prompts: Sequence[str], *, seed: int, **_: object) -> list[str]:
        if self.fail_at is not None and len(self.seeds) == self.fail_at:
            raise KeyboardInterrupt
        self.seeds.append(seed)
        generator = torch.Generator().manual_seed(seed)
        return [RIGHT if chance < 0.5 else WRONG for chance in torch.rand(len(prompts), generator=generator)]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    archive = Archive.open(tmp_path_factory.mktemp("eval") / "archive", create=True)
    import_nano(archive)
    return Repository(archive)


@pytest.fixture
def scripted(repository: Repository) -> Callable[..., Scripted]:
    digest = next(iter(repository.manifests()))
    return lambda **options: Scripted(repository.load(digest), digest, **options)


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    lines = [
        {
            "name": f"next/{n}",
            "prompt": f'def next_{n}(n):\n    """One more."""\n',
            "entry_point": f"next_{n}",
            "solution": RIGHT,
            "test": f"assert next_{n}({n}) == {n + 1}",
        }
        for n in range(7)
    ]
    path = tmp_path / "next.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return load_suite(str(path))


SETTINGS = Settings(samples=3, temperature=0.8, seed=5, batch_size=4)


def _results(model: Scripted, suite: Suite, settings: Settings, folder: Path) -> list[dict[str, Any]]:
    loaded: LoadedModel = model  # type: ignore[assignment]
    with (
        ProcessSandbox(workers=1) as sandbox,
        Journal(folder, journal_key(loaded, suite, settings, "process")) as journal,
    ):
        return [dict(line) for line in evaluate(loaded, suite, settings, sandbox=sandbox, journal=journal)]


def test_a_killed_evaluation_goes_on_and_gives_the_same(
    scripted: Callable[..., Scripted], suite: Suite, tmp_path: Path
) -> None:
    whole = scripted()
    expected = _results(whole, suite, SETTINGS, tmp_path / "whole")
    assert [(line["name"], line["sample"]) for line in expected[:4]] == [("next/0", 0), ("next/0", 1), ("next/0", 2), ("next/1", 0)]  # fmt: skip # noqa: E501
    assert {line["verdict"] for line in expected} == {"passed", "failed"}
    with pytest.raises(KeyboardInterrupt):
        _results(scripted(fail_at=3), suite, SETTINGS, tmp_path / "killed")
    (journal,) = (tmp_path / "killed").iterdir()
    assert journal.read_text().count("\n") == 12, "three batches are on disk"
    with journal.open("ab") as file:
        file.write(journal.read_bytes().splitlines(keepends=True)[0] + b'{"name": "torn')  # a batch half written
    again = scripted()
    resumed = _results(again, suite, SETTINGS, tmp_path / "killed")
    assert again.seeds == whole.seeds[3:]
    assert whole.seeds == [batch_seed(5, start) for start in range(0, 21, 4)]
    assert [line["verdict"] for line in resumed] == [line["verdict"] for line in expected]
    assert [line["name"] for line in resumed] == [line["name"] for line in expected]
    done = scripted()
    assert len(_results(done, suite, SETTINGS, tmp_path / "killed")) == 21
    assert done.seeds == [], "a whole journal leaves nothing to compute"


def test_other_settings_are_another_journal_and_one_process_holds_it(
    scripted: Callable[..., Scripted], suite: Suite, tmp_path: Path
) -> None:
    keys = [journal_key(scripted(), suite, each, "bwrap") for each in (SETTINGS, Settings(), Settings(seed=1))]  # type: ignore[arg-type]
    with Journal(tmp_path, keys[0]) as first, Journal(tmp_path, keys[1]) as second, Journal(tmp_path, keys[2]) as third:
        assert len({first.path, second.path, third.path}) == 3
        with pytest.raises(RefusedError, match="another process"):
            Journal(tmp_path, keys[0])


def test_a_line_without_its_end_is_not_counted(tmp_path: Path) -> None:
    """It may be whole by accident; what is appended next must start a line of its own."""
    with Journal(tmp_path, {}) as journal:
        journal.append([{"n": 1}, {"n": 2}])
    journal.path.write_bytes(journal.path.read_bytes()[:-1])
    with Journal(tmp_path, {}) as journal:
        assert journal.lines == [{"n": 1}]
        journal.append([{"n": 3}])
    with Journal(tmp_path, {}) as journal:
        assert journal.lines == [{"n": 1}, {"n": 3}]


def test_what_would_waste_a_run_is_refused(suite: Suite) -> None:
    with pytest.raises(InvalidInputError, match="2 greedy samples"):
        Settings(samples=2).check()
    with pytest.raises(InvalidInputError, match=r"pass@10 needs at least 10 samples.*--n 10"):
        scores(suite, SETTINGS, [], (1, 10))


def test_scores_reports_and_the_manifest(
    repository: Repository, scripted: Callable[..., Scripted], suite: Suite, tmp_path: Path
) -> None:
    model = scripted()
    loaded: LoadedModel = model  # type: ignore[assignment]
    results = _results(model, suite, SETTINGS, tmp_path)
    counts = [sum(line["verdict"] == "passed" for line in results if line["name"] == item.name) for item in suite.items]
    measured = scores(suite, SETTINGS, results, (1, 2))
    assert [score.metric for score in measured] == ["pass@1", "pass@2"]
    assert measured[0].score == pytest.approx(sum(counts) / 21)
    assert measured[1].score == pytest.approx(sum({0: 0, 1: 2 / 3, 2: 1, 3: 1}[c] for c in counts) / 7)
    assert [score.interval.method for score in measured if score.interval] == ["bootstrap"] * 2
    kept = record(repository, loaded, suite, SETTINGS, results=results, measured=measured, sandbox="process")
    manifest = repository.load(kept.manifest)
    assert (manifest.assembly, manifest.parent) == (model.manifest.assembly, model.digest)
    assert set(manifest.evals) == set(kept.summaries) | set(model.manifest.evals)
    report = repository.load_record(kept.summaries[0].report, EvalReport)
    assert (report.assembly, report.recipe) == (model.manifest.assembly.digest, model.recipe.digest)
    assert (report.result.suite_digest, report.seeds, report.items) == (suite.digest, (5,), kept.items[0])
    stored = [json.loads(line) for line in repository.archive.get_bytes(kept.items[0], kind=Kind.BLOB).splitlines()]
    assert [(line["name"], line["value"]) for line in stored] == [
        (item.name, pytest.approx(count / 3)) for item, count in zip(suite.items, counts, strict=True)
    ]
    assert [one["completion"] for line in stored for one in line["samples"]] == [line["completion"] for line in results]
    lines = [line for line in audit(repository.archive, kept.manifest).lines if line.check == "eval"]
    assert len(lines) == 2
    assert all(line.verdict is AuditVerdict.PASS for line in lines), lines
    again = record(repository, loaded, suite, SETTINGS, results=results, measured=measured, sandbox="process")
    assert again == kept


def test_one_greedy_answer_each_has_a_wilson_interval(scripted: Callable[..., Scripted], suite: Suite) -> None:
    lines = [{"name": item.name, "verdict": "passed"} for item in suite.items]
    (score,) = scores(suite, Settings(), lines)
    assert score.interval is not None
    assert (score.passed, score.n, score.interval.method, score.interval.high) == (7, 7, "wilson", 1.0)
    assert 0.6 < score.interval.low < 0.7
    three = [{**line, "verdict": "failed"} for line in lines for _ in range(3)]
    (none,) = scores(suite, SETTINGS, three)
    assert none.interval is not None
    assert none.interval.high > 0.3, "no pass among seven items is no proof of zero"


def _keystone(*arguments: object) -> tuple[int, list[dict[str, Any]], str]:
    result = CliRunner().invoke(main, [str(each) for each in arguments])
    lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    return result.exit_code, lines, result.stderr


def test_own_solutions_from_the_command_line(suite: Suite, tmp_path: Path) -> None:
    code, lines, _ = _keystone(
        "eval", "--suite", tmp_path / "next.jsonl", "--canonical", "--sandbox", "process", "--json"
    )
    assert code == 0
    assert {key: lines[-1][key] for key in ("n", "passed", "pass_at_1", "sandbox")} == {
        "n": 7,
        "passed": 7,
        "pass_at_1": 1.0,
        "sandbox": "process",
    }
    path = tmp_path / "wrong.jsonl"
    path.write_text((tmp_path / "next.jsonl").read_text().replace("n + 1\\n", "n + 2\\n", 1))
    code, lines, _ = _keystone("eval", "--suite", path, "--canonical", "--sandbox", "process", "--json")
    assert (code, lines[0]["name"], lines[0]["verdict"], lines[-1]["passed"]) == (1, "next/0", "failed", 6)


def test_without_bubblewrap_the_command_refuses(suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> str:
        raise SandboxMissingError("bubblewrap is not installed")

    monkeypatch.setattr(bubblewrap, "find_bubblewrap", missing)
    code, lines, said = _keystone("eval", "--suite", tmp_path / "next.jsonl", "--canonical", "--json")
    assert (code, lines, "bubblewrap is not installed" in said) == (10, [], True)
    code, _, said = _keystone("eval", "--suite", "nope", "--canonical")
    assert (code, "the suites are basics, humaneval" in said) == (5, True)
    code, _, _ = _keystone("eval", "nano", "--suite", "basics", "--canonical")
    assert code == 2
    assert evaluation.SandboxMissingError.exit_code == 10


def test_texts_of_a_real_model_end_in_a_manifest(repository: Repository, tmp_path: Path) -> None:
    """The whole way with the embedded base, once, on a suite that needs no generation."""
    texts = tmp_path / "texts.jsonl"
    words = ["def add(a, b):\n    return a + b\n", "for n in range(3):\n    print(n)\n"]
    texts.write_text("".join(json.dumps({"name": str(n), "text": text}) + "\n" for n, text in enumerate(words)))
    target = next(iter(repository.manifests()))
    where = ["--archive", repository.archive.path]
    asked = ["eval", target, "--suite", texts, "--quantize", "none", "--device", "cpu", "--state", tmp_path, "--json"]
    code, lines, said = _keystone(*where, *asked)
    assert code == 0, said
    measured, kept = lines
    assert (measured["metric"], measured["n"], measured["passed"]) == ("bits-per-byte", 2, None)
    assert 0 < measured["low"] <= measured["score"] <= measured["high"] < 8
    assert not [path for path in tmp_path.iterdir() if path != texts], "nothing is left to go on with"
    lines = [line for line in audit(repository.archive, Digest.parse(kept["manifest"])).lines if line.check == "eval"]
    assert lines
    assert all(line.verdict is AuditVerdict.PASS for line in lines), lines
    assert _keystone(*where, *asked)[1][1] == kept, "the same evaluation again is the same manifest"
