"""What a repository lets in, and what it finds again."""

from __future__ import annotations

from pathlib import Path

import pytest
from manifest_house import House

import csf_store
from csf_store import Archive, Digest, Kind
from manifests import (
    AdapterRecord,
    BaseMismatchError,
    EvalReport,
    InvalidDocumentError,
    LineageCycleError,
    LineageError,
    LineageStep,
    ManifestQuery,
    MissingLinkError,
    MissingParentError,
    NotFoundError,
    RefNotFoundError,
    RefusedError,
    Repository,
    Score,
    TrainingConfig,
    TrainingRecord,
)

ABSENT = Digest.of(b"nowhere")


def training(house: House) -> TrainingRecord:
    return TrainingRecord(
        base=house.base,
        base_before=ABSENT,
        base_after=ABSENT,
        adapter_tensors=ABSENT,
        data=(),
        batches=ABSENT,
        examples=1,
        config=TrainingConfig(targets=("q_proj",), steps=1),
        losses=(1.0,),
        final_loss=1.0,
        device="cpu",
        threads=1,
        capability="x86_64",
        libraries={"torch": "2"},
    )


def test_a_manifest_comes_back_and_is_pinned_once(house: House) -> None:
    manifest = house.manifest(house.adapter("one"), stage="candidate")
    digest = house.repository.put(manifest)
    size = house.archive.ledger.size
    assert house.repository.put(manifest) == digest == manifest.digest
    assert house.archive.ledger.size == size
    assert [pin.kind for pin in house.archive.pins() if pin.digest == digest] == ["manifest"]
    assert house.repository.load(digest) == manifest


def test_the_archive_is_told_every_link(house: House) -> None:
    parent = house.adapter("parent")
    child = house.adapter("child", parent=parent)
    first = house.put()
    manifest = house.manifest(child).revised(parent=first)
    digest = house.repository.put(manifest)
    records = {house.repository.find_adapter_record(a)[0] for a in (parent, child)}  # type: ignore[index]
    assert set(house.archive.links(digest)) == {house.base, house.tokenizer, parent, child, first, *records}


@pytest.mark.parametrize("field", ["base", "tokenizer"])
def test_a_manifest_of_absent_or_wrong_kind_objects_is_refused(house: House, field: str) -> None:
    manifest = house.manifest()
    blob = house.archive.put_bytes(b"a blob, not a tree").digest
    for wrong in (ABSENT, blob):
        with pytest.raises(MissingLinkError, match=f"tree {wrong}"):
            house.repository.put(manifest.revised(assembly=manifest.assembly.revised(**{field: wrong})))
    assert list(house.repository.manifests()) == []


def test_a_lineage_that_the_records_do_not_tell_is_refused(house: House) -> None:
    parent, child = house.adapter("parent"), house.adapter("child")
    manifest = house.manifest(child)
    own, other = manifest.lineage[0], house.repository.trace([parent], base=house.base)[0]
    invented = manifest.revised(lineage=(LineageStep(adapter=child, parent=parent, record=own.record), other))
    with pytest.raises(LineageError, match="not the one its adapter records tell"):
        house.repository.put(invented)
    borrowed = manifest.revised(lineage=(own.revised(record=other.record),))
    with pytest.raises(LineageError, match=str(child)):
        house.repository.put(borrowed)


def test_resolve_takes_refs_digests_and_prefixes(house: House) -> None:
    digest = house.put()
    house.repository.refs.set("nano/main", digest, expected=None)
    for text in ("nano/main", str(digest), digest.hex, digest.hex[:8], f"b3:{digest.hex[:10]}"):
        assert house.repository.resolve(text) == digest
    with pytest.raises(RefNotFoundError, match=r"'prod'.*nano/main"):
        house.repository.resolve("prod")
    with pytest.raises(csf_store.NotFoundError):
        house.repository.resolve("b3:" + "0" * 64)
    with pytest.raises(csf_store.NotFoundError):
        house.repository.resolve(str(house.base))  # there, but no manifest


def test_load_says_what_is_wrong(house: House) -> None:
    with pytest.raises(NotFoundError, match=str(ABSENT)):
        house.repository.load(ABSENT)
    with pytest.raises(NotFoundError):
        house.repository.load(house.base)
    strange = house.archive.put_bytes(b'{"kind":"manifest","v":1}', kind=Kind.MANIFEST).digest
    with pytest.raises(InvalidDocumentError, match=str(strange)):
        house.repository.load(strange)


def test_find_by_base_adapter_and_tripwire(house: House) -> None:
    parent = house.adapter("parent")
    child = house.adapter("child", parent=parent)
    bare, tuned = house.put(), house.put(child)
    other_base = house.tree(config=b"other")
    other = house.put(base=other_base)

    def found(**filters: object) -> set[Digest]:
        return {digest for digest, _ in house.repository.find(ManifestQuery(**filters))}  # type: ignore[arg-type]

    assert found(base=house.base) == {bare, tuned}
    assert found(base=other_base) == {other}
    assert found(adapter=parent) == {tuned}
    assert found(tripwire="clear") == found(not_tripwire="untested") == set()
    assert len(found(tripwire="untested")) == len(found(not_tripwire="clear")) == len(found()) == 3


def test_one_adapter_one_base(house: House) -> None:
    adapter = house.adapter("one")
    other = house.tree(config=b"other base")
    with pytest.raises(BaseMismatchError) as caught:
        house.repository.put_adapter_record(house.record(adapter, base=other))
    assert (
        str(house.base) in str(caught.value) and str(other) in str(caught.value) and str(adapter) in str(caught.value)
    )
    assert caught.value.exit_code == 10
    assert house.repository.adapter_record(adapter) == house.record(adapter)
    with pytest.raises(BaseMismatchError, match=str(adapter)):
        house.manifest(adapter, base=other)


def test_one_adapter_one_parent(house: House) -> None:
    first, second = house.adapter("first"), house.adapter("second")
    with pytest.raises(LineageError, match="recorded with parent none"):
        house.repository.put_adapter_record(house.record(second, parent=first))


def test_a_refused_record_leaves_nothing(house: House) -> None:
    adapter = house.adapter("one")
    other = house.tree(config=b"other base")
    before = house.archive.ledger.size, len(list(house.archive.objects()))
    with pytest.raises(BaseMismatchError):
        house.repository.put_adapter_record(house.record(adapter, base=other))
    assert (house.archive.ledger.size, len(list(house.archive.objects()))) == before


def test_a_proof_replaces_a_claim_and_not_the_other_way(house: House) -> None:
    adapter = house.adapter("one")
    claim = house.record(adapter)
    proof = house.repository.put_record(training(house))
    proven = claim.revised(training=proof, claim=False)
    digest = house.repository.put_adapter_record(proven)
    assert house.repository.adapter_record(adapter) == proven
    assert house.repository.put_adapter_record(claim) in {digest, claim.digest}
    assert house.repository.adapter_record(adapter) == proven


def test_records_of_absent_things_are_refused(house: House) -> None:
    adapter = house.tree(adapter=b"a")
    for record in (
        house.record(ABSENT),
        house.record(adapter, base=ABSENT),
        house.record(adapter, parent=ABSENT),
        house.record(adapter).revised(training=ABSENT, claim=False),
    ):
        with pytest.raises(MissingLinkError, match=str(ABSENT)):
            house.repository.put_adapter_record(record)
    assert house.repository.adapter_record(adapter) is None


def test_records_of_other_kinds_go_through_one_door(house: House) -> None:
    manifest = house.manifest()
    with pytest.raises(RefusedError):
        house.repository.put_record(manifest)
    with pytest.raises(RefusedError):
        house.repository.put_record(house.record(house.tree(a=b"a")))
    score = Score(suite="basics", suite_digest=ABSENT, metric="pass@1", n=2, passed=1, score=0.5)
    report = EvalReport(assembly=manifest.assembly.digest, recipe=ABSENT, result=score)
    assert house.repository.load_record(house.repository.put_record(report), EvalReport) == report


def test_documents_of_others_are_passed_over(house: House) -> None:
    adapter = house.adapter("one")
    house.archive.put_bytes(b"not json", kind=Kind.RECORD, links=[adapter])
    house.archive.put_bytes(b'{"kind":"note"}', kind=Kind.RECORD, links=[adapter])
    assert house.repository.adapter_record(adapter) == house.record(adapter)


def forge(house: House, record: AdapterRecord) -> None:
    """A record that did not go through the repository's checks."""
    house.archive.put_bytes(record.to_bytes(), kind=Kind.RECORD, links=[record.adapter])


def test_forged_records_that_contradict_each_other_are_refused_on_reading(house: House) -> None:
    adapter = house.adapter("one")
    forge(house, house.record(adapter, base=ABSENT))
    with pytest.raises(BaseMismatchError, match=str(ABSENT)):
        house.repository.adapter_record(adapter)


def test_a_circle_in_the_lineage_is_refused_and_drawn(house: House) -> None:
    first, second = house.tree(a=b"1"), house.tree(a=b"2")
    forge(house, house.record(first, parent=second))
    forge(house, house.record(second, parent=first))
    with pytest.raises(LineageCycleError, match=f"{first.short} -> {second.short} -> {first.short}"):
        house.repository.trace([first], base=house.base)


def test_a_parent_without_a_record_is_named(house: House) -> None:
    orphan, child = house.tree(a=b"orphan"), house.tree(a=b"child")
    house.repository.put_adapter_record(house.record(child, parent=orphan))
    with pytest.raises(MissingParentError, match=f"parent of adapter {child}, adapter {orphan}"):
        house.manifest(child)


def test_a_parent_on_another_base_is_refused(house: House) -> None:
    other = house.tree(config=b"other")
    parent = house.adapter("parent", base=other)
    child = house.adapter("child", parent=parent)
    with pytest.raises(BaseMismatchError) as caught:
        house.manifest(child)
    assert str(parent) in str(caught.value) and str(other) in str(caught.value)


def test_long_lineages_do_not_recurse(house: House) -> None:
    records = {}
    adapters = [Digest.of(str(n).encode()) for n in range(3000)]
    for n, adapter in enumerate(adapters):
        records[adapter] = (adapter, house.record(adapter, parent=adapters[n - 1] if n else None))
    from manifests.lineage import trace  # noqa: PLC0415

    steps = trace([adapters[-1], adapters[10]], base=house.base, lookup=records.get)
    assert [step.adapter for step in steps] == sorted(adapters)


def test_two_openings_of_one_archive_agree(house: House) -> None:
    digest = house.put(house.adapter("one"))
    with Archive.open(Path(house.archive.path)) as again:
        assert list(Repository(again).manifests()) == [digest]


def test_documents_made_behind_the_rules_are_not_stored(house: House) -> None:
    manifest = house.manifest(house.adapter("one"))
    twice = manifest.assembly.model_copy(update={"adapters": manifest.assembly.adapters * 2})
    with pytest.raises(InvalidDocumentError, match="twice"):
        house.repository.put(manifest.model_copy(update={"assembly": twice}))
    record = house.record(house.tree(a=b"a"))
    with pytest.raises(InvalidDocumentError, match="rank"):
        house.repository.put_adapter_record(record.model_copy(update={"rank": 0}))
    assert list(house.repository.manifests()) == []
