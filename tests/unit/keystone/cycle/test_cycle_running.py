"""The order of a cycle: every step once, whatever is killed and when; and what each verdict leaves behind."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import cycle_lab
import pytest
from cycle_lab import PLAN, FakeHands, Killed, new_archive, run_once, runner

from csf_store import Archive, Digest
from keystone.cycle.running import STEPS
from keystone.cycle.steps import Cycle, CycleLog
from keystone.errors import RefusedError
from manifests import Manifest, Repository, Verdict, audit

ONCE = {"reruns": 1, "collect": 1, "gate": 1, "train": 1, "answer fresh": 2, "answer sentinel": 2, "signals": 2}
"""Base and incumbent are one model here: what one answered, the other need not."""


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive with a base as `prod`, and a state directory beside it that holds the key of its draws."""
    folder = tmp_path_factory.mktemp("cycle")
    new_archive(folder / "archive")
    with Archive.open(folder / "archive") as archive:
        runner(archive, folder / "state")
    return folder


@pytest.fixture(scope="module")
def unbroken(fresh: Path, tmp_path_factory: pytest.TempPathFactory) -> Cycle:
    place = Path(shutil.copytree(fresh, tmp_path_factory.mktemp("unbroken") / "copy"))
    return run_once(place / "archive", place / "state")


@pytest.fixture
def place(fresh: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(fresh, tmp_path / "copy"))


def made(cycle: Cycle) -> dict[str, str]:
    """Everything a cycle made that does not depend on when it ran."""
    steps = {step: dict(fields) for step, fields in cycle.steps.items()}
    steps["committed"].pop("began")
    for step in ("judged", "finished"):
        steps[step].pop("manifest")  # names the tripwire's report, and that when the run began
    return {f"{step} {name}": str(value) for step, fields in steps.items() for name, value in fields.items()}


def test_an_unbroken_cycle_stops_at_the_operator(unbroken: Cycle) -> None:
    assert tuple(unbroken.steps) == STEPS
    assert unbroken.outcome == "IMPROVED"
    assert unbroken.text("judged", "status") == "clear"
    assert unbroken.text("finished", "at") == unbroken.text("begun", "incumbent")


@pytest.mark.parametrize("step", STEPS)
def test_killed_after_any_step_it_goes_on_and_does_nothing_twice(place: Path, unbroken: Cycle, step: str) -> None:
    with Archive.open(place / "archive") as archive:
        hands = FakeHands(Repository(archive))
        machine = runner(archive, place / "state", hands)

        def die(done: str) -> None:
            if done == step:
                raise Killed

        machine.after = die
        with pytest.raises(Killed):
            machine.run("prod")
        events = archive.ledger.size
        resumed = runner(archive, place / "state", hands)
        found = resumed.run("prod") if step != "finished" else CycleLog(archive).get("prod/1")
        assert made(found) == made(unbroken)
        assert dict(hands.calls) == ONCE
        assert events <= archive.ledger.size
        holdouts = [entry.fields["step"] for entry in archive.ledger.entries() if entry.event == "holdout"]
        assert holdouts == ["commit", "open"]


@pytest.mark.parametrize("hand", ["collect", "train", "answer_fresh"])
def test_killed_within_a_step_it_does_that_step_again_to_the_same_digests(
    place: Path, unbroken: Cycle, hand: str
) -> None:
    with Archive.open(place / "archive") as archive:
        hands = FakeHands(Repository(archive))
        work = getattr(hands, hand)

        def die(*args: object, **about: object) -> None:
            work(*args, **about)
            raise Killed

        setattr(hands, hand, die)
        with pytest.raises(Killed):
            runner(archive, place / "state", hands).run("prod")
        assert made(runner(archive, place / "state").run("prod")) == made(unbroken)


@pytest.mark.parametrize(("step", "when"), [("trained", "after"), ("begun", "before")])
def test_a_real_kill_leaves_nothing_that_stops_the_next_run(place: Path, unbroken: Cycle, step: str, when: str) -> None:
    program = [sys.executable, cycle_lab.__file__, str(place / "archive"), str(place / "state"), step, when]
    assert subprocess.run(program, check=False).returncode == -signal.SIGKILL
    assert made(run_once(place / "archive", place / "state")) == made(unbroken)


def test_from_the_commitment_on_even_the_manifest_is_the_same(place: Path, tmp_path: Path) -> None:
    def stop(done: str) -> None:
        if done == "committed":
            raise Killed

    with Archive.open(place / "archive") as archive:
        machine = runner(archive, place / "state")
        machine.after = stop
        with pytest.raises(Killed):
            machine.run("prod")
    other = Path(shutil.copytree(place, tmp_path / "other"))
    first, second = (run_once(each / "archive", each / "state") for each in (place, other))
    assert first.digest("finished", "manifest") == second.digest("finished", "manifest")


def test_the_candidate_carries_its_evidence_and_an_audit_judges_it_again(place: Path) -> None:
    cycle = run_once(place / "archive", place / "state")
    with Archive.open(place / "archive") as archive:
        manifest: Manifest = Repository(archive).load(cycle.digest("finished", "manifest"))
        assert manifest.tripwire.status == "clear"
        assert {summary.suite for summary in manifest.evals} == {"basics/fresh", "basics/sentinel"}
        lines = {line.check: line for line in audit(archive, cycle.digest("finished", "manifest")).lines}
        assert lines["tripwire"].verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("about", "outcome", "status"),
    [
        ({"rate": -0.2}, "REGRESSED", "tripped"),
        ({"rate": 0.1, "shorter": 0.5}, "REGRESSED", "tripped"),
        ({"records": 0}, "REFUSED", ""),
        ({"refuses": True}, "REFUSED", ""),
    ],
)
def test_what_is_no_clear_pass_leaves_the_ref_where_it_was(
    place: Path, about: dict[str, float], outcome: str, status: str
) -> None:
    cycle = run_once(place / "archive", place / "state", **about)
    assert (cycle.outcome, cycle.text("judged", "status")) == (outcome, status)
    with Archive.open(place / "archive") as archive:
        assert Repository(archive).refs.get("prod") == cycle.digest("begun", "incumbent")


def test_a_candidate_that_was_put_on_the_ref_early_is_taken_off_when_it_trips(place: Path) -> None:
    with Archive.open(place / "archive") as archive:
        repository = Repository(archive)
        machine = runner(archive, place / "state", FakeHands(repository, rate=-0.2))

        def impatient(done: str) -> None:
            if done == "trained":
                cycle = CycleLog(archive).get("prod/1")
                repository.refs.set("prod", cycle.digest("trained", "manifest"), expected=repository.refs.get("prod"))

        machine.after = impatient
        cycle = machine.run("prod")
        assert cycle.outcome == "REGRESSED"
        assert repository.refs.get("prod") == cycle.digest("begun", "incumbent")
        assert repository.refs.history("prod")[-1].rollback


def test_an_interrupted_cycle_is_not_finished_under_other_rules(place: Path) -> None:
    def stop(done: str) -> None:
        raise Killed

    with Archive.open(place / "archive") as archive:
        machine = runner(archive, place / "state")
        machine.after = stop
        with pytest.raises(Killed):
            machine.run("prod")
        kinder = PLAN.revised(guard=PLAN.guard.model_copy(update={"margin": 0.5}))
        with pytest.raises(RefusedError, match="began under policy"):
            runner(archive, place / "state", plan=kinder).run("prod")


def test_one_process_at_a_time_runs_a_refs_cycle(place: Path) -> None:
    with Archive.open(place / "archive") as archive:
        inner = runner(archive, place / "state")
        outer = runner(archive, place / "state")
        outer.after = lambda done: inner.run("prod")
        with pytest.raises(RefusedError, match="another process"):
            outer.run("prod")


def test_a_second_cycle_is_the_second_look_on_other_tasks_and_asks_the_base_only_what_is_new(place: Path) -> None:
    run_once(place / "archive", place / "state")
    with Archive.open(place / "archive") as archive:
        hands = FakeHands(Repository(archive))
        second = runner(archive, place / "state", hands).run("prod")
        assert second.name == "prod/2"
        assert second.text("judged", "look") == "2"
        assert hands.calls["reruns"] == 0
        assert hands.calls["answer sentinel"] == 1  # the candidate's; the base answered in the first cycle
        draws = [entry.fields["items"] for entry in archive.ledger.entries() if entry.fields.get("step") == "open"]
        assert not set(draws[0]) & set(draws[1])  # type: ignore[arg-type]
        assert second.digest("calibrated", "policy") == CycleLog(archive).get("prod/1").digest("calibrated", "policy")


def test_the_ledger_says_what_ran_before_it_is_known_how_it_ended(place: Path) -> None:
    cycle = run_once(place / "archive", place / "state")
    with Archive.open(place / "archive") as archive:
        policy = cycle.text("calibrated", "policy")
        told = [e.seq for e in archive.ledger.entries() if e.fields.get("record") in {policy, str(PLAN.digest)}]
        opened = [e.seq for e in archive.ledger.entries() if e.fields.get("step") == "open"]
        assert max(told) < cycle.places["committed"] < cycle.places["collected"] < opened[0]
        assert isinstance(cycle.digest("judged", "report"), Digest)
