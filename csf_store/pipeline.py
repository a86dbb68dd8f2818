"""One thread pool for the heavy work: hashing, encoding, decoding. All three release the interpreter lock.

``ordered`` keeps the results in order and bounds what is in flight, so memory does not depend on the size of the file.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

from blake3 import blake3

_In = TypeVar("_In")
_Out = TypeVar("_Out")
_FEW_CORES: Final = 4


class Pipeline:
    """A pool made on first use. ``workers`` defaults to the cores this process may use."""

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers or len(os.sched_getaffinity(0))
        self._pool: ThreadPoolExecutor | None = None

    def hasher(self) -> blake3:
        """For the hash of the whole whose pieces go through here.

        One thread hashes faster than four encode or decode; more would take their cores from them.
        """
        return blake3(max_threads=1 if self.workers <= _FEW_CORES else blake3.AUTO)

    def ordered(self, work: Callable[[_In], _Out], items: Iterable[_In]) -> Iterator[_Out]:
        """Yields ``work(item)`` in order, with at most two items per worker in flight.

        ``items`` is consumed in the calling thread. When the caller stops early or anything fails, what has not begun
        is cancelled and what has is waited for, so no thread outlives the buffers it was given.
        """
        first = next(iterator := iter(items), None)
        if first is None:
            return
        second = next(iterator, None)
        if second is None:
            yield work(first)  # one piece: a thread would only cost time
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="csf")
        waiting: deque[Future[_Out]] = deque(self._pool.submit(work, item) for item in (first, second))
        try:
            for item in iterator:
                if len(waiting) >= 2 * self.workers:
                    yield waiting.popleft().result()
                waiting.append(self._pool.submit(work, item))
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
            for future in waiting:
                if not future.cancelled():
                    future.exception()

    def close(self) -> None:
        """Ends the threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
