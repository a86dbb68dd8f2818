"""Which numbers a model is held in: recipes, what is the default on which box, and what is never done silently.

A `Recipe` lists the quantized modules one by one. A listed module that cannot be quantized is an error, and a linear
module that is not listed stays as it is because the recipe says so. Embeddings, norms, gates and the output head are
never quantized.

What a person asks for is obeyed or refused, never replaced. Only defaults, a manifest's own recipe among them, give way
where a box cannot honour them, and `Choice.notes` says so.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from keystone.errors import RefusedError
from keystone.quantize.bitsandbytes_guards import bitsandbytes_problem, fast_nf4_on_this_cpu
from manifests import Recipe

Quantization = Literal["none", "int8", "nf4"]
SCHEMES: tuple[Quantization, ...] = ("none", "int8", "nf4")

DTypeName = Literal["float32", "bfloat16", "float16"]

_CPU = torch.device("cpu")
_DTYPE_NAMES: dict[torch.dtype, DTypeName] = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


@dataclass(frozen=True)
class Choice:
    """A recipe, and what a person should know about why it is this one."""

    recipe: Recipe
    notes: tuple[str, ...] = ()


def default_quantization(device: torch.device) -> Quantization:
    """What fits most boxes: nf4 on a CUDA card; int8 on a CPU, where nf4 can be 20 to 40 times slower; else none."""
    defaults: dict[str, Quantization] = {"cuda": "nf4", "cpu": "int8"}
    return defaults.get(device.type, "none")


def quantizable_modules(model: nn.Module) -> tuple[str, ...]:
    """The linear modules inside the layers, by full name."""
    return tuple(
        sorted(name for name, module in model.named_modules() if isinstance(module, nn.Linear) and ".layers." in name)
    )


def recipe_for(
    model: nn.Module,
    quantization: Quantization,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device = _CPU,
) -> Recipe:
    """The recipe that holds this model in the given scheme, every quantizable module listed.

    Args:
        model: may be on the meta device.
        quantization: the scheme.
        dtype: of everything that is not quantized; default that of the model's first parameter.
        device: where it is to run, which decides how int8 is computed.

    Raises:
        RefusedError: the dtype has no name in a recipe.
    """
    dtype = next(model.parameters()).dtype if dtype is None else dtype
    return _recipe(quantizable_modules(model), quantization, dtype, device)


def int8_recipe(modules: Sequence[str], dtype: DTypeName, device: torch.device) -> Recipe:
    """int8 as it is best computed: on a card with activations in int8 too, on a processor with activations in bf16.

    A processor has a fast product of few bf16 rows and int8 weights, which serves other dtypes too; see `weight_only`.
    """
    compute: DTypeName | None = None if device.type == "cuda" else "bfloat16"
    return Recipe(dtype=dtype, quantization="int8", modules=tuple(modules), compute_dtype=compute)


def choose_recipe(
    model: nn.Module,
    *,
    asked: Quantization | None,
    manifests_own: Recipe | None,
    device: torch.device,
    dtype: torch.dtype,
) -> Choice:
    """Decide how a model will be held.

    Args:
        model: for its modules; may be on the meta device.
        asked: what a person wants, obeyed or refused.
        manifests_own: the recipe its manifest asks to be served with.
        device: where it will run.
        dtype: what its weights are stored in.

    Raises:
        RefusedError: what was asked for cannot be done here.
    """
    if asked is not None:
        if asked != "none" and (problem := bitsandbytes_problem()) is not None:
            raise RefusedError(problem)
        fits = manifests_own is not None and manifests_own.quantization == asked
        recipe = (
            manifests_own
            if manifests_own is not None and fits
            else recipe_for(model, asked, dtype=dtype, device=device)
        )
        slow = asked == "nf4" and device.type == "cpu" and not fast_nf4_on_this_cpu()
        note = (
            "nf4 on a processor without AVX512-BF16 is 20 to 40 times slower than int8; it was asked for, so here it is"
        )
        return Choice(recipe, (note,) if slow else ())
    wanted = manifests_own or recipe_for(model, default_quantization(device), dtype=dtype, device=device)
    if wanted.quantization == "none":
        return Choice(wanted)
    if (problem := bitsandbytes_problem()) is not None:
        return Choice(Recipe(dtype=wanted.dtype), (f"held in {wanted.dtype}, not {wanted.quantization}: {problem}",))
    if wanted.quantization == "nf4" and device.type == "cpu" and not fast_nf4_on_this_cpu():
        fallback = int8_recipe(wanted.modules, wanted.dtype, device)
        return Choice(fallback, ("held in int8, not nf4: this processor has no AVX512-BF16; --quantize nf4 insists",))
    return Choice(wanted)


def _recipe(modules: Sequence[str], quantization: Quantization, dtype: torch.dtype, device: torch.device) -> Recipe:
    if dtype not in _DTYPE_NAMES:
        raise RefusedError(f"a model in {dtype} cannot be described by a recipe; cast it to bfloat16 or float32 first")
    if quantization == "none":
        return Recipe(dtype=_DTYPE_NAMES[dtype])
    if not modules:
        raise RefusedError(f"the model has no linear module in its layers that {quantization} could hold")
    if quantization == "int8":
        return int8_recipe(modules, _DTYPE_NAMES[dtype], device)
    return Recipe(
        dtype=_DTYPE_NAMES[dtype],
        quantization=quantization,
        modules=tuple(modules),
        double_quant=True,
        compute_dtype=_DTYPE_NAMES[dtype],
    )


def list_modules(names: Sequence[str]) -> list[str]:
    """Module names for people: one line a kind, layer numbers folded into a star, with how many there are."""
    kinds = Counter(re.sub(r"\.\d+\.", ".*.", name) for name in names)
    return [f"{kind} x {count}" if count > 1 or "*" in kind else kind for kind, count in sorted(kinds.items())]
