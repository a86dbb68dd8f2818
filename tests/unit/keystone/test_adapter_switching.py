"""Other adapters on a loaded model: back and forth, bit for bit what a fresh load gives."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from export_lab import put_adapter, put_base, put_manifest, write_base

import keystone
from adapters import AdapterFitError
from csf_store import Archive, Digest
from keystone.errors import InvalidInputError
from keystone.loader import LoadedModel
from manifests import AdapterUse, BaseMismatchError, Repository

IDS = torch.tensor([[5, 9, 17, 200, 31, 8, 90, 4]])
NONCE = bytes(32)


def logits(loaded: LoadedModel) -> torch.Tensor:
    with torch.inference_mode():
        return loaded.model(input_ids=IDS).logits


@pytest.fixture(scope="module")
def rack(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Digest, Digest, Digest, Path]:
    """An archive, a bare manifest, two adapters of its base, and the base's directory."""
    folder = tmp_path_factory.mktemp("rack")
    directory = write_base(folder / "base")
    with Archive.create(folder / "archive") as archive:
        bare = put_base(archive, directory)
        base = Repository(archive).load(bare).assembly.base
        adapters = [put_adapter(archive, base, directory, folder, seed=seed, r=seed + 1) for seed in (1, 2)]
    return folder / "archive", bare, adapters[0], adapters[1], directory


def fresh(archive: Archive, bare: Digest, uses: Sequence[AdapterUse], quantization: str) -> LoadedModel:
    base = Repository(archive).load(bare).assembly.base
    manifest = put_manifest(archive, base, *uses)
    return keystone.load(manifest, archive=archive, quantization=quantization, device="cpu")


@pytest.mark.parametrize("quantization", ["none", "int8"])
@pytest.mark.parametrize("start", [0, 2])
def test_switching_back_and_forth_is_a_fresh_load_each_time(
    rack: tuple[Path, Digest, Digest, Digest, Path], quantization: str, start: int
) -> None:
    path, bare, a, b, _ = rack
    outfits = [
        (),
        (AdapterUse(adapter=a),),
        (AdapterUse(adapter=b, weight=0.5), AdapterUse(adapter=a, weight=-1.25)),
        (AdapterUse(adapter=a, weight=-1.25), AdapterUse(adapter=b, weight=0.5)),
        (AdapterUse(adapter=a, weight=0.1),),
    ]
    with Archive.open(path) as archive:
        wanted = {}
        for outfit in outfits:
            alone = fresh(archive, bare, outfit, quantization)
            attested = alone.attest(NONCE)
            wanted[outfit] = logits(alone), attested
        loaded = fresh(archive, bare, outfits[start], quantization)
        assert torch.equal(logits(loaded), wanted[outfits[start]][0])
        for outfit in (*outfits, *reversed(outfits), outfits[1], outfits[0], outfits[2]):
            loaded.use(*outfit, archive=archive)
            assert torch.equal(logits(loaded), wanted[outfit][0]), outfit
            assert loaded.attest(NONCE) == wanted[outfit][1], outfit
            assert loaded.wardrobe.worn == outfit
    assert len({str(each) for each, _ in wanted.values()}) >= 4


def test_a_block_gives_back_what_was_worn_whatever_happens(rack: tuple[Path, Digest, Digest, Digest, Path]) -> None:
    path, bare, a, b, _ = rack
    with Archive.open(path) as archive:
        loaded = fresh(archive, bare, [AdapterUse(adapter=a)], "none")
        before = logits(loaded)
        with pytest.raises(KeyError), loaded.wearing(AdapterUse(adapter=b), archive=archive):
            assert not torch.equal(logits(loaded), before)
            raise KeyError
        assert torch.equal(logits(loaded), before)
        with loaded.wearing():
            assert not torch.equal(logits(loaded), before)
        assert torch.equal(logits(loaded), before)
    # What is held needs no archive any more.
    loaded.use(AdapterUse(adapter=b, weight=2.0))
    assert loaded.wardrobe.held == {a, b}


def test_nothing_changes_when_an_adapter_may_not_be_worn(
    rack: tuple[Path, Digest, Digest, Digest, Path], tmp_path: Path
) -> None:
    path, bare, a, b, _ = rack
    with Archive.open(path) as archive:
        loaded = fresh(archive, bare, [AdapterUse(adapter=a)], "none")
        before = logits(loaded)
        sibling_dir = write_base(tmp_path / "sibling", seed=3)
        sibling = archive.put_tree(sibling_dir).digest
        stranger = put_adapter(archive, sibling, sibling_dir, tmp_path, seed=7)
        narrow_dir = write_base(tmp_path / "narrow", hidden_size=32)
        narrow = put_adapter(archive, archive.put_tree(narrow_dir).digest, narrow_dir, tmp_path, seed=8)
        with pytest.raises(BaseMismatchError):  # equal shapes: only the record can tell
            loaded.use(AdapterUse(adapter=b), AdapterUse(adapter=stranger), archive=archive)
        with pytest.raises((BaseMismatchError, AdapterFitError)):
            loaded.use(AdapterUse(adapter=narrow), archive=archive)
        with pytest.raises(InvalidInputError, match="twice"):
            loaded.use(AdapterUse(adapter=a), AdapterUse(adapter=a, weight=0.5), archive=archive)
        assert loaded.wardrobe.worn == (AdapterUse(adapter=a),)
        assert loaded.wardrobe.held == {a}
        assert torch.equal(logits(loaded), before)
