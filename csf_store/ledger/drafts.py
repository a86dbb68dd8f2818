"""The ledger with lines that are drafted and not yet written: what a transaction sees, and nobody else.

Drafts go into a change of the cache that is kept once the lines are durable in the file, and dropped if they are not.
If the cache fails on the way, the transaction goes on with one in memory; its caller never hears of it.
"""

from __future__ import annotations

import contextlib

from csf_store.durable import FileStat
from csf_store.errors import CorruptError, StorageError
from csf_store.ledger.head import LineBatch
from csf_store.ledger.line import LedgerEntry
from csf_store.ledger.view import FAILURES, LedgerView


class DraftingView(LedgerView):
    """A view in which one transaction at a time may draft lines; whoever has one holds the append lock."""

    def begin(self) -> None:
        """Begins a transaction. The caller holds the append lock until it ends."""
        self._drafting = True
        self.drafts = []
        try:
            (self._slot.cache or self._slot.memory()).begin()
        except FAILURES:
            self._restart_in_memory()

    def draft(self, line: bytes) -> LedgerEntry:
        """Takes the next line of the transaction, without its newline."""
        batch = LineBatch(self.head)
        entry = batch.take(line)
        self.head = batch.head
        self.drafts.append((line, entry))
        self.ask(lambda cache: cache.absorb(batch) if cache.head()[0] == batch.first else None)
        return entry

    def _restart_in_memory(self) -> None:
        """Within a transaction the cache in memory is given the drafts."""
        if not self._drafting:
            super()._restart_in_memory()
            return
        head, written = self.head, self.written
        cache = self._slot.memory()
        if written.size:
            self._follow(cache, settling=True)
        cache.begin()
        batch = LineBatch(written)
        for line, _ in self.drafts:
            batch.take(line)
        cache.absorb(batch)
        self.head, self.written = head, written

    def commit(self, found: FileStat) -> None:
        """Ends a transaction whose lines are durable in the file; ``found`` is what the file is with them."""
        self._drafting = False
        self.drafts = []
        self._take(self.head, None, settled=True)
        try:
            if self._slot.cache is not None:
                self._slot.cache.commit(found.mtime_ns)
            self._seen = found
        except BaseException as error:
            # The caller must hear that the lines are safe, whatever became of the cache.
            self._slot.close()
            self._slot.memory_only = True
            if not isinstance(error, FAILURES):
                raise
        finally:
            if not self._slot.on_disk:
                # Who looks while the next writer is at work goes by the cache, and would miss these lines.
                with contextlib.suppress(*FAILURES):
                    self._slot.discard()

    def rollback(self) -> None:
        """Ends a transaction of which nothing is in the file."""
        self._drafting = False
        self.drafts = []
        self.head = self.written
        if self._slot.cache is not None:
            self._slot.cache.rollback()
        with contextlib.suppress(CorruptError, StorageError):
            found = self.file.stat()
            if found is not None and found != self._seen and found.size == self.head.end:
                self.settle(touched=True)  # lines were taken back, which changed the file's time
