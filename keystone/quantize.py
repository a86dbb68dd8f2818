"""How a model's numbers are held: recipes, and turning a bf16 model into an int8 or nf4 one with bitsandbytes.

A `Recipe` lists the quantized modules one by one. Nothing is skipped silently: a listed module that cannot be
quantized is an error, and a linear module of the layers that is not listed stays as it is because the recipe says so.
Embeddings, norms, gates and the output head are never quantized.

bitsandbytes repacks a `Linear4bit` in place on its first CPU forward where the processor has AVX512-BF16. Whatever
reads the weights afterwards (a merge, a gradient, a digest) sees other bytes. A model that only answers keeps that fast
path; `adapters.train_lora` turns it off for the model it trains.
"""

import logging
from collections.abc import Iterator
from importlib import import_module
from typing import Any, Literal

import torch
from torch import nn

from keystone.errors import RefusedError
from manifests import Recipe

Quantization = Literal["none", "int8", "nf4"]
SCHEMES: tuple[Quantization, ...] = ("none", "int8", "nf4")

_DTYPE_NAMES: dict[torch.dtype, Literal["float32", "bfloat16", "float16"]] = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


def default_quantization(device: torch.device) -> Quantization:
    """What fits most boxes: nf4 on a CUDA card; int8 on a CPU, where nf4 can be 20 to 40 times slower."""
    return "nf4" if device.type == "cuda" else "int8"


def quantizable_modules(model: nn.Module) -> tuple[str, ...]:
    """The linear modules inside the layers, by full name."""
    return tuple(
        sorted(name for name, module in model.named_modules() if isinstance(module, nn.Linear) and ".layers." in name)
    )


def recipe_for(model: nn.Module, quantization: Quantization) -> Recipe:
    """The recipe that holds this model in the given scheme, every quantizable module listed.

    Raises:
        RefusedError: the model's dtype has no name in a recipe.
    """
    dtype = next(model.parameters()).dtype
    if dtype not in _DTYPE_NAMES:
        raise RefusedError(f"a model in {dtype} cannot be described by a recipe; cast it to bfloat16 or float32 first")
    if quantization == "none":
        return Recipe(dtype=_DTYPE_NAMES[dtype])
    nf4 = quantization == "nf4"
    return Recipe(
        dtype=_DTYPE_NAMES[dtype],
        quantization=quantization,
        modules=quantizable_modules(model),
        double_quant=True if nf4 else None,
        compute_dtype=_DTYPE_NAMES[dtype] if nf4 else None,
    )


def quantize(model: nn.Module, recipe: Recipe) -> None:
    """Replace the weights of the recipe's modules, in place, before any adapter is attached and any forward is run.

    Args:
        model: on the device it will run on.
        recipe: what `recipe_for` gave, or a manifest's own.

    Raises:
        RefusedError: a listed module is no linear module of this model.
    """
    if recipe.quantization == "none":
        return
    # It offers optional kernels from a hub on the first 4-bit forward; there is nothing a reader could do about it.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    for name in recipe.modules:
        owner, _, leaf = name.rpartition(".")
        try:
            linear = model.get_submodule(name)
        except AttributeError as error:
            raise RefusedError(f"the recipe quantizes {name}, which this model does not have") from error
        if type(linear) is not nn.Linear:
            raise RefusedError(f"the recipe quantizes {name}, which is a {type(linear).__name__}, not a linear module")
        setattr(model.get_submodule(owner), leaf, _quantized(linear, recipe))


def _quantized(linear: nn.Linear, recipe: Recipe) -> nn.Module:
    layers: Any = import_module("bitsandbytes.nn")  # over a second to import, and only quantized loads need it
    device = linear.weight.device
    made: Any
    if recipe.quantization == "int8":
        made = layers.Linear8bitLt(
            linear.in_features, linear.out_features, linear.bias is not None, has_fp16_weights=False, device="meta"
        )
        made.weight = layers.Int8Params(linear.weight.data, requires_grad=False, has_fp16_weights=False)
    else:
        made = layers.Linear4bit(
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            compute_dtype=getattr(torch, str(recipe.compute_dtype)),
            compress_statistics=recipe.double_quant,
            quant_type="nf4",
            device="meta",
        )
        made.weight = layers.Params4bit(
            linear.weight.data, requires_grad=False, compress_statistics=recipe.double_quant, quant_type="nf4"
        )
    made.bias = linear.bias
    return made.to(device).eval()  # type: ignore[no-any-return]


def weight_bytes(model: nn.Module) -> int:
    """Bytes that parameters and buffers hold, quantization state included, each storage once."""
    storages: dict[int, int] = {}
    for tensor in [*model.parameters(), *model.buffers(), *_quantization_state(model)]:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _quantization_state(model: nn.Module) -> Iterator[torch.Tensor]:
    for module in model.modules():
        weight: Any = getattr(module, "weight", None)
        state: Any = getattr(weight, "quant_state", None)
        if state is not None:
            nested = getattr(state, "state2", None)
            yield from (value for value in (state.absmax, nested.absmax if nested else None) if value is not None)
        for name in ("CB", "SCB"):
            for holder in (weight, getattr(module, "state", None)):
                value = getattr(holder, name, None)
                if isinstance(value, torch.Tensor):
                    yield value
