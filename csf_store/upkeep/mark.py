"""What is reached: from roots along links to objects, and from their chunk lists to chunks. The rest is garbage.

Each thing found remembers the reason it was found for first, so that a report can say why something stays. What can not
be followed (an object that is missing or damaged) is a problem: behind it there may be things that would then look like
garbage. Nothing is taken away while there is one, unless whoever asks named the loss and accepts it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from enum import StrEnum
from typing import Final

from csf_store.digest import Digest
from csf_store.errors import CsfError, RefusedError
from csf_store.index_rows import Row
from csf_store.retrieve import Retrieve
from csf_store.store import Store

_NAMED: Final = 5


class Reason(StrEnum):
    """Why something stays."""

    PIN = "pinned"
    REF = "a ref points to it or did"
    RECENT = "put within the grace period"
    NEIGHBOUR = "in a segment that is left alone"
    BASE = "base of a difference that stays"


class Mark:
    """A marking in progress."""

    def __init__(
        self,
        store: Store,
        retrieve: Retrieve,
        *,
        accepted: Collection[Digest] = (),
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """``accepted`` are objects and chunks that are known to be lost and need not be found."""
        self.objects: dict[bytes, Reason] = {}
        self.chunks: dict[bytes, Reason] = {}
        self._store = store
        self._retrieve = retrieve
        self._accepted = {bytes(digest) for digest in accepted}
        self._progress = progress
        self._problems: list[str] = []

    def follow(self, roots: Iterable[bytes], reason: Reason) -> None:
        """Marks objects and everything they reach."""
        waiting = [digest for digest in dict.fromkeys(roots) if digest not in self.objects]
        self.objects.update(dict.fromkeys(waiting, reason))
        while waiting:
            digest = waiting.pop()
            for link in self._look(digest, reason):
                if link not in self.objects:
                    self.objects[link] = reason
                    waiting.append(link)
            if self._progress:
                self._progress(1)

    def _look(self, digest: bytes, reason: Reason) -> list[bytes]:
        links: list[bytes] = []
        kinds = self._store.kinds(digest)
        if not kinds and digest not in self._accepted:
            self._problems.append(f"{Digest(digest)} is needed and is in no segment")
        for kind in kinds:
            try:
                body = self._retrieve.open(Digest(digest), kind).body
            except CsfError as error:
                if digest not in self._accepted:
                    self._problems.append(str(error))
                continue
            links += map(bytes, body.links)
            for chunk in body.chunks:
                self.chunks.setdefault(chunk.digest, reason)
            if digest in self._accepted:
                self._accepted.update(chunk.digest for chunk in body.chunks)
        return links

    def miss(self, chunks: Iterable[bytes], what: str) -> None:
        """Notes chunks that are needed and are not there."""
        for digest in chunks:
            if digest not in self._accepted:
                self._problems.append(f"chunk {Digest(digest)} {what}")

    def check(self) -> None:
        """Refuses to go on if something could not be followed.

        Raises:
            RefusedError: naming it.
        """
        if not self._problems:
            return
        problems = list(dict.fromkeys(self._problems))
        rest = f" (and {len(problems) - _NAMED} more)" if len(problems) > _NAMED else ""
        raise RefusedError(
            f"nothing was collected, because what is needed can not be followed: {'; '.join(problems[:_NAMED])}{rest}; "
            "run csf repair, or name what is lost for good with --lost"
        )

    def keeps(self, row: Row) -> bool:
        """Whether an object or a chunk is marked."""
        return row.digest in (self.objects if row.where.kind else self.chunks)

    def needs(self, digest: bytes) -> bool:
        """Whether a digest was reached, as an object or as a chunk."""
        return digest in self.objects or digest in self.chunks
