"""Does this adapter fit this base? Answered from headers alone, before a weight is read or a model is built.

PEFT answers late and softly: a tensor without a target is a warning, a target without a tensor starts from noise. Here
both are errors, and so is every shape that does not follow from the base's shape and the rank, each with the tensor's
name and both shapes. An adapter for another base of the same architecture but other sizes fails here; one for another
base of equal shapes cannot be told apart by shapes, which is what adapter records are for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from adapters.errors import AdapterError, AdapterFitError, InvalidAdapterError, MissingTensorError, ShapeMismatchError
from adapters.peft_config import parse_config
from adapters.peft_format import CONFIG_FILE, PREFIX, WEIGHTS_FILE, AdapterTensors, TensorShape, sort_tensors
from csf_store import Archive, Digest

_SUFFIX = ".weight"


def check_fits(adapter: AdapterTensors, base: Mapping[str, TensorShape]) -> None:
    """Prove that every tensor of an adapter has its place in a base, and every place its tensor.

    Args:
        adapter: as `read_adapter` gives it.
        base: every tensor of the base, by checkpoint name.

    Raises:
        MissingTensorError: a module the base does not have, or one the configuration adapts and the adapter does not.
        ShapeMismatchError: a shape that does not follow from the base; both shapes are named.
    """
    for error in fit_errors(adapter, base):
        raise error


def fit_errors(adapter: AdapterTensors, base: Mapping[str, TensorShape]) -> Iterator[AdapterFitError]:
    """Everything that `check_fits` would complain about, each as the error it would raise."""
    for module, parts in adapter.modules.items():
        weight = base.get(module + _SUFFIX)
        if weight is None:
            yield MissingTensorError(f"the adapter changes {module}, and the base has no tensor {module}{_SUFFIX}")
            continue
        if len(weight.shape) != 2:
            yield ShapeMismatchError(
                f"the adapter changes module {module}, whose tensor in the base has shape {list(weight.shape)}; a"
                " low-rank pair needs a matrix"
            )
            continue
        for part, expected in _expected_shapes(adapter, module, weight.shape[0], weight.shape[1]).items():
            found = parts.get(part)
            if found is not None and found.shape != expected:
                yield ShapeMismatchError(
                    f"tensor {PREFIX}{module}.{part} has shape {list(found.shape)}; rank"
                    f" {adapter.settings.rank_of(module)} on a base tensor of {list(weight.shape)} needs"
                    f" {list(expected)}"
                )
    yield from _replaced_errors(adapter, base)
    yield from _incomplete_errors(adapter, base)


def _expected_shapes(adapter: AdapterTensors, module: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    rank = adapter.settings.rank_of(module)
    out, into = (columns, rows) if adapter.settings.fan_in_fan_out else (rows, columns)
    return {
        "lora_A.weight": (rank, into),
        "lora_B.weight": (out, rank),
        "lora_B.bias": (out,),
        "lora_embedding_A": (rank, rows),
        "lora_embedding_B": (columns, rank),
        "lora_magnitude_vector": (columns if "lora_embedding_A" in adapter.modules[module] else out,),
    }


def _replaced_errors(adapter: AdapterTensors, base: Mapping[str, TensorShape]) -> Iterator[AdapterFitError]:
    for name, tensor in adapter.replaced.items():
        known = base.get(name)
        if known is None:
            yield MissingTensorError(f"the adapter replaces tensor {name}, which the base does not have")
        elif known.shape != tensor.shape:
            yield ShapeMismatchError(
                f"tensor {PREFIX}{name} has shape {list(tensor.shape)}; the base tensor it replaces has"
                f" {list(known.shape)}"
            )


def _incomplete_errors(adapter: AdapterTensors, base: Mapping[str, TensorShape]) -> Iterator[AdapterFitError]:
    for name in sorted(base):
        module = name.removesuffix(_SUFFIX)
        if module == name or len(base[name].shape) != 2 or module in adapter.modules:
            continue
        if adapter.settings.targets(module):
            yield MissingTensorError(
                f"the configuration adapts module {module}, and the adapter has no pair for it; PEFT would start it"
                " from noise"
            )
    for name in adapter.settings.modules_to_save:
        if not any(f".{name}." in f".{tensor}" for tensor in adapter.replaced):
            yield MissingTensorError(f"modules_to_save names {name}, and the adapter has no tensor for it")


def archived_shapes(archive: Archive, tree: Digest) -> dict[str, TensorShape]:
    """Every tensor of a tree's safetensors files, by name, from the archived headers.

    Raises:
        InvalidAdapterError: when two files of the tree hold a tensor of one name.
    """
    found: dict[str, TensorShape] = {}
    for entry in archive.tree(tree).entries:
        if not entry.path.endswith(".safetensors"):
            continue
        for name, info in archive.tensors(entry.blob).items():
            if name in found:
                raise InvalidAdapterError(f"tree {tree} holds tensor {name!r} in two files, the second is {entry.path}")
            found[name] = TensorShape(dtype=info.dtype, shape=tuple(info.shape))
    return found


def archived_adapter(archive: Archive, tree: Digest) -> AdapterTensors:
    """An adapter tree of the archive, read and validated like a directory.

    Raises:
        InvalidAdapterError: when the tree is not an adapter.
    """
    blobs = {entry.path: entry.blob for entry in archive.tree(tree).entries}
    for path in (CONFIG_FILE, WEIGHTS_FILE):
        if path not in blobs:
            raise InvalidAdapterError(f"tree {tree} holds no {path}; it is not a PEFT LoRA adapter")
    settings = parse_config(archive.get_bytes(blobs[CONFIG_FILE]), where=f"{tree}/{CONFIG_FILE}")
    tensors = archive.tensors(blobs[WEIGHTS_FILE])
    return sort_tensors(settings, {n: TensorShape(i.dtype, tuple(i.shape)) for n, i in tensors.items()})


def check_fit(archive: Archive, adapter: Digest, base: Digest) -> None:
    """`check_fits` for two trees of an archive.

    Raises:
        AdapterFitError: naming the adapter, the base and the tensor.
        InvalidAdapterError: when the tree is not an adapter.
    """
    try:
        check_fits(archived_adapter(archive, adapter), archived_shapes(archive, base))
    except AdapterFitError as error:
        raise type(error)(f"adapter {adapter} does not fit base {base}: {error}") from error


def fit_problem(archive: Archive, adapter: Digest, base: Digest) -> str | None:
    """`check_fit` as a sentence or None: the form `manifests.audit` takes, which knows no error of this floor."""
    try:
        check_fit(archive, adapter, base)
    except AdapterError as error:
        return str(error)
    return None
