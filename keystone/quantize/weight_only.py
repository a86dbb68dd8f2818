"""int8 weights under activations that stay what they are: how int8 is computed where the recipe names a dtype for it.

bitsandbytes' own int8 (LLM.int8) rounds each row of activations to int8 as well and multiplies integers. On a card that
is fast. On a processor it costs twice as much for two rows as for one, which is what decoding two loops side by side
means, and the rounded activations cost more accuracy than the rounded weights do. Here a product is

    y[m, n] = (sum over k of x[m, k] * codes[n, k]) * scales[n]

with `x` in the recipe's compute dtype and `scales` rounded to it. Few rows in bf16 take torch's own kernel, which reads
one byte a weight; more of them, which no longer wait for memory, and other dtypes take blocks of the weight that are
turned into floats, exactly, in a scratch that stays in the processor's cache. On a card the weight is turned at once.

The layer is a `Linear8bitLt` in all but its product, so PEFT wraps it, and parts, hashes and sizes are what they were.
"""

import threading
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from keystone.quantize.bitsandbytes_guards import bitsandbytes

FEW_ROWS = 8
"""Up to here the kernel is faster than blocks; it reads the weights again for every four rows."""
KERNEL_COLUMNS = 32
"""The kernel reads past the end of rows that are no multiple of 16, and crashes; twice that leaves a margin."""
SCRATCH = 4 << 20
"""Bytes of a block as floats."""
LARGEST_CODE = 127.0
_FAST_PROCESSORS = ("AVX2", "AVX512", "NEON", "SVE")


@cache
def has_kernel() -> bool:
    """Whether this torch has its kernel for few rows, vectorized for this processor."""
    capability = torch.backends.cpu.get_cpu_capability()
    return hasattr(torch.ops.aten, "_weight_int8pack_mm") and capability.startswith(_FAST_PROCESSORS)


def row_scales(largest: Tensor, dtype: torch.dtype) -> Tensor:
    """What the codes of each row are multiplied with, `[N]`, from the rows' largest magnitudes."""
    return (largest / LARGEST_CODE).to(dtype)


def product(x: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    """`x` `[M, K]` times codes `[N, K]` times scales `[N]`, all floats in one dtype: `[M, N]`; without gradients."""
    if x.device.type != "cpu":
        return functional.linear(x, codes.to(x.dtype)).mul_(scales)
    few = x.dtype is torch.bfloat16 and 0 < x.shape[0] <= FEW_ROWS and x.shape[1] % KERNEL_COLUMNS == 0
    if few and has_kernel() and codes.is_contiguous():
        return torch.ops.aten._weight_int8pack_mm(x.contiguous(), codes, scales)  # type: ignore[no-any-return]
    return in_blocks(x, codes, scales)


class _Scratch(threading.local):
    """Room for a block, kept for the next product: each would find new pages, or leave the heap in holes."""

    _room: Tensor | None = None

    def of(self, count: int, dtype: torch.dtype) -> Tensor:
        """So many numbers, whatever they are."""
        if self._room is None or self._room.dtype is not dtype or self._room.numel() < count:
            with torch.inference_mode(mode=False):  # what is made in that mode cannot be written outside of it
                self._room = torch.empty(count, dtype=dtype)
        return self._room[:count]


_scratch = _Scratch()


def in_blocks(x: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    """The same, a few rows of the weight at a time."""
    outputs, inputs = codes.shape
    rows = min(outputs, max(32, SCRATCH // max(1, inputs * x.element_size())))
    y = x.new_empty(x.shape[0], outputs)
    scratch = _scratch.of(rows * inputs, x.dtype).view(rows, inputs)
    for start in range(0, outputs, rows):
        block = codes[start : start + rows]
        held = scratch[: block.shape[0]]
        held.copy_(block)
        torch.mm(x, held.T, out=y[:, start : start + rows])
    return y.mul_(scales)


class _Product(torch.autograd.Function):
    """Gradients reach what lies before a quantized layer, as adapters in training need; the weight gets none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
        # Not saved as tensors that gradients are traced to: those of a model that has answered may not be.
        ctx.weight = codes, scales
        return product(x, codes, scales)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        codes, scales = ctx.weight
        scaled = gradients[0] * scales
        return scaled @ codes.to(scaled.dtype), None, None


@cache
def weight_only_class() -> Any:
    """The layer, made when bitsandbytes is first needed: importing it takes most of a second."""

    class WeightOnlyLinear(bitsandbytes("nn").Linear8bitLt):  # type: ignore[misc]
        """A `Linear8bitLt` that multiplies activations as they are."""

        compute_dtype = torch.bfloat16
        _made_from: Tensor | None = None
        _scales: Tensor | None = None

        def scales(self) -> Tensor:
            """The rows' scales in the compute dtype, made again when the layer was given another weight or moved."""
            if self.weight.CB is not None:
                self.init_8bit_state()  # PEFT's merges and bitsandbytes' own saving look for the scales there
            if self._scales is None or self._made_from is not self.state.SCB:
                self._made_from = self.state.SCB
                self._scales = row_scales(self.state.SCB, self.compute_dtype)
            return self._scales

        def forward(self, x: Tensor) -> Tensor:
            """Map `[..., K]` to `[..., N]`, in the dtype of `x`."""
            flat = x.reshape(-1, x.shape[-1]).to(self.compute_dtype)
            tracing = torch.is_grad_enabled() and flat.requires_grad
            y: Tensor = (_Product.apply if tracing else product)(flat, self.weight.data, self.scales())
            y = y.to(x.dtype).view(*x.shape[:-1], self.out_features)
            return y if self.bias is None else y + self.bias.to(y.dtype)

        def drifted(self) -> Tensor | None:
            """The scales that compute, if they are not those that the parts say; None as long as all is well."""
            held, source = self._scales, self._made_from
            if held is None or source is None or torch.equal(held, row_scales(source, held.dtype)):
                return None
            return held

    return WeightOnlyLinear
