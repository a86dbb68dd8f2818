"""Which cache a process goes by: the one on disk that all share, or tables of its own in memory."""

from __future__ import annotations

from pathlib import Path

from csf_store.ledger.cache import LedgerCache
from csf_store.ledger.cache_errors import CacheUnwritableError, remove


class CacheSlot:
    """Holds one cache at a time.

    Attributes:
        cache: the one in use.
        memory_only: whether the one on disk proved useless here: read-only, or no space.
    """

    def __init__(self, path: Path, archive: str) -> None:
        self.path = path
        self.cache: LedgerCache | None = None
        self.memory_only = False
        self._archive = archive
        self._inode = 0

    @property
    def on_disk(self) -> bool:
        """Whether the cache in use is the one on disk."""
        return self.cache is not None and self.cache.path is not None

    def existing(self) -> LedgerCache | None:
        """The one on disk if there is one. Anybody may ask; it is made only under the append lock."""
        if self.memory_only or (self.on_disk and self._is_found()):
            return self.cache
        try:
            made = self.path.stat().st_size > 0
        except OSError:
            made = False
        return self._open() if made else None

    def shared(self) -> LedgerCache:
        """Under the append lock: the one on disk, made if need be; one in memory where that does not work."""
        if self.memory_only:
            return self.cache or self.memory()
        return self.cache if self.cache is not None and self.on_disk and self._is_found() else self._open()

    def memory(self) -> LedgerCache:
        """A new, empty one in memory."""
        return self._use(LedgerCache(None, self._archive))

    def fresh(self) -> LedgerCache:
        """Under the append lock: a new, empty one on disk, in place of what is there."""
        self.close()
        self.discard()
        return self._open()

    def discard(self) -> None:
        """Under the append lock: there shall be none on disk, whatever this process goes by."""
        remove(self.path)

    def close(self) -> None:
        """Lets go of it."""
        if self.cache is not None:
            self.cache.close()
        self.cache = None

    def _use(self, cache: LedgerCache) -> LedgerCache:
        self.close()
        self.cache = cache
        return cache

    def _open(self) -> LedgerCache:
        cache = LedgerCache(self.path, self._archive)
        try:
            self._inode = self.path.stat().st_ino
        except OSError as error:
            cache.close()
            raise CacheUnwritableError(str(error)) from error
        return self._use(cache)

    def _is_found(self) -> bool:
        """Whether the one we have open is the one that others open: it may have been deleted, or made anew."""
        try:
            return self.path.stat().st_ino == self._inode
        except OSError:
            return False
