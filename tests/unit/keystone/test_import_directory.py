"""A directory into the archive: what is stored, under which digests, and what is refused before anything is."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from blake3 import blake3
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file
from small_checkpoints import byte_tokenizer, edit_config, family_model, prompt_ids, save

import keystone
from csf_store import Archive, Digest
from keystone.checkpoints.names import our_name
from keystone.cli import main
from manifests import Repository

PARITY = Path(__file__).parents[2] / "parity"
SPELLINGS = {
    "ours": "model.layers.{}.self_attn.plt_gate.",
    "vendor": "model.layers.{}.self_attn.loop_gate_proj.",
    "flat": "model.gate_projections.{}.",
}


def run(archive: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["--archive", str(archive), "import", *arguments])


def lines(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return save(family_model("llama"), tmp_path / "Small_Llama")


@pytest.fixture
def loopcoder(tmp_path: Path) -> Path:
    """A LoopCoder-V2 directory: the fixture's tensors, and a configuration in the released form."""
    directory = tmp_path / "loopcoder"
    directory.mkdir()
    shutil.copy(PARITY / "two-loops-fp32" / "model.safetensors", directory)
    shutil.copy(PARITY / "two-loops-fp32" / "config.json", directory)
    byte_tokenizer().save_pretrained(directory)
    return directory


def test_a_shard_that_is_right_goes_in_byte_for_byte(llama: Path, tmp_path: Path) -> None:
    last = lines(run(tmp_path / "archive", str(llama), "--json"))[-1]
    with Archive.open(tmp_path / "archive") as archive:
        entries = {entry.path: entry.blob for entry in archive.tree(Digest.parse(last["base"])).entries}
        assert set(entries) == {"config.json", "generation_config.json", "model.safetensors"}
        assert entries["model.safetensors"].hex == blake3((llama / "model.safetensors").read_bytes()).hexdigest()
        tokenizer = {entry.path for entry in archive.tree(Digest.parse(last["tokenizer"])).entries}
    assert tokenizer == {"tokenizer.json", "tokenizer_config.json"}
    assert last["ref"] == "small_llama"


def test_importing_again_stores_nothing(llama: Path, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    first = lines(run(archive, str(llama), "--json"))[-1]
    before = [(path.name, path.stat().st_size) for path in sorted((archive / "segments").iterdir())]
    ledger = (archive / "ledger.jsonl").read_bytes()
    assert lines(run(archive, str(llama), "--json"))[-1] == first
    assert [(path.name, path.stat().st_size) for path in sorted((archive / "segments").iterdir())] == before
    assert (archive / "ledger.jsonl").read_bytes() == ledger


def test_sharded_checkpoints_and_what_lies_beside_them(tmp_path: Path) -> None:
    model = family_model("llama")
    directory = save(model, tmp_path / "sharded", max_shard_size="60KB")
    assert len(list(directory.glob("model-*.safetensors"))) > 1
    save_file({"x": torch.ones(1)}, directory / "consolidated.safetensors")
    torch.save({"x": torch.ones(1)}, directory / "optimizer.pt")
    (directory / "README.md").write_text("---\nlicense: apache-2.0\nbase_model: org/elder\n---\n# Hello\n")
    (directory / "original").mkdir()
    found = lines(run(tmp_path / "archive", str(directory), "--json", "--verbose"))
    left = {line["file"]: line["reason"] for line in found if line.get("kind") == "left-out"}
    assert set(left) == {
        "README.md", "consolidated.safetensors", "model.safetensors.index.json", "optimizer.pt", "original",
    }  # fmt: skip
    assert "pickles" in left["optimizer.pt"]
    tensors = [line for line in found if line.get("kind") == "tensor"]
    assert {line["fate"] for line in tensors} == {"mapped"}
    assert {line["name"] for line in tensors} == set(dict(model.named_parameters()))
    loaded = keystone.load(found[-1]["manifest"], archive=tmp_path / "archive", quantization="none")
    ids = prompt_ids()
    with torch.no_grad():
        assert (loaded.model(ids).logits - model(ids).logits).abs().max() <= 1e-4
    assert (loaded.manifest.source.kind, loaded.manifest.source.licence) == ("directory", "Apache-2.0")
    assert loaded.manifest.source.location == "sharded"
    assert loaded.manifest.labels["claimed/base_model"] == "org/elder (unverified)"


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_loopcoder_with_every_spelling_of_its_gate(spelling: str, loopcoder: Path, tmp_path: Path) -> None:
    tensors = load_file(loopcoder / "model.safetensors")
    ours = {our_name(name): tensor for name, tensor in tensors.items()}
    renamed = {}
    for name, tensor in ours.items():
        head, gate, tail = name.partition(".self_attn.plt_gate.")
        renamed[SPELLINGS[spelling].format(head.rsplit(".", 1)[1]) + tail if gate else name] = tensor
    save_file(renamed, loopcoder / "model.safetensors", metadata={"format": "pt"})
    edit_config(loopcoder, model_type="iquestpltcoder", architectures=["IQuestPLTCoderForCausalLM"])
    config = (loopcoder / "config.json").read_bytes()
    last = lines(run(tmp_path / "archive", str(loopcoder), "--json"))[-1]
    loaded = keystone.load(last["manifest"], archive=tmp_path / "archive", quantization="none")
    state = loaded.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in ours.items())
    assert loaded.manifest.labels["verified"] == "false"
    reference = load_file(PARITY / "two-loops-fp32" / "reference.safetensors")
    with torch.no_grad():
        logits = loaded.model(reference["input_ids"][None]).logits[0]
    assert (logits - reference["logits"]).abs().max() <= 5e-4
    with Archive.open(tmp_path / "archive") as archive:
        entries = {entry.path: entry.blob for entry in archive.tree(Digest.parse(last["base"])).entries}
        assert archive.get_bytes(entries["config.json"]) == config
        names = set(archive.tensors(entries["model.safetensors"]))
    assert names == set(ours)


def test_a_loop_parameter_left_out_is_refused(loopcoder: Path, tmp_path: Path) -> None:
    edit_config(loopcoder, plt_hidden_scale=...)
    result = run(tmp_path / "archive", str(loopcoder))
    assert result.exit_code == 7
    assert "plt_hidden_scale" in result.stderr
    edit_config(loopcoder, plt_hidden_scale=0.05, plt_gate_temperature=2.0)
    assert "plt_gate_temperature" in run(tmp_path / "archive", str(loopcoder)).stderr
    assert not (tmp_path / "archive").exists()


def test_the_full_size_in_a_dry_run(tmp_path: Path) -> None:
    directory = tmp_path / "LoopCoder-V2"
    directory.mkdir()
    config = {
        "architectures": ["IQuestPLTCoderForCausalLM"], "model_type": "iquestpltcoder", "hidden_size": 5120,
        "num_hidden_layers": 14, "num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128,
        "intermediate_size": 27648, "vocab_size": 76800, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
        "max_position_embeddings": 131072, "torch_dtype": "bfloat16", "tie_word_embeddings": False,
        "hidden_act": "silu", "plt_num_loops": 2, "plt_window_size": [64, 0], "plt_normalize_per_loop": True,
        "plt_gate_use_hidden_states": True, "plt_emb_scale": 0.707, "plt_hidden_scale": 0.053,
        "bos_token_id": 1, "eos_token_id": [2, 75864, 75869],
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))
    found = lines(run(tmp_path / "archive", str(directory), "--dry-run", "--json", "--verbose"))
    assert found[-1]["parameters"] == 7_615_749_680
    assert found[-1]["compared"] == "no weights"
    shapes = {line["name"]: line["wanted"] for line in found if line.get("kind") == "tensor"}
    assert shapes["model.layers.13.self_attn.plt_gate.weight"] == [40, 5120]
    assert shapes["model.layers.0.self_attn.k_proj.weight"] == [1024, 5120]
    assert len(shapes) == 14 * 12 + 3
    assert not (tmp_path / "archive").exists()
    index = {"weight_map": {name.replace("plt_gate", "loop_gate_proj"): "model-00001-of-00002.safetensors"
                            for name in shapes if not name.endswith("layers.3.self_attn.plt_gate.bias")}}  # fmt: skip
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    result = run(tmp_path / "archive", str(directory), "--dry-run")
    assert result.exit_code == 7
    assert "missing: model.layers.3.self_attn.plt_gate.bias" in result.stderr


def test_tied_embeddings_saved_twice(tmp_path: Path) -> None:
    model = family_model("llama", tie_word_embeddings=True)
    directory = save(model, tmp_path / "tied")
    tensors = load_file(directory / "model.safetensors")
    copy = {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    save_file(copy, directory / "model.safetensors", metadata={"format": "pt"})
    found = lines(run(tmp_path / "archive", str(directory), "--json"))
    assert [line["tensor"] for line in found if line.get("kind") == "left-out" and "tensor" in line] == [
        "lm_head.weight"
    ]
    loaded = keystone.load(found[-1]["manifest"], archive=tmp_path / "archive", quantization="none")
    ids = prompt_ids()
    with torch.no_grad():
        assert (loaded.model(ids).logits - model(ids).logits).abs().max() <= 1e-4
    copy["lm_head.weight"][0, 0] += 1
    save_file(copy, directory / "model.safetensors", metadata={"format": "pt"})
    result = run(tmp_path / "archive", str(directory))
    assert result.exit_code == 7
    assert "tie_word_embeddings is true" in result.stderr


def test_old_rotary_tables_are_dropped_only_where_they_are_right(llama: Path, tmp_path: Path) -> None:
    tensors = load_file(llama / "model.safetensors")
    table = 1.0 / 10000.0 ** (torch.arange(0, 8, 2).float() / 8)
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    save_file({**tensors, name: table}, llama / "model.safetensors", metadata={"format": "pt"})
    found = lines(run(tmp_path / "archive", str(llama), "--json"))
    assert found[0]["tensors"] == {"mapped": 21, "dropped": 1}
    save_file({**tensors, name: table * 2}, llama / "model.safetensors", metadata={"format": "pt"})
    assert "rotary frequencies" in run(tmp_path / "archive", str(llama)).stderr


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_another_dtype_is_written_while_it_is_read(dtype: str, llama: Path, tmp_path: Path) -> None:
    last = lines(run(tmp_path / "archive", str(llama), "--dtype", dtype, "--json"))[-1]
    with Archive.open(tmp_path / "archive") as archive:
        base = keystone.checkpoints.assemble_base(archive, Digest.parse(last["base"]))
    for name, tensor in load_file(llama / "model.safetensors").items():
        assert torch.equal(base.get_parameter(name), tensor.to(getattr(torch, dtype))), name


def test_a_value_too_large_for_half_precision_is_refused(llama: Path, tmp_path: Path) -> None:
    tensors = load_file(llama / "model.safetensors")
    tensors["model.norm.weight"][0] = 1e6
    save_file(tensors, llama / "model.safetensors", metadata={"format": "pt"})
    result = run(tmp_path / "archive", str(llama), "--dtype", "float16")
    assert result.exit_code == 7
    assert "model.norm.weight" in result.stderr


def break_index(directory: Path, **weight_map: object) -> None:
    names = load_file(directory / "model.safetensors")
    document = {"weight_map": {**dict.fromkeys(names, "model.safetensors"), **weight_map}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(document))


def outside(directory: Path) -> None:
    shutil.copy(directory / "model.safetensors", directory.parent / "outside.safetensors")
    break_index(directory, **{"lm_head.weight": "../outside.safetensors"})


def truncated(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def misshapen(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:-1].clone()
    save_file(tensors, directory / "model.safetensors")


def without(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, directory / "model.safetensors")


def surplus(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    save_file({**tensors, "model.layers.7.mlp.up_proj.weight": torch.ones(2)}, directory / "model.safetensors")


def packed(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    tensors["lm_head.weight"] = tensors["lm_head.weight"].to(torch.int8)
    save_file(tensors, directory / "model.safetensors")


def twice(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    save_file({"lm_head.weight": tensors["lm_head.weight"]}, directory / "extra.safetensors")
    break_index(directory, x="extra.safetensors")
    document = json.loads((directory / "model.safetensors.index.json").read_text())
    del document["weight_map"]["x"]
    document["weight_map"]["lm_head.weight"] = "extra.safetensors"
    (directory / "model.safetensors.index.json").write_text(json.dumps(document))


def pickled(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    torch.save({"x": torch.ones(1)}, directory / "pytorch_model.bin")


def linked(directory: Path) -> None:
    shutil.move(directory / "model.safetensors", directory.parent / "elsewhere.safetensors")
    (directory / "model.safetensors").symlink_to(directory.parent / "elsewhere.safetensors")


def linked_config(directory: Path) -> None:
    shutil.move(directory / "config.json", directory.parent / "elsewhere.json")
    (directory / "config.json").symlink_to(directory.parent / "elsewhere.json")


def doubled_key(directory: Path) -> None:
    text = (directory / "config.json").read_text()
    (directory / "config.json").write_text('{"vocab_size": 7,' + text.strip().removeprefix("{"))


def deep(directory: Path) -> None:
    (directory / "config.json").write_text("[" * 100_000)


def huge(directory: Path) -> None:
    edit_config(directory, num_hidden_layers=10**9)


def no_tokenizer(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()


def broken_tokenizer(directory: Path) -> None:
    (directory / "tokenizer.json").write_text("{}")


def half_download(directory: Path) -> None:
    break_index(directory, y="model-00002-of-00002.safetensors")


def adapter(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("hurt", "code", "named"),
    [
        (outside, 7, "the only place allowed"),
        (truncated, 7, "model.safetensors is not a sound"),
        (misshapen, 7, "misshapen: lm_head.weight"),
        (without, 7, "missing: model.layers.1.mlp.up_proj.weight"),
        (surplus, 7, "surplus: model.layers.7.mlp.up_proj.weight"),
        (packed, 7, "refused: lm_head.weight (I8"),
        (twice, 7, "both lm_head.weight"),
        (pickled, 10, "pytorch_model.bin"),
        (linked, 7, "symbolic link"),
        (linked_config, 7, "symbolic link"),
        (doubled_key, 7, "twice"),
        (deep, 7, "config.json"),
        (huge, 7, "num_hidden_layers"),
        (no_tokenizer, 7, "--tokenizer"),
        (broken_tokenizer, 7, "tokenizer cannot be read"),
        (half_download, 7, "model-00002-of-00002.safetensors"),
        (adapter, 7, "adapter add"),
    ],
)
def test_hostile_directories_leave_no_trace(hurt: Any, code: int, named: str, llama: Path, tmp_path: Path) -> None:
    hurt(llama)
    result = run(tmp_path / "archive", str(llama))
    assert result.exit_code == code, result.output
    assert named in result.stderr
    assert "Traceback" not in result.output
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "archive").exists()


def test_a_faulty_tensor_has_its_line(llama: Path, tmp_path: Path) -> None:
    without(llama)
    result = run(tmp_path / "archive", str(llama), "--json")
    faults = [json.loads(line) for line in result.stdout.splitlines() if '"missing"' in line and '"fate"' in line]
    assert [(line["name"], line["wanted"]) for line in faults] == [("model.layers.1.mlp.up_proj.weight", [48, 32])]


def test_a_tokenizer_from_elsewhere_and_a_licence_by_hand(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "tokens").mkdir()
    byte_tokenizer().save_pretrained(tmp_path / "tokens")
    no_tokenizer(llama)
    options = ["--tokenizer", str(tmp_path / "tokens"), "--licence", "MIT OR Apache-2.0", "--ref", "team/small"]
    last = lines(run(tmp_path / "archive", str(llama), *options, "--json"))[-1]
    assert last["ref"] == "team/small"
    with Archive.open(tmp_path / "archive") as archive:
        assert Repository(archive).load(Digest.parse(last["manifest"])).source.licence == "MIT OR Apache-2.0"


def test_a_tokenizer_with_more_ids_than_embeddings_is_kept_and_noted(tmp_path: Path) -> None:
    directory = save(family_model("llama", vocab_size=200), tmp_path / "narrow")
    found = lines(run(tmp_path / "archive", str(directory), "--json"))
    assert [line["reason"] for line in found if line.get("file") == "tokenizer.json"] == [
        "kept, but it has ids up to 257 and the model has 200 embeddings"
    ]


def test_a_bad_ref_or_licence_stores_nothing(llama: Path, tmp_path: Path) -> None:
    for options in (["--ref", "Not A Ref"], ["--licence", "do what you like"]):
        result = run(tmp_path / "archive", str(llama), *options)
        assert result.exit_code == 7, result.output
        held = list((tmp_path / "archive" / "segments").glob("*")) if (tmp_path / "archive").exists() else []
        assert not held


def test_nano_takes_no_options_it_would_overlook(tmp_path: Path) -> None:
    for options in (["--dry-run"], ["--licence", "MIT"], ["--dtype", "float32"]):
        result = run(tmp_path / "archive", "nano", *options)
        assert result.exit_code == 2
        assert not (tmp_path / "archive").exists()


def test_an_audit_finds_nothing_wrong_with_an_import(llama: Path, tmp_path: Path) -> None:
    assert run(tmp_path / "archive", str(llama), "--loops", "2").exit_code == 0
    audit = CliRunner().invoke(main, ["--archive", str(tmp_path / "archive"), "audit", "small_llama-2loops"])
    assert audit.exit_code == 0, audit.output


def test_a_ref_that_exists_stays(llama: Path, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    first = lines(run(archive, str(llama), "--ref", "prod", "--json"))[-1]
    edit_config(llama, rms_norm_eps=1e-5)
    second = lines(run(archive, str(llama), "--ref", "prod", "--json"))[-1]
    assert second["manifest"] != first["manifest"]
    assert second["ref_at"] == first["manifest"]
