"""bitsandbytes and its traps: each guard is shown to be needed by what happens without it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from keystone.errors import CheckpointError, RefusedError
from keystone.quantize import (
    choose_recipe,
    default_quantization,
    fast_nf4_on_this_cpu,
    is_repacked,
    list_modules,
    module_from_parts,
    parts_of,
    prepare_for_training,
    quantize,
    quantize_weight,
    recipes,
)
from keystone.quantize import layers as layers_module
from keystone.quantize.bitsandbytes_guards import bitsandbytes
from keystone.quantize.layers import check_parts, part_shapes
from manifests import Recipe

CPU = torch.device("cpu")
INT8 = Recipe(dtype="bfloat16", quantization="int8", modules=("model.layers.0.up",))
NF4 = Recipe(
    dtype="bfloat16", quantization="nf4", modules=("model.layers.0.up",), double_quant=True, compute_dtype="bfloat16"
)
FLAT_NF4 = NF4.revised(double_quant=False)

needs_fast_path = pytest.mark.skipif(not fast_nf4_on_this_cpu(), reason="this processor never repacks")


class Layer(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.up = nn.Linear(inputs, outputs, bias=False)


class Toy(nn.Module):
    """A model with one quantizable module, `model.layers.0.up`."""

    def __init__(self, inputs: int = 128, outputs: int = 64) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.model = nn.Module()
        self.model.layers = nn.ModuleList([Layer(inputs, outputs)])
        self.requires_grad_(False).to(torch.bfloat16).eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model.layers[0].up(x)  # type: ignore[no-any-return, operator, union-attr, index]


def toy(recipe: Recipe, inputs: int = 128, outputs: int = 64) -> tuple[Toy, nn.Module]:
    model = Toy(inputs, outputs)
    quantize(model, recipe)
    return model, model.get_submodule("model.layers.0.up")


def some_input(inputs: int = 128) -> torch.Tensor:
    return torch.randn(5, inputs, generator=torch.Generator().manual_seed(4)).bfloat16()


@pytest.mark.parametrize("shape", [(64, 128), (70, 96), (33, 31), (1, 7), (300, 64)])
@pytest.mark.parametrize("recipe", [INT8, NF4, FLAT_NF4], ids=["int8", "nf4", "nf4-flat"])
def test_slices_give_bitsandbytes_own_bytes(
    shape: tuple[int, int], recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers_module, "SLICE", 1500)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(5)).bfloat16()
    ours = quantize_weight(weight, recipe)
    functional = bitsandbytes()
    if recipe.quantization == "int8":
        codes, scales, _ = functional.int8_vectorwise_quant(weight.half())
        theirs = {"weight": codes, "SCB": scales}
    else:
        packed, state = functional.quantize_4bit(
            weight, compress_statistics=recipe.double_quant, quant_type="nf4", quant_storage=torch.uint8
        )
        theirs = {"weight": packed, "absmax": state.absmax, "quant_map": state.code}
        if recipe.double_quant:
            theirs |= {
                "nested_absmax": state.state2.absmax,
                "nested_quant_map": state.state2.code,
                "nested_offset": state.offset,
            }
    assert ours.keys() == theirs.keys()
    for part, tensor in theirs.items():
        assert torch.equal(ours[part], tensor), part
    shapes = {part: (tensor.dtype, tuple(tensor.shape)) for part, tensor in ours.items()}
    assert shapes == part_shapes(*shape, recipe)


@pytest.mark.parametrize("recipe", [INT8, NF4, FLAT_NF4], ids=["int8", "nf4", "nf4-flat"])
def test_a_module_made_of_parts_computes_what_bitsandbytes_would(recipe: Recipe) -> None:
    model, module = toy(recipe)
    nn_ = bitsandbytes("nn")
    plain = Toy().model.layers[0].up
    if recipe.quantization == "int8":
        reference = nn_.Linear8bitLt(128, 64, bias=False, has_fp16_weights=False)
        reference.weight = nn_.Int8Params(plain.weight.data, requires_grad=False, has_fp16_weights=False)
    else:
        reference = nn_.Linear4bit(128, 64, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
        reference.weight = nn_.Params4bit(
            plain.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=recipe.double_quant
        )
    reference = reference.to("cpu").eval()
    with torch.inference_mode():
        expected, ours = reference(some_input()), model(some_input())
    assert torch.equal(ours, expected)
    assert type(module) is type(reference)


@needs_fast_path
def test_a_forward_repacks_and_what_was_quantized_can_no_longer_be_read() -> None:
    model, module = toy(NF4)
    before = {part: tensor.clone() for part, tensor in (parts_of(module) or {}).items()}
    with torch.inference_mode():
        model(some_input())
    assert is_repacked(module)
    assert not torch.equal(module.weight.data.reshape(-1), before["weight"].reshape(-1))
    with pytest.raises(RefusedError, match="repacked"):
        parts_of(module, name="model.layers.0.up")
    with pytest.raises(RefusedError, match=r"model\.layers\.0\.up was repacked"):
        prepare_for_training(model)


@needs_fast_path
def test_state_dict_after_a_forward_is_another_one() -> None:
    """Why there is no cache after a forward: the way back gives scales that were quantized anew."""
    model, module = toy(NF4, inputs=512, outputs=512)
    before = parts_of(module) or {}
    absmax, offset = before["absmax"].clone(), before["nested_offset"].clone()
    with torch.inference_mode():
        model(some_input(512))
    state = model.state_dict()
    same_scales = torch.equal(state["model.layers.0.up.weight.absmax"], absmax)
    assert not (same_scales and torch.equal(module.weight.quant_state.offset, offset))


@needs_fast_path
def test_a_prepared_model_stays_as_it_was_bit_for_bit() -> None:
    model, module = toy(NF4)
    before = {part: tensor.clone() for part, tensor in (parts_of(module) or {}).items()}
    prepare_for_training(model)
    with torch.inference_mode():
        model(some_input())
    after = parts_of(module)
    assert after is not None
    assert all(torch.equal(after[part], tensor) for part, tensor in before.items())


def test_gradients_reach_what_lies_before_a_prepared_layer() -> None:
    model, _ = toy(NF4)
    prepare_for_training(model)
    with torch.inference_mode():
        model(some_input())
    x = some_input().requires_grad_()
    model.train()(x).float().square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("prepared", [True, False])
def test_a_merge_is_right_only_on_a_model_that_never_repacked(prepared: bool) -> None:
    if not prepared and not fast_nf4_on_this_cpu():
        pytest.skip("this processor never repacks")
    model, module = toy(NF4, inputs=128, outputs=128)
    functional = bitsandbytes()
    plain = functional.dequantize_4bit(module.weight.data, module.weight.quant_state).float()
    if prepared:
        prepare_for_training(model)
    torch.manual_seed(6)
    config = LoraConfig(r=4, target_modules=["up"], init_lora_weights=False)
    wrapped = get_peft_model(model, config).eval()
    layer = wrapped.base_model.model.model.layers[0].up
    delta = layer.get_delta_weight("default").detach().float()
    with torch.inference_mode():
        wrapped(some_input())
    try:
        with pytest.warns(UserWarning, match="rounding"):
            layer.merge()
        held = layer.base_layer.weight
        merged = functional.dequantize_4bit(held.data, held.quant_state).detach().float()
        error = float(torch.linalg.norm(merged - (plain + delta)) / torch.linalg.norm(plain + delta))
    except (RuntimeError, AttributeError, ValueError):
        error = float("inf")
    assert (error < 0.15) == prepared


@pytest.mark.parametrize(("inputs", "outputs"), [(128, 40), (96, 64), (80, 48)])
def test_shapes_that_the_fast_path_asserts_on_take_the_slow_one(inputs: int, outputs: int) -> None:
    model, module = toy(NF4, inputs, outputs)
    dequantized = bitsandbytes().dequantize_4bit(module.weight.data, module.weight.quant_state)
    with torch.inference_mode():
        found = model(some_input(inputs))
    torch.testing.assert_close(found, some_input(inputs) @ dequantized.T, atol=0.05, rtol=0.02)
    assert not is_repacked(module)


def test_a_recipe_that_computes_in_float32_does() -> None:
    recipe = Recipe(
        dtype="float32", quantization="nf4", modules=("model.layers.0.up",), double_quant=True, compute_dtype="float32"
    )
    model = Toy().float()
    quantize(model, recipe)
    module = model.get_submodule("model.layers.0.up")
    dequantized = bitsandbytes().dequantize_4bit(module.weight.data, module.weight.quant_state)
    x = some_input().float()
    with torch.inference_mode():
        torch.testing.assert_close(model(x), x @ dequantized.T, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("imports", ["bitsandbytes('nn')", "before_peft()\nimport peft"])
def test_no_code_is_fetched_from_a_hub(tmp_path: Path, imports: str) -> None:
    (tmp_path / "kernels.py").write_text(
        "def get_kernel(*_, **__):\n    open('fetched', 'w').close()\n    raise OSError\n"
    )
    script = (
        "from keystone.quantize.bitsandbytes_guards import before_peft, bitsandbytes\n"
        f"{imports}\nimport kernels\nassert kernels.get_kernel\n"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, check=True)
    assert not (tmp_path / "fetched").exists()


@pytest.mark.parametrize("value", [1e5, float("nan")])
def test_a_value_that_float16_cannot_hold_is_refused_by_name(value: float) -> None:
    model = Toy()
    model.model.layers[0].up.weight.data[3, 4] = value
    with pytest.raises(RefusedError, match=r"model\.layers\.0\.up holds a value"):
        quantize(model, INT8)


def test_parts_of_another_shape_never_reach_native_code() -> None:
    linear = nn.Linear(128, 64, bias=False)
    parts = quantize_weight(linear.weight.data, NF4)
    check_parts(linear, parts, NF4, name="up")
    with pytest.raises(CheckpointError, match=r"up\.absmax"):
        check_parts(linear, {**parts, "absmax": parts["absmax"][:-1]}, NF4, name="up")
    with pytest.raises(CheckpointError, match="nf4 needs"):
        check_parts(linear, {"weight": parts["weight"]}, NF4, name="up")


def test_defaults_by_box() -> None:
    assert default_quantization(torch.device("cuda")) == "nf4"
    assert default_quantization(CPU) == "int8"
    assert default_quantization(torch.device("mps")) == "none"


class TestSlowProcessor:
    @pytest.fixture(autouse=True)
    def slow(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(recipes, "fast_nf4_on_this_cpu", lambda: False)

    def test_a_manifests_nf4_gives_way_and_says_so(self) -> None:
        choice = choose_recipe(Toy(), asked=None, manifests_own=NF4, device=CPU, dtype=torch.bfloat16)
        assert (choice.recipe.quantization, choice.recipe.modules) == ("int8", NF4.modules)
        assert "AVX512-BF16" in choice.notes[0]

    def test_an_explicit_nf4_is_obeyed_with_a_warning(self) -> None:
        choice = choose_recipe(Toy(), asked="nf4", manifests_own=None, device=CPU, dtype=torch.bfloat16)
        assert choice.recipe.quantization == "nf4"
        assert "20 to 40 times slower" in choice.notes[0]

    def test_a_card_does_not_care(self) -> None:
        choice = choose_recipe(Toy(), asked=None, manifests_own=NF4, device=torch.device("cuda"), dtype=torch.bfloat16)
        assert (choice.recipe, choice.notes) == (NF4, ())


class TestWithoutBitsandbytes:
    @pytest.fixture(autouse=True)
    def absent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(recipes, "bitsandbytes_problem", lambda: "bitsandbytes cannot be used here")

    def test_what_was_asked_for_is_refused(self) -> None:
        with pytest.raises(RefusedError, match="cannot be used"):
            choose_recipe(Toy(), asked="int8", manifests_own=None, device=CPU, dtype=torch.bfloat16)

    def test_a_default_gives_way_and_says_so(self) -> None:
        choice = choose_recipe(Toy(), asked=None, manifests_own=None, device=CPU, dtype=torch.bfloat16)
        assert choice.recipe == Recipe(dtype="bfloat16")
        assert "cannot be used" in choice.notes[0]


def test_an_explicit_scheme_keeps_the_manifests_own_list_of_modules() -> None:
    model = Toy()
    model.model.layers.append(Layer(64, 64))
    own = choose_recipe(model, asked="int8", manifests_own=INT8, device=CPU, dtype=torch.bfloat16).recipe
    assert own == INT8
    other = choose_recipe(model, asked="nf4", manifests_own=INT8, device=CPU, dtype=torch.bfloat16).recipe
    assert (other.quantization, other.modules) == ("nf4", ("model.layers.0.up", "model.layers.1.up"))


def test_modules_are_listed_kind_by_kind() -> None:
    names = ["model.layers.0.mlp.up_proj", "model.layers.10.mlp.up_proj", "lm_head"]
    assert list_modules(names) == ["lm_head", "model.layers.*.mlp.up_proj x 2"]


def test_made_modules_keep_their_bias() -> None:
    linear = nn.Linear(64, 32).to(torch.bfloat16)
    made = module_from_parts(linear, quantize_weight(linear.weight.data, INT8), INT8, device=CPU)
    assert made.bias is linear.bias
