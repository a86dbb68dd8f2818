"""From the archive to a model whose numbers are held as a recipe says, with as little memory as that takes.

Three ways lead there. Without quantization every tensor is decoded in place. With it, a derived blob is looked for
first, and its tensors become the model as they are. Where there is none, the base is streamed one tensor at a time,
each quantized and let go before the next is read, so that a 15 GB base never has to be in memory to get its 5 GB form;
the result is then kept as a derived blob, if the archive can be written.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from csf_store import Archive, CsfError, Digest, give_back
from keystone.checkpoints import BaseCheckpoint, assign, blank_model, finish_model, proven_tensors
from keystone.errors import CheckpointError
from keystone.model import KeystoneForCausalLM
from keystone.quantize.bitsandbytes_guards import give_back_what_repacking_frees, mark_quantized
from keystone.quantize.derived import DerivedKey, discard_damaged, find_derived, store_derived
from keystone.quantize.layers import (
    check_parts,
    linear_module,
    module_from_parts,
    part_shapes,
    parts_of,
    quantize_weight,
    replace_module,
)
from manifests import Recipe

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Assembled:
    """A base in memory, held as a recipe says.

    Attributes:
        model: in evaluation mode.
        derived: the blob its quantized weights were read from or written to; None where there is none.
        quantized_here: whether quantizing was part of this load.
        notes: what a person should know, such as why nothing was cached.
    """

    model: KeystoneForCausalLM
    derived: Digest | None = None
    quantized_here: bool = False
    notes: tuple[str, ...] = ()


def assemble(
    archive: Archive,
    checkpoint: BaseCheckpoint,
    recipe: Recipe,
    *,
    device: torch.device,
    cache: Literal["use", "ignore"] = "use",
    progress: Progress | None = None,
) -> Assembled:
    """Build a base in the numbers of a recipe.

    Args:
        archive: where derived blobs are looked for and kept.
        checkpoint: the base.
        recipe: dtype and quantization; each listed module must be a linear one of this model.
        device: where it will run.
        cache: whether derived blobs are read and written.
        progress: told how many bytes were read.

    Raises:
        RefusedError: the recipe does not fit the model.
        CheckpointError, csf_store.CorruptError: the base is not what it should be.
    """
    model = blank_model(checkpoint.config)
    dtype: torch.dtype = getattr(torch, recipe.dtype)
    if recipe.quantization == "none":
        if device.type == "cpu" and all(tensor_dtype == dtype for tensor_dtype in checkpoint.dtypes()):
            checkpoint.fill(model, progress)
        else:
            _stream_plain(model, checkpoint, dtype, device, progress)
        return Assembled(_finished(model, checkpoint, recipe, device))
    for name in recipe.modules:
        linear_module(model, name)
    key = DerivedKey(checkpoint.digest, recipe)
    notes: tuple[str, ...] = ()
    found = find_derived(archive, key) if cache == "use" else None
    if found is not None:
        try:
            _install(model, archive, found, recipe, device=device, progress=progress)
            return Assembled(_finished(model, checkpoint, recipe, device), derived=found)
        except (CsfError, CheckpointError) as error:
            discard_damaged(archive, found)
            notes = (f"the cached {recipe.quantization} weights {found.short} are damaged, made again: {error}",)
            model = blank_model(checkpoint.config)
    kept = _quantize_streaming(model, checkpoint, recipe, device, progress)
    stored: Digest | None = None
    if cache == "use":
        try:
            stored = store_derived(archive, key, kept)
        except (CsfError, OSError) as error:
            notes += (f"the {recipe.quantization} weights were not cached: {error}",)
    del kept
    give_back()
    return Assembled(_finished(model, checkpoint, recipe, device), stored, quantized_here=True, notes=notes)


def _finished(
    model: KeystoneForCausalLM, checkpoint: BaseCheckpoint, recipe: Recipe, device: torch.device
) -> KeystoneForCausalLM:
    finish_model(model, checkpoint.generation)
    mark_quantized(model, recipe.quantization)
    give_back_what_repacking_frees(model)
    model.model.rotary_emb.to(device)
    return model


def _stream_plain(
    model: KeystoneForCausalLM,
    checkpoint: BaseCheckpoint,
    dtype: torch.dtype,
    device: torch.device,
    progress: Progress | None,
) -> None:
    """One tensor at a time, so that neither another dtype nor another device costs a second copy of the whole."""
    for name, tensor in checkpoint.stream(progress):
        assign(model, name, tensor.to(device=device, dtype=dtype))


def _quantize_streaming(
    model: KeystoneForCausalLM,
    checkpoint: BaseCheckpoint,
    recipe: Recipe,
    device: torch.device,
    progress: Progress | None,
) -> dict[str, Tensor]:
    """Fill the model; returns its tensors on the CPU, in the order of a derived blob.

    On a card they are in memory twice until they are stored: there and here, in their quantized size.
    """
    dtype: torch.dtype = getattr(torch, recipe.dtype)
    listed = set(recipe.modules)
    kept: dict[str, Tensor] = {}
    quantized: dict[str, dict[str, Tensor]] = {}
    for name, stored in checkpoint.stream(progress):
        owner, _, leaf = name.rpartition(".")
        if owner in listed and leaf == "weight":
            parts = quantize_weight(stored, recipe, name=owner)
            quantized[owner] = parts
            kept |= {f"{owner}.{part}": tensor for part, tensor in parts.items()}
        else:
            tensor = stored.to(dtype)
            kept[name] = tensor
            assign(model, name, tensor.to(device))
        del stored
    for owner, parts in quantized.items():
        replace_module(model, owner, module_from_parts(linear_module(model, owner), parts, recipe, device=device))
    return kept


def _install(
    model: KeystoneForCausalLM,
    archive: Archive,
    blob: Digest,
    recipe: Recipe,
    *,
    device: torch.device,
    progress: Progress | None,
) -> None:
    """Let the tensors of a derived blob become the model."""
    tensors = proven_tensors(archive, blob)
    if progress is not None:
        progress(archive.content_size(blob))
    dtype: torch.dtype = getattr(torch, recipe.dtype)
    wanted = dict(model.named_parameters())
    for owner in recipe.modules:
        linear = linear_module(model, owner)
        shapes = part_shapes(linear.out_features, linear.in_features, recipe)
        parts = {part: tensors.pop(f"{owner}.{part}") for part in shapes if f"{owner}.{part}" in tensors}
        check_parts(linear, parts, recipe, name=owner)
        bias = tensors.pop(f"{owner}.bias", None)
        _check_plain(f"{owner}.bias", bias, wanted.get(f"{owner}.bias"), dtype)
        if bias is not None:
            assign(model, f"{owner}.bias", bias.to(device))
        replace_module(model, owner, module_from_parts(linear_module(model, owner), parts, recipe, device=device))
        wanted.pop(f"{owner}.weight", None)
        wanted.pop(f"{owner}.bias", None)
    for name, parameter in wanted.items():
        tensor = tensors.pop(name, None)
        _check_plain(name, tensor, parameter, dtype)
        if tensor is not None:
            assign(model, name, tensor.to(device))
    if tensors:
        raise CheckpointError(f"{blob} holds {', '.join(sorted(tensors))}, which the model has no place for")


def _check_plain(name: str, tensor: Tensor | None, parameter: Tensor | None, dtype: torch.dtype) -> None:
    if tensor is None and parameter is None:
        return
    if tensor is None or parameter is None or tensor.shape != parameter.shape or tensor.dtype != dtype:
        found = "nothing" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
        raise CheckpointError(f"{name} is stored as {found}, which is not what the model needs")


def stored_form(model: nn.Module, recipe: Recipe) -> Mapping[str, Tensor]:
    """The tensors of a quantized model as a derived blob would hold them; before any forward.

    Raises:
        RefusedError: a forward has repacked a weight.
    """
    listed = set(recipe.modules)
    found: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        owner, _, leaf = name.rpartition(".")
        if owner in listed and leaf == "weight":
            parts = parts_of(model.get_submodule(owner), name=owner) or {}
            found |= {f"{owner}.{part}": tensor for part, tensor in parts.items()}
        else:
            found[name] = parameter.data
    return found
