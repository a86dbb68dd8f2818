"""Exports as their readers meet them: another process without this package, transformers' own classes, the vendor."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner
from export_lab import (
    IDS,
    PARITY,
    our_logits,
    put_adapter,
    put_base,
    put_manifest,
    read_elsewhere,
    usage_of,
    write_base,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from csf_store import Archive, Digest
from keystone import KeystoneForCausalLM
from keystone.checkpoints.export import ExportRequest, examine_export, export
from keystone.checkpoints.export.code_files import code_files
from keystone.checkpoints.huggingface import Choices, read_directory
from keystone.checkpoints.importing import import_checkpoint, plan_import
from keystone.cli import main
from keystone.errors import RefusedError
from keystone.nano.embedded import DATA
from manifests import AdapterUse, EvalReport, EvalSummary, Manifest, Recipe, Repository, Score, canonical_bytes


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    with Archive.create(tmp_path / "archive") as opened:
        yield opened


def test_nano_with_adapters_runs_elsewhere_as_its_card_says(archive: Archive, tmp_path: Path) -> None:
    base = archive.put_tree(DATA / "base").digest
    adapters = [put_adapter(archive, base, DATA / "base", tmp_path, seed=seed) for seed in (1, 2)]
    uses = [AdapterUse(adapter=adapter, weight=weight) for adapter, weight in zip(adapters, (0.5, -1.5), strict=True)]
    manifest = put_manifest(archive, base, *uses)
    exported = export(archive, manifest, tmp_path / "out")
    found, class_name = read_elsewhere(tmp_path / "out", usage_of(tmp_path / "out"), tmp_path)
    assert class_name == "PeftModelForCausalLM"
    assert torch.equal(found, our_logits(archive, manifest))
    assert not torch.equal(found, our_logits(archive, put_manifest(archive, base)))
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (DATA / "base" / "model.safetensors").read_bytes()
    assert (exported.copied, exported.adapters, exported.architecture) == (1, 2, "KeystoneForCausalLM")
    assert exported.left_out == ()


@pytest.mark.parametrize(
    ("changes", "class_name"),
    [
        ({}, "LlamaForCausalLM"),
        ({"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "head_dim": 32}, "LlamaForCausalLM"),
        ({"attention_bias": True, "attention_output_bias": False}, "Qwen2ForCausalLM"),
        (
            {
                "rope_parameters": {
                    "rope_type": "llama3",
                    "rope_theta": 1000.0,
                    "factor": 4.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8,
                }
            },
            "LlamaForCausalLM",
        ),
    ],
    ids=["plain", "biases-tied-wide-heads", "qwen2", "llama3-rope"],
)
def test_one_loop_bases_need_no_code_of_ours(
    archive: Archive, tmp_path: Path, changes: dict[str, object], class_name: str
) -> None:
    manifest = put_base(archive, write_base(tmp_path / "base", shards=2, **changes))
    exported = export(archive, manifest, tmp_path / "out")
    assert exported.architecture == class_name
    assert not list((tmp_path / "out").glob("*.py"))
    assert "auto_map" not in (tmp_path / "out" / "config.json").read_text()
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert type(model).__name__ == class_name
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.inference_mode():
        found = model.eval()(IDS).logits
    assert (found - our_logits(archive, manifest)).abs().max() <= 1e-5
    assert exported.copied == 2
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {f"model-0000{n}-of-00002.safetensors" for n in (1, 2)}


def test_our_code_can_be_asked_for(archive: Archive, tmp_path: Path) -> None:
    manifest = put_base(archive, write_base(tmp_path / "base"))
    exported = export(archive, manifest, tmp_path / "out", ExportRequest(own_code=True))
    assert exported.architecture == "KeystoneForCausalLM"
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    for value in config["auto_map"].values():
        assert (tmp_path / "out" / f"{value.split('.')[0]}.py").is_file()
    model = KeystoneForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.inference_mode():
        assert torch.equal(model(IDS).logits, our_logits(archive, manifest))


def test_a_base_no_plain_class_computes_takes_our_code(archive: Archive, tmp_path: Path) -> None:
    changes = {"attention_bias": True, "attention_output_bias": False, "mlp_bias": True}
    manifest = put_base(archive, write_base(tmp_path / "base", **changes))
    assert export(archive, manifest, tmp_path / "out").architecture == "KeystoneForCausalLM"
    model = KeystoneForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.inference_mode():
        assert torch.equal(model(IDS).logits, our_logits(archive, manifest))


def test_the_vendors_layout_comes_back_as_the_same_base(archive: Archive, tmp_path: Path) -> None:
    case = PARITY / "batched-decode-fp32"
    directory = tmp_path / "base"
    directory.mkdir()
    for name in ("config.json", "model.safetensors"):
        (directory / name).write_bytes((case / name).read_bytes())
    base = archive.put_tree(directory).digest
    manifest = put_manifest(archive, base)
    exported = export(archive, manifest, tmp_path / "out", ExportRequest(layout="vendor"))
    assert exported.architecture == "IQuestPLTCoderForCausalLM"
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (case / name).read_bytes()
    again = export(archive, manifest, tmp_path / "ours", ExportRequest(layout="transformers"))
    assert again.architecture == "KeystoneForCausalLM"


@pytest.mark.parametrize("spelling", ["self_attn.loop_gate_proj", "gate_projections"])
def test_other_spellings_of_the_gate_are_written_in_the_vendors(
    archive: Archive, tmp_path: Path, spelling: str
) -> None:
    reference = load_file(PARITY / "two-loops-bf16" / "model.safetensors")
    directory = tmp_path / "base"
    directory.mkdir()
    renamed = {}
    for name, tensor in reference.items():
        layer = name.split(".")[2] if ".plt_gate." in name else ""
        other = (
            f"model.gate_projections.{layer}."
            if spelling == "gate_projections"
            else f"model.layers.{layer}.{spelling}."
        )
        renamed[name.replace(f"model.layers.{layer}.self_attn.plt_gate.", other) if layer else name] = tensor
    save_file(renamed, directory / "model.safetensors", {"format": "pt"})
    config = json.loads((PARITY / "two-loops-bf16" / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "somebody/else--modeling.Evil"}
    (directory / "config.json").write_text(json.dumps(config))
    manifest = put_base(archive, directory)
    for layout in ("vendor", "transformers"):
        out = tmp_path / layout
        exported = export(archive, manifest, out, ExportRequest(layout=layout))
        assert exported.copied == 0
        written = load_file(out / "model.safetensors")
        assert written.keys() == reference.keys()
        assert all(torch.equal(written[name], tensor) for name, tensor in reference.items())
        assert "somebody" not in (out / "config.json").read_text()
    found = json.loads((tmp_path / "vendor" / "config.json").read_text())
    for name in (
        "architectures",
        "model_type",
        "rope_theta",
        "plt_emb_scale",
        "plt_hidden_scale",
        "plt_window_size",
        "plt_normalize_per_loop",
        "plt_gate_use_hidden_states",
        "rms_norm_eps",
        "eos_token_id",
        "head_dim",
    ):
        assert found[name] == config[name], name


@pytest.mark.parametrize(("layout", "loops"), [("vendor", 2), ("transformers", 2), ("transformers", 1)])
def test_an_import_of_an_export_is_the_same_model(archive: Archive, tmp_path: Path, layout: str, loops: int) -> None:
    directory = write_base(tmp_path / "base", plt_num_loops=loops, shards=2)
    manifest = put_base(archive, directory)
    export(archive, manifest, tmp_path / "out", ExportRequest(layout=layout))
    imported = import_checkpoint(archive, plan_import(read_directory(tmp_path / "out", Choices())))
    tensors = {}
    for entry in archive.tree(imported.base).entries:
        if entry.path.endswith(".safetensors"):
            tensors |= {name: bytes(archive.read_tensor(entry.blob, name)) for name in archive.tensors(entry.blob)}
    stored = {**load_file(directory / "part0.safetensors"), **load_file(directory / "part1.safetensors")}
    assert tensors == {name: tensor.numpy().tobytes() for name, tensor in stored.items()}
    assert torch.equal(our_logits(archive, imported.manifest), our_logits(archive, manifest))


def test_one_loop_has_no_vendor_form(archive: Archive, tmp_path: Path) -> None:
    manifest = put_base(archive, write_base(tmp_path / "base"))
    with pytest.raises(RefusedError, match="one loop"):
        export(archive, manifest, tmp_path / "out", ExportRequest(layout="vendor"))
    assert not (tmp_path / "out").exists()


def test_another_dtype_is_written_tensor_by_tensor(archive: Archive, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", shards=2)
    manifest = put_base(archive, base)
    exported = export(archive, manifest, tmp_path / "out", ExportRequest(dtype="bfloat16"))
    assert (exported.copied, exported.dtype) == (0, "bfloat16")
    for number in (1, 2):
        written = load_file(tmp_path / "out" / f"model-0000{number}-of-00002.safetensors")
        stored = load_file(base / f"part{number - 1}.safetensors")
        assert written.keys() == stored.keys()
        assert all(torch.equal(written[name], tensor.bfloat16()) for name, tensor in stored.items())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_value_that_a_dtype_cannot_hold_is_refused(archive: Archive, tmp_path: Path) -> None:
    directory = write_base(tmp_path / "base")
    tensors = load_file(directory / "model.safetensors")
    tensors["model.norm.weight"][3] = 1e6
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    manifest = put_base(archive, directory)
    with pytest.raises(RefusedError, match=r"model\.norm\.weight"):
        export(archive, manifest, tmp_path / "out", ExportRequest(dtype="float16"))
    assert {path.name for path in tmp_path.iterdir()} == {"archive", "base"}


def with_score(archive: Archive, manifest: Digest) -> Digest:
    """The manifest with a score on its bf16 weights and one on int8."""
    repository = Repository(archive)
    known = repository.load(manifest)
    score = Score(suite="basics", suite_digest=Digest.of(b"suite"), metric="pass@1", n=8, passed=3, score=3 / 8)
    summaries = []
    for recipe in (Recipe(dtype="bfloat16"), Recipe(dtype="bfloat16", quantization="int8", modules=("lm_head",))):
        report = EvalReport(assembly=known.assembly.digest, recipe=recipe.digest, result=score)
        digest = repository.put_record(report)
        summaries.append(EvalSummary(**dict(score), report=digest, recipe=recipe.digest))
    return repository.put(known.revised(evals=tuple(summaries), parent=manifest))


def test_the_card_speaks_the_hubs_language(archive: Archive, tmp_path: Path) -> None:
    base = archive.put_tree(DATA / "base").digest
    source = Manifest.model_fields["source"].annotation(
        kind="hub", location="hf://some-org/some_model-1.5@abc123", licence="MIT", note="a | pipe\nand `code`"
    )
    claim = {"claimed/model-index/1": "HumanEval, pass@1 = 0.99 (unverified)"}
    adapter = put_adapter(archive, base, DATA / "base", tmp_path, seed=3)
    put = put_manifest(archive, base, AdapterUse(adapter=adapter), source=source, labels=claim)
    manifest = with_score(archive, put)
    export(archive, manifest, tmp_path / "out")
    _, front, body = (tmp_path / "out" / "README.md").read_text().split("---\n", 2)
    fields = yaml.safe_load(front)
    assert fields["base_model"] == "some-org/some_model-1.5"
    assert fields["base_model_relation"] == "adapter"
    assert (fields["license"], fields["library_name"]) == ("mit", "transformers")
    assert set(fields["tags"]) >= {"keystone", "parallel-loop-transformer"}
    (result,) = fields["model-index"][0]["results"]
    assert result["dataset"]["type"] == "basics"
    assert result["dataset"]["args"] == {"suite": str(Digest.of(b"suite"))}
    assert "revision" not in result["dataset"]
    (metric,) = result["metrics"]
    assert (metric["type"], metric["value"]) == ("pass@1", 0.375)
    assert metric["args"]["recipe"] == str(Recipe(dtype="bfloat16").digest)
    for digest in (manifest, base, adapter, Repository(archive).load(manifest).assembly.digest):
        assert f"`{digest}`" in body
    assert "a \\| pipe and \\`code\\`" in body
    assert "another form of this model" in body
    assert "0.99" not in front  # a claim is told as one, and is no result
    assert "## Claimed" in body
    assert "HumanEval, pass@1 = 0.99 (unverified)" in body

    merged = export(archive, manifest, tmp_path / "merged", ExportRequest(merge=True, compare=False))
    fields = yaml.safe_load((tmp_path / "merged" / "README.md").read_text().split("---\n")[1])
    assert merged.merge is not None
    assert fields["base_model_relation"] == "finetune"
    assert "model-index" not in fields


def test_an_unknown_licence_is_not_made_up(archive: Archive, tmp_path: Path) -> None:
    base = archive.put_tree(write_base(tmp_path / "base")).digest
    for licence, expected in (("NOASSERTION", "unknown"), ("LicenseRef-own", "other"), ("GPL-3.0-only", "gpl-3.0")):
        source = Manifest.model_fields["source"].annotation(kind="directory", location="a disk", licence=licence)
        out = tmp_path / expected
        export(archive, put_manifest(archive, base, source=source), out)
        fields = yaml.safe_load((out / "README.md").read_text().split("---\n")[1])
        assert fields["license"] == expected
        assert "base_model" not in fields


def test_every_file_can_be_audited_later(archive: Archive, tmp_path: Path) -> None:
    manifest = put_base(archive, write_base(tmp_path / "base"))
    out = tmp_path / "out"
    export(archive, manifest, out)
    examined = examine_export(out)
    assert (examined.manifest, dict(examined.problems)) == (manifest, {})
    assert examined.files == len(list(out.iterdir())) - 1
    assert canonical_bytes(json.loads((out / "keystone.json").read_bytes())) == (out / "keystone.json").read_bytes()
    with (out / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    (out / "config.json").unlink()
    (out / "extra.py").write_text("")
    assert set(examine_export(out).problems) == {"model.safetensors", "config.json", "extra.py"}


def test_the_code_that_goes_out_needs_nothing_of_ours(tmp_path: Path) -> None:
    files = code_files()
    assert {"configuration_keystone.py", "modeling_keystone.py", "errors_keystone.py"} <= files.keys()
    assert all(b"from keystone" not in data and b"import keystone" not in data for data in files.values())
    (tmp_path / "model").mkdir()
    (tmp_path / "errors.py").write_text("")
    (tmp_path / "model" / "modeling.py").write_text("from csf_store import Digest\n")
    with pytest.raises(RefusedError, match="csf_store"):
        code_files(tmp_path)


def test_the_command(archive: Archive, tmp_path: Path) -> None:
    manifest = put_base(archive, write_base(tmp_path / "base"))
    command = ["--archive", str(archive.path), "export", str(manifest), str(tmp_path / "out")]
    result = CliRunner().invoke(main, [*command, "--json"])
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert {line["path"] for line in lines[:-1]} == {path.name for path in (tmp_path / "out").iterdir()}
    assert (lines[-1]["manifest"], lines[-1]["format"]) == (str(manifest), "transformers")
    assert CliRunner().invoke(main, command).exit_code == 8
    assert CliRunner().invoke(main, [*command, "--force"]).exit_code == 0
    refused = CliRunner().invoke(main, [*command[:3], str(manifest), str(tmp_path / "v"), "--format", "vendor"])
    assert refused.exit_code == 10 and "one loop" in refused.output
