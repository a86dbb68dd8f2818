"""A small archive and the documents that the tests put into it."""

from __future__ import annotations

from dataclasses import dataclass

from csf_store import Archive, Digest, Kind, TreeEntry
from manifests import AdapterRecord, AdapterUse, Assembly, Manifest, Repository, Source

SOURCE = Source(kind="embedded", location="keystone-nano 0.1", licence="Apache-2.0")


@dataclass
class House:
    """An archive with a base and a tokenizer in it, and short ways to add more."""

    repository: Repository
    base: Digest
    tokenizer: Digest

    @property
    def archive(self) -> Archive:
        return self.repository.archive

    def tree(self, **files: bytes) -> Digest:
        return put_tree(self.archive, files)

    def adapter(self, tag: str, *, base: Digest | None = None, parent: Digest | None = None) -> Digest:
        """An adapter tree with a record that claims a base for it."""
        tree = self.tree(adapter_config=tag.encode())
        self.repository.put_adapter_record(self.record(tree, base=base, parent=parent))
        return tree

    def record(self, adapter: Digest, *, base: Digest | None = None, parent: Digest | None = None) -> AdapterRecord:
        return AdapterRecord(
            adapter=adapter, base=base or self.base, parent=parent, rank=4, alpha=8.0, targets=("q_proj",), claim=True
        )

    def manifest(self, *adapters: Digest, base: Digest | None = None, **labels: str) -> Manifest:
        base = base or self.base
        return Manifest(
            assembly=Assembly(
                base=base, tokenizer=self.tokenizer, adapters=tuple(AdapterUse(adapter=a) for a in adapters)
            ),
            source=SOURCE,
            lineage=self.repository.trace(adapters, base=base),
            labels=labels,
        )

    def put(self, *adapters: Digest, base: Digest | None = None, **labels: str) -> Digest:
        return self.repository.put(self.manifest(*adapters, base=base, **labels))


def put_tree(archive: Archive, files: dict[str, bytes]) -> Digest:
    entries = []
    for name, data in files.items():
        stored = archive.put_bytes(data, kind=Kind.BLOB)
        entries.append(TreeEntry(name, stored.digest, len(data), False))
    return archive.put_tree_entries(entries).digest
