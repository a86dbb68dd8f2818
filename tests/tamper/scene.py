"""One copy of the victim to tamper with, the list of all ways to do so, and what many of them share.

A mutation is given a scene: a copy of the victim and a random generator, of which it draws its variant. Those on
bytes and ledger lines edit files. Those on documents go as far as an attacker with full write access would: they
write objects around the repository's rules, tell the ledger what suits them, and move a ref to the forgery. None of
them has an operator's private key or can reach the auditor's own state.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from manifest_house import House
from victim import (
    Victim,
)

from csf_store import Archive, Digest, Kind
from manifests import (
    AdapterUse,
    Assembly,
    Document,
    LineageStep,
    Manifest,
    Repository,
    Tripwire,
)


@dataclass
class Scene:
    """One copy of the victim, to be tampered with."""

    path: Path
    victim: Victim
    rng: random.Random

    def house(self, archive: Archive) -> House:
        return House(Repository(archive), self.victim.base, self.victim.tokenizer)

    @property
    def ledger(self) -> Path:
        return self.path / "ledger.jsonl"

    def forget_caches(self) -> None:
        for path in [*self.path.glob("ledger.sqlite*"), *self.path.glob("index.sqlite*")]:
            path.unlink()


Mutation = Callable[[Scene], None]

MUTATIONS: dict[str, Mutation] = {}


def mutation(function: Mutation) -> Mutation:
    MUTATIONS[function.__name__.replace("_", "-")] = function
    return function


def flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def put_forged(archive: Archive, document: Document, kind: Kind = Kind.RECORD) -> Digest:
    """Around the repository: no rule is asked."""
    links = [link for link in document.links() if archive.contains(link)]
    return archive.put_bytes(document.to_bytes(), kind=kind, links=links).digest


def install(archive: Archive, manifest: Manifest, ref: str = "main", **fields: str | bool) -> Digest:
    """Put a forged manifest, pin it, and move a ref to it."""
    digest = put_forged(archive, manifest, Kind.MANIFEST)
    archive.pin(digest, kind=Kind.MANIFEST)
    now = archive.ledger.ref(ref)[-1].target
    archive.ledger.append("ref.set", **{"ref": ref, "from": str(now), "to": str(digest), **fields})
    return digest


def second(archive: Archive, scene: Scene) -> Manifest:
    return Repository(archive).load(scene.victim.second)


def bare(manifest: Manifest) -> Manifest:
    return manifest.revised(evals=(), approvals=(), tripwire=Tripwire())


def install_adapter(scene: Scene, archive: Archive, base: Digest, adapter: Digest, record: Digest) -> None:
    plan = scene.house(archive).repository.load(scene.victim.bare)
    manifest = Manifest(
        assembly=Assembly(base=base, tokenizer=scene.victim.tokenizer, adapters=(AdapterUse(adapter=adapter),)),
        source=plan.source,
        lineage=(LineageStep(adapter=adapter, parent=None, record=record),),
    )
    install(archive, manifest)
