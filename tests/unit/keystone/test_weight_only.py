"""int8 weights under activations as they are: the product, its gradients, and what PEFT and attestation see of it."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from csf_store import Digest
from keystone.attestation import attest_model
from keystone.quantize import int8_recipe, parts_of, quantize, weight_only
from keystone.quantize.bitsandbytes_guards import bitsandbytes
from keystone.quantize.derived import DerivedKey
from keystone.quantize.weight_only import in_blocks, product, row_scales, weight_only_class
from manifests import Recipe

NAME = "layers.0.up"
CPU = torch.device("cpu")
PLAIN_INT8 = Recipe(dtype="bfloat16", quantization="int8", modules=(NAME,))
INT8 = PLAIN_INT8.revised(compute_dtype="bfloat16")


class Toy(nn.Module):
    """Rows of very different sizes, and a bias."""

    def __init__(self, inputs: int = 128, outputs: int = 96) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.ModuleList([nn.ModuleDict({"up": nn.Linear(inputs, outputs)})])
        self.up.weight.data *= torch.logspace(-2, 1, outputs)[:, None]
        self.requires_grad_(False).to(torch.bfloat16).eval()

    @property
    def up(self) -> nn.Linear:
        return self.get_submodule(NAME)  # type: ignore[return-value]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.get_submodule(NAME)(x)  # type: ignore[no-any-return]


def held(recipe: Recipe = INT8) -> Toy:
    model = Toy()
    quantize(model, recipe)
    return model


def some_input(rows: int = 5, inputs: int = 128) -> torch.Tensor:
    return torch.randn(rows, inputs, generator=torch.Generator().manual_seed(4)).bfloat16()


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float(torch.linalg.norm(found.double() - exact) / torch.linalg.norm(exact))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("inputs", [64, 100, 17], ids=["kernel", "no kernel", "odd"])
def test_the_product_is_the_same_for_any_number_of_rows(
    inputs: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_only, "SCRATCH", 40 * inputs)  # several blocks, the last one short
    torch.manual_seed(5)
    codes = torch.randint(-127, 128, (70, inputs), dtype=torch.int8)
    scales = row_scales(torch.rand(70) + 0.1, dtype)
    rows = torch.randn(24, inputs).to(dtype)
    exact = (rows.double() @ codes.double().T) * scales.double()
    for many in (0, 1, 2, 3, 8, 9, 24):
        found = product(rows[:many], codes, scales)
        assert found.dtype is dtype
        torch.testing.assert_close(
            found.double(), exact[:many], rtol=2**-7 if dtype is torch.bfloat16 else 1e-5, atol=0.02
        )
    torch.testing.assert_close(in_blocks(rows[:2], codes, scales), product(rows[:2], codes, scales))


def test_it_is_closer_to_the_plain_layer_than_activations_in_int8_are() -> None:
    x = some_input(64)
    x[:, 7] *= 30  # an outlier, as language models have them: the other values share its scale in LLM.int8
    exact = Toy().double()(x.double())
    with torch.inference_mode():
        plain, kept = held(PLAIN_INT8)(x), held()(x)
    assert error(kept, exact) < 0.5 * error(plain, exact)
    assert error(kept, exact) < 0.01


def test_the_recipe_says_which_arithmetic_it_is() -> None:
    processor, card = int8_recipe([NAME], "bfloat16", CPU), int8_recipe([NAME], "bfloat16", torch.device("cuda"))
    assert processor == INT8
    assert card == PLAIN_INT8
    assert processor.digest != card.digest
    base = Digest.of(b"base")
    assert DerivedKey(base, processor).digest != DerivedKey(base, card).digest
    assert type(held(PLAIN_INT8).up) is bitsandbytes("nn").Linear8bitLt
    kept, plain = parts_of(held().up) or {}, parts_of(held(PLAIN_INT8).up) or {}
    assert all(torch.equal(kept[part], plain[part]) for part in ("weight", "SCB"))


@pytest.mark.parametrize("answered_before", [False, True])
def test_gradients_reach_what_lies_before_it(answered_before: bool) -> None:
    model = held()
    if answered_before:
        with torch.inference_mode():
            model(some_input())
    x = some_input(20).requires_grad_()
    model(x).float().square().sum().backward()
    reference = some_input(20).float().requires_grad_()
    parts = parts_of(model.up) or {}
    weight = parts["weight"].float() * parts["SCB"][:, None] / 127
    (reference @ weight.T + model.up.bias.float()).square().sum().backward()
    assert x.grad is not None
    assert reference.grad is not None
    assert error(x.grad, reference.grad.double()) < 0.02


def test_peft_adapts_it_and_a_merge_is_computed_with() -> None:
    model = held()
    model.is_loaded_in_8bit = True  # type: ignore[assignment]  # as `mark_quantized` says it
    torch.manual_seed(6)
    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules=["up"], init_lora_weights=False)).eval()
    layer = wrapped.base_model.model.get_submodule(NAME)
    assert isinstance(layer.base_layer, weight_only_class())
    with torch.inference_mode():
        before = wrapped(some_input())
        with wrapped.disable_adapter():
            bare = wrapped(some_input())
        with pytest.warns(UserWarning, match="rounding"):
            layer.merge()
        merged = wrapped(some_input())
    assert error(bare, before.double()) > 0.1
    # The merge gives every row another scale; computing with the old ones would be far off.
    assert error(merged, before.double()) < 0.03


def test_scales_that_are_not_those_of_the_parts_are_attested() -> None:
    model = held()
    nonce = b"0123456789abcdef"
    fresh = attest_model(model, nonce)
    with torch.inference_mode():
        model(some_input())
        assert attest_model(model, nonce) == fresh
        model.up._scales.mul_(2)  # type: ignore[operator, union-attr]
    assert attest_model(model, nonce) != fresh
