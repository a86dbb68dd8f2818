"""Would this adapter work on that base? Everything that says no, at once, before a weight is read or a model is built.

Names, shapes and ranks come from headers (`adapters.fit_errors`), and records say what shapes cannot: two bases of one
architecture look alike, and an adapter of one is noise on the other. What is only claimed, or only costs something, is
a note and no problem.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adapters import AdapterTensors, archived_adapter, archived_shapes, fit_errors, read_adapter
from csf_store import Digest
from keystone.combining.merging import check_merge
from keystone.combining.records import imports_of, merge_of
from keystone.errors import KeystoneError
from manifests import Repository


@dataclass(frozen=True, slots=True)
class Compatibility:
    """What a look at an adapter and a base found.

    Attributes:
        problems: why it must not be put on, one sentence each; empty when it fits.
        notes: what a person should know all the same.
        modules: how many modules it changes.
        rank: of its configuration.
    """

    problems: tuple[str, ...]
    notes: tuple[str, ...]
    modules: int
    rank: int

    @property
    def fits(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.problems


def check_archived(repository: Repository, adapter: Digest, base: Digest) -> Compatibility:
    """Look at an adapter of the archive and a base.

    Raises:
        adapters.InvalidAdapterError: the tree is no adapter at all.
        csf_store.CsfError: one of them is not there, or not what its digest says.
    """
    found = archived_adapter(repository.archive, adapter)
    problems, notes = _fit(repository, found, base)
    record = repository.adapter_record(adapter)
    if record is None:
        notes.append("no record says which base it was made for; `keystone adapter add` makes one")
    elif record.base != base:
        problems.insert(0, f"it is recorded on base {record.base}, and this is base {base}")
    elif record.claim:
        notes.append("that it was made for this base is a claim; no training record proves it")
    for imported in imports_of(repository, adapter):
        if imported.claimed_base is not None:
            notes.append(f"its configuration claims base {imported.claimed_base!r} (unverified)")
    merge = merge_of(repository, adapter)
    if merge is not None:
        problems += _merge_problems(repository, adapter)
        parents = " + ".join(f"{use.weight:g} x {use.adapter.short}" for use in merge.parents)
        notes.append(f"merged from {parents} by {merge.method}, relative error {merge.relative_error:.3g}")
    return Compatibility(tuple(problems), tuple(notes), len(found.modules), found.settings.r)


def check_directory(repository: Repository, directory: Path, base: Digest) -> Compatibility:
    """The same for a directory that is not in the archive; nothing is stored.

    Raises:
        adapters.AdapterError: the directory is no well-formed adapter.
        csf_store.CsfError: the base is not there.
    """
    found = read_adapter(directory)
    problems, notes = _fit(repository, found, base)
    return Compatibility(tuple(problems), tuple(notes), len(found.modules), found.settings.r)


def _fit(repository: Repository, found: AdapterTensors, base: Digest) -> tuple[list[str], list[str]]:
    shapes = archived_shapes(repository.archive, base)
    problems = [str(error) for error in fit_errors(found, shapes)]
    notes = []
    for module in found.modules:
        weight = shapes.get(f"{module}.weight")
        rank = found.settings.rank_of(module)
        if weight is not None and len(weight.shape) == 2 and rank > min(weight.shape):
            notes.append(f"rank {rank} on {module} is more than its matrix {list(weight.shape)} can hold")
    notes += [
        f"{name} is on: it can be worn, and neither merged nor compared"
        for name in ("use_dora", "lora_bias", "fan_in_fan_out")
        if getattr(found.settings, name)
    ]
    if found.replaced:
        notes.append(f"it replaces {len(found.replaced)} tensors of the base outright: {', '.join(found.replaced)}")
    return problems, notes


def _merge_problems(repository: Repository, adapter: Digest) -> list[str]:
    merge = merge_of(repository, adapter)
    if merge is None:
        return []
    try:
        problem = check_merge(repository, merge)
    except KeystoneError as error:
        problem = str(error)
    return [problem] if problem is not None else []
