"""What runs: bases, adapters, lineage, tokenizer, and manifests themselves."""

from __future__ import annotations

from manifest_house import put_tree
from scene import Scene, bare, install, install_adapter, mutation, put_forged, second
from victim import (
    adapter_record,
    adapter_tree,
    base_tree,
    merges,
    training_record,
)

from csf_store import Archive, Digest, Kind
from manifests import (
    AdapterRecord,
    Manifest,
    Repository,
    TrainingRecord,
)


@mutation
def a_lineage_cycle(scene: Scene) -> None:
    """The parent is made a child of its child, by a record that is as good as the true one."""
    with Archive.open(scene.path) as archive:
        parent, child = scene.victim.adapters
        true = Repository(archive).adapter_record(parent)
        assert true is not None
        put_forged(archive, true.revised(parent=child))


@mutation
def a_lineage_cut_short(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        manifest, child = bare(second(archive, scene)), scene.victim.adapters[1]
        (step,) = (step for step in manifest.lineage if step.adapter == child)
        install(archive, manifest.revised(lineage=(step.revised(parent=None),)))


def on_base(archive: Archive, manifest: Manifest, base: Digest) -> Manifest:
    return manifest.revised(assembly=manifest.assembly.revised(base=base))


@mutation
def a_base_swapped_for_one_of_the_same_shapes(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        other = base_tree(archive, scene.rng.randrange(100, 10**6))
        manifest = second(archive, scene)
        install(archive, on_base(archive, manifest if scene.rng.random() < 0.5 else bare(manifest), other))


@mutation
def a_base_swapped_with_all_records_forged(scene: Scene) -> None:
    """Every record is rewritten to name the other base. The tensors the training saw give it away."""
    with Archive.open(scene.path) as archive:
        other, repository = base_tree(archive, scene.rng.randrange(100, 10**6)), Repository(archive)
        adapter = adapter_tree(archive, scene.rng.randrange(100, 10**6))
        true = training_record(repository, scene.victim.base, adapter, None)
        training = repository.put_record(true.revised(base=other))
        record = repository.put_adapter_record(adapter_record(other, adapter, None, training))
        install_adapter(scene, archive, other, adapter, record)


def forged_training(scene: Scene, **changes: object) -> None:
    """A new adapter whose training record, put with all the rest in order, says what is not so."""
    with Archive.open(scene.path) as archive:
        repository = Repository(archive)
        adapter = adapter_tree(archive, scene.rng.randrange(100, 10**6))
        record: TrainingRecord = training_record(repository, scene.victim.base, adapter, None).revised(**changes)
        found: AdapterRecord = adapter_record(
            scene.victim.base, adapter, None, put_forged(archive, record) if changes else repository.put_record(record)
        )
        install_adapter(scene, archive, scene.victim.base, adapter, repository.put_adapter_record(found))


@mutation
def an_adapter_trained_on_another_base(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        other = base_tree(archive, scene.rng.randrange(100, 10**6))
    forged_training(scene, base=other)


@mutation
def a_base_that_changed_during_training(scene: Scene) -> None:
    forged_training(scene, base_after=Digest.of(scene.rng.randbytes(8)))


@mutation
def an_adapter_that_its_training_did_not_make(scene: Scene) -> None:
    forged_training(scene, adapter_tensors=Digest.of(scene.rng.randbytes(8)))


@mutation
def data_that_the_source_gate_did_not_let_in(scene: Scene) -> None:
    what = scene.rng.randrange(3)
    stranger = Digest.of(scene.rng.randbytes(8))
    changes: list[dict[str, object]] = [{"data": (stranger,)}, {"experience": (stranger,)}, {"gate": None}]
    forged_training(scene, **changes[what])


@mutation
def an_adapter_that_does_not_fit(scene: Scene) -> None:
    """A base of the same names and other shapes under an adapter, with a record that claims it."""
    with Archive.open(scene.path) as archive:
        from safetensors.numpy import save  # noqa: PLC0415 - only here
        from victim import MODULE, noise  # noqa: PLC0415

        wide = {f"{MODULE}.weight": noise(scene.rng.randrange(10**6), 16, 4)}
        other = put_tree(archive, {"config.json": b"{}", "model.safetensors": save(wide)})
        adapter = adapter_tree(archive, scene.rng.randrange(100, 10**6))
        claim = adapter_record(other, adapter, None, Digest.of(b"")).revised(training=None, claim=True)
        install_adapter(scene, archive, other, adapter, Repository(archive).put_adapter_record(claim))


@mutation
def an_adapter_record_that_lies_about_its_adapter(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        repository = Repository(archive)
        adapter = adapter_tree(archive, scene.rng.randrange(100, 10**6))
        training = repository.put_record(training_record(repository, scene.victim.base, adapter, None))
        lies: list[dict[str, object]] = [{"rank": 64}, {"alpha": scene.rng.uniform(5, 9)}, {"targets": ("lm_head",)}]
        lie = adapter_record(scene.victim.base, adapter, None, training).revised(**scene.rng.choice(lies))
        install_adapter(scene, archive, scene.victim.base, adapter, repository.put_adapter_record(lie))


@mutation
def a_tokenizer_changed_by_one_merge(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        other = put_tree(archive, {"tokenizer.json": merges(changed=True)})
        manifest = second(archive, scene)
        install(archive, manifest.revised(assembly=manifest.assembly.revised(tokenizer=other)))


@mutation
def an_adapter_left_out_of_an_approved_manifest(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        manifest = second(archive, scene)
        install(archive, manifest.revised(assembly=manifest.assembly.revised(adapters=()), lineage=()))


@mutation
def an_adapter_weight_changed(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        manifest = second(archive, scene)
        use = manifest.assembly.adapters[0].revised(weight=scene.rng.uniform(-2.0, 0.9))
        install(archive, manifest.revised(assembly=manifest.assembly.revised(adapters=(use,))))


@mutation
def a_manifest_that_is_not_canonical(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        data = second(archive, scene).to_bytes()
        at = scene.rng.choice([i for i, byte in enumerate(data) if byte in b",:"])
        digest = archive.put_bytes(data[: at + 1] + b" " + data[at + 1 :], kind=Kind.MANIFEST).digest
        now = archive.ledger.ref("main")[-1].target
        archive.ledger.append("ref.set", **{"ref": "main", "from": str(now), "to": str(digest)})
