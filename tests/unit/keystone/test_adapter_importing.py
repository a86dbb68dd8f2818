"""Adapters from a directory or a hub on this machine, and the command line of everything one does with them."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from export_lab import put_adapter, put_base, write_base
from local_hub import COMMIT, LocalHub, serving

from adapters import AdapterNotFoundError, PickleAdapterError
from csf_store import Archive, Digest
from keystone.cli import main
from keystone.combining import import_adapter, imports_of, merge_of
from keystone.errors import InvalidInputError
from manifests import Repository, Source


class Desk:
    """An archive with one base, two adapters in it and one outside."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "archive"
        directory = write_base(folder / "base")
        with Archive.create(self.path) as archive:
            repository = Repository(archive)
            self.bare = put_base(archive, directory)
            self.base = repository.load(self.bare).assembly.base
            self.first, self.second = (
                put_adapter(archive, self.base, directory, folder, seed=seed) for seed in (1, 2)
            )  # fmt: skip
            manifest = repository.load(self.bare)
            source = Source(kind="hub", location="hf://org/elder@" + "0" * 40, licence="Apache-2.0")
            repository.put(manifest.revised(source=source))
            repository.refs.set("small", self.bare, expected=None)
        self.folder = folder / "lora1"
        self.claim("org/elder")

    def claim(self, name: str) -> None:
        config = self.folder / "adapter_config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": name}))

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(main, ["--archive", str(self.path), "adapter", *arguments])


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    return Desk(tmp_path_factory.mktemp("desk"))


@pytest.fixture
def hub(desk: Desk, tmp_path: Path) -> Iterator[LocalHub]:
    files = tmp_path / "hub"
    files.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (files / name).write_bytes((desk.folder / name).read_bytes())
    (files / "README.md").write_text("---\nlicense: mit\n---\n# A card\n")
    (files / "training_args.bin").write_bytes(b"\x80\x04never fetched")
    with serving(LocalHub(files)) as served:
        yield served


def test_a_hub_adapter_comes_from_one_commit_with_its_claims(desk: Desk, hub: LocalHub, tmp_path: Path) -> None:
    with Archive.open(desk.path) as archive:
        repository = Repository(archive)
        found = import_adapter(repository, "hf://org/tiny@main", endpoint=hub.endpoint, cache=tmp_path / "cache")
        assert found.document.location == f"hf://org/tiny@{COMMIT}"
        assert (found.document.claimed_base, found.document.licence) == ("org/elder", "mit")
        assert (found.record.base, found.record.claim) == (desk.base, True)
        assert found.document in imports_of(repository, found.adapter)
        paths = [entry.path for entry in archive.tree(found.adapter).entries]
    assert paths == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert "training_args.bin" not in hub.asked


def test_pickled_weights_are_refused_before_they_are_fetched(desk: Desk, hub: LocalHub, tmp_path: Path) -> None:
    (hub.files / "adapter_model.safetensors").rename(hub.files / "adapter_model.bin")
    with Archive.open(desk.path) as archive, pytest.raises(PickleAdapterError, match=r"adapter_model\.bin"):
        import_adapter(Repository(archive), "hf://org/tiny", endpoint=hub.endpoint, cache=tmp_path / "cache")
    assert hub.asked == []


def test_a_pickle_beside_the_weights_of_a_directory_is_refused(desk: Desk, tmp_path: Path) -> None:
    folder = tmp_path / "lora"
    folder.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).write_bytes((desk.folder / name).read_bytes())
    (folder / "optimizer.pt").write_bytes(b"PK\x03\x04")
    outcome = desk.run("import", str(folder), "--base", "small")
    assert outcome.exit_code == 7
    assert "optimizer.pt" in outcome.stderr


def test_a_base_that_is_not_named_must_be_the_one_that_is_claimed(desk: Desk, tmp_path: Path) -> None:
    folder = tmp_path / "lora"
    folder.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).write_bytes((desk.folder / name).read_bytes())
    config = json.loads((folder / "adapter_config.json").read_text())
    with Archive.open(desk.path) as archive:
        repository = Repository(archive)
        for claimed, words in (("org/unknown", "none here came from there"), ("/home/me/base", "does not say")):
            (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": claimed}))
            with pytest.raises(InvalidInputError, match=words):
                import_adapter(repository, str(folder))
        found = import_adapter(repository, str(folder), base=desk.base)
        assert found.document.claimed_base is None
        with pytest.raises(AdapterNotFoundError):
            import_adapter(repository, str(tmp_path / "nowhere"))


def one(outcome: Result) -> dict[str, object]:
    found: dict[str, object] = json.loads(outcome.stdout.splitlines()[-1])
    return found


def test_merge_delta_and_check_on_a_command_line(desk: Desk) -> None:
    a, b = (desk.first.hex[:12], desk.second.hex[:12])
    outcome = desk.run(
        "merge", a, b, "--weights", "0.5,-1", "-o", "both", "--base", "small", "--prompt", "def f(x):", "--json"
    )
    assert outcome.exit_code == 0, outcome.output
    merged = one(outcome)
    assert merged["method"] == "concatenation"
    assert merged["logits"]["largest_difference"] < 1e-3 * merged["logits"]["largest_change"]  # type: ignore[index]
    outcome = desk.run("check", "both", "--base", "small", "--json")
    assert outcome.exit_code == 0, outcome.output
    assert "merged from 0.5 x " in str(one(outcome)["notes"])
    outcome = desk.run("delta", "both", a, "--json")
    assert outcome.exit_code == 0
    rows = [json.loads(line) for line in outcome.stdout.splitlines()]
    assert rows[-1]["module"] == "all"
    assert {row["status"] for row in rows} == {"changed"}
    with Archive.open(desk.path) as archive:
        record = merge_of(Repository(archive), Digest.parse(str(merged["adapter"])))
        assert record is not None
        assert [use.weight for use in record.parents] == [0.5, -1.0]
    assert desk.run("merge", a, b, "--weights", "1").exit_code == 2
    assert desk.run("merge", a, b, "--prompt", "x").exit_code == 2
    assert "rank" in desk.run("merge", a, b, "--rank", "2").stdout


def test_check_says_no_with_every_reason(desk: Desk, tmp_path: Path) -> None:
    with Archive.open(desk.path) as archive:
        other = archive.put_tree(write_base(tmp_path / "other", hidden_size=32)).digest
    for adapter in (desk.first.hex[:12], str(desk.folder)):
        outcome = desk.run("check", adapter, "--base", str(other), "--json")
        assert outcome.exit_code == 1
        assert len(one(outcome)["problems"]) >= 6  # type: ignore[arg-type]
    assert desk.run("check", "b3:00000000", "--base", "small").exit_code == 5
