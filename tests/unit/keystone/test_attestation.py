"""A model in memory is held against the archive: what changes shows, what only computes does not."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

import keystone
from adapters import add_adapter, write_adapter
from csf_store import Archive, Digest
from keystone import KeystoneForCausalLM
from keystone.attestation import attest_each, attest_tensors, expected_attestation
from keystone.errors import InvalidInputError
from keystone.nano.embedded import DATA
from keystone.quantize import is_repacked
from manifests import AdapterUse, Manifest, Repository

NONCE = bytes(range(32))


def expected(archive: Path, loaded: keystone.LoadedModel, nonce: bytes = NONCE) -> Digest:
    with Archive.open(archive) as opened:
        return expected_attestation(opened, loaded.manifest, loaded.recipe, nonce)


def answer(loaded: keystone.LoadedModel) -> None:
    with torch.inference_mode():
        loaded.model(torch.arange(20)[None])


@pytest.fixture
def adapted(own_nano_archive: Path, tmp_path: Path) -> tuple[Digest, Digest]:
    """Two manifests: the same base with one adapter, and with another."""
    found = []
    with Archive.open(own_nano_archive) as archive:
        repository = Repository(archive)
        manifest = repository.load(repository.resolve("nano"))
        for seed in (1, 2):
            torch.manual_seed(seed)
            model = KeystoneForCausalLM.from_pretrained(DATA / "base")
            lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
            directory = write_adapter(get_peft_model(model, lora), tmp_path / f"lora-{seed}")
            adapter, _ = add_adapter(repository, directory, base=manifest.assembly.base)
            changed: Manifest = manifest.revised(
                assembly=manifest.assembly.revised(adapters=(AdapterUse(adapter=adapter),)),
                lineage=repository.trace([adapter], base=manifest.assembly.base),
            )
            found.append(repository.put(changed))
    return found[0], found[1]


@pytest.mark.parametrize("scheme", ["none", "int8", "nf4"])
def test_a_model_attests_before_and_after_it_answered(nano_archive: Path, scheme: str) -> None:
    loaded = keystone.load("nano", archive=nano_archive, quantization=scheme)
    before = loaded.attest(NONCE)
    answer(loaded)
    modules = loaded.recipe.modules
    if scheme == "nf4" and loaded.model.get_submodule(modules[0]).support_avx512bf16_for_cpu:
        assert any(is_repacked(loaded.model.get_submodule(name)) for name in modules)
    assert loaded.attest(NONCE) == before == expected(nano_archive, loaded)
    assert loaded.attest(NONCE[::-1]) != before
    assert loaded.attest(NONCE[::-1]) == expected(nano_archive, loaded, NONCE[::-1])


@pytest.mark.parametrize("scheme", ["none", "int8", "nf4"])
@pytest.mark.parametrize("answered", [False, True])
def test_one_changed_bit_shows(nano_archive: Path, scheme: str, answered: bool) -> None:
    loaded = keystone.load("nano", archive=nano_archive, quantization=scheme)
    before = loaded.attest(NONCE)
    if answered:
        answer(loaded)
    names = ["model.layers.3.mlp.down_proj", "model.embed_tokens"]
    for name in names:
        weight = loaded.model.get_submodule(name).weight.data
        flat = weight.view(-1).view(torch.uint8)
        flat[1000] ^= 1
        assert loaded.attest(NONCE) != before, name
        flat[1000] ^= 1
    assert loaded.attest(NONCE) == before


@pytest.mark.parametrize("scheme", ["int8", "nf4"])
@pytest.mark.parametrize("answered", [False, True])
def test_changed_scales_show(nano_archive: Path, scheme: str, answered: bool) -> None:
    loaded = keystone.load("nano", archive=nano_archive, quantization=scheme)
    before = loaded.attest(NONCE)
    if answered:
        answer(loaded)
    module = loaded.model.get_submodule("model.layers.0.mlp.up_proj")
    if scheme == "int8":
        scales = module.weight.SCB if module.weight.SCB is not None else module.state.SCB
    else:
        scales = module.weight.quant_state.absmax
    with torch.inference_mode():  # what a forward made can be changed nowhere else
        scales.view(-1)[3] += 1
    assert loaded.attest(NONCE) != before


@pytest.mark.parametrize("scheme", ["none", "nf4"])
def test_a_swapped_adapter_another_weight_and_a_missing_one_show(
    own_nano_archive: Path, adapted: tuple[Digest, Digest], scheme: str
) -> None:
    one, other = (keystone.load(digest, archive=own_nano_archive, quantization=scheme) for digest in adapted)
    answer(one)
    right = expected(own_nano_archive, one)
    assert one.attest(NONCE) == right
    assert other.attest(NONCE) != right
    layer = next(module for module in one.model.modules() if isinstance(getattr(module, "scaling", None), dict))
    (name,) = layer.scaling
    layer.scaling[name] *= 0.5
    assert one.attest(NONCE) != right
    layer.scaling[name] *= 2
    with one.model.disable_adapter():  # type: ignore[operator]
        assert one.attest(NONCE) != right
    assert one.attest(NONCE) == right
    bare = keystone.load("nano", archive=own_nano_archive, quantization=scheme)
    assert bare.attest(NONCE) != right


def test_the_loader_keeps_the_digest_of_every_tensor_it_assigned(nano_archive: Path) -> None:
    plain = keystone.load("nano", archive=nano_archive, quantization="none")
    stored = load_file(DATA / "base" / "model.safetensors")
    assert plain.tensors.keys() == stored.keys()
    for name, tensor in stored.items():
        assert plain.tensors[name] == Digest.of(tensor.contiguous().view(torch.uint8).numpy().tobytes()), name
    quantized = keystone.load("nano", archive=nano_archive, quantization="nf4")
    changed = {name for name in plain.tensors if quantized.tensors.get(name) != plain.tensors[name]}
    assert changed == {f"{module}.weight" for module in quantized.recipe.modules}


def test_a_short_nonce_is_refused(nano_archive: Path) -> None:
    loaded = keystone.load("nano", archive=nano_archive, quantization="none")
    with pytest.raises(InvalidInputError, match="may come up again"):
        loaded.attest(b"short")


def test_the_value_in_the_spec_is_what_is_computed() -> None:
    spec = (Path(__file__).parents[3] / "manifests" / "SPEC.md").read_text(encoding="utf-8")
    nonce, *rows, value = spec.split("```live\n")[1].split("\n```")[0].splitlines()
    tensors = []
    for row in rows:
        name, dtype, shape, data = row.split(" ")
        flat = torch.frombuffer(bytearray.fromhex(data), dtype=getattr(torch, dtype))
        tensors.append((name, flat.reshape(json.loads(shape))))
    found = attest_tensors(reversed(tensors), bytes.fromhex(nonce.split()[1]))
    assert value == f"value {found}" and len(tensors) == 2
    assert attest_each(tensors, NONCE)["b"] == attest_tensors(tensors[1:], NONCE) != found
