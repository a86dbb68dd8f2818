"""Quantized weights kept by content: the second load quantizes nothing, and nothing that goes wrong does harm."""

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import keystone
from csf_store import Archive, Kind
from keystone import KeystoneForCausalLM
from keystone.checkpoints import BaseCheckpoint
from keystone.errors import RefusedError
from keystone.nano.embedded import DATA
from keystone.quantize import assembling, derived, parts_of, quantize
from keystone.quantize.assembling import assemble, stored_form
from keystone.quantize.derived import DerivedKey, TensorSource, drop, find_derived, list_derived, store_derived
from manifests import Repository

# Folders of the tests are no packages; the wrapper is as small as the one of the archive's own tests.
from csf_store.durable import OsFileSystem  # isort: skip

IDS = torch.arange(7, 60)[None]


class NoWriting(OsFileSystem):
    """A disk that takes nothing more, for a reason."""

    def __init__(self, root: Path, reason: int) -> None:
        self.root = root
        self.reason = reason

    def open(self, path: Path, flags: int) -> int:
        if (
            self.reason == errno.EROFS
            and path.is_relative_to(self.root)
            and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        ):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return super().open(path, flags)

    def write(self, fd: int, parts: object) -> int:
        raise OSError(self.reason, os.strerror(self.reason))


@pytest.fixture
def empty_cache(tmp_path: Path) -> Path:
    """An archive with nano and no quantized weights; the shared one may hold some that other tests' loads have kept."""
    path = tmp_path / "archive-without-cache"
    with Archive.create(path) as archive:
        keystone.import_nano(archive)
    return path


def never(*_: object, **__: object) -> None:
    raise AssertionError("the quantizer was called")


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model(IDS).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("scheme", ["int8", "nf4"])
def test_the_second_load_quantizes_nothing_and_is_the_same(
    empty_cache: Path, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = keystone.load("nano", archive=empty_cache, quantization=scheme)
    before = {name: tensor.clone() for name, tensor in stored_form(first.model, first.recipe).items()}
    monkeypatch.setattr(assembling, "quantize_weight", never)
    second = keystone.load("nano", archive=empty_cache, quantization=scheme)
    assert (first.quantized_here, second.quantized_here) == (True, False)
    assert first.derived == second.derived is not None
    assert second.read_bytes < {"int8": 0.65, "nf4": 0.45}[scheme] * first.read_bytes
    after = stored_form(second.model, second.recipe)
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert torch.equal(logits(first.model), logits(second.model))
    with pytest.raises(AssertionError, match="was called"):
        keystone.load("nano", archive=empty_cache, quantization=scheme, cache="ignore")


@pytest.mark.parametrize("scheme", ["int8", "nf4"])
def test_streaming_gives_what_quantizing_a_whole_model_gives(nano_archive: Path, scheme: str) -> None:
    streamed = keystone.load("nano", archive=nano_archive, quantization=scheme, cache="ignore")
    whole = KeystoneForCausalLM.from_pretrained(DATA / "base").eval()
    quantize(whole, streamed.recipe)
    for name in streamed.recipe.modules:
        ours, theirs = (parts_of(model.get_submodule(name)) or {} for model in (streamed.model, whole))
        assert all(torch.equal(ours[part], theirs[part]) for part in theirs), name
    assert torch.equal(logits(streamed.model), logits(whole))


def test_it_is_an_ordinary_safetensors_blob_that_shares_what_the_base_has(empty_cache: Path) -> None:
    with Archive.open(empty_cache) as archive:
        before = archive.segment_bytes()
        loaded = keystone.load("nano", archive=archive, quantization="nf4")
        assert loaded.derived is not None
        grown = archive.segment_bytes() - before
        infos = archive.tensors(loaded.derived)
        kept = sum(info.nbytes for name, info in infos.items() if name.rpartition(".")[0] not in loaded.recipe.modules)
        quantized = sum(info.nbytes for info in infos.values())
        # Embeddings, norms and gates are the base's own chunks.
        assert kept > 400_000
        assert grown < quantized - kept + 150_000
        metadata = archive.metadata(loaded.derived)
        assert metadata["keystone.base"] == str(loaded.manifest.assembly.base)
        assert metadata["keystone.recipe"] == str(loaded.recipe.digest)
        assert archive.links(loaded.derived) == ()
        assert archive.verify([loaded.derived], deep=True).ok


def segments(archive: Path) -> dict[Path, int]:
    return {path: path.stat().st_size for path in (archive / "segments").iterdir()}


def damage_what_was_added(archive: Path, before: dict[Path, int]) -> None:
    """Flip one bit in the middle of what was written since."""
    grown = {path: size - before.get(path, 0) for path, size in segments(archive).items()}
    segment = max(grown, key=lambda path: grown[path])
    content = bytearray(segment.read_bytes())
    content[before.get(segment, 0) + grown[segment] // 2] ^= 1
    segment.write_bytes(content)


def test_a_damaged_copy_is_noticed_reported_and_made_again(empty_cache: Path) -> None:
    before = segments(empty_cache)
    first = keystone.load("nano", archive=empty_cache, quantization="int8")
    expected = logits(first.model)
    assert first.derived is not None
    damage_what_was_added(empty_cache, before)
    second = keystone.load("nano", archive=empty_cache, quantization="int8")
    assert second.quantized_here
    assert "damaged, made again" in second.notes[0]
    assert torch.equal(logits(second.model), expected)
    # The damaged bytes stand where the new ones would: nothing is pinned before it can be read back.
    assert second.derived is None
    assert "csf repair" in second.notes[1]
    with Archive.open(empty_cache) as archive:
        archive.repair()
        third = keystone.load("nano", archive=archive, quantization="int8")
        fourth = keystone.load("nano", archive=archive, quantization="int8")
    assert (third.quantized_here, third.notes, fourth.quantized_here) == (True, (), False)
    assert torch.equal(logits(fourth.model), expected)


@pytest.mark.parametrize("reason", [errno.EROFS, errno.ENOSPC])
def test_an_archive_that_takes_nothing_still_loads(empty_cache: Path, reason: int) -> None:
    with Archive.open(empty_cache, fs=NoWriting(empty_cache, reason)) as archive:
        loaded = keystone.load("nano", archive=archive, quantization="int8")
        assert loaded.quantized_here
        assert loaded.derived is None
        assert "were not cached" in loaded.notes[0]
        assert list(list_derived(archive)) == []
    assert keystone.load("nano", archive=empty_cache, quantization="int8").derived is not None


def test_two_loads_at_once_do_no_harm(empty_cache: Path) -> None:
    found: list[keystone.LoadedModel] = []

    def run() -> None:
        found.append(keystone.load("nano", archive=empty_cache, quantization="nf4"))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0].derived == found[1].derived is not None
    assert torch.equal(logits(found[0].model), logits(found[1].model))
    with Archive.open(empty_cache) as archive:
        assert len(list(list_derived(archive))) == 1
        assert archive.verify(deep=True).ok


@pytest.mark.parametrize("change", ["short", "missing", "surplus", "float"])
def test_a_blob_pinned_under_the_key_that_is_no_such_model_is_not_used(empty_cache: Path, change: str) -> None:
    first = keystone.load("nano", archive=empty_cache, quantization="nf4", cache="ignore")
    tensors = dict(stored_form(first.model, first.recipe))
    name = "model.layers.1.mlp.up_proj.absmax"
    if change == "short":
        tensors[name] = tensors[name][:-64]
    elif change == "missing":
        del tensors[name]
    elif change == "surplus":
        tensors["model.layers.9.mlp.up_proj.absmax"] = tensors[name]
    else:
        tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
    key = DerivedKey(first.manifest.assembly.base, first.recipe)
    with Archive.open(empty_cache) as archive:
        forged = store_derived(archive, key, tensors)
        loaded = keystone.load("nano", archive=archive, quantization="nf4")
        assert loaded.quantized_here
        assert "made again" in loaded.notes[0]
        assert find_derived(archive, key) == loaded.derived != forged
    assert torch.equal(logits(loaded.model), logits(first.model))


def test_a_cache_keeps_no_base_alive_and_goes_when_it_is_dropped(empty_cache: Path) -> None:
    with Archive.open(empty_cache) as archive:
        loaded = keystone.load("nano", archive=archive, quantization="int8")
        assert loaded.derived is not None
        archive.collect(grace=0, threshold=0)
        assert archive.contains(loaded.derived, Kind.BLOB)
        assert [entry.blob for entry in list_derived(archive)] == [loaded.derived]
        drop(archive, loaded.derived)
        archive.collect(grace=0, threshold=0)
        assert not archive.contains(loaded.derived, Kind.BLOB)
        assert archive.verify(Repository(archive).load(loaded.digest).links()).ok


def test_other_libraries_make_another_blob(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = keystone.load("nano", archive=empty_cache, quantization="int8")
    monkeypatch.setattr(derived, "version", lambda name: "99.0" if name == "bitsandbytes" else "1")
    second = keystone.load("nano", archive=empty_cache, quantization="int8")
    assert second.quantized_here
    assert first.derived != second.derived is not None


def test_a_source_of_tensors_reads_like_the_file_it_stands_for(tmp_path: Path) -> None:
    tensors = {
        "a": torch.arange(7, dtype=torch.uint8),
        "b": torch.randn(3, 5),
        "c": torch.tensor(2.5),
        "d": torch.empty(0),
    }
    source = TensorSource(tensors, {"k": "v"})
    content = bytes(source.read(0, source.size))
    (tmp_path / "x.safetensors").write_bytes(content)
    save_file(tensors, tmp_path / "y.safetensors", {"k": "v"})
    with Archive.create(tmp_path / "archive") as archive:
        ours, theirs = (archive.put_file(tmp_path / f"{name}.safetensors").digest for name in "xy")
        for name in tensors:
            assert archive.read_tensor(ours, name) == archive.read_tensor(theirs, name)
        assert archive.put_source(source).digest == ours
    for start in range(0, len(content) - 20, 7):
        assert bytes(source.read(start, 20)) == content[start : start + 20]


def test_after_a_forward_there_is_nothing_left_to_cache(nano_archive: Path) -> None:
    loaded = keystone.load("nano", archive=nano_archive, quantization="nf4", cache="ignore")
    if not getattr(loaded.model.get_submodule(loaded.recipe.modules[0]), "support_avx512bf16_for_cpu", False):
        pytest.skip("this processor never repacks")
    logits(loaded.model)
    with pytest.raises(RefusedError, match="repacked"):
        stored_form(loaded.model, loaded.recipe)


PEAK = """
import json, sys, torch
from pathlib import Path
from csf_store import Archive, Digest
from keystone.checkpoints import BaseCheckpoint, blank_model
from keystone.quantize import recipe_for, weight_bytes
from keystone.quantize.assembling import assemble
from keystone.quantize.bitsandbytes_guards import bitsandbytes
bitsandbytes('nn')
def status(field):
    line = next(line for line in open('/proc/self/status') if line.startswith(field))
    return int(line.split()[1]) * 1024
with Archive.open(sys.argv[1]) as archive:
    checkpoint = BaseCheckpoint.open(archive, Digest.parse(sys.argv[2]))
    for scheme in sys.argv[3:]:
        recipe = recipe_for(blank_model(checkpoint.config), scheme, dtype=checkpoint.dtype)
        Path('/proc/self/clear_refs').write_text('5')  # the peak begins anew
        before = status('VmRSS')
        made = assemble(archive, checkpoint, recipe, device=torch.device('cpu'))
        print(json.dumps({'scheme': scheme, 'grown': status('VmHWM') - before, 'weights': weight_bytes(made.model)}))
        del made
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="peak memory is read from /proc")
def test_peak_memory_is_the_models_own(tmp_path: Path) -> None:
    """A base of 180 MB: as it is, quantized, and from the cache."""
    config = json.loads((DATA / "base" / "config.json").read_text())
    config |= {"hidden_size": 1024, "intermediate_size": 8192, "num_hidden_layers": 3, "vocab_size": 4096}
    config |= {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 128}
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text(json.dumps(config))
    model = assembling.blank_model(keystone.KeystoneConfig.from_dict(config))
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(1 << 20, generator=generator).bfloat16()
    tensors = {
        name: noise.repeat(-(-parameter.numel() // len(noise)))[: parameter.numel()]
        .reshape(parameter.shape)
        .contiguous()
        for name, parameter in model.named_parameters()
    }
    size = sum(tensor.nbytes for tensor in tensors.values())
    largest = max(tensor.nbytes for tensor in tensors.values())
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    del tensors
    archive = tmp_path / "archive"
    with Archive.create(archive) as opened:
        digest = opened.put_tree(base).digest
        assert BaseCheckpoint.open(opened, digest).nbytes > 150_000_000
    command = [sys.executable, "-c", PEAK, str(archive), str(digest), "none", "int8", "int8"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    slack = 110_000_000
    for found in map(json.loads, output.splitlines()):
        assert found["weights"] < {"none": 1.01, "int8": 0.6}[found["scheme"]] * size
        assert found["grown"] < found["weights"] + largest + slack, found["scheme"]


def test_a_recipe_that_lists_what_is_not_there_is_refused_before_anything_is_read(nano_archive: Path) -> None:
    with Archive.open(nano_archive) as archive:
        manifest = Repository(archive).load(Repository(archive).resolve("nano"))
        checkpoint = BaseCheckpoint.open(archive, manifest.assembly.base)
        recipe = keystone.load("nano", archive=archive, quantization="int8", cache="ignore").recipe
        with pytest.raises(RefusedError, match="no_such"):
            assemble(
                archive,
                checkpoint,
                recipe.revised(modules=("model.layers.0.no_such",)),
                device=torch.device("cpu"),
                progress=never,
            )
