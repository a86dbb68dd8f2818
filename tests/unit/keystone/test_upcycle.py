"""More loops for a base with one: the same function exactly, or a start that adapters can train."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from peft import LoraConfig, get_peft_model
from small_checkpoints import family_model, prompt_ids, save

import keystone
from adapters import read_adapter, write_adapter
from csf_store import Archive, Digest
from keystone.checkpoints import assemble_base
from keystone.checkpoints.upcycle import PROMPTS, SHARD, TRAINABLE_MODULES
from keystone.cli import main
from keystone.model import KeystoneCache, KeystoneForCausalLM
from keystone.nano.embedded import DATA
from manifests import Repository


def run(archive: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["--archive", str(archive), *arguments])


def lines(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """An archive with a base of one loop under the ref `one`."""
    directory = save(family_model("llama", tie_word_embeddings=True), tmp_path / "one")
    assert run(tmp_path / "archive", "import", str(directory)).exit_code == 0
    return tmp_path / "archive"


def model_of(archive: Path, target: str) -> KeystoneForCausalLM:
    with Archive.open(archive) as opened:
        repository = Repository(opened)
        return assemble_base(opened, repository.load(repository.resolve(target)).assembly.base)


@pytest.mark.parametrize("loops", [2, 3])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_exact_mode_is_the_same_function(family: str, loops: int, tmp_path: Path) -> None:
    directory = save(family_model(family), tmp_path / "one")
    found = lines(run(tmp_path / "archive", "import", str(directory), "--loops", str(loops), "--json"))
    report = next(line for line in found if line.get("kind") == "upcycle")
    assert report["logit_difference"] <= 1e-6
    assert report["logit_size"] > 1
    assert found[-1]["ref"] == f"one-{loops}loops"
    with Archive.open(tmp_path / "archive") as opened:
        known = Repository(opened).load(Digest.parse(found[-1]["manifest"]))
        assert known.parent == Digest.parse(report["parent"])
        before = assemble_base(opened, Repository(opened).load(known.parent).assembly.base)
        after = assemble_base(opened, known.assembly.base)
    assert (before.config.plt_num_loops, after.config.plt_num_loops) == (1, loops)
    ids = prompt_ids(100)  # longer than the new loops' window
    with torch.no_grad():
        assert (after(ids).logits - before(ids).logits).abs().max() <= 1e-6
        cache = KeystoneCache(after.config)
        steps = [after(input_ids=ids[:, i : i + 1], past_key_values=cache).logits for i in range(12)]
        assert (torch.cat(steps, 1) - before(ids[:, :12]).logits).abs().max() <= 1e-4


def test_the_weights_of_the_source_are_the_same_blobs(archive: Path) -> None:
    size = sum(path.stat().st_size for path in (archive / "segments").iterdir())
    last = lines(run(archive, "import", "one", "--loops", "2", "--json"))[-1]
    with Archive.open(archive) as opened:
        repository = Repository(opened)
        known = repository.load(Digest.parse(last["manifest"]))
        trees = [
            {entry.path: entry.blob for entry in opened.tree(base).entries}
            for base in (repository.load(repository.resolve("one")).assembly.base, known.assembly.base)
        ]
    assert {path for path in trees[1] if trees[0].get(path) != trees[1][path]} == {"config.json", SHARD}
    assert (known.source.kind, known.source.location, known.labels["upcycled"]) == ("upcycled", "one", "exact")
    assert sum(path.stat().st_size for path in (archive / "segments").iterdir()) < size + 10_000
    again = lines(run(archive, "import", "one", "--loops", "2", "--json"))[-1]
    assert again == last


def lora(base: KeystoneForCausalLM, **settings: Any) -> Any:
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **settings)
    return get_peft_model(base, config)


def test_a_trainable_one_begins_close_and_learns_through_its_second_loop(archive: Path, tmp_path: Path) -> None:
    found = lines(run(archive, "import", "one", "--loops", "2", "--trainable", "--ref", "two", "--json"))
    report = next(line for line in found if line.get("kind") == "upcycle")
    assert report["modules_to_save"] == list(TRAINABLE_MODULES)
    assert 0 < report["hidden_scale"] < 1
    base = model_of(archive, "two")
    before = model_of(archive, "one")
    with torch.no_grad():
        ids = [keystone.load("one", archive=archive).tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
        measured = max(
            float((base(torch.tensor([each])).logits - before(torch.tensor([each])).logits).abs().max()) for each in ids
        )
    assert report["logit_difference"] == pytest.approx(measured, rel=1e-3)
    assert 0 < measured < report["logit_size"] / 2

    adapted = lora(base, modules_to_save=list(TRAINABLE_MODULES))
    ids = prompt_ids(40)
    adapted(input_ids=ids, labels=ids).loss.backward()
    gradients = {name: parameter.grad for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    for part in ("plt_gate.modules_to_save.default.weight", "plt_gate.modules_to_save.default.bias", "loop_carry"):
        found_parts = [gradient for name, gradient in gradients.items() if part in name]
        assert found_parts, part
        assert all(gradient.abs().max() > 0 for gradient in found_parts), part

    written = read_adapter(write_adapter(adapted, tmp_path / "adapter"))
    assert "model.loop_carry.weight" in written.replaced
    added = run(archive, "adapter", "add", str(tmp_path / "adapter"), "--base", "two", "--json")
    assert added.exit_code == 0, added.output


def test_a_trainable_scale_has_no_place_in_the_vendors_layout(archive: Path, tmp_path: Path) -> None:
    for mode, code in (([], 0), (["--trainable"], 10)):
        ref = f"two-{code}"
        assert run(archive, "import", "one", "--loops", "2", *mode, "--ref", ref).exit_code == 0
        result = run(archive, "export", ref, str(tmp_path / ref), "--format", "vendor")
        assert result.exit_code == code, result.output
        assert (tmp_path / ref).exists() == (code == 0)


def test_an_exact_one_passes_no_gradient_to_what_a_loop_adds(archive: Path) -> None:
    """Why there is another mode: the proof cannot be trained."""
    assert run(archive, "import", "one", "--loops", "2", "--ref", "two").exit_code == 0
    adapted = lora(model_of(archive, "two"), modules_to_save=["plt_gate"])
    ids = prompt_ids(40)
    adapted(input_ids=ids, labels=ids).loss.backward()
    gates = [p.grad for name, p in adapted.named_parameters() if ".plt_gate.modules_to_save" in name]
    assert gates
    assert all(gradient.abs().max() == 0 for gradient in gates)


def test_what_cannot_be_upcycled(archive: Path) -> None:
    assert run(archive, "import", "nano").exit_code == 0
    for arguments, code, named in (
        (["nano", "--loops", "2"], 10, "has 2 loops already"),
        (["nobody", "--loops", "2"], 5, "nobody"),
        ([str(DATA / "base"), "--tokenizer", str(DATA / "tokenizer"), "--loops", "2"], 2, "2 loops already"),
        (["one", "--trainable"], 2, "--loops"),
        (["one", "--loops", "1"], 2, "--loops"),
        (["one", "--loops", "2", "--ref", "Not A Ref"], 7, "Not A Ref"),
    ):
        result = run(archive, "import", *arguments)
        assert result.exit_code == code, result.output
        assert named in result.stderr
