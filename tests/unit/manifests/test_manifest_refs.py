"""Refs move by compare-and-swap, remember everything, and go back in one step."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from manifest_house import House

from csf_store import Archive, Digest, Kind
from manifests import (
    InvalidDocumentError,
    InvalidNameError,
    ManifestError,
    NotFoundError,
    RefConflictError,
    RefNotFoundError,
    Refs,
    RollbackRefusedError,
)
from manifests.ref_names import MAX_NAME, check_ref_name, is_ref_name


def chain(house: House, *names: str, ref: str = "prod") -> list[Digest]:
    """Manifests A, B, C...; the ref is set to each in turn."""
    refs, digests = house.repository.refs, []
    for name in names:
        digests.append(house.put(house.adapter(name), name=name))
        refs.set(ref, digests[-1], expected=refs.find(ref), reason=f"to {name}")
    return digests


@pytest.mark.parametrize("name", ["prod", "nano/main", "a", "0", "v1.2.3", "a-b_c/d", "cafe", "x" * MAX_NAME])
def test_ref_names(name: str) -> None:
    assert check_ref_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        "a/",
        "/a",
        "a//b",
        "Prod",
        "a b",
        ".a",
        "-a",
        "a/../b",
        "..",
        "a.",
        "a..b",
        "pröd",
        "prod\n",
        "a\x00",
        "a@b",
        "b3:aaaaaaaa",
        "deadbeef",
        "0" * 64,
        "x" * (MAX_NAME + 1),
        "pr\u043ed",
        "a\u200bb",
        "\uff41",
        "a\\b",
        "~",
    ],
)
def test_what_is_not_a_ref_name(house: House, name: str) -> None:
    assert not is_ref_name(name)
    with pytest.raises(InvalidNameError):
        house.repository.refs.set(name, house.put(), expected=None)


def test_history_tells_every_move(house: House) -> None:
    a, b = chain(house, "a", "b")
    first, second = house.repository.refs.history("prod")
    assert (first.previous, first.target, first.reason, first.rollback) == (None, a, "to a", False)
    assert (second.previous, second.target, second.reason) == (a, b, "to b")
    assert first.seq < second.seq and first.time <= second.time and first.time.tzinfo is not None
    assert house.repository.refs.names() == ("prod",)


def test_a_lost_compare_and_swap_changes_nothing(house: House) -> None:
    a, b = chain(house, "a", "b")
    refs, size = house.repository.refs, house.archive.ledger.size
    for expected in (a, None, Digest.of(b"?")):
        with pytest.raises(RefConflictError, match=f"at {b}") as caught:
            refs.set("prod", a, expected=expected)
    assert caught.value.exit_code == 8
    with pytest.raises(RefConflictError, match="at no manifest"):
        refs.set("other", a, expected=a)
    assert refs.get("prod") == b and house.archive.ledger.size == size


def test_moving_to_where_it_is_appends_nothing(house: House) -> None:
    (a,) = chain(house, "a")
    size = house.archive.ledger.size
    assert house.repository.refs.set("prod", a, expected=a).target == a
    assert house.archive.ledger.size == size


def test_a_ref_only_points_to_a_manifest_that_loads(house: House) -> None:
    refs = house.repository.refs
    with pytest.raises(NotFoundError):
        refs.set("prod", Digest.of(b"?"), expected=None)
    with pytest.raises(NotFoundError):
        refs.set("prod", house.base, expected=None)
    strange = house.archive.put_bytes(b"{}", kind=Kind.MANIFEST).digest
    with pytest.raises(InvalidDocumentError):
        refs.set("prod", strange, expected=None)
    assert refs.find("prod") is None


def test_at_a_time(house: House) -> None:
    a, b = chain(house, "a", "b")
    refs = house.repository.refs
    first, second = refs.history("prod")
    tick = timedelta(microseconds=1)
    assert refs.at("prod", second.time) == b
    assert refs.at("prod", datetime.now(UTC) + timedelta(days=1)) == b
    assert refs.at("prod", first.time) in {a, b}  # b only if both fell into one microsecond
    assert refs.at("prod", max(first.time, second.time - tick)) in {a, b}
    with pytest.raises(RefNotFoundError, match="pointed nowhere"):
        refs.at("prod", first.time - tick)
    with pytest.raises(InvalidNameError, match="time zone"):
        refs.at("prod", datetime(2026, 1, 1))  # noqa: DTZ001


def test_rollback_and_its_undoing(house: House) -> None:
    a, b, c = chain(house, "a", "b", "c")
    refs = house.repository.refs
    assert refs.rollback_target("prod") == b
    event = refs.rollback("prod", reason="it babbles")
    assert (event.target, event.previous, event.rollback, event.reason) == (b, c, True, "it babbles")
    assert refs.rollback("prod").target == c  # rolling back the rollback goes forward again
    assert refs.rollback("prod").target == b
    assert refs.rollback("prod", to=a).target == a  # further back by name
    assert refs.rollback("prod").target == b
    assert [event.rollback for event in refs.history("prod")] == [False] * 3 + [True] * 5


def test_rollback_with_nothing_to_go_back_to(house: House) -> None:
    refs = house.repository.refs
    with pytest.raises(RefNotFoundError):
        refs.rollback("prod")
    (a,) = chain(house, "a")
    with pytest.raises(RollbackRefusedError, match=f"only ever been at {a}") as caught:
        refs.rollback("prod")
    assert caught.value.exit_code == 10
    with pytest.raises(RollbackRefusedError, match="already"):
        refs.rollback("prod", to=a)


def test_the_bare_base_is_always_a_target_and_strangers_never(house: House) -> None:
    refs = house.repository.refs
    chain(house, "a")
    bare, stranger = house.put(), house.put(house.adapter("stranger"))
    other_base = house.put(base=house.tree(config=b"other"))
    for wrong in (stranger, other_base):
        with pytest.raises(RollbackRefusedError, match=str(wrong)):
            refs.rollback("prod", to=wrong)
    with pytest.raises(RollbackRefusedError, match="no manifest"):
        refs.rollback("prod", to=Digest.of(b"?"))
    assert refs.rollback("prod", to=bare).target == bare


def test_rollback_skips_a_name_that_was_taken_away(house: House) -> None:
    (a,) = chain(house, "a")
    ledger = house.archive.ledger
    ledger.append("ref.set", **{"ref": "prod", "from": str(a), "to": None})
    refs = house.repository.refs
    assert refs.find("prod") is None and refs.names() == ()
    assert refs.rollback("prod").target == a


def damage(house: House, content: bytes) -> None:
    """Flip one bit of some stored bytes, wherever they are, behind the archive's back."""
    for path in sorted(Path(house.archive.path).rglob("*")):
        data = path.read_bytes() if path.is_file() else b""
        if (at := data.find(content)) >= 0:
            path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            return
    raise AssertionError("the bytes to damage are not stored raw")


def test_rollback_refuses_a_target_that_does_not_verify(house: House) -> None:
    noise = bytes((n * 167 + n // 7) % 256 for n in range(40))
    adapter = house.tree(weights=noise)
    house.repository.put_adapter_record(house.record(adapter))
    refs = house.repository.refs
    a, b = house.put(adapter), house.put()
    refs.set("prod", a, expected=None)
    refs.set("prod", b, expected=a)
    damage(house, noise)
    with Archive.open(house.archive.path) as archive:
        with pytest.raises(RollbackRefusedError, match=f"{a} is not a sound target"):
            Refs(archive).rollback("prod")
        assert Refs(archive).get("prod") == b


def test_of_many_movers_one_wins(house: House) -> None:
    start = house.put()
    refs = house.repository.refs
    refs.set("prod", start, expected=None)
    targets = [house.put(name=str(n)) for n in range(6)]
    won: list[Digest] = []
    lost: list[ManifestError] = []
    barrier = threading.Barrier(len(targets))

    def move(target: Digest) -> None:
        with Archive.open(house.archive.path) as archive:
            barrier.wait()
            try:
                Refs(archive).set("prod", target, expected=start)
                won.append(target)
            except ManifestError as error:
                lost.append(error)

    threads = [threading.Thread(target=move, args=(target,)) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and all(isinstance(error, RefConflictError) for error in lost) and len(lost) == 5
    assert refs.get("prod") == won[0] and len(refs.history("prod")) == 2
