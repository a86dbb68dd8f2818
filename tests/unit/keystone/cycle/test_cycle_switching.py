"""What may move a ref, and the check after it moved."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cycle_lab import RECIPE, new_archive, run_once

from csf_store import Archive, Digest, Kind
from keystone.cycle import switching
from keystone.cycle.clearing import require_clear
from keystone.cycle.restoring import last_good, restore
from keystone.cycle.steps import Cycle, CycleLog
from keystone.cycle.switching import promote_and_check, unchecked_move
from keystone.errors import RefusedError
from keystone.evaluation.suite_format import CodeItem
from manifests import (
    ApprovalRefusedError,
    KeyStore,
    Repository,
    approval_statement,
    draft_approval,
    put_envelope,
    seal,
    trust_key,
)


@dataclass
class Stand:
    """An archive with a finished cycle on a protected ref, and an operator."""

    place: Path
    repository: Repository
    cycle: Cycle
    keys: KeyStore
    answers: list[str] = field(default_factory=lambda: ["    return a + b\n"])

    @property
    def candidate(self) -> Digest:
        return self.cycle.digest("finished", "manifest")

    def approve(self, target: Digest) -> Digest:
        archive, refs = self.repository.archive, self.repository.refs
        draft = draft_approval(archive, "prod", self.repository.load(target), incumbent=refs.get("prod"))
        return put_envelope(archive, seal(approval_statement(draft), self.keys.unlock("alice", b"pass")))

    def load(self, ref: str, archive: Archive) -> Any:
        return SimpleNamespace(
            recipe=RECIPE, complete=lambda prompts, **_: (self.answers * len(prompts))[: len(prompts)]
        )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Cycle]:
    """Made once, copied for each test."""
    place = tmp_path_factory.mktemp("finished") / "place"
    place.mkdir()
    new_archive(place / "archive")
    cycle = run_once(place / "archive", place / "state")
    with Archive.open(place / "archive") as archive:
        Repository(archive).refs.protect("prod")
        trust_key(archive, KeyStore(place / "keys").new("alice", b"pass"))
    return place, cycle


@pytest.fixture
def stand(finished: tuple[Path, Cycle], tmp_path: Path) -> Any:
    place = Path(shutil.copytree(finished[0], tmp_path / "place"))
    with Archive.open(place / "archive") as archive:
        yield Stand(place, Repository(archive), finished[1], KeyStore(place / "keys"))


def test_a_clear_candidate_is_promoted_and_checked(stand: Stand) -> None:
    require_clear(stand.repository, stand.candidate)
    approval = stand.approve(stand.candidate)
    switched = promote_and_check(stand.repository, "prod", stand.candidate, approval=approval, loader=stand.load)
    assert switched.problem is None and switched.back is None
    assert stand.repository.refs.get("prod") == stand.candidate
    assert unchecked_move(stand.repository, "prod") is None
    seen = CycleLog(stand.repository.archive).get("prod/1").steps[f"checked-{switched.event.seq}"]
    assert seen["problem"] == ""


def test_the_approval_is_over_the_cycles_own_reports(stand: Stand) -> None:
    manifest = stand.repository.load(stand.candidate)
    draft = draft_approval(stand.repository.archive, "prod", manifest, incumbent=None)
    answered = {stand.cycle.digest("answered-candidate", name) for name in ("fresh", "sentinel")}
    assert answered < set(draft.reports) and manifest.tripwire.report in draft.reports
    assert stand.cycle.digest("committed", "rules") in draft.policies


def _broken(ref: str, archive: Archive) -> Any:
    raise RefusedError("the weights do not load")


@pytest.mark.parametrize("way", ["does not load", "silent", "another"])
def test_a_switch_that_turns_out_bad_is_taken_back_by_itself(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    before = stand.repository.refs.get("prod")
    loader = stand.load
    if way == "does not load":
        loader = _broken
    elif way == "silent":
        stand.answers = ["  "]
    else:
        items = [CodeItem("basics", f"i{number}", "f", "def f():\n", "f") for number in range(8)]
        known = [(item, "    return 1\n") for item in items]
        monkeypatch.setattr(switching, "_known_answers", lambda *_: known)
        stand.answers = ["    return 1\n"] * 5 + ["    return 2\n"] * 3
    approval = stand.approve(stand.candidate)
    switched = promote_and_check(stand.repository, "prod", stand.candidate, approval=approval, loader=loader)
    assert switched.problem is not None and switched.back is not None
    assert stand.repository.refs.get("prod") == before
    assert stand.repository.refs.history("prod")[-1].rollback


def test_a_promotion_whose_process_died_before_the_check_is_found(stand: Stand) -> None:
    stand.repository.refs.promote("prod", stand.candidate, approval=stand.approve(stand.candidate))
    move = unchecked_move(stand.repository, "prod")
    assert move is not None and move.target == stand.candidate
    switched = switching.check_switch(stand.repository, "prod", move, loader=_broken)
    assert switched.back is not None and unchecked_move(stand.repository, "prod") is None


def test_what_is_not_clear_is_not_promoted_at_any_door(stand: Stand) -> None:
    untested = stand.cycle.digest("trained", "manifest")
    with pytest.raises(RefusedError, match="is untested"):
        require_clear(stand.repository, untested)
    with pytest.raises(RefusedError, match="is untested"):
        promote_and_check(stand.repository, "prod", untested, approval=stand.approve(untested), loader=stand.load)
    with pytest.raises(ApprovalRefusedError, match="only a clear tripwire"):
        stand.repository.refs.promote("prod", untested, approval=stand.approve(untested))
    assert stand.repository.refs.get("prod") == stand.cycle.digest("begun", "incumbent")


def test_restoring_goes_to_the_newest_that_was_good(stand: Stand) -> None:
    repository, base = stand.repository, stand.cycle.digest("begun", "incumbent")
    assert restore(repository, "prod", None) == base  # nothing tripped, nothing moves
    repository.refs.promote("prod", stand.candidate, approval=stand.approve(stand.candidate))
    assembly = repository.load(stand.candidate).assembly.digest
    assert last_good(repository, "prod", without=assembly) == base
    assert restore(repository, "prod", assembly) == base
    assert repository.archive.contains(base, Kind.MANIFEST)


def test_answers_of_the_measurement_are_what_is_asked_again(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [CodeItem("basics", f"i{number}", "f", "def f():\n", "f") for number in range(2)]
    monkeypatch.setattr(switching, "pool_of", lambda _: SimpleNamespace(sentinel=lambda _: items))
    archive = stand.repository.archive
    lines = "".join(json.dumps({"name": item.name, "completion": "x", "verdict": "failed"}) + "\n" for item in items)
    blob = archive.put_bytes(lines.encode()).digest
    report = SimpleNamespace(items=blob, recipe=RECIPE.digest, result=SimpleNamespace(suite="basics/sentinel"))
    monkeypatch.setattr(stand.repository, "load_record", lambda *_: report)
    monkeypatch.setattr(switching, "cycle_of", lambda *_: stand.cycle)
    known = switching._known_answers(stand.repository, "prod", stand.load("prod", archive))
    assert [(item.name, said) for item, said in known] == [("i0", "x"), ("i1", "x")]
    other = SimpleNamespace(recipe=SimpleNamespace(digest=Digest.of(b"another recipe")))
    assert switching._known_answers(stand.repository, "prod", other) == []  # type: ignore[arg-type]
