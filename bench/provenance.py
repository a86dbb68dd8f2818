"""What questions and audits cost in an archive of many manifests, beside doing the same without what makes it fast.

    python bench/provenance.py --manifests 1000 --adapters 50

`find` is compared with parsing every manifest, and that with opening the archive anew for each; questions about the
ledger with folding it anew for each; an audit of everything with one auditor is compared
with a new auditor each time, who reads the ledger and hashes the base again. The base has real bytes (`--mebibytes`),
since hashing is what an audit is about. All in one run, on one machine; ratios are what travels.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from csf_store import Archive, Digest, Kind, TreeEntry
from manifests import (
    AdapterRecord,
    AdapterUse,
    Assembly,
    Auditor,
    AuditorState,
    Manifest,
    ManifestQuery,
    Repository,
    Source,
)
from manifests.events import LedgerEvents, events_of

SAMPLE = 20
"""Of the slow way, so many are timed."""


def put_tree(archive: Archive, name: str, data: bytes) -> Digest:
    stored = archive.put_bytes(data, kind=Kind.BLOB)
    return archive.put_tree_entries([TreeEntry(name, stored.digest, len(data), False)]).digest


def build(path: Path, manifests: int, adapters: int, mebibytes: int) -> list[Digest]:
    """An archive with one base, some adapters that claim it, and manifests that take turns with them."""
    noise = np.random.default_rng(1).bytes(mebibytes << 20)
    with Archive.create(path) as archive:
        repository = Repository(archive)
        base, tokenizer = put_tree(archive, "weights", noise), put_tree(archive, "tokenizer.json", b"{}")
        trees = [put_tree(archive, "adapter", noise[n : n + 65536]) for n in range(adapters)]
        for tree in trees:
            record = AdapterRecord(adapter=tree, base=base, rank=4, alpha=8.0, targets=("q_proj",), claim=True)
            repository.put_adapter_record(record)
        source = Source(kind="directory", location="bench", licence="Apache-2.0")
        made = []
        for number in range(manifests):
            adapter = trees[number % adapters]
            manifest = Manifest(
                assembly=Assembly(base=base, tokenizer=tokenizer, adapters=(AdapterUse(adapter=adapter),)),
                source=source,
                lineage=repository.trace([adapter], base=base),
                labels={"n": str(number)},
            )
            made.append(repository.put(manifest))
        return made


@contextmanager
def opened(path: Path) -> Iterator[Repository]:
    with Archive.open(path) as archive:
        yield Repository(archive)


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--manifests", type=int, default=1000)
    parser.add_argument("--adapters", type=int, default=50)
    parser.add_argument("--mebibytes", type=int, default=64, help="of the base")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        path, state = Path(directory) / "archive", AuditorState(Path(directory) / "state")
        made = build(path, options.manifests, options.adapters, options.mebibytes)
        some = made[:: max(1, len(made) // SAMPLE)]

        def anew(work: Callable[[Repository, Digest], object]) -> float:
            """Seconds for all, from a sample, with the archive opened for each."""

            def one_by_one() -> None:
                for digest in some:
                    with opened(path) as repository:
                        work(repository, digest)

            return timed(one_by_one) / len(some) * len(made)

        query = ManifestQuery(labels={"n": str(len(made) - 1)})
        with opened(path) as repository:
            list(repository.find(query))  # warm
            find = timed(lambda: list(repository.find(query)))
            everyone = timed(lambda: list(repository.find()))
            parse = timed(lambda: [query.fits(repository.load(digest)) for digest in repository.manifests()])
            fold = timed(lambda: LedgerEvents.of(repository.archive))
            events_of(repository.archive)
            folded = timed(lambda: [events_of(repository.archive) for _ in some]) / len(some)
            one = timed(lambda: Auditor(repository.archive, state=state).audit(made[0]))
            quick = timed(lambda: Auditor(repository.archive, state=state, quick=True).audit(made[0]))

            def all_of_them() -> None:
                auditor = Auditor(repository.archive)
                for digest in made:
                    auditor.audit(digest)

            everything = timed(all_of_them)
        slow_find = anew(lambda repository, digest: query.fits(repository.load(digest)))
        slow_audit = anew(lambda repository, digest: Auditor(repository.archive).audit(digest))
    print(f"{len(made)} manifests, {options.adapters} adapters, a base of {options.mebibytes} MiB")
    rows = [
        ("find by label", find, "parsing every one", parse),
        ("find all", everyone, "opened anew for each", slow_find),
        ("a ledger question", folded, "the ledger folded anew", fold),
    ]
    for what, fast, how, slow in rows:
        print(f"{what:<18} {fast * 1000:9.2f} ms  {how:<22} {slow * 1000:9.2f} ms  {slow / fast:6.1f} x")
    print(f"{'audit of one':<18} {one * 1000:9.2f} ms  {'--quick':<22} {quick * 1000:9.2f} ms  {one / quick:6.1f} x")
    ratio = slow_audit / everything
    print(f"{'audit of all':<18} {everything:9.2f} s   {'a new auditor each':<22} {slow_audit:9.2f} s   {ratio:6.1f} x")


if __name__ == "__main__":
    main()
