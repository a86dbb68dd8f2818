"""Hold-outs in the ledger, the key of draws, the policy file, and where tasks come from."""

import json
import stat
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner
from cycle_lab import PLAN, FakeHands, new_archive, run_once

from adapters import GuardPolicy, HoldoutBook, HoldoutError, LedgerJournal
from csf_store import Archive, Digest
from keystone.cli.app import main
from keystone.cycle.draw_key import DrawKey
from keystone.cycle.plan import CyclePlan, read_plan
from keystone.cycle.pool import BasicsPool, pool_of
from keystone.errors import InvalidInputError, SuiteMissingError
from keystone.evaluation.basics import families, frozen_split, in_held_out_fraction
from manifests import Repository

POLICY = Digest.of(b"policy")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    new_archive(tmp_path / "archive")
    return tmp_path


def test_two_processes_never_consume_one_item_twice(place: Path) -> None:
    opened: list[frozenset[str]] = []
    barrier = threading.Barrier(2)

    def one(name: str) -> None:
        with Archive.open(place / "archive") as archive:
            book = HoldoutBook(LedgerJournal(archive))
            secret = book.commit(name, suite="basics", count=20, policy=POLICY, seed=5)
            draw = FakeHands(Repository(archive)).draw
            barrier.wait()
            found = book.open(secret, draw, candidate=Digest.of(name.encode()), policy=POLICY)
            opened.append(frozenset(found.items))

    threads = [threading.Thread(target=one, args=(name,)) for name in ("prod/1", "other/1")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 2 and not opened[0] & opened[1]


def test_a_journal_is_whatever_the_ledger_says(place: Path) -> None:
    with Archive.open(place / "archive") as archive, Archive.open(place / "archive") as other:
        mine, theirs = LedgerJournal(archive), LedgerJournal(other)
        assert mine.events() == theirs.events() == ()
        HoldoutBook(mine).commit("prod/1", suite="basics", count=3, policy=POLICY)
        assert theirs.events() == mine.events()
        late = theirs.events()[0]
        assert not theirs.append(late, after=0)  # somebody was first
        with pytest.raises(HoldoutError, match="committed to already"):
            HoldoutBook(theirs).commit("prod/1", suite="basics", count=3, policy=POLICY)


def test_the_key_is_made_once_and_draws_are_computed_from_it(place: Path) -> None:
    with Archive.open(place / "archive") as archive:
        first, again = DrawKey(place / "state", archive), DrawKey(place / "state", archive)
        other = DrawKey(place / "elsewhere", archive)
        assert first.secret("prod/1") == again.secret("prod/1")
        assert len({first.secret(name).salt for name in ("prod/1", "prod/2")} | {other.secret("prod/1").salt}) == 3
        (path,) = (place / "state").iterdir()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        text = "".join(str(entry.fields) for entry in archive.ledger.entries())
        assert first.secret("prod/1").salt not in text
        path.write_bytes(b"short")
        with pytest.raises(InvalidInputError, match="no key"):
            DrawKey(place / "state", archive)


def test_committing_again_after_a_crash_changes_nothing(place: Path) -> None:
    with Archive.open(place / "archive") as archive:
        book, key = HoldoutBook(LedgerJournal(archive)), DrawKey(place, archive)
        for _ in range(2):
            book.commit("prod/1", suite="basics", count=3, policy=POLICY, secret=key.secret("prod/1"))
        assert len(LedgerJournal(archive).events()) == 1
        with pytest.raises(HoldoutError, match="committed to already"):
            book.commit("prod/1", suite="basics", count=4, policy=POLICY, secret=key.secret("prod/1"))


def test_a_policy_file_says_what_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text('name = "mine"\n[guard]\nmargin = 0.02\nfresh_items = 1200\n[practice]\ntemperature = 1.0\n')
    plan = read_plan(path)
    assert (plan.name, plan.guard.margin, plan.guard.fresh_items, plan.guard.alpha) == ("mine", 0.02, 1200, 0.05)
    whole = tmp_path / "policy.json"
    whole.write_text(json.dumps(plan.to_json()))
    assert read_plan(whole).digest == plan.digest
    for text, says in (
        ("[guard]\nmagrin = 0.02\n", "magrin"),
        ("[guard]\nalpha = 2.0\n", "alpha"),
        ("[sampling]\nprompts = 999\n", "signals are sampled on 999"),
        ('[[guard.signals]]\nname = "kl"\nharm = "higher"\ntolerance = 1.0\nnoise = 0.5\n', "noise is measured"),
        ("not toml", "cannot be read"),
    ):
        path.write_text(text)
        with pytest.raises(InvalidInputError, match=says):
            read_plan(path)


def test_practice_sentinel_and_fresh_draws_share_no_function() -> None:
    pool = BasicsPool()
    practice = {task.name for task in pool.practice(200, 1)}
    sentinel = {item.name for item in pool.sentinel(80)}
    names = pool.draw(3, 80, frozenset(sentinel))
    assert len(practice) == 200 and len(set(names)) == 80
    assert not practice & sentinel and not practice & set(names) and not sentinel & set(names)
    assert {name.split("/")[0] for name in names} == set(families())
    assert [item.name for item in pool.named(3, names)] == sorted(names)
    assert not set(pool.draw(3, 80, frozenset(names))) & set(names)
    for name in (*names, *sentinel):
        assert pool.holds_out("basics", name) is not None, name
    assert not [name for name in practice if pool.holds_out("basics", name)]
    assert pool.holds_out("basics", "no such family/00") is not None
    assert frozen_split().suite == pool.suite
    heads = [bytes.fromhex(name.split("/")[1]) for name in names]
    assert all(in_held_out_fraction(Digest(head.ljust(32, b"\0"))) for head in heads)


def test_a_suite_that_only_measures_cannot_be_practised() -> None:
    with pytest.raises(SuiteMissingError, match="only measures"):
        pool_of("humaneval")


def test_the_commands_tell_what_is_spent_and_where_cycles_stand(place: Path) -> None:
    def keystone(*words: str) -> list[dict[str, object]]:
        done = CliRunner().invoke(main, ["--archive", str(place / "archive"), *words, "--json"])
        assert done.exit_code == 0, done.output
        return [json.loads(line) for line in done.output.splitlines()]

    assert keystone("holdout", "status") == keystone("cycle", "status") == []
    cycle = run_once(place / "archive", place / "state")
    first, total = keystone("holdout", "status")
    assert (first["draw"], first["candidate"]) == ("prod/1", str(cycle.digest("trained", "assembly")))
    assert (total["consumed"], total["opened"], total["committed"]) == (200, 1, 0)
    (stands,) = keystone("cycle", "status", "prod")
    assert (stands["outcome"], stands["policy"]) == ("IMPROVED", cycle.text("calibrated", "policy"))
    policy = cycle.text("calibrated", "policy")
    (sealed,) = keystone("holdout", "commit", "prod/2", "--policy", policy, "--state", str(place / "state"))
    second = run_once(place / "archive", place / "state")
    assert second.text("committed", "commitment") == sealed["commitment"]
    page = place / "cycles.html"
    told = keystone("cycle", "report", "-o", str(page))
    assert [each.get("outcome") for each in told] == ["IMPROVED", "IMPROVED", None]  # the ref never moved
    assert page.read_text().startswith("<!doctype html>")
    (policy_file,) = keystone("cycle", "policy")
    assert CyclePlan.model_validate_json(json.dumps(policy_file)) == CyclePlan()
    with Archive.open(place / "archive") as archive:
        rules = Repository(archive).load_record(cycle.digest("calibrated", "policy"), GuardPolicy)
        assert rules.margin == PLAN.guard.margin
