"""Approvals replayed, spent twice or never given, and signatures by keys that may not sign."""

from __future__ import annotations

from manifest_house import signer
from scene import Scene, install, mutation, second
from victim import (
    sign,
    trained,
)

from csf_store import Archive, Digest
from manifests import (
    Envelope,
    approval_statement,
    draft_approval,
    manifest_statement,
    put_envelope,
    seal,
)


def candidate(scene: Scene, archive: Archive) -> Digest:
    """A third manifest that nobody approved."""
    house = scene.house(archive)
    adapter = trained(house, scene.rng.randrange(1000, 10**6))
    return house.repository.put(house.wired(house.manifest(adapter)))


def move_prod(archive: Archive, target: Digest, **fields: str | bool) -> None:
    now = archive.ledger.ref("prod")[-1].target
    archive.ledger.append("ref.set", **{"ref": "prod", "from": str(now), "to": str(target), **fields})


@mutation
def an_approval_replayed_for_another_candidate(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        target = candidate(scene, archive)
        move_prod(archive, target, approval=str(scene.rng.choice(scene.victim.approvals)))


@mutation
def an_approval_of_another_candidate_in_a_manifest(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        install(archive, second(archive, scene).revised(approvals=(scene.victim.approvals[0],)))


@mutation
def an_approval_spent_twice(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        move_prod(archive, scene.victim.first, rollback=True)
        move_prod(archive, scene.victim.second, approval=str(scene.victim.approvals[1]))


@mutation
def a_protected_ref_moved_without_an_approval(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        fields: dict[str, str | bool] = scene.rng.choice([{}, {"rollback": True}, {"approval": str(scene.victim.bare)}])
        move_prod(archive, candidate(scene, archive), **fields)


def approve_as(scene: Scene, archive: Archive, name: str) -> None:
    house, target = scene.house(archive), candidate(scene, archive)
    approval = draft_approval(
        archive, "prod", house.repository.load(target), incumbent=house.repository.refs.find("prod")
    )
    envelope = put_envelope(archive, seal(approval_statement(approval), signer(name)))
    move_prod(archive, target, approval=str(envelope))


@mutation
def an_approval_by_a_revoked_key(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        approve_as(scene, archive, "bob")


@mutation
def an_approval_by_a_key_nobody_trusts(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        approve_as(scene, archive, f"mallory {scene.rng.random()}")


@mutation
def a_signature_that_is_none(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        manifest = second(archive, scene)
        statement = manifest_statement(scene.victim.second, manifest, str(archive.ledger.checkpoint()))
        forged = Envelope(statement, ((signer().public.id, scene.rng.randbytes(64)),))
        put_envelope(archive, forged)


@mutation
def a_signature_by_a_revoked_key(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        sign(scene.house(archive), scene.victim.second, "bob")
