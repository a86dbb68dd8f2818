"""Proof that objects are what their digests say, each proven once in an audit however many manifests stand on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress

from csf_store import Archive, CsfError, Digest, Kind


class ObjectProver:
    """Re-hashes objects on demand and remembers the outcome.

    Args:
        archive: where they are.
        trusted: whether an object may be taken as proven without looking; for `--quick` alone.
        progress: called with bytes as they are hashed.
    """

    def __init__(
        self,
        archive: Archive,
        trusted: Callable[[Digest], bool] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self._archive = archive
        self._progress = progress
        self._trusted = trusted or (lambda _: False)
        self._known: dict[Digest, str | None] = {}
        self._hashed: set[Digest] = set()
        self._below: dict[Digest, frozenset[Digest]] = {}
        self.skipped = 0

    def proven(self) -> Iterator[Digest]:
        """Everything that was hashed so far and found sound."""
        yield from (digest for digest in self._hashed if self._known[digest] is None)

    def planned_bytes(self, digests: Iterable[Digest]) -> int:
        """How many bytes `problems` would hash; what cannot be found counts as none."""
        total = 0
        for digest in {digest for digest in digests if digest not in self._known and not self._trusted(digest)}:
            with suppress(CsfError):
                total += self._archive.record(digest).size
        return total

    def problems(self, digests: Iterable[Digest]) -> Mapping[Digest, str]:
        """What is wrong with some objects; those that are sound are left out."""
        digests = list(dict.fromkeys(digests))
        fresh = [digest for digest in digests if digest not in self._known]
        to_hash = [digest for digest in fresh if not self._trusted(digest)]
        self.skipped += len(fresh) - len(to_hash)
        self._known |= dict.fromkeys(fresh, None)
        self._hashed.update(to_hash)
        found = self._archive.verify(to_hash, follow=False, progress=self._progress).findings if to_hash else ()
        for finding in found:
            where = f" (segment {finding.segment}, offset {finding.offset})" if finding.segment is not None else ""
            # A finding without an object condemns all that was asked about: it must not get lost.
            for digest in [finding.digest] if finding.digest in self._known else to_hash:
                if digest is not None:
                    self._known[digest] = self._known[digest] or f"{finding.what}{where}"
        return {digest: problem for digest in digests if (problem := self._known[digest]) is not None}

    def reach(self, root: Digest) -> list[Digest]:
        """A manifest or record and everything it links to, and so on; other manifests are named and not gone into.

        An object that is not there is listed too, so that whoever proves the list finds it missing.
        """
        found, waiting = {root: None}, [root]
        while waiting:
            digest = waiting.pop()
            for link in self._links(digest, at_root=True) if digest == root else self._links_below(digest):
                if link not in found:
                    found[link] = None
                    waiting.append(link)
        return list(found)

    def _links_below(self, digest: Digest) -> frozenset[Digest]:
        if digest not in self._below:
            self._below[digest] = self._links(digest, at_root=False)
        return self._below[digest]

    def _links(self, digest: Digest, *, at_root: bool) -> frozenset[Digest]:
        links: set[Digest] = set()
        for kind in Kind:
            if self._archive.contains(digest, kind) and (kind != Kind.MANIFEST or at_root):
                try:
                    links |= set(self._archive.record(digest, kind).body.links)
                except CsfError:
                    continue  # the proof of this object says what is wrong with it
        return frozenset(links)
