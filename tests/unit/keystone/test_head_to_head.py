"""`keystone eval --against`: both sides asked alike, a verdict that is computed again, and forgeries that are found."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from scripted_endpoint import Reply, answered, completing, endpoint, scripted_model

from csf_store import Archive, Digest, Kind
from keystone.cli.app import main
from keystone.endpoints import Question
from keystone.errors import EndpointError, InvalidInputError
from keystone.evaluation import ProcessSandbox
from keystone.evaluation.contenders import EndpointContender, contend, contest_key
from keystone.evaluation.head_to_head import Side, compare, earlier_looks, keep_report, report_problem
from keystone.evaluation.journal import Journal
from keystone.evaluation.running import Settings
from keystone.evaluation.suites import Suite, load_suite
from manifests import HeadToHead, InvalidDocumentError, KeyStore, Repository, signatures_of, trust_key

ITEMS = 12
RIGHT, WRONG = "    return n + 1\n", "    return n\n"


@pytest.fixture(scope="module")
def suite_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("suite") / "next.jsonl"
    lines = [
        {
            "name": f"next/{n}",
            "prompt": f'def next_{n}(n):\n    """One more."""\n',
            "entry_point": f"next_{n}",
            "cases": [{"args": [n], "expected": n + 1}],
        }
        for n in range(ITEMS)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def suite(suite_file: Path) -> Suite:
    return load_suite(str(suite_file))


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    with Archive.open(tmp_path / "archive", create=True) as archive:
        yield Repository(archive)


def right_on(*numbers: int) -> Any:
    return completing(lambda prompt: RIGHT if any(f"next_{n}(" in prompt for n in numbers) else WRONG)


def side_of(name: str, suite: Suite, *numbers: int) -> Side:
    """Results as a run of an endpoint would leave them."""
    lines = [
        {"name": item.name, "family": item.family, "verdict": "passed" if n in numbers else "failed", "api": "x",
         "style": "completion"}
        for n, item in enumerate(suite.items)
    ]  # fmt: skip
    return Side({"endpoint": f"http://{name}.example", "model": "m"}, lines)


def report_of(repository: Repository, suite: Suite, ours: range, theirs: range) -> HeadToHead:
    sides = side_of("ours", suite, *ours), side_of("theirs", suite, *theirs)
    return compare(repository, suite, *sides, margin=0.05, alpha=0.05, settings={})


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        (range(12), range(3), "IMPROVED"),
        (range(3), range(12), "REGRESSED"),
        (range(6), range(3, 9), "UNDERPOWERED"),
        (range(12), range(12), "NON-INFERIOR"),
    ],
)
def test_a_verdict_says_no_more_than_the_items(
    repository: Repository, suite: Suite, ours: range, theirs: range, verdict: str
) -> None:
    report = report_of(repository, suite, ours, theirs)
    assert (report.verdict, report.won) == (verdict, verdict == "IMPROVED")
    assert (report.n, report.units, report.candidate.passed) == (12, 12, len(ours)), "one family: each item by itself"
    assert report_problem(repository, keep_report(repository, report), report) is None


def test_trying_again_makes_a_word_dearer(repository: Repository, suite: Suite) -> None:
    levels = []
    for seed in range(4):
        sides = side_of("ours", suite, *range(9)), side_of("theirs", suite, *range(3))
        report = compare(repository, suite, *sides, margin=0.05, alpha=0.05, settings={"seed": str(seed)})
        keep_report(repository, report)
        levels.append((report.rules.look, report.rules.level, report.verdict))
    assert [look for look, _, _ in levels] == [1, 2, 3, 4]
    assert sum(level for _, level, _ in levels) < 0.05
    assert levels[0][2] == "IMPROVED"
    assert levels[-1][2] != "IMPROVED", "six items to none are p = 1/64, and the fourth look may spend 1/400"
    again = compare(repository, suite, *sides, margin=0.05, alpha=0.05, settings={})
    first = again.revised(rules=again.rules.revised(look=1), verdict="IMPROVED")
    problem = report_problem(repository, keep_report(repository, first), first)
    assert problem is not None
    assert "calls itself look 1, and the ledger has 4 earlier" in problem
    assert len(earlier_looks(repository, again.candidate, again.opponent, suite.digest)) == 5


def test_a_report_that_its_items_do_not_bear_out(repository: Repository, suite: Suite) -> None:
    honest = report_of(repository, suite, range(12), range(3))
    keep_report(repository, honest)
    better = honest.revised(difference=1.0)
    assert "not those that its items give" in str(report_problem(repository, keep_report(repository, better), better))
    more = honest.revised(opponent=honest.opponent.revised(passed=2))
    assert "opponent passed 2 of 12, its items say 3" in str(
        report_problem(repository, keep_report(repository, more), more)
    )
    for data, said in (
        (b'{"name": "next/0"}\n', "no name, family and verdict"),
        (b"[" * 9, "is no JSON"),
        (b'{"name":"a","family":"f","verdict":"passed"}\n' * 2, "answered twice"),
    ):
        items = repository.archive.put_bytes(data).digest
        forged = honest.revised(candidate=honest.candidate.revised(items=items))
        assert said in str(report_problem(repository, keep_report(repository, forged), forged))
    with pytest.raises(InvalidDocumentError, match="not what its own numbers"):
        honest.revised(verdict="NON-INFERIOR")
    with pytest.raises(InvalidDocumentError, match="own opponent"):
        honest.revised(opponent=honest.candidate)


def test_two_apis_on_one_side_are_two_tests(repository: Repository, suite: Suite) -> None:
    mixed = side_of("ours", suite, 1)
    lines = [dict(line) for line in mixed.lines]
    lines[3] |= {"api": "y", "style": "chat"}
    with pytest.raises(InvalidInputError, match="one API for all"):
        compare(repository, suite, replace(mixed, lines=lines), side_of("theirs", suite, 2), margin=0.05, alpha=0.05, settings={})  # fmt: skip # noqa: E501


def test_an_endpoint_that_breaks_off_is_gone_on_with(suite: Suite, tmp_path: Path) -> None:
    asked: list[str] = []
    broken = True

    def script(path: str, body: dict[str, object]) -> Reply:
        prompt = str(body["prompt"])
        if broken and "next_9(" in prompt:
            return answered({"error": "out of memory"}, 400)
        asked.append(prompt)
        return answered({"choices": [{"text": RIGHT}]})

    settings = Settings(batch_size=4)
    contender = EndpointContender(scripted_model(script))
    assert contender.model.ask(Question("warm", "")).style == "completion"
    with ProcessSandbox(workers=1) as sandbox:
        key = contest_key(contender, suite, settings, sandbox.name)
        with pytest.raises(EndpointError, match="out of memory"), Journal(tmp_path, key) as journal:
            contend(contender, suite, settings, sandbox=sandbox, journal=journal)
        broken, asked = False, []
        with Journal(tmp_path, key) as journal:
            assert len(journal.lines) == 8
            lines = contend(contender, suite, settings, sandbox=sandbox, journal=journal)
    assert len(asked) == 4, "what is in the journal is not asked again"
    assert [line["verdict"] for line in lines] == ["passed"] * ITEMS
    assert {line["api"] for line in lines} == {"openai-completions"}
    with pytest.raises(InvalidInputError, match="pairs one answer with one"):
        contend(contender, suite, Settings(samples=2, temperature=1), sandbox=sandbox, journal=journal)


def test_an_opponent_that_prints_a_verdict_gains_nothing(suite: Suite, tmp_path: Path) -> None:
    lies = '    print("PASSED")\n    import os, sys\n    sys.stdout.flush()\n    os._exit(0)\n'
    contender = EndpointContender(scripted_model(completing(lambda _: lies)))
    with ProcessSandbox(workers=1) as sandbox, Journal(tmp_path, {}) as journal:
        lines = contend(contender, suite, Settings(), sandbox=sandbox, journal=journal)
    assert {line["verdict"] for line in lines} <= {"error", "failed", "refused"}


def _keystone(archive: Path, *arguments: object) -> tuple[int, list[dict[str, Any]], str]:
    result = CliRunner().invoke(main, ["--archive", str(archive), *(str(each) for each in arguments)])
    lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    return result.exit_code, lines, result.stderr


def test_from_the_command_line_to_a_signed_report(
    own_nano_archive: Path, suite_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The candidate is behind one endpoint, nano is the opponent, and both are really asked and really executed."""
    store = KeyStore(tmp_path / "keys")
    public = store.new("alice", b"open")
    with Archive.open(own_nano_archive) as archive:
        trust_key(archive, public)
    monkeypatch.setenv("KEYSTONE_PASSPHRASE", "open")
    common = ["--suite", suite_file, "--sandbox", "process", "--state", tmp_path / "state", "--json"]
    common += ["--quantize", "none", "--device", "cpu", "--max-new-tokens", "2", "--keys", tmp_path / "keys"]
    with endpoint(right_on(*range(ITEMS))) as url:
        asked = ["eval", f"{url}#rival", "--against", "nano", *common, "--key", "alice"]
        code, lines, said = _keystone(own_nano_archive, *asked)
        assert code == 0, said
        verdict, kept = lines
        assert (verdict["verdict"], verdict["candidate_passed"], verdict["opponent_passed"]) == ("IMPROVED", 12, 0)
        code, lines, said = _keystone(own_nano_archive, "eval", "nano", "--against", f"{url}#rival", *common)
        assert code == 1, said
        assert ["manifest" in lines[0], lines[1]["verdict"]] == [True, "REGRESSED"]
        assert _keystone(own_nano_archive, "eval", "nano", "--against", "nano", *common)[0] == 7
    assert not list((tmp_path / "state").iterdir()), "what is told is not gone on with"
    with Archive.open(own_nano_archive) as archive:
        repository, digest = Repository(archive), Digest.parse(kept["report"])
        report = repository.load_record(digest, HeadToHead)
        assert report_problem(repository, digest, report) is None
        (found,) = signatures_of(archive, digest)
        assert [each.state.counts for each in found.signatures] == [True]
        assert found.statement is not None
        assert found.statement.statement.predicate == report.to_json()
        stored = archive.get_bytes(report.candidate.items, kind=Kind.BLOB).splitlines()
        assert [json.loads(line)["completion"] for line in stored] == [RIGHT] * ITEMS
        unsigned = Digest.parse(lines[2]["report"])
        assert not signatures_of(archive, unsigned)
    code, lines, said = _keystone(own_nano_archive, "sign", unsigned, "--key", "alice", "--keys", tmp_path / "keys")
    assert code == 0, said
