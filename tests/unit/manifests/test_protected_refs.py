"""Protected refs move forward with an approval, once, and go back to what was good without one."""

from __future__ import annotations

import pytest
from manifest_house import SUITE, House, signer

from csf_store import Digest
from manifests import (
    ApprovalRefusedError,
    ProtectedRefError,
    RefNotFoundError,
    RollbackRefusedError,
    revoke_key,
    trust_key,
)

ALICE = signer()


@pytest.fixture
def guarded(house: House) -> House:
    """Ref `prod` at the bare base, then protected; alice is trusted."""
    trust_key(house.archive, ALICE.public)
    house.repository.refs.set("prod", house.put(), expected=None)
    house.repository.refs.protect("prod", reason="served")
    return house


def candidate(house: House, tag: str = "one", passed: int = 3) -> Digest:
    return house.repository.put(house.wired(house.manifest(house.adapter(tag)), passed))


def test_only_an_approval_moves_it(guarded: House) -> None:
    refs, target = guarded.repository.refs, candidate(guarded)
    before = refs.get("prod")
    with pytest.raises(ProtectedRefError, match="prod") as caught:
        refs.set("prod", target, expected=before)
    assert caught.value.exit_code == 10 and refs.get("prod") == before and refs.is_protected("prod")
    approval = guarded.approve("prod", target, ALICE)
    event = refs.promote("prod", target, approval=approval, reason="better")
    assert (event.target, event.previous, event.approval, event.reason) == (target, before, approval, "better")
    size = guarded.archive.ledger.size
    refs.protect("prod")
    assert guarded.archive.ledger.size == size


def test_a_name_can_be_protected_before_it_exists(house: House) -> None:
    refs = house.repository.refs
    refs.protect("prod")
    assert refs.is_protected("prod") and refs.find("prod") is None and refs.names() == ()
    target = house.put()
    with pytest.raises(ProtectedRefError):
        refs.set("prod", target, expected=None)
    with pytest.raises(RefNotFoundError):
        refs.get("prod")
    trust_key(house.archive, ALICE.public)
    assert refs.promote("prod", target, approval=house.approve("prod", target, ALICE)).target == target


def test_an_approval_is_for_one_thing(guarded: House) -> None:
    refs, target, other = guarded.repository.refs, candidate(guarded), candidate(guarded, "two")
    point = guarded.archive.ledger.checkpoint()
    cases: list[tuple[dict[str, object], str]] = [
        ({"ref": "other"}, "for ref 'other'"),
        ({"assembly": SUITE}, "for assembly"),
        ({"recipe": SUITE}, "for recipe"),
        ({"recipe": None}, "for recipe none"),
        ({"incumbent": None}, "at no manifest"),
        ({"incumbent": other}, str(other)),
        ({"reports": ()}, "did not see report"),
        ({"ledger": f"{point.size}:{'00' * 32}"}, "with root"),
        ({"ledger": f"{point.size + 900}:{'00' * 32}"}, "this one has"),
    ]
    for changes, says in cases:
        approval = guarded.approve("prod", target, ALICE, **changes)
        with pytest.raises(ApprovalRefusedError, match=says):
            refs.promote("prod", target, approval=approval)
    with pytest.raises(ApprovalRefusedError, match="for assembly"):
        refs.promote("prod", other, approval=guarded.approve("prod", target, ALICE))
    with pytest.raises(ApprovalRefusedError, match="not an approval"):
        refs.promote("prod", target, approval=target)
    assert len(refs.history("prod")) == 2


def test_an_approval_is_spent_once(guarded: House) -> None:
    refs, target = guarded.repository.refs, candidate(guarded)
    approval = guarded.approve("prod", target, ALICE)
    seq = refs.promote("prod", target, approval=approval).seq
    refs.rollback("prod")
    with pytest.raises(ApprovalRefusedError, match=f"spent by event {seq}"):
        refs.promote("prod", target, approval=approval)


def test_an_approval_is_void_once_the_ref_has_moved(guarded: House) -> None:
    refs, target = guarded.repository.refs, candidate(guarded)
    old = guarded.approve("prod", target, ALICE, note="first")
    second = guarded.approve("prod", target, ALICE, note="second")
    refs.promote("prod", target, approval=second)
    refs.rollback("prod")  # the ref is where it was when the first was given; it has moved all the same
    with pytest.raises(ApprovalRefusedError, match="void"):
        refs.promote("prod", target, approval=old)


def test_who_signed_counts(guarded: House) -> None:
    refs, target, bob = guarded.repository.refs, candidate(guarded), signer("bob")
    with pytest.raises(ApprovalRefusedError, match="nobody here knows"):
        refs.promote("prod", target, approval=guarded.approve("prod", target, bob))
    trust_key(guarded.archive, bob.public)
    good = guarded.approve("prod", target, bob, note="while trusted")
    revoke_key(guarded.archive, bob.public.id)
    with pytest.raises(ApprovalRefusedError, match="revoked before it"):
        refs.promote("prod", target, approval=guarded.approve("prod", target, bob))
    assert refs.promote("prod", target, approval=good).target == target


def test_what_tripped_cannot_be_approved(guarded: House) -> None:
    target = candidate(guarded, passed=1)
    with pytest.raises(ApprovalRefusedError, match="tripped"):
        guarded.repository.refs.promote("prod", target, approval=guarded.approve("prod", target, ALICE))


def test_what_no_tripwire_cleared_is_not_promoted_whoever_signs(guarded: House) -> None:
    untested = guarded.repository.put(guarded.manifest(guarded.adapter("untested")))
    approval = guarded.approve("prod", untested, ALICE)
    with pytest.raises(ApprovalRefusedError, match="only a clear tripwire"):
        guarded.repository.refs.promote("prod", untested, approval=approval)


def test_back_to_what_was_good_and_no_further_than_needed(house: House) -> None:
    trust_key(house.archive, ALICE.public)
    bare, untested = house.put(), house.repository.put(house.manifest(house.adapter("untested")))
    clear = candidate(house, "clear")
    for before, target in ((None, bare), (bare, clear), (clear, untested)):
        house.repository.refs.set("prod", target, expected=before)
    house.repository.refs.protect("prod", reason="served")
    guarded, refs = house, house.repository.refs
    last = candidate(guarded, "last")
    refs.promote("prod", last, approval=guarded.approve("prod", last, ALICE))
    assert refs.rollback_target("prod") == clear  # over the untested one
    with pytest.raises(RollbackRefusedError, match="tripwire is untested"):
        refs.rollback("prod", to=untested)
    assert refs.rollback("prod").target == clear
    assert refs.rollback("prod").target == last  # undone
    assert refs.rollback("prod", to=bare).target == bare  # a bare base is always good


def test_what_tripped_later_is_no_place_to_go_back_to(guarded: House) -> None:
    refs, bare = guarded.repository.refs, guarded.repository.refs.get("prod")
    manifest = guarded.manifest(guarded.adapter("one"))
    first = guarded.repository.put(guarded.wired(manifest))
    refs.promote("prod", first, approval=guarded.approve("prod", first, ALICE))
    second = candidate(guarded, "two")
    refs.promote("prod", second, approval=guarded.approve("prod", second, ALICE))
    assert refs.rollback_target("prod") == first
    guarded.repository.put(guarded.wired(manifest, passed=1))
    assert refs.rollback_target("prod") == bare
    with pytest.raises(RollbackRefusedError, match="tripped later"):
        refs.rollback("prod", to=first)


def test_nothing_good_to_go_back_to(house: House) -> None:
    refs, bare = house.repository.refs, house.put()
    for tag in ("a", "b"):
        refs.set("prod", house.put(house.adapter(tag)), expected=refs.find("prod"))
    refs.protect("prod")
    with pytest.raises(RollbackRefusedError, match="was good"):
        refs.rollback("prod")
    assert refs.rollback("prod", to=bare).target == bare
