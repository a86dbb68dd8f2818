"""The graph base -> adapter -> adapter, by digest.

An adapter is trained on a base, or on a base with one parent adapter applied. Its `AdapterRecord` says which. Records
are statements kept beside the trees, so nothing in the hashes forbids statements that contradict each other: a chain
that never reaches its base, one that comes back to itself, a child on another base than its parent. This module walks
the statements and refuses those, naming the adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

from csf_store import Digest
from manifests.errors import BaseMismatchError, LineageCycleError, MissingParentError
from manifests.evidence import AdapterRecord
from manifests.schema import LineageStep

FoundRecord: TypeAlias = tuple[Digest, AdapterRecord]
"""A record and the digest it is stored under."""

Lookup: TypeAlias = Callable[[Digest], FoundRecord | None]
"""From an adapter tree to its record, or None."""


def trace(adapters: Iterable[Digest], *, base: Digest, lookup: Lookup) -> tuple[LineageStep, ...]:
    """The steps of every adapter in use and every ancestor, sorted by adapter digest.

    Args:
        adapters: the adapter trees an assembly uses.
        base: the base tree of that assembly.
        lookup: where records are found.

    Raises:
        MissingParentError: an adapter or ancestor without a record.
        LineageCycleError: an adapter that descends from itself.
        BaseMismatchError: an adapter or ancestor recorded on another base.
    """
    steps: dict[Digest, LineageStep] = {}
    for adapter in adapters:
        path: dict[Digest, LineageStep] = {}
        child: Digest | None = None
        at: Digest | None = adapter
        while at is not None and at not in steps:
            if at in path:
                walked = list(path)
                circle = " -> ".join(digest.short for digest in [*walked[walked.index(at) :], at])
                raise LineageCycleError(f"adapter {at} is its own ancestor: {circle}")
            digest, record = _record_on(at, base=base, child=child, lookup=lookup)
            path[at] = LineageStep(adapter=at, parent=record.parent, record=digest)
            child, at = at, record.parent
        steps |= path
    return tuple(steps[adapter] for adapter in sorted(steps))


def _record_on(adapter: Digest, *, base: Digest, child: Digest | None, lookup: Lookup) -> FoundRecord:
    found = lookup(adapter)
    if found is None:
        role = f"the parent of adapter {child}, " if child is not None else ""
        raise MissingParentError(
            f"{role}adapter {adapter} has no record in this archive; add it with `keystone adapter add DIR --base"
            f" {base}`"
        )
    if found[1].base != base:
        raise BaseMismatchError(
            f"adapter {adapter} is recorded on base {found[1].base}, and is used here on base {base}; load it on its"
            " own base, or train an adapter for this one"
        )
    return found
