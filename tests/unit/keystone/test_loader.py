"""From a manifest to a running model: exact bytes, honest recipes, adapters that attach, refusals with a name."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from blake3 import blake3
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

import keystone
from adapters import add_adapter, write_adapter
from csf_store import Archive, CorruptError, Digest, Kind
from keystone import KeystoneForCausalLM
from keystone.checkpoints import assemble_base
from keystone.errors import CheckpointError, ConfigurationError, RefusedError
from keystone.evaluation.basics import frozen_split
from keystone.identity import SOURCES
from keystone.nano.card import CARD, TRAINING
from keystone.nano.embedded import DATA
from keystone.quantize import quantizable_modules, quantize, recipe_for
from manifests import AdapterUse, Assembly, Manifest, Recipe, Repository, Source

PROMPT = "def add(a, b):\n"
PARITY = Path(__file__).parents[2] / "parity"


def put_manifest(repository: Repository, base: Digest, *uses: AdapterUse, **changes: object) -> Digest:
    tokenizer = repository.archive.put_tree(DATA / "tokenizer").digest
    manifest = Manifest(
        assembly=Assembly(base=base, tokenizer=tokenizer, adapters=uses, **changes),
        source=Source(kind="directory", location="test", licence="Apache-2.0"),
        lineage=repository.trace((use.adapter for use in uses), base=base),
    )
    return repository.put(manifest)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A small vendor-layout checkpoint: configuration and weights."""
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(PARITY / "batched-decode-fp32" / name, directory)
    return directory


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """A LoRA with weights that matter, made by PEFT for nano."""
    torch.manual_seed(1)
    model = KeystoneForCausalLM.from_pretrained(DATA / "base")
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    return write_adapter(get_peft_model(model, config), tmp_path / "lora")


def test_what_is_loaded_is_what_was_put(nano_archive: Path) -> None:
    loaded = keystone.load("nano", archive=nano_archive, quantization="none")
    expected = load_file(DATA / "base" / "model.safetensors")
    state = loaded.model.state_dict()
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor), name
    assert loaded.read_bytes == (DATA / "base" / "model.safetensors").stat().st_size
    assert isinstance(loaded.tokenizer, PreTrainedTokenizerFast)
    assert loaded.recipe.quantization == "none"


def test_the_same_answer_as_from_pretrained(nano_archive: Path) -> None:
    loaded = keystone.load("nano", archive=nano_archive, quantization="none")
    reference = KeystoneForCausalLM.from_pretrained(DATA / "base").eval()
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        assert torch.equal(loaded.model(ids).logits, reference(ids).logits)
    assert loaded.complete([PROMPT]) == loaded.complete([PROMPT])


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_quantized_loads_answer_nearly_the_same_from_fewer_bytes(nano_archive: Path, quantization: str) -> None:
    plain = keystone.load("nano", archive=nano_archive, quantization="none")
    loaded = keystone.load("nano", archive=nano_archive, quantization=quantization)
    assert loaded.recipe.quantization == quantization
    assert loaded.recipe.modules == quantizable_modules(plain.model)
    assert len(loaded.recipe.modules) == 6 * 7
    assert loaded.weight_bytes < {"int8": 0.65, "nf4": 0.45}[quantization] * plain.weight_bytes
    ids = torch.arange(7, 60)[None]
    with torch.inference_mode():
        expected = plain.model(ids).logits.float().log_softmax(-1)
        ours = loaded.model(ids).logits.float().log_softmax(-1)
    divergence = (expected.exp() * (expected - ours)).sum(-1).mean()
    assert 0 < divergence < {"int8": 0.02, "nf4": 0.2}[quantization]
    assert len(loaded.complete([PROMPT, "import os\n"], max_new_tokens=8)) == 2


def test_embeddings_norms_gates_and_head_are_never_quantized(nano_archive: Path) -> None:
    loaded = keystone.load("nano", archive=nano_archive, quantization="nf4")
    for name, parameter in loaded.model.named_parameters():
        if name.rpartition(".")[0] not in loaded.recipe.modules:
            assert parameter.dtype == torch.bfloat16, name


def test_the_manifests_recipe_is_the_default_and_an_explicit_one_wins(own_nano_archive: Path) -> None:
    with Archive.open(own_nano_archive) as archive:
        repository = Repository(archive)
        manifest = repository.load(repository.resolve("nano"))
        held = repository.put(manifest.revised(recipe=Recipe(dtype="float32")))
        assert keystone.load(held, archive=archive).recipe.dtype == "float32"
        assert keystone.load(held, archive=archive, quantization="int8").recipe.quantization == "int8"
        assert keystone.load("nano", archive=archive, device="cpu").recipe.quantization == "int8"


def test_a_recipe_that_cannot_be_honoured_is_refused() -> None:
    model = KeystoneForCausalLM.from_pretrained(DATA / "base")
    recipe = recipe_for(model, "int8")
    with pytest.raises(RefusedError, match="no_such"):
        quantize(model, recipe.model_copy(update={"modules": ("model.layers.0.no_such",)}))
    with pytest.raises(RefusedError, match="embed_tokens"):
        quantize(model, recipe.model_copy(update={"modules": ("model.embed_tokens",)}))


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
def test_an_adapter_changes_the_answer_as_peft_would(own_nano_archive: Path, lora: Path, quantization: str) -> None:
    with Archive.open(own_nano_archive) as archive:
        repository = Repository(archive)
        base = repository.load(repository.resolve("nano")).assembly.base
        digest, _ = add_adapter(repository, lora, base=base)
        named = put_manifest(repository, base, AdapterUse(adapter=digest))
        loaded = keystone.load(named, archive=archive, quantization=quantization)
    reference = KeystoneForCausalLM.from_pretrained(DATA / "base").eval()
    quantize(reference, loaded.recipe)
    ids = torch.arange(5, 45)[None]
    with torch.inference_mode():
        ours = loaded.model(ids).logits.float()
        theirs = PeftModel.from_pretrained(reference, str(lora)).eval()(ids).logits.float()
        with loaded.model.disable_adapter():  # type: ignore[operator]
            bare = loaded.model(ids).logits.float()
    error, effect = torch.linalg.norm(ours - theirs), torch.linalg.norm(ours - bare)
    torch.testing.assert_close(ours, theirs, atol=0.05, rtol=0.02)
    assert effect > 10 * error
    assert effect > 0.05 * torch.linalg.norm(bare)


def test_weights_of_two_adapters_add_up(own_nano_archive: Path, lora: Path, tmp_path: Path) -> None:
    second = tmp_path / "second"
    shutil.copytree(lora, second)
    tensors = {
        name: -tensor if "lora_B" in name else tensor
        for name, tensor in load_file(second / "adapter_model.safetensors").items()
    }
    save_file(tensors, second / "adapter_model.safetensors", {"format": "pt"})
    ids = torch.arange(5, 45)[None]
    with Archive.open(own_nano_archive) as archive, torch.inference_mode():
        repository = Repository(archive)
        base = repository.load(repository.resolve("nano")).assembly.base
        added = [add_adapter(repository, directory, base=base)[0] for directory in (lora, second)]
        logits = {}
        for weights in ((1.0, 1.0), (0.5, 0.25), (0.25, 0.0)):
            uses = tuple(
                AdapterUse(adapter=digest, weight=weight) for digest, weight in zip(added, weights, strict=True)
            )
            named = put_manifest(repository, base, *uses)
            model = keystone.load(named, archive=archive, quantization="none").model.float()
            logits[weights] = model(ids).logits
        bare = keystone.load("nano", archive=archive, quantization="none").model.float()(ids).logits
    torch.testing.assert_close(logits[1.0, 1.0], bare, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(logits[0.5, 0.25], logits[0.25, 0.0], atol=1e-3, rtol=1e-3)
    assert (logits[0.25, 0.0] - bare).abs().max() > 0.01


def test_a_vendor_checkpoint_in_two_shards_loads(own_nano_archive: Path, checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    names = sorted(tensors)
    for index, part in enumerate((names[::2], names[1::2]), start=1):
        save_file(
            {name: tensors[name] for name in part},
            checkpoint / f"model-0000{index}-of-00002.safetensors",
            {"format": "pt"},
        )
    (checkpoint / "model.safetensors").unlink()
    with Archive.open(own_nano_archive) as archive:
        model = assemble_base(archive, archive.put_tree(checkpoint).digest)
    reference = KeystoneForCausalLM.from_pretrained(PARITY / "batched-decode-fp32").eval()
    with torch.inference_mode():
        assert torch.equal(model(torch.arange(30)[None]).logits, reference(torch.arange(30)[None]).logits)


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        (lambda d: (d / "pytorch_model.bin").write_bytes(b"\0" * 64), CheckpointError, "pytorch_model.bin"),
        (lambda d: (d / "config.json").unlink(), CheckpointError, "config.json"),
        (lambda d: (d / "config.json").write_text("[" * 100_000), CheckpointError, "config.json"),
        (lambda d: (d / "config.json").write_text("[1]"), CheckpointError, "list"),
        (lambda d: (d / "config.json").write_text('{"model_type": "llama"}'), ConfigurationError, "llama"),
        (lambda d: (d / "model.safetensors").unlink(), CheckpointError, "safetensors"),
    ],
    ids=["pickle", "no-config", "deep-config", "list-config", "other-model", "no-weights"],
)
def test_a_base_that_is_none_is_refused(
    own_nano_archive: Path, checkpoint: Path, change: object, error: type[Exception], named: str
) -> None:
    change(checkpoint)  # type: ignore[operator]
    with Archive.open(own_nano_archive) as archive:
        tree = archive.put_tree(checkpoint)
        with pytest.raises(error, match=named):
            assemble_base(archive, tree.digest)


@pytest.mark.parametrize("fault", ["missing", "surplus", "misshapen"])
def test_tensors_that_do_not_fit_are_named(own_nano_archive: Path, checkpoint: Path, fault: str) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    if fault == "missing":
        del tensors[name]
    elif fault == "surplus":
        name = "model.layers.1.self_attn.q_norm.weight"
        tensors[name] = torch.ones(16)
    else:
        tensors[name] = torch.ones(3, 5)
    save_file(tensors, checkpoint / "model.safetensors", {"format": "pt"})
    with Archive.open(own_nano_archive) as archive:
        tree = archive.put_tree(checkpoint)
        with pytest.raises(CheckpointError, match=f"{fault}: {name}"):
            assemble_base(archive, tree.digest)


def test_a_flipped_byte_is_never_loaded(own_nano_archive: Path) -> None:
    segment = next((own_nano_archive / "segments").iterdir())
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(data)
    with pytest.raises(CorruptError):
        keystone.load("nano", archive=own_nano_archive, quantization="none")


def test_code_this_release_does_not_compute_is_refused(own_nano_archive: Path) -> None:
    with Archive.open(own_nano_archive) as archive:
        repository = Repository(archive)
        base = repository.load(repository.resolve("nano")).assembly.base
        digest = put_manifest(repository, base, code="keystone-plt/999")
        with pytest.raises(RefusedError, match="keystone-plt/999"):
            keystone.load(digest, archive=archive)


def test_the_shipped_base_is_what_its_card_says() -> None:
    card = CARD.read_text()
    weights = load_file(DATA / "base" / "model.safetensors")
    record = json.loads(TRAINING.read_text())
    assert f"{sum(tensor.numel() for tensor in weights.values()):,} parameters" in card
    assert f"{record['log'][-1]['step']:,} of {record['recipe']['rows']} rows" in card
    assert f"{record['log'][-1]['tokens']:,}:" in card
    assert frozen_split().digest in card
    assert "bits per byte" in card
    assert "What it cannot do" in card
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert (DATA / "base" / "model.safetensors").stat().st_size <= 16_000_000
    assert json.loads((DATA / "base" / "config.json").read_text())["plt_num_loops"] == 2


def test_a_manifest_says_which_source_computes(nano_archive: Path) -> None:
    with Archive.open(nano_archive) as archive:
        recorded = Repository(archive).load(Repository(archive).resolve("nano")).code_source
    folder = Path(keystone.__file__).parent / "model"
    files = [[name, f"b3:{blake3((folder / name).read_bytes()).hexdigest()}"] for name in SOURCES]
    line = json.dumps({"files": files, "v": 1}, separators=(",", ":"))
    assert str(recorded) == f"b3:{blake3(line.encode()).hexdigest()}"
    assert {path.name for path in folder.glob("*.py")} - set(SOURCES) == {"__init__.py"}


def test_importing_nano_again_moves_nothing(own_nano_archive: Path) -> None:
    with Archive.open(own_nano_archive) as archive:
        before, size = archive.ledger.size, archive.segment_bytes()
        keystone.import_nano(archive)
        assert (archive.ledger.size, archive.segment_bytes()) == (before, size)
        assert archive.contains(Repository(archive).resolve("nano"), Kind.MANIFEST)
