"""An adapter directory into the archive, byte for byte, with a record of the base it belongs to.

Everything is checked before the first byte is written: no pickle, well formed, a fit for the base by names, shapes and
ranks, no record that says otherwise, and, where a training record is given, that it speaks of these tensors and this
base. Then the tree goes in unchanged (`csf get` gives the same directory back), then the record.
"""

from __future__ import annotations

from pathlib import Path

from adapters.errors import InvalidAdapterError, TrainingRefusedError
from adapters.fit import archived_adapter, archived_shapes, check_fits
from adapters.frozen import tensor_entry
from adapters.peft_format import WEIGHTS_FILE, read_adapter
from csf_store import Digest, Kind
from manifests import (
    AdapterRecord,
    MissingLinkError,
    Repository,
    TrainingRecord,
    tensor_set_digest,
)


def add_adapter(
    repository: Repository,
    directory: Path,
    *,
    base: Digest,
    parent: Digest | None = None,
    training: TrainingRecord | None = None,
) -> tuple[Digest, AdapterRecord]:
    """Store a PEFT LoRA directory and what is said of it.

    Args:
        repository: where to.
        directory: `adapter_config.json`, `adapter_model.safetensors`, and whatever else travels along.
        base: the base tree, in this archive.
        parent: the adapter tree it was trained on top of.
        training: the record of the run that made it. Without one the base is a claim, and an audit says UNKNOWN.

    Returns:
        The digest of the adapter tree, and the record that stands for it.

    Raises:
        AdapterNotFoundError, InvalidAdapterError, AdapterFitError: see `read_adapter` and `check_fits`.
        MissingLinkError: when the base or the parent is not a tree of this archive.
        TrainingRefusedError: when the training record is about another base, parent or adapter.
        BaseMismatchError: when a record of this very adapter names another base; the message names both.
    """
    archive = repository.archive
    for role, tree in (("base", base), ("parent adapter", parent)):
        if tree is not None and not archive.contains(tree, kind=Kind.TREE):
            raise MissingLinkError(f"the {role} {tree} is not a tree in {archive.path}; put it first: `csf put DIR`")
    adapter = read_adapter(directory)
    check_fits(adapter, archived_shapes(archive, base))
    if training is not None:
        _check_training(training, directory, base=base, parent=parent)
    stored = archive.put_tree(directory, base=archive.base(parent) if parent is not None else None)
    if archived_adapter(archive, stored.digest) != adapter:
        raise InvalidAdapterError(f"{directory} changed while it was being stored; nothing was recorded, add it again")
    record = AdapterRecord(
        adapter=stored.digest,
        base=base,
        parent=parent,
        rank=adapter.settings.r,
        alpha=float(adapter.settings.lora_alpha),
        targets=tuple(adapter.modules),
        training=repository.put_record(training) if training is not None else None,
        claim=training is None,
    )
    repository.put_adapter_record(record)
    return stored.digest, repository.adapter_record(stored.digest) or record


def _check_training(training: TrainingRecord, directory: Path, *, base: Digest, parent: Digest | None) -> None:
    from safetensors.torch import load_file  # noqa: PLC0415  # lazy: needs torch, and only proofs come here

    if training.base != base or training.parent != parent:
        raise TrainingRefusedError(
            f"the training record is of base {training.base} with parent {training.parent or 'none'}; the adapter is"
            f" added on base {base} with parent {parent or 'none'}"
        )
    if training.base_before != training.base_after:
        raise TrainingRefusedError(f"the training record says that base {training.base} changed during the run")
    state = load_file(directory / WEIGHTS_FILE)
    found = tensor_set_digest(tensor_entry(name, tensor) for name, tensor in state.items())
    if found != training.adapter_tensors:
        raise TrainingRefusedError(
            f"the training record made tensors {training.adapter_tensors}, {directory / WEIGHTS_FILE} holds {found}"
        )
