"""The ledger's story: every kind of event in words, with names and numbers, and nothing that can stop it."""

import json
import random
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner
from manifest_house import House, signer

from csf_store import Digest
from keystone.cli import main
from keystone.cli.log import relative
from keystone.story import STORY_KINDS, Sentence, StoryQuery, read_story
from manifests import RefNotFoundError, revoke_key, trust_key


def told(house: House, **query: object) -> list[Sentence]:
    return list(read_story(house.archive, StoryQuery(**query)))  # type: ignore[arg-type]


def texts(house: House, **query: object) -> list[str]:
    return [sentence.text for sentence in told(house, **query)]


@pytest.fixture
def lived(house: House) -> dict[str, Digest]:
    """An archive in which much has happened."""
    alice, mallory = signer("alice"), signer("mallory")
    trust_key(house.archive, alice.public)
    refs = house.repository.refs
    bare = house.put()
    refs.set("prod", bare, expected=None, reason="first")
    refs.protect("prod")
    parent = house.adapter("parent")
    child = house.adapter("child", parent=parent)
    candidate = house.repository.put(house.wired(house.manifest(child).revised(parent=bare)))
    house.approve("prod", candidate, mallory)
    approval = house.approve("prod", candidate, alice, note="better on basics")
    refs.promote("prod", candidate, approval=approval, reason="go")
    refs.rollback("prod", reason="slower at night")
    bad = house.repository.put(house.wired(house.manifest(house.adapter("bad")), passed=1))
    revoke_key(house.archive, alice.public.id, reason="laptop lost")
    house.archive.unpin(bad)
    return {"bare": bare, "candidate": candidate, "bad": bad, "parent": parent, "child": child}


def test_every_sentence_of_a_life(house: House, lived: dict[str, Digest]) -> None:
    short = {name: digest.short for name, digest in lived.items()}
    ran = house.repository.load(lived["candidate"]).assembly.digest.short
    fell = house.repository.load(lived["bad"]).assembly.digest.short
    base, alice, mallory = house.base.short, signer("alice").public.id.short, signer("mallory").public.id.short
    bad = house.repository.load(lived["bad"]).assembly.adapters[0].adapter.short
    policy = next(
        e.fields["record"] for e in house.archive.ledger.entries() if e.fields.get("kind") == "tripwire-policy"
    )
    assert texts(house)[1:] == [
        f"key alice ({alice}) is trusted from now on",
        f"keystone-nano 0.1 (embedded, Apache-2.0) came in as {short['bare']} (prod)",
        f"prod is the name of {short['bare']} now: first",
        "prod is protected from now on: it moves forward with an approval alone",
        f"adapter {short['parent']}, rank 4, was added; that it belongs to base {base} is a claim",
        (
            f"adapter {short['child']}, rank 4, grown from {short['parent']}, was added; that it belongs to base"
            f" {base} is a claim"
        ),
        f"tripwire policy weekly was fixed with 1 rule: {str(policy)[:15]}",
        f"{ran} (prod) scored pass@1 0.75 (0.301 to 0.954 at 95 %) over 4 items of basics",
        f"the tripwire stayed clear on {ran} (prod) (basics pass@1)",
        f"{short['candidate']} (prod) was composed from {short['bare']} (prod) with adapter {short['child']}",
        f"the unknown key {mallory} approved {ran} (prod) for prod",
        f"alice (trusted) approved {ran} (prod) for prod: better on basics",
        f"prod was promoted from {short['bare']} to {short['candidate']}, approved by alice: go",
        f"prod was rolled back from {short['candidate']} to {short['bare']}: slower at night",
        f"adapter {bad}, rank 4, was added; that it belongs to base {base} is a claim",
        f"{fell} scored pass@1 0.25 (0.0456 to 0.699 at 95 %) over 4 items of basics",
        f"the tripwire TRIPPED on {fell}: basics pass@1",
        f"keystone-nano 0.1 (embedded, Apache-2.0) came in as {short['bad']} with adapter {bad}",
        "key alice was revoked: laptop lost",
        f"let go of {short['bad']}; garbage collection may take it",
    ]


def test_filters_choose_and_a_limit_is_the_end_of_the_whole(house: House, lived: dict[str, Digest]) -> None:
    whole = told(house)
    for limit in (1, 3, len(whole), len(whole) + 5):
        assert told(house, limit=limit) == whole[-limit:]
    kinds = [sentence.kind for sentence in told(house, kinds=frozenset({"promoted", "rolled-back", "approved"}))]
    assert kinds == ["approved", "approved", "promoted", "rolled-back"]
    assert told(house, kinds=frozenset({"approved"}), limit=1)[0].text.startswith("alice (trusted)")
    assert {each.kind for each in whole} <= STORY_KINDS.keys()
    assert {each.kind for each in told(house, kinds=frozenset({"kept"}))} == {"kept"}
    middle = whole[7].time
    assert told(house, since=middle) == [each for each in whole if each.time >= middle]
    assert told(house, until=middle) == [each for each in whole if each.time <= middle]
    assert told(house, since=datetime.now(UTC) + timedelta(days=1)) == []

    about = texts(house, about="prod")
    assert any("was promoted" in text for text in about)
    assert any("scored pass@1 0.75" in text for text in about)
    assert not any("0.25" in text or "TRIPPED" in text or "revoked" in text for text in about)
    fallen = texts(house, about=str(lived["bad"]))
    assert any("TRIPPED" in text for text in fallen)
    assert not any("prod was" in text for text in fallen)
    with pytest.raises(RefNotFoundError):
        told(house, about="nobody")


def test_documents_without_words_of_their_own_are_counted(house: House) -> None:
    records = [str(Digest.of(bytes([number]))) for number in range(12)]
    for record in records:
        house.archive.ledger.append("evidence", kind="convergence-record", record=record)
    house.archive.ledger.append("evidence", kind="attestation", record=records[0])
    *_, many, one = told(house)
    assert (many.count, one.count) in {(12, 1), (11, 1), (10, 1)}  # a minute may end in between
    assert many.text.endswith(f"convergence records arrived, {records[-1][:15]} last")
    assert one.text == f"an attestation arrived: {records[0][:15]}"
    assert told(house, limit=2) == [many, one]


def test_a_short_story_looks_as_far_back_as_it_must(house: House) -> None:
    blob = house.archive.put_bytes(b"x").digest
    house.archive.ledger.append("pin", digest=str(blob), kind="blob", name="early")
    for number in range(40):
        house.archive.ledger.append("pin", digest=str(blob), kind="record", name=str(number))
    house.archive.ledger.append("pin", digest=str(blob), kind="blob", name="late")
    assert texts(house, limit=2) == [f"put the file {name}: {blob.short}" for name in ("early", "late")]


KNOWN = ("evidence", "adapter.record", "signed", "key.trust", "key.revoke", "collected", "cycle", "holdout")
FIELDS = ("kind", "record", "adapter", "base", "envelope", "keys", "key", "segments", "freed", "step", "outcome")


def test_nothing_that_an_event_says_can_stop_the_story(house: House, lived: dict[str, Digest]) -> None:
    dice = random.Random(5)
    digests = [str(lived["bad"]), str(house.base), str(Digest.of(b"nowhere"))]
    values = [None, True, 7, "", "b3:12", "words", ["x", 1], {"a": [1]}, *digests]
    kinds = ["eval-report", "training-record", "tripwire-policy", "tripwire-report", "source-gate-report", "manifest"]
    with house.archive.ledger.locked() as tx:
        for number in range(400):
            chosen = dice.sample(FIELDS, dice.randrange(len(FIELDS)))
            fields = {name: dice.choice(kinds if name == "kind" and dice.random() < 0.7 else values) for name in chosen}
            tx.append(dice.choice([*KNOWN, f"from.the.future.{number}"]), **fields)
        tx.append("from.the.future", what="new", digest=digests[0])
    story = told(house)
    assert sum(each.count for each in story) >= 400
    assert all(each.text and "\n" not in each.text for each in story)
    assert story[-1].text == f"event from.the.future: digest {digests[0][:15]}, what new"
    assert story[-1].kind == "other"


def test_on_the_command_line(house: House, lived: dict[str, Digest]) -> None:
    house.archive.ledger.append("ref.set", ref="x", **{"from": None, "to": None}, reason="\x1b[31mred\nline")

    def run(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(main, ["--archive", str(house.archive.path), "log", *arguments])
        assert result.exit_code == code, result.output
        return result.stdout

    lines = run().splitlines()
    assert lines[0] == f"{datetime.now(UTC):%A, %Y-%m-%d}"
    assert "just now" in lines[1]
    assert "\x1b" not in run()
    assert lines[-1].endswith("\\x1b[31mred\\nline")
    rows = [json.loads(line) for line in run("--json", "--limit", "0").splitlines()]
    assert [row["text"] for row in rows] == texts(house)
    newest = [json.loads(line)["seq"] for line in run("--json", "--reverse", "-n", "3").splitlines()]
    assert newest == [row["seq"] for row in rows[:-4:-1]]
    assert "slower at night" in run("prod", "--kind", "rolled-back", "--since", "1h")
    assert "Nothing happened" in run("--since", "2999-01-01")
    assert run("--kind", "?").count("\n") == len(STORY_KINDS)
    run("--kind", "nonsense", code=2)
    run("--since", "yesterday", code=2)
    run("nobody", code=5)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-5, "just now"),
        (59, "just now"),
        (60, "1 min ago"),
        (3599, "59 min ago"),
        (3600, "1 h ago"),
        (86399, "23 h ago"),
        (86400, "1 day ago"),
        (13 * 86400, "13 days ago"),
        (15 * 86400, "2 weeks ago"),
    ],
)
def test_how_long_ago(seconds: int, said: str) -> None:
    now = datetime(2026, 1, 31, tzinfo=UTC)
    assert relative(now - timedelta(seconds=seconds), now) == said
