"""Proof that the base stayed frozen: a digest of every base tensor, before and after.

`requires_grad=False` is an intention. A tied weight, a buffer updated in a forward pass, a quantizer that repacks in
place, a merge that was never undone: each changes a base that was "frozen". So every tensor of the base, buffers
included, is hashed before an adapter is attached and again, inside the PEFT model, when training is over.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from adapters.errors import BaseChangedError, UnsupportedAdapterError
from csf_store import Digest
from manifests import TensorEntry

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

_CODES = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.float8_e4m3fn": "F8_E4M3",
    "torch.float8_e5m2": "F8_E5M2",
    "torch.int64": "I64",
    "torch.int32": "I32",
    "torch.int16": "I16",
    "torch.int8": "I8",
    "torch.uint8": "U8",
    "torch.bool": "BOOL",
}


def tensor_entry(name: str, tensor: Tensor) -> TensorEntry:
    """One tensor as a member of a tensor set: its bytes little-endian, row-major, on the CPU.

    Raises:
        UnsupportedAdapterError: for a dtype that safetensors has no code for.
    """
    import torch  # noqa: PLC0415  # lazy: `import adapters` stays light

    code = _CODES.get(str(tensor.dtype))
    if code is None:
        raise UnsupportedAdapterError(f"tensor {name} has dtype {tensor.dtype}, which has no safetensors code")
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return TensorEntry(name=name, dtype=code, shape=tuple(tensor.shape), digest=Digest.of(flat.numpy().data))


def base_entries(model: Module) -> dict[str, TensorEntry]:
    """Every parameter and persistent buffer of a plain model, or of the base inside a PEFT model, by its plain name."""
    entries: dict[str, TensorEntry] = {}
    for name, tensor in model.state_dict().items():
        plain = plain_name(name)
        if plain is not None:
            entries[plain] = tensor_entry(plain, tensor)
    return entries


def plain_name(name: str) -> str | None:
    """The base's own name of a tensor in a PEFT model; None for a tensor of the adapter.

    PEFT wraps a module `m` as `base_model.model.m` with the original inside as `base_layer`; a module that is saved as
    a whole as `original_module`, beside its trained copy in `modules_to_save`.
    """
    rest = name.removeprefix("base_model.model.")
    parts = rest.split(".")
    if rest == name:
        return name
    if any(part.startswith("lora_") or part == "modules_to_save" for part in parts):
        return None
    return ".".join(part for part in parts if part not in {"base_layer", "original_module"})


def check_unchanged(before: Mapping[str, TensorEntry], after: Mapping[str, TensorEntry]) -> None:
    """Refuse any difference between two states of one base.

    Raises:
        BaseChangedError: naming the first tensor that is missing, new, or of another digest.
    """
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if old is None or new is None:
            what = "is gone" if new is None else "was not there before"
            raise BaseChangedError(f"base tensor {name} {what} after training; the adapter is discarded")
        if old != new:
            raise BaseChangedError(
                f"base tensor {name} changed during training: {old.dtype}{list(old.shape)} {old.digest} before,"
                f" {new.dtype}{list(new.shape)} {new.digest} after; the adapter is discarded"
            )
