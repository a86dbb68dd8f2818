"""Into the archive and out again, unchanged, on the one base it belongs to."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from adapter_lab import Lab, edit_config, edit_tensors, tiny_model, write_base

from adapters import (
    AdapterError,
    MissingTensorError,
    PickleAdapterError,
    ShapeMismatchError,
    TrainingRefusedError,
    TrainingResult,
    add_adapter,
    check_fit,
    check_fits,
    fit_problem,
    read_adapter,
)
from adapters.fit import archived_adapter, archived_shapes
from csf_store import Digest
from manifests import BaseMismatchError, ManifestError, MissingLinkError, TrainingRecord, Verdict, audit
from manifests.schema import AdapterUse, Assembly, Manifest, Source

PREFIX = "base_model.model."
Q0 = "model.layers.0.self_attn.q_proj"
Tensors = dict[str, torch.Tensor]


def test_a_directory_comes_back_byte_for_byte(lab: Lab) -> None:
    (lab.adapter / "README.md").write_text("# mine\n")
    digest, record = add_adapter(lab.repository, lab.adapter, base=lab.base)
    lab.archive.get_tree(digest, lab.root / "out")
    names = sorted(p.name for p in lab.adapter.iterdir())
    assert sorted(p.name for p in (lab.root / "out").iterdir()) == names
    for name in names:
        assert (lab.root / "out" / name).read_bytes() == (lab.adapter / name).read_bytes()
    assert record.claim and (record.adapter, record.base, record.rank, record.alpha) == (digest, lab.base, 4, 8.0)
    assert record.targets == tuple(sorted(read_adapter(lab.adapter).modules))


def test_adding_twice_changes_nothing(lab: Lab) -> None:
    first = add_adapter(lab.repository, lab.adapter, base=lab.base)
    before = lab.snapshot()
    assert add_adapter(lab.repository, lab.adapter, base=lab.base) == first
    assert lab.snapshot() == before


def test_a_training_record_makes_it_more_than_a_claim(lab: Lab, trained: TrainingResult) -> None:
    claim = add_adapter(lab.repository, lab.adapter, base=lab.base)[1]
    proof = trained.record.revised(base=lab.base)
    digest, record = add_adapter(lab.repository, lab.adapter, base=lab.base, training=proof)
    assert claim.claim and not record.claim and record.training is not None
    assert lab.repository.load_record(record.training, TrainingRecord) == proof
    assert lab.repository.adapter_record(digest) == record


@pytest.mark.parametrize(
    "spoil",
    [
        {"base": Digest.of(b"other")},
        {"parent": Digest.of(b"other")},
        {"adapter_tensors": Digest.of(b"other")},
        {"base_after": Digest.of(b"other")},
    ],
)
def test_a_record_of_something_else_is_refused(lab: Lab, trained: TrainingResult, spoil: dict[str, Digest]) -> None:
    before = lab.snapshot()
    record = trained.record.revised(**{"base": lab.base, **spoil})
    with pytest.raises(TrainingRefusedError):
        add_adapter(lab.repository, lab.adapter, base=lab.base, training=record)
    assert lab.snapshot() == before


def other_base(lab: Lab, name: str, seed: int = 99, hidden: int = 32) -> Digest:
    return lab.archive.put_tree(write_base(lab.root / name, tiny_model(seed, hidden))).digest


def test_an_adapter_recorded_on_another_base_is_refused_naming_both(lab: Lab) -> None:
    add_adapter(lab.repository, lab.adapter, base=lab.base)
    twin = other_base(lab, "twin")  # the same names and shapes: only the record can tell
    before = lab.snapshot()
    with pytest.raises(BaseMismatchError) as caught:
        add_adapter(lab.repository, lab.adapter, base=twin)
    assert str(lab.base) in str(caught.value) and str(twin) in str(caught.value)
    assert caught.value.exit_code == 10 and lab.snapshot() == before


def test_an_adapter_for_a_base_of_other_sizes_is_refused(lab: Lab) -> None:
    wide = other_base(lab, "wide", hidden=48)
    before = lab.snapshot()
    with pytest.raises(ShapeMismatchError, match=r"lora_A\.weight has shape \[4, 32\].*\[48, 48\] needs \[4, 48\]"):
        add_adapter(lab.repository, lab.adapter, base=wide)
    assert lab.snapshot() == before


def resize(name: str, *shape: int) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: torch.zeros(*shape)}


def drop(*parts: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: t for name, t in tensors.items() if not any(part in name for part in parts)}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (resize(f"{PREFIX}{Q0}.lora_A.weight", 5, 32), r"lora_A\.weight has shape \[5, 32\].*needs \[4, 32\]"),
        (resize(f"{PREFIX}{Q0}.lora_B.weight", 32, 5), r"lora_B\.weight has shape \[32, 5\].*needs \[32, 4\]"),
        (resize(f"{PREFIX}{Q0}.lora_B.weight", 31, 4), r"\[31, 4\].*needs \[32, 4\]"),
        (resize(f"{PREFIX}{Q0}.lora_A.weight", 128), r"\[128\]"),
        (drop("layers.0.self_attn.q_proj"), f"{Q0}.*no pair"),
        (drop("v_proj"), r"v_proj.*no pair"),
    ],
)
def test_wrong_shapes_and_gaps_are_refused_with_nothing_written(
    lab: Lab, change: Callable[[Tensors], Tensors], says: str
) -> None:
    edit_tensors(lab.adapter, change)
    before = lab.snapshot()
    with pytest.raises(AdapterError, match=says) as caught:
        add_adapter(lab.repository, lab.adapter, base=lab.base)
    assert caught.value.exit_code == 10 and lab.snapshot() == before


def test_a_module_the_base_does_not_have_is_named(lab: Lab) -> None:
    edit_config(lab.adapter, target_modules=["q_proj", "v_proj", "z_proj"])
    pair = {f"{PREFIX}model.layers.0.z_proj.lora_{half}.weight": torch.zeros(4, 4) for half in "AB"}
    edit_tensors(lab.adapter, lambda tensors: {**tensors, **pair})
    with pytest.raises(MissingTensorError, match=r"model\.layers\.0\.z_proj\.weight"):
        add_adapter(lab.repository, lab.adapter, base=lab.base)


def test_a_rank_that_the_config_does_not_name_is_refused(lab: Lab) -> None:
    edit_config(lab.adapter, r=8)
    with pytest.raises(ShapeMismatchError, match="rank 8"):
        add_adapter(lab.repository, lab.adapter, base=lab.base)
    edit_config(lab.adapter, rank_pattern={"q_proj": 4, "layers.0.self_attn.v_proj": 4, "layers.1.self_attn.v_proj": 4})
    add_adapter(lab.repository, lab.adapter, base=lab.base)


def test_layers_left_out_on_purpose_are_no_gap(lab: Lab) -> None:
    edit_tensors(lab.adapter, drop("layers.1."))
    with pytest.raises(MissingTensorError):
        add_adapter(lab.repository, lab.adapter, base=lab.base)
    edit_config(lab.adapter, layers_to_transform=[0])
    assert len(add_adapter(lab.repository, lab.adapter, base=lab.base)[1].targets) == 2


def test_a_replaced_module_must_be_there_and_fit(lab: Lab) -> None:
    edit_config(lab.adapter, modules_to_save=["lm_head"])
    with pytest.raises(MissingTensorError, match="lm_head"):
        add_adapter(lab.repository, lab.adapter, base=lab.base)
    edit_tensors(lab.adapter, resize(f"{PREFIX}lm_head.weight", 63, 32))
    with pytest.raises(ShapeMismatchError, match=r"\[63, 32\].*\[64, 32\]"):
        add_adapter(lab.repository, lab.adapter, base=lab.base)
    edit_tensors(lab.adapter, resize(f"{PREFIX}lm_head.weight", 64, 32))
    add_adapter(lab.repository, lab.adapter, base=lab.base)


def test_embeddings_have_their_own_orientation(lab: Lab) -> None:
    edit_config(lab.adapter, target_modules=["q_proj", "v_proj", "embed_tokens"])
    name = f"{PREFIX}model.embed_tokens.lora_embedding_"
    edit_tensors(lab.adapter, lambda t: {**t, f"{name}A": torch.zeros(4, 64), f"{name}B": torch.zeros(32, 4)})
    check_fits(read_adapter(lab.adapter), archived_shapes(lab.archive, lab.base))
    edit_tensors(lab.adapter, lambda t: {**t, f"{name}A": torch.zeros(4, 32), f"{name}B": torch.zeros(64, 4)})
    with pytest.raises(ShapeMismatchError, match="embed_tokens"):
        check_fits(read_adapter(lab.adapter), archived_shapes(lab.archive, lab.base))


def test_absent_bases_and_parents_are_refused(lab: Lab) -> None:
    absent = Digest.of(b"nowhere")
    for wrong in ({"base": absent}, {"base": lab.base, "parent": absent}):
        with pytest.raises(MissingLinkError, match=str(absent)):
            add_adapter(lab.repository, lab.adapter, **wrong)  # type: ignore[arg-type]


def test_a_pickle_is_refused_with_nothing_written(lab: Lab) -> None:
    (lab.adapter / "adapter_model.bin").write_bytes(b"\x80\x04.")
    before = lab.snapshot()
    with pytest.raises(PickleAdapterError, match=r"adapter_model\.bin"):
        add_adapter(lab.repository, lab.adapter, base=lab.base)
    assert lab.snapshot() == before


def test_a_parent_leads_to_the_base(lab: Lab, pristine: Path) -> None:
    parent, _ = add_adapter(lab.repository, lab.adapter, base=lab.base)
    shutil.copytree(pristine / "adapter", lab.root / "child")
    edit_tensors(lab.root / "child", lambda t: {name: tensor * 2 for name, tensor in t.items()})
    child, record = add_adapter(lab.repository, lab.root / "child", base=lab.base, parent=parent)
    assert record.parent == parent
    assert {step.adapter for step in lab.repository.trace([child], base=lab.base)} == {parent, child}


def test_fit_is_checked_in_the_archive_too(lab: Lab) -> None:
    digest, _ = add_adapter(lab.repository, lab.adapter, base=lab.base)
    assert archived_adapter(lab.archive, digest) == read_adapter(lab.adapter)
    check_fit(lab.archive, digest, lab.base)
    assert fit_problem(lab.archive, digest, lab.base) is None
    wide = other_base(lab, "wide", hidden=48)
    problem = fit_problem(lab.archive, digest, wide)
    assert problem is not None and str(digest) in problem and str(wide) in problem
    assert "adapter_config.json" in str(fit_problem(lab.archive, lab.base, lab.base))


def manifest_of(lab: Lab, adapter: Digest) -> Digest:
    tokenizer = lab.archive.put_tree_entries([]).digest
    manifest = Manifest(
        assembly=Assembly(base=lab.base, tokenizer=tokenizer, adapters=(AdapterUse(adapter=adapter),)),
        source=Source(kind="trained", location="tiny", licence="Apache-2.0"),
        lineage=lab.repository.trace([adapter], base=lab.base),
    )
    return lab.repository.put(manifest)


def verdicts(lab: Lab, manifest: Digest) -> dict[str, Verdict]:
    return {line.check: line.verdict for line in audit(lab.archive, manifest, fit=fit_problem).lines}


def test_the_audit_knows_a_claim_from_a_proof(lab: Lab, trained: TrainingResult) -> None:
    adapter, _ = add_adapter(lab.repository, lab.adapter, base=lab.base)
    manifest = manifest_of(lab, adapter)
    assert verdicts(lab, manifest)["training"] is Verdict.UNKNOWN
    assert verdicts(lab, manifest)["fit"] is Verdict.PASS
    add_adapter(lab.repository, lab.adapter, base=lab.base, training=trained.record.revised(base=lab.base))
    assert verdicts(lab, manifest)["training"] is Verdict.PASS


def test_the_audit_finds_a_training_record_of_other_tensors(lab: Lab, trained: TrainingResult) -> None:
    adapter, record = add_adapter(lab.repository, lab.adapter, base=lab.base)
    wrong = trained.record.revised(base=lab.base, adapter_tensors=Digest.of(b"other"))
    proof = lab.repository.put_record(wrong)
    lab.repository.put_adapter_record(record.revised(training=proof, claim=False))
    report = audit(lab.archive, manifest_of(lab, adapter), fit=fit_problem)
    (line,) = (line for line in report.lines if line.check == "training")
    assert line.verdict is Verdict.FAIL and str(adapter) in line.message and report.exit_code() == 1


def test_every_error_has_its_exit_code() -> None:
    def walk(kind: type[Exception]) -> list[type[Exception]]:
        return [kind, *(found for sub in kind.__subclasses__() for found in walk(sub))]

    codes = {kind.__name__: kind.exit_code for root in (AdapterError, ManifestError) for kind in walk(root)}  # type: ignore[attr-defined]
    assert set(codes.values()) == {1, 5, 6, 7, 8, 10}
    assert codes["PickleAdapterError"] == 7 and codes["MissingTensorError"] == 10 and codes["RefConflictError"] == 8
