"""One linear module at a time: from a float weight to quantized parts, and from parts to a module that runs.

*Parts* are the tensors that a quantized weight consists of, by the end of their name:

    int8   `weight` I8 [N, K], `SCB` F32 [N] (each row's largest magnitude)
    nf4    `weight` U8 [N*K/2, 1], `absmax` (U8 and nested with double quantization, else F32), `quant_map` F32 [16],
           and with double quantization `nested_absmax` F32, `nested_quant_map` F32 [256], `nested_offset` F32 []

They are what is cached and what is hashed. Quantization always happens on the CPU, so that one recipe gives the same
bytes whatever card will compute with them, and in slices of rows, so that it needs little memory beside the weight; a
test holds the slices equal to bitsandbytes' own result.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from keystone.errors import CheckpointError, RefusedError
from keystone.quantize.bitsandbytes_guards import (
    BLOCK,
    NESTED_BLOCK,
    bitsandbytes,
    is_repacked,
    keep_slow_path_where_needed,
    mark_quantized,
)
from keystone.quantize.weight_only import weight_only_class
from manifests import Recipe

Parts = Mapping[str, Tensor]

LARGEST_HALF = 65504.0
SLICE = 1 << 16
"""Weights quantized at a time. Scratch of megabytes would teach glibc to keep freed megabytes for the whole process."""


def quantize(model: nn.Module, recipe: Recipe) -> None:
    """Replace the weights of the recipe's modules, in place, before any adapter is attached and any forward is run.

    Args:
        model: on the device it will run on.
        recipe: what `recipe_for` gave, or a manifest's own.

    Raises:
        RefusedError: a listed module is no linear module of this model, or cannot be held so.
    """
    for name in recipe.modules:
        linear = linear_module(model, name)
        parts = quantize_weight(linear.weight.data.cpu(), recipe, name=name)
        replace_module(model, name, module_from_parts(linear, parts, recipe, device=linear.weight.device))
    mark_quantized(model, recipe.quantization)


def part_shapes(rows: int, columns: int, recipe: Recipe) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """The parts of a weight of so many outputs and inputs: dtype and shape of each."""
    if recipe.quantization == "int8":
        return {"weight": (torch.int8, (rows, columns)), "SCB": (torch.float32, (rows,))}
    blocks = -(-rows * columns // BLOCK)
    shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        "weight": (torch.uint8, (-(-rows * columns // 2), 1)),
        "quant_map": (torch.float32, (16,)),
    }
    if not recipe.double_quant:
        return {**shapes, "absmax": (torch.float32, (blocks,))}
    return {
        **shapes,
        "absmax": (torch.uint8, (blocks,)),
        "nested_absmax": (torch.float32, (-(-blocks // NESTED_BLOCK),)),
        "nested_quant_map": (torch.float32, (256,)),
        "nested_offset": (torch.float32, ()),
    }


def check_parts(linear: nn.Linear, parts: Parts, recipe: Recipe, *, name: str) -> None:
    """Refuse parts of another shape before native code reads past their end.

    Raises:
        CheckpointError: naming the module and what is wrong.
    """
    wanted = part_shapes(linear.out_features, linear.in_features, recipe)
    if wanted.keys() != parts.keys():
        raise CheckpointError(f"{name} is stored as {sorted(parts)}, and {recipe.quantization} needs {sorted(wanted)}")
    for part, (dtype, shape) in wanted.items():
        tensor = parts[part]
        if tensor.dtype != dtype or tuple(tensor.shape) != shape:
            raise CheckpointError(
                f"{name}.{part} is {tensor.dtype} {list(tensor.shape)}, and should be {dtype} {list(shape)}"
            )


def linear_module(model: nn.Module, name: str) -> nn.Linear:
    """The linear module that a recipe lists.

    Raises:
        RefusedError: there is none of that name, or it is no plain linear module.
    """
    try:
        linear = model.get_submodule(name)
    except AttributeError as error:
        raise RefusedError(f"the recipe quantizes {name}, which this model does not have") from error
    if type(linear) is not nn.Linear:
        raise RefusedError(f"the recipe quantizes {name}, which is a {type(linear).__name__}, not a linear module")
    return linear


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module where another one was."""
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, module)


def quantize_weight(weight: Tensor, recipe: Recipe, *, name: str = "a weight") -> dict[str, Tensor]:
    """The parts of one weight, on the CPU.

    Args:
        weight: on the CPU, `[outputs, inputs]`; cast to the recipe's dtype first.
        recipe: int8 or nf4.
        name: the module, for messages.

    Raises:
        RefusedError: a value has no place in the scheme.
    """
    weight = weight.to(getattr(torch, recipe.dtype))
    if recipe.quantization == "int8":
        return _int8_parts(weight, name)
    return _nf4_parts(weight, double=bool(recipe.double_quant))


def _slices(weight: Tensor) -> Iterator[Tensor]:
    # Whole blocks in every slice but the last, wherever rows end.
    rows = max(1, SLICE // max(1, weight.shape[1]))
    rows = rows if weight.shape[1] % BLOCK == 0 else -(-rows // BLOCK) * BLOCK
    yield from weight.split(rows)


def _int8_parts(weight: Tensor, name: str) -> dict[str, Tensor]:
    quantized = torch.empty(weight.shape, dtype=torch.int8)
    scales = torch.empty(weight.shape[0], dtype=torch.float32)
    done = 0
    for part in _slices(weight):
        # The way to int8 leads through float16. Said so that a NaN is caught, too.
        if not bool(part.abs().max() <= LARGEST_HALF):
            raise RefusedError(f"{name} holds a value beyond {LARGEST_HALF:g}, the largest that int8 can be made from")
        rows = slice(done, done + part.shape[0])
        quantized[rows], scales[rows], _ = bitsandbytes().int8_vectorwise_quant(part.to(torch.float16))
        done += part.shape[0]
    return {"weight": quantized, "SCB": scales}


def _nf4_parts(weight: Tensor, *, double: bool) -> dict[str, Tensor]:
    functional = bitsandbytes()
    packed = torch.empty(-(-weight.numel() // 2), 1, dtype=torch.uint8)
    absmax = torch.empty(-(-weight.numel() // BLOCK), dtype=torch.float32)
    bytes_done = blocks_done = 0
    for part in _slices(weight):
        piece, state = functional.quantize_4bit(
            part, blocksize=BLOCK, compress_statistics=False, quant_type="nf4", quant_storage=torch.uint8
        )
        packed[bytes_done : bytes_done + piece.shape[0]] = piece
        absmax[blocks_done : blocks_done + state.absmax.shape[0]] = state.absmax
        bytes_done, blocks_done = bytes_done + piece.shape[0], blocks_done + state.absmax.shape[0]
    parts = {"weight": packed, "quant_map": functional.get_4bit_type("nf4", device="cpu")}
    if not double:
        return {**parts, "absmax": absmax}
    offset = absmax.mean()
    codes, nested = functional.quantize_blockwise(absmax - offset, blocksize=NESTED_BLOCK)
    return {
        **parts,
        "absmax": codes,
        "nested_absmax": nested.absmax,
        "nested_quant_map": nested.code,
        "nested_offset": offset,
    }


def module_from_parts(linear: nn.Linear, parts: Parts, recipe: Recipe, *, device: torch.device) -> nn.Module:
    """A module that computes with a quantized weight.

    Args:
        linear: what it takes the place of, for its shape and its bias; its weight may be on the meta device.
        parts: what `quantize_weight` gave, or a derived blob holds; kept, not copied, where the device is the CPU.
        recipe: which scheme.
        device: where it will run.
    """
    layers = bitsandbytes("nn")
    held = {part: tensor.to(device) for part, tensor in parts.items()}
    shape = (linear.in_features, linear.out_features, linear.bias is not None)
    made: Any
    if recipe.quantization == "int8":
        kind = layers.Linear8bitLt if recipe.compute_dtype is None else weight_only_class()
        made = kind(*shape, has_fp16_weights=False, device="meta")
        if recipe.compute_dtype is not None:
            made.compute_dtype = getattr(torch, recipe.compute_dtype)
        weight = held["weight"]
        made.weight = layers.Int8Params(weight, requires_grad=False, has_fp16_weights=False, CB=weight, SCB=held["SCB"])
    else:
        compute_dtype = getattr(torch, str(recipe.compute_dtype))
        made = layers.Linear4bit(
            *shape,
            compute_dtype=compute_dtype,
            compress_statistics=bool(recipe.double_quant),
            quant_type="nf4",
            device="meta",
        )
        made.weight = layers.Params4bit(
            held["weight"],
            requires_grad=False,
            quant_state=_quant_state(linear, held, recipe),
            blocksize=BLOCK,
            compress_statistics=bool(recipe.double_quant),
            quant_type="nf4",
            quant_storage=torch.uint8,
            module=made,
            bnb_quantized=True,
        )
        made.quant_state = made.weight.quant_state
        keep_slow_path_where_needed(made, compute_dtype)
    made.bias = linear.bias
    return made.eval()  # type: ignore[no-any-return]


def _quant_state(linear: nn.Linear, parts: Parts, recipe: Recipe) -> Any:
    functional = bitsandbytes()
    nested = None
    if recipe.double_quant:
        nested = functional.QuantState(
            absmax=parts["nested_absmax"],
            code=parts["nested_quant_map"],
            blocksize=NESTED_BLOCK,
            dtype=torch.float32,
        )
    return functional.QuantState(
        absmax=parts["absmax"],
        shape=torch.Size((linear.out_features, linear.in_features)),
        code=parts["quant_map"],
        blocksize=BLOCK,
        quant_type="nf4",
        dtype=getattr(torch, recipe.dtype),
        offset=parts.get("nested_offset"),
        state2=nested,
    )


def parts_of(module: nn.Module, *, name: str = "a module") -> dict[str, Tensor] | None:
    """The parts of a quantized module as it stands in memory; None for any other module.

    Raises:
        RefusedError: its weight was repacked by a forward on the CPU: the scales it was made with are gone.
    """
    weight: Any = getattr(module, "weight", None)
    kind = type(weight).__name__
    if kind == "Int8Params":
        state: Any = getattr(module, "state", None)
        # The first forward moves the scales from the weight to the module.
        scales = weight.SCB if weight.SCB is not None else state.SCB
        drifted = module.drifted() if isinstance(module, weight_only_class()) else None
        return {"weight": weight.data, "SCB": scales} | ({} if drifted is None else {"scales": drifted})
    if kind != "Params4bit":
        return None
    if is_repacked(module):
        raise RefusedError(f"{name} was repacked for the CPU by a forward pass; its own scales are gone: load it again")
    held = weight.quant_state
    parts = {"weight": weight.data, "quant_map": held.code, "absmax": held.absmax}
    if held.nested:
        nested = held.state2
        parts |= {
            "nested_absmax": nested.absmax,
            "nested_quant_map": nested.code,
            "nested_offset": held.offset,
        }
    return parts


def weight_bytes(model: nn.Module) -> int:
    """Bytes that parameters and buffers hold, quantization state included, each storage once."""
    storages: dict[int, int] = {}
    for tensor in [*model.parameters(), *model.buffers(), *_quantization_state(model)]:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _quantization_state(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        weight: Any = getattr(module, "weight", None)
        state: Any = getattr(weight, "quant_state", None)
        if state is not None:
            nested = getattr(state, "state2", None)
            yield from (value for value in (state.absmax, nested.absmax if nested else None) if value is not None)
        for name in ("CB", "SCB"):
            for holder in (weight, getattr(module, "state", None)):
                value = getattr(holder, name, None)
                if isinstance(value, Tensor):
                    yield value
