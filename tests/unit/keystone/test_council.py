"""The council: tests decide, nobody's word does, and every outcome is written down, the empty one too."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from scripted_endpoint import Script, answered, completing, endpoint, scripted_model

from adapters import Claim, Confidence, ConvergenceRecord, Evidence, HeldOut, HoldoutIndex, RecordSource
from csf_store import Archive, Digest
from keystone.cli.app import main
from keystone.council import (
    CouncilTask,
    EndpointMember,
    Plan,
    Reply,
    council_task,
    deliberate,
    keep,
    program_text,
    search_records,
    seat_members,
)
from keystone.council.retrieval import context_of
from keystone.endpoints import Question
from keystone.errors import InvalidInputError, RefusedError
from keystone.evaluation import ProcessSandbox
from keystone.evaluation.extraction import Style
from manifests import Deliberation, Repository, Seat

TESTS = "def test_add():\n    assert add(1, 2) == 3\n    assert add(-1, 1) == 0\n"
TASK = "Add two numbers."
RIGHT, WRONG = "    return a + b\n", "    return a - b\n"
ALSO_RIGHT = "    total = a\n    total += b\n    return total\n"


def no_holdouts() -> HoldoutIndex:
    return HoldoutIndex([])


@pytest.fixture(scope="module")
def sandbox() -> Iterator[ProcessSandbox]:
    with ProcessSandbox(workers=1) as opened:
        yield opened


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    with Archive.open(tmp_path / "archive", create=True) as archive:
        yield Repository(archive)


@pytest.fixture
def task() -> CouncilTask:
    return council_task(TASK, TESTS)


@dataclass
class Scripted:
    """A member of this archive that says what it was told to say, turn by turn."""

    name: str
    says: Sequence[str | Exception]
    style: Style = "completion"
    asked: list[tuple[Question, float]] = field(default_factory=list)
    licence: str = "Apache-2.0"

    @property
    def seat(self) -> Seat:
        digest = Digest.of(self.name.encode())
        return Seat(id=self.name, manifest=digest, assembly=digest, recipe=digest)

    def propose(self, question: Question, *, seconds: float) -> Reply:
        self.asked.append((question, seconds))
        said = self.says[min(len(self.asked), len(self.says)) - 1]
        if isinstance(said, Exception):
            raise said
        return Reply(said, self.style)


def test_a_task_is_a_function_with_its_words_in_it() -> None:
    made = council_task(TASK, TESTS)
    assert made.item.prompt == 'def add(a, b):\n    """Add two numbers."""\n'
    assert made.item.test.endswith("\ntest_add()\n"), "what nobody calls would verify anything"
    given = council_task('Write:\ndef add(x, y=0):\nIt says "hi".', TESTS)
    assert given.item.prompt.startswith("def add(x, y=0):\n")
    compile(given.item.prompt, "", "exec")
    hostile = council_task('"""\nimport os\n"""\\', TESTS)
    assert [type(each).__name__ for each in __import__("ast").parse(hostile.item.prompt).body] == ["FunctionDef"]
    code = 'from math import pi\n\ndef add(a, b):\n    """Add."""\n'
    assert council_task(code, TESTS).item.prompt == code
    assert council_task(TASK, "def check(candidate):\n    assert candidate(1) == 2\n", function="inc").item.prompt.startswith("def inc(a):")  # fmt: skip # noqa: E501


@pytest.mark.parametrize(
    ("text", "tests", "function", "said"),
    [
        (TASK, "assert add(1, 2) ==", None, "no Python"),
        (TASK, "(" * 5000, None, "no Python"),
        (TASK, "assert add(1) == sub(1)", None, "they call add, sub"),
        (TASK, "assert True", None, "call none"),
        (TASK, TESTS, "not a name", "not the name of a function"),
        (TASK, "def test_it(tmp_path):\n    assert add(1, 2) == 3\n", None, "takes parameters"),
        ("", TESTS, None, "no words"),
        ("\x1b[2J", TESTS, None, "cannot be seen"),
        ("a" * 70000, TESTS, None, "at most"),
    ],
)
def test_what_is_no_task_is_refused(text: str, tests: str, function: str | None, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        council_task(text, tests, function=function)


@pytest.mark.parametrize(
    "tests", ["add(1, 2)\n", "class TestAdd:\n    def test(self):\n        assert add(1, 2) == 3\n"]
)
def test_tests_that_nothing_satisfies_are_refused_before_anybody_is_asked(
    repository: Repository, sandbox: ProcessSandbox, tests: str
) -> None:
    member = Scripted("m", [RIGHT])
    with pytest.raises(RefusedError, match="verify nothing"):
        deliberate(repository, council_task(TASK, tests), [member], sandbox=sandbox)
    assert not member.asked


def test_the_first_verified_answer_wins_and_everybody_is_written_down(
    repository: Repository, sandbox: ProcessSandbox, task: CouncilTask
) -> None:
    members = [Scripted("wrong", [WRONG]), Scripted("right", [RIGHT]), Scripted("late", [RIGHT])]
    outcome = deliberate(repository, task, members, sandbox=sandbox, plan=Plan(samples=2))
    assert outcome.verified
    assert [len(member.asked) for member in members] == [1, 1, 0]
    found = repository.load_record(outcome.digest, Deliberation)
    assert found == outcome.deliberation
    assert [(each.member, each.verdict) for each in found.proposals] == [(0, "failed"), (1, "passed")]
    assert (found.winner, found.agreement) == (1, "one")
    assert [seat.manifest for seat in found.members] == [member.seat.manifest for member in members]
    assert repository.archive.get_bytes(found.proposals[0].answer or found.task) == WRONG.encode()
    record = repository.load_record(found.record, ConvergenceRecord)
    assert (record.claim.answer, record.evidence.ground, record.confidence.complete) == (RIGHT, "tests-passed", True)
    assert (record.source.name, record.source.assembly) == ("right", members[1].seat.assembly)
    events = [(e.fields["kind"], e.fields["record"]) for e in repository.archive.ledger.entries() if e.event == "evidence"]  # fmt: skip # noqa: E501
    assert ("convergence-record", str(found.record)) in events
    assert ("deliberation", str(outcome.digest)) in events
    assert outcome.digest in {pin.digest for pin in repository.archive.pins()}


def test_nothing_verified_is_an_outcome_and_no_experience(
    repository: Repository, sandbox: ProcessSandbox, task: CouncilTask
) -> None:
    fake = '    print("1 passed")\n    import os\n    os._exit(0)\n'
    members = [Scripted("liar", [fake]), Scripted("wrong", [WRONG]), Scripted("broken", [RuntimeError("no\x1b[0m")])]
    outcome = deliberate(repository, task, members, sandbox=sandbox, plan=Plan(samples=2, mode="best"))
    assert not outcome.verified
    found = outcome.deliberation
    assert (found.agreement, found.winner) == ("none-verified", None)
    assert [each.verdict for each in found.proposals if each.member == 1] == ["failed"] * 2
    assert {each.verdict for each in found.proposals if each.member == 0} <= {"error", "failed", "refused"}
    unanswered = [each for each in found.proposals if each.verdict == "unanswered"]
    assert [(each.member, each.detail) for each in unanswered] == [(2, "RuntimeError: no [0m")]
    assert len(members[2].asked) == 1, "who could not answer is not asked again"
    assert (outcome.record.evidence.ground, outcome.record.confidence.complete) == ("none", False)
    with pytest.raises(RefusedError, match="verified nothing"):
        keep(repository, outcome.digest, sandbox=sandbox, holdouts=no_holdouts)
    assert search_records(repository, TASK) == [], "what was not verified is not remembered as known"


def test_the_program_that_most_members_wrote_wins(
    repository: Repository, sandbox: ProcessSandbox, task: CouncilTask
) -> None:
    """Three turns of one member are one voice; layout and comments are no disagreement."""
    members = [
        Scripted("loud", [RIGHT, RIGHT, RIGHT]),
        Scripted("chat", [f"```python\ndef add(a, b):\n    '''Sums.'''\n{ALSO_RIGHT}```\n", WRONG], style="chat"),
        Scripted("plain", ["    total = a   # start\n    total += b\n    return total\n", WRONG]),
    ]
    outcome = deliberate(repository, task, members, sandbox=sandbox, plan=Plan(samples=3, mode="best"))
    assert outcome.winner is not None
    assert (outcome.deliberation.agreement, outcome.winner.member) == ("split", 2)
    assert [len(member.asked) for member in members] == [3, 3, 3]
    temperatures = [question.temperature for question, _ in members[0].asked]
    assert temperatures == [0.0, 0.8, 0.8]
    assert len({question.seed for member in members for question, _ in member.asked}) == 9


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        ([[ALSO_RIGHT], [RIGHT]], ("tied", 1)),
        ([[RIGHT], [RIGHT]], ("unanimous", 0)),
        ([[WRONG], [RIGHT]], ("one", 1)),
        ([[RIGHT, RIGHT]], ("one", 0)),
    ],
)
def test_ties_are_called_ties(
    repository: Repository,
    sandbox: ProcessSandbox,
    task: CouncilTask,
    says: list[list[str]],
    expected: tuple[str, int],
) -> None:
    members = [Scripted(f"m{number}", each) for number, each in enumerate(says)]
    plan = Plan(samples=max(map(len, says)), mode="best")
    found = deliberate(repository, task, members, sandbox=sandbox, plan=plan).deliberation
    assert (found.agreement, found.winner) == expected


def test_a_budget_ends_the_hearing_and_is_what_members_get(
    repository: Repository, sandbox: ProcessSandbox, task: CouncilTask
) -> None:
    now = [0.0]

    class Slow(Scripted):
        def propose(self, question: Question, *, seconds: float) -> Reply:
            now[0] += 4.0
            return super().propose(question, seconds=seconds)

    members = [Slow("a", [WRONG]), Slow("b", [WRONG])]
    plan = Plan(samples=9, budget=10.0)
    outcome = deliberate(repository, task, members, sandbox=sandbox, plan=plan, clock=lambda: now[0])
    assert [seconds for member in members for _, seconds in member.asked] == [10.0, 2.0, 6.0]
    assert outcome.deliberation.settings["budget-spent"] == "yes"
    assert not outcome.verified


def test_an_endpoint_that_hangs_or_lies_costs_nobody_else_a_turn(
    repository: Repository, sandbox: ProcessSandbox, task: CouncilTask
) -> None:
    def member(name: str, script: Script) -> EndpointMember:
        return EndpointMember(name, scripted_model(script, seconds=0.2, tries=1))

    members = [
        member("rubbish", lambda path, body: (200, {}, b"PASSED")),
        member("endless", lambda path, body: (200, {}, b" " * (5 << 20))),
        member(
            "verdict", lambda path, body: answered({"choices": [{"text": "", "verdict": "passed"}], "passed": True})
        ),
        member("honest", completing(lambda prompt: RIGHT)),
    ]
    outcome = deliberate(repository, task, members, sandbox=sandbox)
    verdicts = [each.verdict for each in outcome.deliberation.proposals]
    assert verdicts == ["unanswered", "unanswered", "failed", "passed"]
    assert outcome.record.source.kind == "external"
    assert outcome.record.source.name == "http://engine.example#rival"


def test_a_verified_answer_is_kept_through_the_source_gate(
    repository: Repository, sandbox: ProcessSandbox, task: CouncilTask
) -> None:
    chat = f"Sure!\n```python\ndef add(a, b):\n{ALSO_RIGHT}```\nDone."
    outcome = deliberate(repository, task, [Scripted("m", [chat], style="chat")], sandbox=sandbox)
    assert outcome.winner is not None
    assert program_text(task, outcome.winner) == f"def add(a, b):\n{ALSO_RIGHT}"
    kept = keep(repository, outcome.digest, sandbox=sandbox, holdouts=no_holdouts)
    assert kept.gated.accepted == (kept.record,) == (outcome.deliberation.record,)
    with pytest.raises(RefusedError, match="nobody states another"):
        keep(repository, outcome.digest, sandbox=sandbox, holdouts=no_holdouts, licence="MIT")
    held_out = HeldOut("exam", "add", task.item.prompt, task.item.prompt + RIGHT)
    with pytest.raises(RefusedError, match="hold-out"):
        keep(repository, outcome.digest, sandbox=sandbox, holdouts=lambda: HoldoutIndex([held_out]))


def test_an_endpoints_answer_needs_a_licence_from_somebody(
    repository: Repository, sandbox: ProcessSandbox, task: CouncilTask
) -> None:
    member = EndpointMember("e", scripted_model(completing(lambda prompt: RIGHT)))
    outcome = deliberate(repository, task, [member], sandbox=sandbox)
    with pytest.raises(RefusedError, match="no licence"):
        keep(repository, outcome.digest, sandbox=sandbox, holdouts=no_holdouts)
    kept = keep(repository, outcome.digest, sandbox=sandbox, holdouts=no_holdouts, licence="Apache-2.0")
    assert repository.load_record(kept.record, ConvergenceRecord).source.licence == "Apache-2.0"


def known(repository: Repository, name: str, answer: str, *, passed: int = 1, ground: str = "tests-passed") -> Digest:
    check = repository.archive.put_bytes(b"check").digest if ground == "tests-passed" else None
    record = ConvergenceRecord(
        claim=Claim(suite="s", task=name, prompt=f'def {name}(values):\n    """Of {name}."""\n', answer=answer),
        evidence=Evidence(ground=ground, check=check, checker="c"),  # type: ignore[arg-type]
        confidence=Confidence(passed=passed, total=1),
        source=RecordSource(kind="person", name="p", licence="MIT"),
    )
    return repository.put_record(record)


def test_what_is_known_is_found_shown_and_cited(
    repository: Repository, sandbox: ProcessSandbox, task: CouncilTask
) -> None:
    adding = known(repository, "add_numbers", "    return sum(values)\n")
    known(repository, "sort_words", "    return sorted(values)\n")
    known(repository, "add_two_numbers", "    return 1\n", passed=0)
    known(repository, "add_numbers_twice", "    return 2\n", passed=0, ground="none")
    assert [each.digest for each in search_records(repository, TASK)] == [adding]
    assert search_records(repository, "quaternion") == []
    assert search_records(repository, TASK, limit=0) == []
    member = Scripted("m", [RIGHT])
    outcome = deliberate(repository, task, [member], sandbox=sandbox, plan=Plan(search=3))
    assert outcome.deliberation.cited == (adding,)
    asked = member.asked[0][0]
    assert "return sum(values)" in asked.prompt
    assert asked.prompt.endswith(task.item.prompt)
    assert outcome.record.claim.prompt == task.item.prompt, "the claim is about the task, and not about what was shown"
    untold = deliberate(repository, task, [Scripted("m", [RIGHT])], sandbox=sandbox)
    assert untold.deliberation.cited == ()


def test_a_record_that_does_not_fit_in_is_not_cited(repository: Repository) -> None:
    small = known(repository, "small", "    return 1\n")
    known(repository, "large", "    return 1\n" * 1000)
    text, cited = context_of(search_records(repository, "small large"))
    assert cited == (small,)
    assert len(text) < 6000


def test_members_are_found_in_the_registry_in_the_archive_and_by_address(repository: Repository) -> None:
    def refuse(target: str) -> Any:
        raise AssertionError(target)

    with pytest.raises(InvalidInputError, match="twice"):
        seat_members(repository, ["a", "a"], (), load=refuse, connect=refuse)
    with pytest.raises(InvalidInputError, match="at least one"):
        seat_members(repository, [], (), load=refuse, connect=refuse)
    with pytest.raises(Exception, match="no ref 'nobody'"):
        seat_members(repository, ["nobody"], (), load=refuse, connect=refuse)


def _keystone(archive: Path, *arguments: object) -> tuple[int, list[dict[str, Any]], str]:
    result = CliRunner().invoke(main, ["--archive", str(archive), "council", *(str(each) for each in arguments)])
    lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    return result.exit_code, lines, result.stderr


def test_from_the_command_line(own_nano_archive: Path, tmp_path: Path) -> None:
    """Nano really tries, an endpoint answers, and the sandbox decides between them."""
    tests = tmp_path / "tests.py"
    tests.write_text(TESTS)
    common = [
        "--tests",
        tests,
        "--sandbox",
        "process",
        "--quantize",
        "none",
        "--device",
        "cpu",
        "--max-new-tokens",
        "2",
    ]
    with endpoint(completing(lambda prompt: RIGHT)) as url:
        asked = ["ask", TASK, *common, "--members", f"nano,{url}#rival", "--style", "completion", "--json"]
        code, lines, said = _keystone(own_nano_archive, *asked)
    assert code == 0, said
    told = lines[-1]
    assert (told["verified"], told["winner"], told["program"]) == (True, f"{url}#rival", 'def add(a, b):\n    """Add two numbers."""\n' + RIGHT)  # fmt: skip # noqa: E501
    assert [each["verdict"] for each in told["proposals"]] == ["failed", "passed"]
    code, lines, _ = _keystone(own_nano_archive, "show", told["deliberation"], "--json")
    assert [seat["manifest"] is None for seat in lines[0]["members"]] == [False, True]
    code, lines, said = _keystone(own_nano_archive, "ask", TASK, *common, "--members", "nano", "--json")
    assert (code, lines[-1]["verified"], lines[-1]["program"]) == (1, False, None)
    code, _, said = _keystone(own_nano_archive, "keep", lines[-1]["deliberation"], "--sandbox", "process")
    assert (code, "verified nothing" in said) == (10, True)
