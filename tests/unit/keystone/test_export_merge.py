"""Merged weights compute what base plus adapters compute, and say how closely."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from export_lab import IDS, our_logits, put_adapter, put_base, put_manifest, write_base
from peft import PeftModel
from safetensors.torch import load_file

from csf_store import Archive
from keystone import KeystoneForCausalLM
from keystone.checkpoints.export import ExportRequest, export
from keystone.cli import main
from keystone.errors import RefusedError
from keystone.nano.embedded import DATA
from manifests import AdapterUse, Recipe

MERGE = ExportRequest(merge=True)


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    with Archive.create(tmp_path / "archive") as opened:
        yield opened


def logits_of(directory: Path) -> torch.Tensor:
    with torch.inference_mode():
        return KeystoneForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()(IDS).logits


def test_two_adapters_with_weights_merge_into_the_same_function(archive: Archive, tmp_path: Path) -> None:
    directory = write_base(tmp_path / "base", plt_num_loops=2)
    base = archive.put_tree(directory).digest
    first = put_adapter(archive, base, directory, tmp_path, seed=1, use_rslora=True)
    second = put_adapter(
        archive, base, directory, tmp_path, seed=2,
        rank_pattern={"layers.1.self_attn.q_proj": 2}, alpha_pattern={"down_proj": 3},
    )  # fmt: skip
    uses = (AdapterUse(adapter=first, weight=0.5), AdapterUse(adapter=second, weight=-0.75))
    manifest = put_manifest(archive, base, *uses)
    exported = export(archive, manifest, tmp_path / "out", MERGE)
    assert not (tmp_path / "out" / "adapters").exists()
    assert exported.merge is not None and exported.merge.logits is not None
    expected = our_logits(archive, manifest)
    assert (logits_of(tmp_path / "out") - expected).abs().max() <= 1e-5
    assert exported.merge.logits.max_abs <= 1e-5
    assert exported.merge.logits.effect > 0.01
    assert exported.merge.logits.top1_agreement == 1.0
    touched = {
        f"model.layers.{n}.{m}.weight"
        for n in (0, 1)
        for m in ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
    }
    assert exported.merge.modules.keys() == touched
    assert {error.max_rounding for error in exported.merge.modules.values()} == {0.0}
    told = json.loads((tmp_path / "out" / "keystone.json").read_bytes())["export"]["merge"]
    assert told["modules"].keys() == touched
    assert told["logits"]["max_abs"] == exported.merge.logits.max_abs


def test_a_bf16_merge_is_pefts_merge_and_reports_its_rounding(archive: Archive, tmp_path: Path) -> None:
    base = archive.put_tree(DATA / "base").digest
    adapter = put_adapter(archive, base, DATA / "base", tmp_path, seed=4)
    manifest = put_manifest(archive, base, AdapterUse(adapter=adapter))
    exported = export(archive, manifest, tmp_path / "out", MERGE)
    written = load_file(tmp_path / "out" / "model.safetensors")
    stored = load_file(DATA / "base" / "model.safetensors")
    wide = KeystoneForCausalLM.from_pretrained(DATA / "base", dtype=torch.float32)
    theirs = PeftModel.from_pretrained(wide, tmp_path / "lora4").merge_and_unload().state_dict()
    assert exported.merge is not None and exported.merge.logits is not None
    worst = 0.0
    for name, tensor in written.items():
        assert tensor.dtype == torch.bfloat16
        if name in exported.merge.modules:
            assert torch.allclose(tensor.float(), theirs[name], rtol=2**-8, atol=1e-7)
            assert not torch.equal(tensor, stored[name])
            worst = max(worst, float((tensor.float() - theirs[name]).abs().max()))
        else:
            assert torch.equal(tensor, stored[name]), name
    assert exported.merge.max_rounding == pytest.approx(worst, rel=1e-3)
    assert 0 < exported.merge.logits.max_abs < 0.2 * exported.merge.logits.effect
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"{exported.merge.logits.max_abs:.3g}" in card and f"{exported.merge.max_rounding:.3g}" in card


def test_a_merge_starts_from_the_archive_whatever_the_recipe(archive: Archive, tmp_path: Path) -> None:
    """A recipe of 4 bits says how to serve; the merge reads the base's own weights."""
    base = archive.put_tree(DATA / "base").digest
    adapter = put_adapter(archive, base, DATA / "base", tmp_path, seed=5)
    plain = put_manifest(archive, base, AdapterUse(adapter=adapter))
    modules = ("model.layers.0.self_attn.q_proj",)
    recipe = Recipe(dtype="bfloat16", quantization="nf4", modules=modules, double_quant=True, compute_dtype="bfloat16")
    quantized = put_manifest(archive, base, AdapterUse(adapter=adapter), recipe=recipe)
    for name, manifest in (("plain", plain), ("quantized", quantized)):
        export(archive, manifest, tmp_path / name, ExportRequest(merge=True, compare=False))
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "quantized")]
    assert weights[0] == weights[1]


def test_replaced_modules_and_biases_and_embeddings(archive: Archive, tmp_path: Path) -> None:
    directory = write_base(tmp_path / "base", plt_num_loops=2, attention_bias=True)
    base = archive.put_tree(directory).digest
    adapter = put_adapter(
        archive, base, directory, tmp_path, seed=6,
        target_modules=["q_proj", "embed_tokens"], modules_to_save=["plt_gate", "model.norm"], lora_bias=False,
    )  # fmt: skip
    manifest = put_manifest(archive, base, AdapterUse(adapter=adapter))
    exported = export(archive, manifest, tmp_path / "out", MERGE)
    assert exported.merge is not None and exported.merge.logits is not None
    assert exported.merge.logits.max_abs <= 1e-5
    assert exported.merge.logits.effect > 0.1
    changed = exported.merge.modules.keys()
    assert {"model.norm.weight", "model.layers.0.self_attn.plt_gate.bias", "model.embed_tokens.weight"} <= changed


@pytest.mark.filterwarnings("ignore::peft.utils.warning.PeftWarning")  # it takes trained biases for torn shards
def test_trained_biases_are_scaled_like_the_rest(archive: Archive, tmp_path: Path) -> None:
    directory = write_base(tmp_path / "base", attention_bias=True)
    base = archive.put_tree(directory).digest
    adapter = put_adapter(
        archive, base, directory, tmp_path, seed=14, target_modules=["q_proj", "k_proj"], lora_bias=True
    )
    manifest = put_manifest(archive, base, AdapterUse(adapter=adapter, weight=0.5))
    exported = export(archive, manifest, tmp_path / "out", MERGE)
    assert exported.merge is not None and exported.merge.logits is not None
    assert "model.layers.0.self_attn.q_proj.bias" in exported.merge.modules
    assert exported.merge.logits.max_abs <= 1e-5


def test_the_order_of_equal_adapters_does_not_matter_but_the_weights_do(archive: Archive, tmp_path: Path) -> None:
    directory = write_base(tmp_path / "base")
    base = archive.put_tree(directory).digest
    one, two = (put_adapter(archive, base, directory, tmp_path, seed=seed) for seed in (7, 8))
    outcomes = {}
    for weights in ((1.0, 0.0), (0.0, 1.0), (0.5, 0.5)):
        uses = [AdapterUse(adapter=adapter, weight=weight) for adapter, weight in zip((one, two), weights, strict=True)]
        out = tmp_path / f"out{weights}"
        export(archive, put_manifest(archive, base, *uses), out, ExportRequest(merge=True, compare=False))
        outcomes[weights] = load_file(out / "model.safetensors")["model.layers.0.mlp.down_proj.weight"]
    mean = (outcomes[1.0, 0.0] + outcomes[0.0, 1.0]) / 2
    assert torch.allclose(outcomes[0.5, 0.5], mean, atol=1e-6)
    assert not torch.allclose(outcomes[1.0, 0.0], outcomes[0.0, 1.0], atol=1e-3)


@pytest.mark.filterwarnings("ignore::peft.utils.warning.PeftWarning")  # it takes trained biases for torn shards
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.parametrize(
    ("settings", "changes", "named"),
    [
        ({"use_dora": True}, {}, "use_dora"),
        ({"lora_bias": True, "bias": "none"}, {}, r"q_proj\.bias|down_proj\.bias|v_proj\.bias"),
        ({"target_modules": ["embed_tokens"]}, {"tie_word_embeddings": True}, r"embed_tokens\.weight, which is tied"),
    ],
    ids=["dora", "bias-without-a-place", "tied"],
)
def test_what_would_be_another_function_is_refused(
    archive: Archive, tmp_path: Path, settings: dict[str, object], changes: dict[str, object], named: str
) -> None:
    directory = write_base(tmp_path / "base", **changes)
    base = archive.put_tree(directory).digest
    adapter = put_adapter(archive, base, directory, tmp_path, seed=9, **settings)
    manifest = put_manifest(archive, base, AdapterUse(adapter=adapter))
    with pytest.raises(RefusedError, match=named):
        export(archive, manifest, tmp_path / "out", MERGE)
    assert not (tmp_path / "out").exists()
    export(archive, manifest, tmp_path / "out")  # beside the base it is what it was


def test_two_adapters_that_replace_one_module_are_refused(archive: Archive, tmp_path: Path) -> None:
    directory = write_base(tmp_path / "base")
    base = archive.put_tree(directory).digest
    uses = [
        AdapterUse(adapter=put_adapter(archive, base, directory, tmp_path, seed=seed, modules_to_save=["model.norm"]))
        for seed in (10, 11)
    ]
    with pytest.raises(RefusedError, match=r"both replace model\.norm\.weight"):
        export(archive, put_manifest(archive, base, *uses), tmp_path / "out", MERGE)


def test_nothing_to_merge_is_said(archive: Archive, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="no adapters"):
        export(archive, put_base(archive, write_base(tmp_path / "base")), tmp_path / "out", MERGE)


def test_a_merge_that_overflows_is_refused(archive: Archive, tmp_path: Path) -> None:
    directory = write_base(tmp_path / "base")
    base = archive.put_tree(directory).digest
    adapter = put_adapter(archive, base, directory, tmp_path, seed=12, lora_alpha=1e8)
    manifest = put_manifest(archive, base, AdapterUse(adapter=adapter, weight=1e3))
    with pytest.raises(RefusedError, match="not finite"):
        export(archive, manifest, tmp_path / "out", ExportRequest(merge=True, dtype="float16", compare=False))
    assert {path.name for path in tmp_path.iterdir()} == {"archive", "base", "lora12"}


def test_the_command_reports_the_difference(archive: Archive, tmp_path: Path) -> None:
    directory = write_base(tmp_path / "base")
    base = archive.put_tree(directory).digest
    adapter = put_adapter(archive, base, directory, tmp_path, seed=13)
    manifest = put_manifest(archive, base, AdapterUse(adapter=adapter))
    command = ["--archive", str(archive.path), "export", str(manifest)]
    result = CliRunner().invoke(main, [*command, str(tmp_path / "a"), "--merge", "--dtype", "bfloat16", "--json"])
    assert result.exit_code == 0, result.output
    merge = json.loads(result.stdout.splitlines()[-1])["merge"]
    assert merge["max_rounding"] > 0 and merge["logits"]["prompts"] == 4
    text = CliRunner().invoke(main, [*command, str(tmp_path / "b"), "--merge"]).output
    assert "differ by at most" in text
