"""The guard's own documents and draws, the source gate's, and attestations."""

from __future__ import annotations

from dataclasses import replace

from scene import Scene, install, install_adapter, mutation, put_forged, second
from victim import (
    GUARD,
    ITEMS,
    adapter_record,
    adapter_tree,
    attestation,
    guarded,
    training_record,
)

from adapters import Confidence, Evidence, GuardReport, RecordSource, Secret, tripwire_policy
from adapters.holdouts import commitment
from csf_store import JSON, Archive, Digest
from manifests import (
    Repository,
)


def install_guarded(scene: Scene, **how: object) -> None:
    with Archive.open(scene.path) as archive:
        house = scene.house(archive)
        adapters = (use.adapter for use in second(archive, scene).assembly.adapters)
        install(archive, guarded(house, house.manifest(*adapters), **how))  # type: ignore[arg-type]


@mutation
def a_guard_report_that_its_numbers_do_not_give(scene: Scene) -> None:
    effect = scene.rng.uniform(0.0001, 0.02)
    install_guarded(
        scene, forge=lambda report: report.revised(judgement=replace(report.judgement, minimal_effect=effect))
    )


@mutation
def a_number_of_the_guard_changed_in_its_full_report(scene: Scene) -> None:
    e_value = scene.rng.uniform(0.01, 0.7)

    def forge(report: GuardReport) -> GuardReport:
        return report.revised(standings=tuple(replace(each, e_value=e_value) for each in report.standings))

    install_guarded(scene, forge=forge)


@mutation
def a_guard_report_of_another_assembly(scene: Scene) -> None:
    other = Digest.of(scene.rng.randbytes(8))
    install_guarded(scene, forge=lambda report: report.revised(assembly=other))


@mutation
def a_guard_policy_written_after_the_run(scene: Scene) -> None:
    """The run is said to have begun before the guard's policy was there; the simple policy's place is not touched."""
    with Archive.open(scene.path) as archive:
        early = next(e.seq for e in archive.ledger.entries() if e.fields.get("record") == str(GUARD.digest))
        began = str(archive.ledger.checkpoint(scene.rng.randrange(early - 1, early + 1)))
    install_guarded(scene, began=began)


def draw_lines(archive: Archive, step: str) -> list[dict[str, JSON]]:
    """What the ledger says of draws."""
    return [dict(e.fields) for e in archive.ledger.entries() if e.event == "holdout" and e.fields["step"] == step]


@mutation
def a_draw_that_nobody_committed_to(scene: Scene) -> None:
    name = f"week-{scene.rng.randrange(32, 99)}"
    install_guarded(scene, draw=name, consume=False)


@mutation
def a_draw_opened_for_one_more_candidate(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        (opened,) = draw_lines(archive, "open")
        archive.ledger.append("holdout", **{**opened, "candidate": str(Digest.of(scene.rng.randbytes(8)))})
    install_guarded(scene, consume=False)


@mutation
def a_draw_that_was_committed_to_twice(scene: Scene) -> None:
    """The second commitment is to a seed that was chosen when the items could be known."""
    with Archive.open(scene.path) as archive:
        (committed,) = draw_lines(archive, "commit")
        archive.ledger.append("holdout", **{**committed, "commitment": str(Digest.of(scene.rng.randbytes(8)))})


@mutation
def items_of_a_draw_that_an_earlier_one_had_consumed(scene: Scene) -> None:
    """Both draws are by the book of somebody who forgot what was consumed."""
    secret = Secret("week-32", scene.rng.getrandbits(48), scene.rng.randbytes(32).hex())
    count, suite = len(ITEMS), "basics"
    with Archive.open(scene.path) as archive:
        ledger, house = archive.ledger, scene.house(archive)
        manifest = house.manifest()
        sealed = commitment(suite, count, secret.seed, secret.salt)
        line: dict[str, JSON] = {"draw": secret.draw, "suite": suite, "count": count, "policy": str(GUARD.digest)}
        line["commitment"] = str(sealed)
        house.repository.put_record(tripwire_policy(GUARD, commitment=sealed))
        ledger.append("holdout", step="commit", **line)
        began = str(ledger.checkpoint())
        known = scene.rng.sample(ITEMS, scene.rng.randrange(1, 40))
        items: JSON = [*known, *(f"new/{number:03}" for number in range(count - len(known)))]
        shown: dict[str, JSON] = {"seed": secret.seed, "salt": secret.salt, "items": items}
        ledger.append("holdout", step="open", candidate=str(manifest.assembly.digest), **shown, **line)
        install(archive, guarded(house, manifest, began=began, draw=secret.draw, sealed=sealed, consume=False))


def let_in(scene: Scene, **experienced: object) -> None:
    """An adapter trained on a record that the gate's report lets in as if tests had passed."""
    with Archive.open(scene.path) as archive:
        repository = Repository(archive)
        adapter = adapter_tree(archive, scene.rng.randrange(100, 10**6))
        training = training_record(repository, scene.victim.base, adapter, None, **experienced)
        found = adapter_record(scene.victim.base, adapter, None, repository.put_record(training))
        install_adapter(scene, archive, scene.victim.base, adapter, repository.put_adapter_record(found))


@mutation
def raw_model_output_let_in_by_the_gate(scene: Scene) -> None:
    ground = scene.rng.choice(["none", "self-scored"])
    source = RecordSource(kind="model", name="nano", licence="Apache-2.0", assembly=Digest.of(scene.rng.randbytes(8)))
    let_in(scene, evidence=Evidence(ground=ground, checker="nobody"), source=source)  # type: ignore[arg-type]


@mutation
def experience_that_did_not_pass_let_in_by_the_gate(scene: Scene) -> None:
    let_in(scene, confidence=Confidence(passed=scene.rng.randrange(3), total=3))


@mutation
def experience_let_in_for_a_check_that_is_not_its_own(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        check = archive.put_bytes(scene.rng.randbytes(8)).digest
    let_in(scene, evidence=Evidence(ground="tests-passed", check=check, checker="sandbox/1"))


@mutation
def an_attestation_given_again_to_an_old_nonce(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        value = Digest.of(scene.rng.randbytes(8))
        Repository(archive).put_record(attestation(second(archive, scene), value=value))


@mutation
def an_attestation_of_another_assembly_told_as_of_this(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        told = attestation(second(archive, scene), nonce=scene.rng.randbytes(32).hex(), assembly=Digest.of(b"another"))
        record = put_forged(archive, told)
        about = str(second(archive, scene).assembly.digest)
        archive.ledger.append("evidence", kind="attestation", record=str(record), assembly=about)


@mutation
def an_attestation_that_is_gone(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        about = str(second(archive, scene).assembly.digest)
        record = str(Digest.of(scene.rng.randbytes(8)))
        archive.ledger.append("evidence", kind="attestation", record=record, assembly=about)
