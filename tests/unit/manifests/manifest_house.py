"""A small archive and the documents that the tests put into it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from csf_store import Archive, Digest, Kind, TreeEntry
from manifests import (
    AdapterRecord,
    AdapterUse,
    Assembly,
    EvalReport,
    EvalSummary,
    Interval,
    Manifest,
    PublicKey,
    Recipe,
    Repository,
    Score,
    SigningKey,
    Source,
    Tripwire,
    TripwireMeasure,
    TripwirePolicy,
    TripwireReport,
    TripwireRule,
    approval_statement,
    draft_approval,
    judge_tripwire,
    put_envelope,
    seal,
)

RECIPE = Recipe(dtype="bfloat16")
SUITE = Digest.of(b"suite")
POLICY = TripwirePolicy(
    name="weekly",
    rules=(TripwireRule(suite="basics", suite_digest=SUITE, metric="pass@1", better="higher", limit=0.5),),
)
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

    def measured(self, manifest: Manifest, passed: int = 3, n: int = 4) -> tuple[Manifest, Digest]:
        """The same with an eval report that its items support; and the report."""
        lines = [
            f'{{"family":"f","name":"task {i}","verdict":"{"passed" if i < passed else "failed"}"}}' for i in range(n)
        ]
        items = self.archive.put_bytes("".join(f"{line}\n" for line in lines).encode()).digest
        low, high = wilson(passed, n)
        score = Score(
            suite="basics",
            suite_digest=SUITE,
            metric="pass@1",
            n=n,
            passed=passed,
            score=passed / n,
            interval=Interval(low=low, high=high, level=0.95, method="wilson"),
        )
        report = EvalReport(assembly=manifest.assembly.digest, recipe=RECIPE.digest, result=score, items=items)
        digest = self.repository.put_record(report)
        summary = EvalSummary(**dict(score), report=digest, recipe=RECIPE.digest)
        return manifest.revised(evals=(*manifest.evals, summary), recipe=RECIPE), digest

    def wired(self, manifest: Manifest, passed: int = 3, n: int = 4) -> Manifest:
        """The same, measured and with a tripwire report over that measurement."""
        policy = self.repository.put_record(POLICY)
        began = str(self.archive.ledger.checkpoint())
        measured, report = self.measured(manifest, passed, n)
        measure = TripwireMeasure(suite="basics", suite_digest=SUITE, metric="pass@1", value=passed / n, report=report)
        tripped = tuple(judge_tripwire(POLICY, [measure]))
        wire = TripwireReport(
            assembly=manifest.assembly.digest,
            recipe=RECIPE.digest,
            policy=policy,
            began=began,
            measures=(measure,),
            tripped=tripped,
            status="tripped" if tripped else "clear",
        )
        found = self.repository.put_record(wire)
        return measured.revised(tripwire=Tripwire(status=wire.status, report=found, recipe=RECIPE.digest))

    def approve(self, ref: str, target: Digest, key: SigningKey, /, **changes: object) -> Digest:
        """An approval of a promotion, signed and put; the envelope."""
        refs = self.repository.refs
        approval = draft_approval(self.archive, ref, self.repository.load(target), incumbent=refs.find(ref))
        return put_envelope(self.archive, seal(approval_statement(approval.revised(**changes)), key))


def wilson(passed: int, n: int) -> tuple[float, float]:
    """The 95 % Wilson score interval, by its textbook formula."""
    z, share = 1.959963984540054, passed / n
    centre, spread = share + z * z / (2 * n), z * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return max(0.0, (centre - spread) / (1 + z * z / n)), min(1.0, (centre + spread) / (1 + z * z / n))


def signer(name: str = "alice") -> SigningKey:
    """A key that is the same in every run."""
    private = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())
    return SigningKey(PublicKey(name, private.public_key().public_bytes_raw()), private)


def put_tree(archive: Archive, files: dict[str, bytes]) -> Digest:
    entries = []
    for name, data in files.items():
        stored = archive.put_bytes(data, kind=Kind.BLOB)
        entries.append(TreeEntry(name, stored.digest, len(data), False))
    return archive.put_tree_entries(entries).digest
