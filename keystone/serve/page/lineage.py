"""The graph that the page draws: bases, the adapters made on them, and the manifests that refs point at.

An edge says what something was made from: an adapter from its base or from the adapter it was trained on, a merged one
from its parents, a manifest from what it wears. Columns are distances from the base, so every edge leads to the right.
"""

from __future__ import annotations

from collections.abc import Mapping

from csf_store import CsfError, Digest
from keystone.combining.records import AdapterMerge, merges
from manifests import AdapterRecord, AdapterUse, JsonObject, LineageStep, Manifest, ManifestError, Repository

MOST_NODES = 120
"""What fits a screen; a larger graph says that it was cut."""


def lineage_graph(repository: Repository) -> JsonObject:
    """Nodes and edges over everything that a ref points at or pointed at, newest targets first."""
    refs = repository.refs
    names: dict[Digest, list[str]] = {}
    targets: dict[Digest, None] = {}
    for name in refs.names():
        history = refs.history(name)
        if history[-1].target is not None:
            names.setdefault(history[-1].target, []).append(name)
        targets |= {event.target: None for event in reversed(history) if event.target is not None}
    drawing = _Drawing(repository, {record.adapter: record for record in merges(repository)})
    ordered = sorted(targets, key=lambda digest: digest not in names)
    for digest in ordered:
        if len(drawing.nodes) >= MOST_NODES:
            break
        try:
            drawing.add(digest, repository.load(digest), names.get(digest, []))
        except (CsfError, ManifestError) as error:
            drawing.broken(digest, str(error), names.get(digest, []))
    return {
        "nodes": list(drawing.nodes.values()),
        "edges": [{"from": str(start), "to": str(end), "kind": kind} for start, end, kind in drawing.edges],
        "cut": len(ordered) - drawing.drawn,
    }


class _Drawing:
    def __init__(self, repository: Repository, merged: Mapping[Digest, AdapterMerge]) -> None:
        self._repository = repository
        self.nodes: dict[Digest, JsonObject] = {}
        self.edges: dict[tuple[Digest, Digest, str], None] = {}
        self.drawn = 0
        self._merged = merged
        self._columns: dict[Digest, int] = {}

    def add(self, digest: Digest, manifest: Manifest, names: list[str]) -> None:
        base = manifest.assembly.base
        self._node(base, "base", manifest.source.location, column=0)
        steps = {step.adapter: step for step in manifest.lineage}
        for adapter in sorted(steps):
            self._adapter(adapter, base, steps)
        uses = manifest.assembly.adapters
        above = [use.adapter for use in uses] or [base]
        column = 1 + max(self._columns[each] for each in above)
        worn = " + ".join(map(_worn, uses)) or "bare base"
        self._node(digest, "manifest", worn, column=column)
        self.nodes[digest] = {**self.nodes[digest], "refs": sorted(names), "tripwire": manifest.tripwire.status}
        for each in above:
            self.edges[each, digest, "worn"] = None
        self.drawn += 1

    def broken(self, digest: Digest, problem: str, names: list[str]) -> None:
        self._node(digest, "manifest", "cannot be read", column=1)
        self.nodes[digest] = {**self.nodes[digest], "refs": sorted(names), "problem": problem}
        self.drawn += 1

    def _adapter(self, adapter: Digest, base: Digest, steps: Mapping[Digest, LineageStep]) -> int:
        """Draw an adapter behind what it was made from, and return its column."""
        if adapter in self._columns:
            return self._columns[adapter]
        self._columns[adapter] = 1  # a record that calls an adapter its own ancestor must not lead us round
        merge, record = self._merged.get(adapter), self._record(adapter, steps)
        parent = record.parent if record is not None else None
        if merge is not None:
            above, kind = [use.adapter for use in merge.parents], "merged"
        else:
            above, kind = [base if parent is None else parent], "trained"
        column = 1 + max(0 if each == base else self._adapter(each, base, steps) for each in above)
        what = "merge" if merge is not None else "LoRA"
        self._node(adapter, "adapter", f"{what}, rank {record.rank}" if record else "no record", column=column)
        for each in above:
            self.edges[each, adapter, kind] = None
        return column

    def _record(self, adapter: Digest, steps: Mapping[Digest, LineageStep]) -> AdapterRecord | None:
        """Its record as the manifest names it; a merge's parents are in no lineage, and have to be looked for."""
        step = steps.get(adapter)
        if step is not None:
            return self._repository.load_record(step.record, AdapterRecord)
        return self._repository.adapter_record(adapter)

    def _node(self, digest: Digest, kind: str, text: str, *, column: int) -> None:
        self._columns[digest] = column
        self.nodes.setdefault(
            digest, {"digest": str(digest), "kind": kind, "text": text, "column": column, "refs": [], "problem": None}
        )


def _worn(use: AdapterUse) -> str:
    name = use.adapter.hex[:6]
    return f"wears {name}" if use.weight == 1 else f"{use.weight:g} of {name}"
