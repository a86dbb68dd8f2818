"""What bitsandbytes does behind one's back, and what is done about each of these things.

1. *Repacking.* On the first CPU forward in evaluation mode, a machine with AVX512-BF16 rearranges the weight of a
   `Linear4bit` in place and rounds its block scales to bf16. From then on `dequantize_4bit` and a PEFT merge compute
   from misread bytes, gradients go missing, and `state_dict()` comes back with scales quantized anew. So weights are
   hashed and cached before any forward (`parts_of` refuses afterwards), and `prepare_for_training` turns the path off
   on a model that has not answered yet and refuses one that has. It unpacks every weight on the way, and the heap
   keeps a tenth of the model's size of that for good, so it is given back while the first forward goes on.
2. *Shapes.* That path wants output rows in groups of 32 and rows of whole blocks of 64, and stops with an assertion
   where a layer has neither. It also computes in bf16 whatever the recipe says. Where any of this does not fit it is
   turned off, layer by layer.
3. *Downloads.* When a package called `kernels` is installed, the import fetches native code from a hub and runs it.
   Weights verified to the last bit are worth little if anybody's code computes with them, so the import is kept from
   finding that package.
4. *Merging.* PEFT looks at a mark on the model, not at the layers, to know that they are quantized; without it a merge
   adds floats to packed bytes. `mark_quantized` sets it.
5. *Overflow.* int8 passes through float16: a bf16 weight beyond 65504 would become infinite. See `layers`.
"""

import logging
import sys
from contextlib import suppress
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import nn

from csf_store import give_back
from keystone.errors import RefusedError

FAST_ROWS = 32
_MARKS = {"int8": "is_loaded_in_8bit", "nf4": "is_loaded_in_4bit"}
BLOCK = 64
"""Values that share one scale in nf4: bitsandbytes' default on every device since 0.50, fixed here."""
NESTED_BLOCK = 256
"""Block scales that share one scale in turn, in double quantization."""
_UNPACKED = 4
"""Bytes of a value on its way to the other order."""
_WORTH_GIVING_BACK = 32_000_000
"""Giving back takes a millisecond or more, whatever it is."""


@cache
def bitsandbytes(module: str = "functional") -> Any:
    """A module of bitsandbytes; the import takes most of a second, and only quantized models pay for it.

    Raises:
        RefusedError: it cannot be imported here.
    """
    # It offers optional kernels from a hub and says so; there is nothing a reader could do about it.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    hidden = "kernels" not in sys.modules
    if hidden:
        sys.modules["kernels"] = None  # type: ignore[assignment]  # what the import system takes for "not there"
    try:
        return import_module(f"bitsandbytes.{module}")
    except Exception as error:  # a native library that does not load raises whatever it likes
        raise RefusedError(f"bitsandbytes cannot be used here ({error}); use --quantize none") from error
    finally:
        if hidden:
            del sys.modules["kernels"]


def before_peft() -> None:
    """To be called before PEFT is imported.

    PEFT imports bitsandbytes where it is installed, and knows of no guard. It also looks for distributed tensors in
    torch without importing them, trusting that somebody has.
    """
    with suppress(RefusedError):
        bitsandbytes("nn")
    with suppress(ImportError):
        import_module("torch.distributed.tensor")


def bitsandbytes_problem() -> str | None:
    """Why nothing can be quantized here, or None."""
    try:
        bitsandbytes()
    except RefusedError as error:
        return str(error)
    return None


def fast_nf4_on_this_cpu() -> bool:
    """Whether bitsandbytes has its fast 4-bit path (AVX512-BF16) here; without it nf4 is 20 to 40 times slower."""
    return bool(bitsandbytes().has_avx512bf16())


def keep_slow_path_where_needed(layer: nn.Module, compute_dtype: torch.dtype | None) -> None:
    """Turn the repacking path off on a 4-bit layer whose shape or dtype it cannot honour."""
    rows, columns = int(layer.out_features), int(layer.in_features)  # type: ignore[arg-type]
    if rows % FAST_ROWS or columns % BLOCK or compute_dtype is not torch.bfloat16:
        _turn_off(layer)


def give_back_what_repacking_frees(model: nn.Module) -> None:
    """Have the first forward of each 4-bit layer give its scratch back to the system, that of small ones together."""
    freed = 0

    def watch(layer: nn.Module) -> None:
        def forwarded(*_: object) -> None:
            nonlocal freed
            watching.remove()
            freed += _UNPACKED * int(layer.in_features) * int(layer.out_features)  # type: ignore[arg-type]
            if freed >= _WORTH_GIVING_BACK:
                give_back()
                freed = 0

        watching = layer.register_forward_hook(forwarded)

    for layer in model.modules():
        if getattr(layer, "support_avx512bf16_for_cpu", False):
            watch(layer)


def mark_quantized(model: nn.Module, quantization: str) -> None:
    """Tell PEFT which kind of linear layer it will wrap."""
    if quantization in _MARKS:
        setattr(model, _MARKS[quantization], True)


def is_repacked(layer: nn.Module) -> bool:
    """Whether a layer's 4-bit weight was rearranged by a forward on the CPU."""
    state = getattr(getattr(layer, "weight", None), "quant_state", None)
    return bool(getattr(state, "packing_format_for_cpu", False))


def prepare_for_training(model: nn.Module) -> None:
    """Make a quantized model safe to train, to merge adapters into, and to dequantize.

    Raises:
        RefusedError: it has run on the CPU already, and its 4-bit weights are not what they were; the layer is named.
    """
    for name, layer in model.named_modules():
        if is_repacked(layer):
            raise RefusedError(
                f"{name} was repacked for the CPU by a forward pass; load the model again, and train or merge it "
                "before it answers"
            )
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            _turn_off(layer)


def _turn_off(layer: nn.Module) -> None:
    setattr(layer, "support_avx512bf16_for_cpu", False)  # noqa: B010 - not a declared attribute of Module
