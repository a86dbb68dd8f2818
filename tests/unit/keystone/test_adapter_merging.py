"""Merging, comparing and checking adapters: the same effect as wearing them, and honest numbers where it is not."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from export_lab import our_logits, put_adapter, put_base, write_base
from safetensors.torch import load_file

import keystone
from csf_store import Archive, Digest
from keystone.checkpoints import read_adapter_tensors
from keystone.combining import (
    adapter_delta,
    check_archived,
    check_merge,
    merge_adapters,
    merge_of,
    read_low_rank,
    whole,
)
from keystone.combining.trying import logit_difference
from keystone.errors import InvalidInputError, RefusedError
from manifests import AdapterUse, BaseMismatchError, Repository

PATTERN = {"q_proj": 2}


@dataclass(frozen=True)
class Shelf:
    """Two adapters for one small base, with other ranks, scales and targets, and a tied one that embeds."""

    archive: Archive
    base_dir: Path
    manifest: Digest
    base: Digest
    first: Digest
    second: Digest

    @property
    def repository(self) -> Repository:
        return Repository(self.archive)

    @property
    def uses(self) -> tuple[AdapterUse, AdapterUse]:
        return AdapterUse(adapter=self.first, weight=0.75), AdapterUse(adapter=self.second, weight=-0.3)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    folder = tmp_path_factory.mktemp("shelf")
    directory = write_base(folder / "base")
    with Archive.create(folder / "archive") as archive:
        manifest = put_base(archive, directory)
        base = Repository(archive).load(manifest).assembly.base
        first = put_adapter(archive, base, directory, folder, seed=1, rank_pattern=PATTERN)
        second = put_adapter(
            archive, base, directory, folder, seed=2, r=3, lora_alpha=7, use_rslora=True,
            target_modules=["q_proj", "up_proj", "embed_tokens"],
        )  # fmt: skip
        yield Shelf(archive, directory, manifest, base, first, second)


def written_out(shelf: Shelf, adapter: Digest) -> dict[str, torch.Tensor]:
    """What an adapter adds, module by module, in float64, by the definition of LoRA and none of our code."""
    fields, tensors = read_adapter_tensors(shelf.archive, adapter)
    found = {}
    for name in tensors:
        module, _, part = name.removeprefix("base_model.model.").partition(".lora_")
        rank = next((r for key, r in fields["rank_pattern"].items() if module.endswith(key)), fields["r"])
        alpha = next((a for key, a in fields["alpha_pattern"].items() if module.endswith(key)), fields["lora_alpha"])
        scale = alpha / (rank**0.5 if fields["use_rslora"] else rank)
        if part == "A.weight":
            found[module] = tensors[name.replace("lora_A", "lora_B")].double() @ tensors[name].double() * scale
        elif part == "embedding_A":
            up = tensors[name.replace("embedding_A", "embedding_B")].double()
            found[module] = (up @ tensors[name].double() * scale).T
    return found


def summed(shelf: Shelf, uses: tuple[AdapterUse, ...]) -> dict[str, torch.Tensor]:
    total: dict[str, torch.Tensor] = {}
    for use in uses:
        for module, matrix in written_out(shelf, use.adapter).items():
            total[module] = total.get(module, torch.zeros_like(matrix)) + use.weight * matrix
    return total


def test_concatenation_adds_what_its_parents_add(shelf: Shelf) -> None:
    merged = merge_adapters(shelf.repository, shelf.uses)
    expected, found = summed(shelf, shelf.uses), written_out(shelf, merged.adapter)
    assert expected.keys() == found.keys() == merged.modules.keys()
    worst = max(float((expected[name] - found[name]).abs().max()) for name in expected)
    assert worst <= 1e-6
    assert merged.document.largest_error == pytest.approx(worst, rel=1e-3, abs=1e-15)
    assert (merged.document.method, merged.document.rank) == ("concatenation", 5)
    ranks = {module.rpartition(".")[2]: change.rank for module, change in merged.modules.items()}
    assert ranks == {"q_proj": 5, "v_proj": 4, "down_proj": 4, "up_proj": 3, "embed_tokens": 3}


def test_powers_of_two_lose_nothing_at_all(shelf: Shelf, tmp_path: Path) -> None:
    third = put_adapter(shelf.archive, shelf.base, shelf.base_dir, tmp_path, seed=5, r=4, lora_alpha=8)
    merged = merge_adapters(shelf.repository, [AdapterUse(adapter=third, weight=0.5)])
    assert (merged.document.largest_error, merged.document.relative_error) == (0.0, 0.0)


def test_the_merged_adapter_answers_like_the_stack(shelf: Shelf) -> None:
    merged = merge_adapters(shelf.repository, shelf.uses)
    loaded = keystone.load(shelf.manifest, archive=shelf.archive, quantization="none", device="cpu")
    found = logit_difference(loaded, shelf.uses, merged.adapter, "def add(a, b):", archive=shelf.archive)
    assert found.largest <= 1e-4 * found.scale
    assert found.scale > 1e-3
    assert found.agree == found.positions


def test_a_smaller_rank_is_the_best_one_and_tells_what_it_loses(shelf: Shelf) -> None:
    merged = merge_adapters(shelf.repository, shelf.uses, rank=2)
    expected, found = summed(shelf, shelf.uses), written_out(shelf, merged.adapter)
    lost, whole_norm = 0.0, 0.0
    for module, matrix in expected.items():
        tail = torch.linalg.svdvals(matrix)[2:]
        difference = torch.linalg.matrix_norm(matrix - found[module])
        assert float(difference) == pytest.approx(float(tail.norm()), rel=1e-5, abs=1e-6), module
        assert merged.modules[module].largest == pytest.approx(
            float((matrix - found[module]).abs().max()), rel=1e-5, abs=1e-9
        )
        lost, whole_norm = lost + float(difference) ** 2, whole_norm + float(matrix.norm()) ** 2
    assert merged.document.relative_error == pytest.approx((lost / whole_norm) ** 0.5, rel=1e-5)
    assert (merged.document.method, merged.document.rank) == ("svd", 2)


def test_a_merge_names_its_parents_and_is_believed_only_when_computed_again(shelf: Shelf) -> None:
    repository = shelf.repository
    merged = merge_adapters(repository, shelf.uses)
    again = merge_adapters(repository, shelf.uses)
    assert (merged.adapter, merged.record) == (again.adapter, again.record)
    found = merge_of(repository, merged.adapter)
    assert found is not None
    assert found.parents == shelf.uses
    record = repository.adapter_record(merged.adapter)
    assert record is not None
    assert (record.claim, record.parent, record.base) == (True, None, shelf.base)
    assert {shelf.first, shelf.second, merged.adapter} <= set(found.links())
    assert check_merge(repository, found) is None
    false = found.revised(parents=tuple(use.revised(weight=use.weight * 1.001) for use in found.parents))
    problem = check_merge(repository, false)
    assert problem is not None
    assert "differs from its parents" in problem
    assert shelf.archive.pins()


@pytest.mark.parametrize(
    ("weights", "rank", "words"),
    [((0.0, 1.0), None, "weight 0"), ((1.0, 1.0), 0, "at least 1"), ((), None, "at least one")],
)
def test_what_makes_no_merge_is_refused(shelf: Shelf, weights: tuple[float, ...], rank: int | None, words: str) -> None:
    pairs = zip((shelf.first, shelf.second), weights, strict=False)
    uses = [AdapterUse(adapter=adapter, weight=weight) for adapter, weight in pairs]
    before = shelf.archive.ledger.size
    with pytest.raises(InvalidInputError, match=words):
        merge_adapters(shelf.repository, uses, rank=rank)
    assert shelf.archive.ledger.size == before


@pytest.mark.parametrize(("seed", "settings", "words"), [
    (11, {"use_dora": True}, "use_dora"),
    (12, {"modules_to_save": ["lm_head"]}, "replaces tensor lm_head"),
])  # fmt: skip
def test_what_cannot_be_added_up_is_refused(
    shelf: Shelf, tmp_path: Path, seed: int, settings: dict[str, object], words: str
) -> None:
    odd = put_adapter(shelf.archive, shelf.base, shelf.base_dir, tmp_path, seed=seed, **settings)
    with pytest.raises(RefusedError, match=words):
        merge_adapters(shelf.repository, [AdapterUse(adapter=shelf.first), AdapterUse(adapter=odd)])


def test_adapters_of_two_bases_are_not_added_up(shelf: Shelf, tmp_path: Path) -> None:
    other_dir = write_base(tmp_path / "other", seed=9)
    other = shelf.archive.put_tree(other_dir).digest
    stranger = put_adapter(shelf.archive, other, other_dir, tmp_path, seed=6)
    with pytest.raises(BaseMismatchError, match=str(other)):
        merge_adapters(shelf.repository, [AdapterUse(adapter=shelf.first), AdapterUse(adapter=stranger)])
    found = check_archived(shelf.repository, stranger, shelf.base)
    assert [problem for problem in found.problems if f"recorded on base {other}" in problem]


def test_every_mismatch_is_named_before_anything_is_loaded(shelf: Shelf, tmp_path: Path) -> None:
    wide_dir = write_base(tmp_path / "wide", hidden_size=32, intermediate_size=48)
    wide = shelf.archive.put_tree(wide_dir).digest
    found = check_archived(shelf.repository, shelf.first, wide)
    modules = read_low_rank(shelf.archive, shelf.first).modules
    assert not found.fits
    for module in modules:
        assert [problem for problem in found.problems if module in problem], module
    assert check_archived(shelf.repository, shelf.first, shelf.base).fits


def test_a_delta_is_of_effects_and_not_of_factors(shelf: Shelf, tmp_path: Path) -> None:
    a, b = (read_low_rank(shelf.archive, digest) for digest in (shelf.first, shelf.second))
    plain_a, plain_b = written_out(shelf, shelf.first), written_out(shelf, shelf.second)
    found = {delta.name: delta for delta in adapter_delta(a, b)}
    assert found.keys() == plain_a.keys() | plain_b.keys()
    for name, delta in found.items():
        first = plain_a.get(name, torch.zeros(1, 1, dtype=torch.float64))
        second = plain_b.get(name, torch.zeros(1, 1, dtype=torch.float64))
        status = "changed" if name in plain_a and name in plain_b else "removed" if name in plain_a else "added"
        assert delta.status == status
        assert delta.norm_a == pytest.approx(float(first.norm()), rel=1e-9)
        assert delta.difference == pytest.approx(float((second - first).norm()), rel=1e-9)
        if status == "changed":
            cosine = float((first * second).sum() / first.norm() / second.norm())
            assert delta.cosine == pytest.approx(cosine, rel=1e-9, abs=1e-12)
    # Other factors, the same effect: a merge of one adapter has its scale folded in, at a full-rank rotation.
    folded = merge_adapters(shelf.repository, [AdapterUse(adapter=shelf.first)])
    same = adapter_delta(a, read_low_rank(shelf.archive, folded.adapter))
    assert {delta.status for delta in same} == {"same"}
    assert whole(same).cosine == pytest.approx(1.0, abs=1e-9)


def test_a_merged_adapter_is_a_plain_peft_directory(shelf: Shelf, tmp_path: Path) -> None:
    from peft import PeftModel  # noqa: PLC0415 - a second to import

    merged = merge_adapters(shelf.repository, shelf.uses)
    shelf.archive.get_tree(merged.adapter, tmp_path / "plain")
    assert load_file(tmp_path / "plain" / "adapter_model.safetensors")
    base = keystone.load(shelf.manifest, archive=shelf.archive, quantization="none", device="cpu").model
    wrapped = PeftModel.from_pretrained(base, tmp_path / "plain").eval()
    ids = torch.tensor([[5, 9, 17, 200, 31]])
    with torch.inference_mode():
        theirs = wrapped(input_ids=ids).logits
    ours = our_logits(shelf.archive, _manifest(shelf, merged.adapter), ids)
    assert torch.equal(theirs, ours)


def _manifest(shelf: Shelf, adapter: Digest) -> Digest:
    repository = shelf.repository
    bare = repository.load(shelf.manifest)
    assembly = bare.assembly.revised(adapters=(AdapterUse(adapter=adapter),))
    return repository.put(bare.revised(assembly=assembly, lineage=repository.trace([adapter], base=shelf.base)))
