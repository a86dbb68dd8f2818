"""A hub over real HTTP on this machine: what is fetched, from which commit, and what never is."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from local_hub import COMMIT, LocalHub, serving
from small_checkpoints import family_model, prompt_ids, save

from csf_store import Archive
from keystone.checkpoints import assemble_base
from keystone.checkpoints.hub import HubError, parse_address, read_hub
from keystone.checkpoints.huggingface import Choices
from keystone.checkpoints.importing import import_checkpoint, plan_import
from keystone.checkpoints.sources import Checkpoint
from keystone.errors import CheckpointError, InvalidInputError, RefusedError
from manifests import Repository


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LocalHub]:
    directory = save(family_model("llama"), tmp_path / "hub", max_shard_size="60KB")
    (directory / "README.md").write_text("---\nlicense: mit\nbase_model: org/elder\n---\n")
    (directory / "pytorch_model.bin").write_bytes(b"\x80\x04never read")
    (directory / "consolidated.safetensors").write_bytes(b"never fetched")
    (directory / "original").mkdir()
    (directory / "original" / "params.json").write_text("{}")
    with serving(LocalHub(directory)) as served:
        yield served


def read(hub: LocalHub, cache: Path, address: str = "hf://org/tiny") -> Checkpoint:
    return read_hub(address, Choices(), endpoint=hub.endpoint, cache=cache)


def test_a_repository_is_read_at_one_commit(hub: LocalHub, tmp_path: Path) -> None:
    checkpoint = read(hub, tmp_path / "cache", "hf://org/tiny@main")
    assert checkpoint.origin.location == f"hf://org/tiny@{COMMIT}"
    assert (checkpoint.origin.kind, checkpoint.origin.licence) == ("hub", "MIT")
    with Archive.create(tmp_path / "archive") as archive:
        done = import_checkpoint(archive, plan_import(checkpoint))
        manifest = Repository(archive).load(done.manifest)
        model = assemble_base(archive, done.base)
    assert manifest.labels["claimed/base_model"] == "org/elder (unverified)"
    assert manifest.labels["hub/revision"] == "main"
    ids = prompt_ids()
    with torch.no_grad():
        assert (model(ids).logits - family_model("llama")(ids).logits).abs().max() <= 1e-4


def test_only_what_a_base_needs_is_fetched_and_only_once(hub: LocalHub, tmp_path: Path) -> None:
    checkpoint = read(hub, tmp_path / "cache")
    shards = {path.name for path in hub.files.glob("model-*.safetensors")}
    assert len(shards) > 1
    assert set(hub.asked) == shards | {
        "README.md", "config.json", "generation_config.json", "model.safetensors.index.json", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip
    left = {note.name: note.reason for note in checkpoint.notes if note.what == "file"}
    assert {"pytorch_model.bin", "consolidated.safetensors", "original/params.json"} <= set(left)
    assert "pickles" in left["pytorch_model.bin"]
    hub.asked.clear()
    again = read(hub, tmp_path / "cache")
    assert hub.asked == []
    assert again.origin == checkpoint.origin


def test_a_dry_run_leaves_the_weights_where_they_are(hub: LocalHub, tmp_path: Path) -> None:
    checkpoint = read_hub("hf://org/tiny", Choices(), fetch="small", endpoint=hub.endpoint, cache=tmp_path / "cache")
    assert not [name for name in hub.asked if name.endswith(".safetensors")]
    plan = plan_import(checkpoint)
    assert plan.fates == {"mapped": 21}
    assert checkpoint.headless
    with Archive.create(tmp_path / "archive") as archive, pytest.raises(CheckpointError, match="dry-run"):
        import_checkpoint(archive, plan)


def test_an_interrupted_download_goes_on_where_it_stopped(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 4096)
    hub.break_after = 50_000
    checkpoint = read(hub, tmp_path / "cache")
    assert hub.ranges == [f"bytes={50_000 // 4096 * 4096}-"]
    files = {name: path.read_bytes() for name, path in checkpoint.files.items()}
    assert files == {path.name: path.read_bytes() for path in hub.files.glob("model-*.safetensors")}


def test_a_repository_of_pickles_is_refused_before_any_is_fetched(hub: LocalHub, tmp_path: Path) -> None:
    for path in hub.files.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(RefusedError, match=r"pytorch_model\.bin.*run code"):
        read(hub, tmp_path / "cache")
    assert hub.asked == []


@pytest.mark.parametrize(
    ("address", "named"),
    [("hf://org/nobody", "no such repository"), ("hf://org/tiny@v9", "no such revision")],
)
def test_what_a_hub_does_not_have(address: str, named: str, hub: LocalHub, tmp_path: Path) -> None:
    with pytest.raises(HubError, match=named):
        read(hub, tmp_path / "cache", address)


def test_a_hub_that_cannot_be_reached(tmp_path: Path) -> None:
    with pytest.raises(HubError, match="again"):
        read_hub("hf://org/tiny", Choices(), endpoint="http://127.0.0.1:9", cache=tmp_path)


@pytest.mark.parametrize("text", ["hf://tiny", "hf://org/tiny/more", "hf://org/../x", "hf://org/tiny@", "hf://o r/g"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises((InvalidInputError, HubError)):
        read_hub(text, Choices(), endpoint="http://127.0.0.1:9")


def test_an_address_with_a_branch_that_has_slashes() -> None:
    address = parse_address("hf://org/name@refs/pr/1")
    assert (address.repo, address.revision) == ("org/name", "refs/pr/1")
