"""A PEFT LoRA directory, read without running anything it contains.

What is read: `adapter_config.json`, and the header of `adapter_model.safetensors`. Other files (a README, a licence)
travel along untouched. What is refused, by name, before anything is parsed: pickles, under any name, and links. Tensor
values are not looked at here; only names, dtypes and shapes decide whether an adapter is well formed.

Tensor names are `base_model.model.<module>.<part>`, where part is one of:

| part | shape | for |
|---|---|---|
| `lora_A.weight` | (rank, in) | linear modules |
| `lora_B.weight` | (out, rank) | linear modules |
| `lora_B.bias` | (out) | with `lora_bias` |
| `lora_embedding_A` | (rank, rows) | embeddings |
| `lora_embedding_B` | (dim, rank) | embeddings |
| `lora_magnitude_vector` | (out) | with `use_dora` |
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from safetensors import SafetensorError, safe_open

from adapters.errors import (
    AdapterNotFoundError,
    InvalidAdapterError,
    MissingTensorError,
    PickleAdapterError,
    SurplusTensorError,
)
from adapters.peft_config import LoraSettings, parse_config

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."

_PICKLE_SUFFIXES = frozenset({".bin", ".ckpt", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth"})
_FLOATS = frozenset({"F32", "F16", "BF16", "F64"})
_PART = re.compile(
    r"(?P<module>[A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*)\."
    r"(?P<part>lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
)
_PARTNER = {
    "lora_A.weight": "lora_B.weight",
    "lora_B.weight": "lora_A.weight",
    "lora_embedding_A": "lora_embedding_B",
    "lora_embedding_B": "lora_embedding_A",
}


@dataclass(frozen=True, slots=True)
class TensorShape:
    """A tensor as a header describes it: safetensors dtype code and shape."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AdapterTensors:
    """The tensors of one adapter, sorted into what they are.

    Attributes:
        settings: the configuration they belong to.
        modules: adapted module -> part -> tensor; see the table above.
        replaced: tensors that stand in for a base tensor of the same name (`modules_to_save`, trained biases).
    """

    settings: LoraSettings
    modules: Mapping[str, Mapping[str, TensorShape]]
    replaced: Mapping[str, TensorShape]


def read_adapter(directory: Path) -> AdapterTensors:
    """Read and validate a PEFT LoRA directory.

    Raises:
        AdapterNotFoundError: when the directory or one of the two files is missing.
        PickleAdapterError: when any file in it is a pickle, by name or by its first bytes.
        UnsupportedAdapterError: for another PEFT method or an unchecked feature.
        InvalidAdapterError: for malformed JSON, safetensors, names or dtypes, for links, and for a second weights file.
        MissingTensorError, SurplusTensorError: see `sort_tensors`.
    """
    if not directory.is_dir():
        raise AdapterNotFoundError(f"no adapter directory at {directory}")
    check_files(directory)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (directory / name).is_file():
            raise AdapterNotFoundError(f"{directory} has no {name}; a PEFT LoRA directory holds it")
    settings = parse_config((directory / CONFIG_FILE).read_bytes(), where=str(directory / CONFIG_FILE))
    return sort_tensors(settings, read_header(directory / WEIGHTS_FILE))


def check_files(directory: Path) -> None:
    """Refuse links, pickles under any name, and a second file of weights.

    Raises:
        PickleAdapterError: naming the pickle.
        InvalidAdapterError: naming the link or the surplus weights.
    """
    for path in sorted(directory.rglob("*")):
        if path.is_symlink():
            raise InvalidAdapterError(f"{path} is a link; an adapter directory holds plain files")
        if path.is_dir():
            continue
        if not path.is_file():
            raise InvalidAdapterError(f"{path} is not a plain file")
        if path.suffix.lower() in _PICKLE_SUFFIXES or _looks_like_pickle(path):
            raise PickleAdapterError(
                f"{path} is a pickle or may hold one, and reading it could run code; save the adapter as {WEIGHTS_FILE}"
                " (PEFT: save_pretrained(..., safe_serialization=True)) and remove this file"
            )
        if path.suffix == ".safetensors" and path != directory / WEIGHTS_FILE:
            raise InvalidAdapterError(f"{path} is a second file of weights; an adapter has one, {WEIGHTS_FILE}")


def _looks_like_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(4)
    # Pickle protocols 2 to 5 start with 0x80 and the protocol; torch.save writes a zip with a pickle inside.
    return (head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")) or head == b"PK\x03\x04"


def read_header(path: Path) -> dict[str, TensorShape]:
    """Names, dtypes and shapes of a safetensors file; no tensor is read.

    Raises:
        InvalidAdapterError: when the file is truncated or malformed.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            found = {}
            for name in file.keys():  # noqa: SIM118  # not a mapping
                part = file.get_slice(name)
                found[name] = TensorShape(dtype=part.get_dtype(), shape=tuple(part.get_shape()))
            return found
    except SafetensorError as error:
        raise InvalidAdapterError(f"{path} is not a readable safetensors file: {error}") from error


def sort_tensors(settings: LoraSettings, tensors: Mapping[str, TensorShape]) -> AdapterTensors:
    """Tell what each tensor is, from its name and the configuration alone.

    Raises:
        InvalidAdapterError: for a name outside the scheme or a dtype that is not a float.
        SurplusTensorError: for a tensor the configuration does not explain.
        MissingTensorError: for half a pair.
    """
    modules: dict[str, dict[str, TensorShape]] = {}
    replaced: dict[str, TensorShape] = {}
    for name in sorted(tensors):
        tensor = tensors[name]
        if not name.startswith(PREFIX):
            raise InvalidAdapterError(f"tensor {name[:200]!r} is not named {PREFIX}<module>.<part> as PEFT names it")
        if tensor.dtype not in _FLOATS:
            raise InvalidAdapterError(f"tensor {name!r} has dtype {tensor.dtype}; adapter tensors are floats")
        rest = name.removeprefix(PREFIX)
        if match := _PART.fullmatch(rest):
            module, part = match["module"], match["part"]
            _check_expected(settings, name, module, part)
            modules.setdefault(module, {})[part] = tensor
        elif _replaces(settings, rest):
            replaced[rest] = tensor
        else:
            raise SurplusTensorError(
                f"tensor {name!r} is no part of a low-rank pair, and the configuration gives no reason"
            )
    for module, parts in modules.items():
        _check_pairs(settings, module, parts)
    if not modules:
        raise MissingTensorError("the adapter holds no low-rank pair at all")
    return AdapterTensors(settings, MappingProxyType(modules), MappingProxyType(replaced))


def _check_expected(settings: LoraSettings, name: str, module: str, part: str) -> None:
    if not settings.targets(module):
        listed = ", ".join(settings.target_modules)
        raise SurplusTensorError(f"tensor {name!r} adapts a module that target_modules does not name ({listed})")
    if part == "lora_B.bias" and not settings.lora_bias:
        raise SurplusTensorError(f"tensor {name!r} needs lora_bias, which is off")
    if part == "lora_magnitude_vector" and not settings.use_dora:
        raise SurplusTensorError(f"tensor {name!r} needs use_dora, which is off")


def _check_pairs(settings: LoraSettings, module: str, parts: Mapping[str, TensorShape]) -> None:
    for part in parts:
        partner = _PARTNER.get(part)
        if partner is not None and partner not in parts:
            raise MissingTensorError(f"tensor {PREFIX + module}.{part} is there without its other half, {partner}")
    linear, embedding = "lora_A.weight" in parts, "lora_embedding_A" in parts
    if linear == embedding:
        what = "both a linear and an embedding pair" if linear else "no low-rank pair"
        raise SurplusTensorError(f"module {module} has {what}: {', '.join(sorted(parts))}")
    if settings.use_dora and "lora_magnitude_vector" not in parts:
        raise MissingTensorError(f"tensor {PREFIX + module}.lora_magnitude_vector is missing, and use_dora is on")
    if settings.lora_bias and linear and "lora_B.bias" not in parts:
        raise MissingTensorError(f"tensor {PREFIX + module}.lora_B.bias is missing, and lora_bias is on")


def _replaces(settings: LoraSettings, name: str) -> bool:
    module, _, last = name.rpartition(".")
    if last == "bias" and (settings.bias == "all" or (settings.bias == "lora_only" and settings.targets(module))):
        return True
    return settings.saves(module)
