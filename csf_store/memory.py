"""Memory for tensors. Fresh memory is the hidden cost of a fast read: the kernel clears it page by page on first touch.

With pages of 2 MiB instead of 4 KiB there are 512 times fewer faults. One anonymous mapping serves a whole checkpoint,
and lives as long as any view of it does.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from typing import Final

from csf_store.errors import StorageError

ALIGNMENT: Final = 64
"""A cache line; no dtype needs more, and vector loads are fastest there."""


def allocate(sizes: Iterable[int]) -> list[memoryview]:
    """Zeroed, writable memory for each size, side by side, each piece aligned to 64 bytes.

    Raises:
        StorageError: if there is not that much memory.
    """
    lengths = list(sizes)
    starts = []
    total = 0
    for length in lengths:
        starts.append(total)
        total += -(-length // ALIGNMENT) * ALIGNMENT
    if not total:
        return [memoryview(bytearray()) for _ in lengths]
    try:
        # Private: what is shared, as Python maps by default, gets no large pages.
        region = mmap.mmap(-1, total, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError, ValueError) as error:
        raise StorageError(f"{total} bytes do not fit into memory ({error}); get it to a file instead") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        region.madvise(mmap.MADV_HUGEPAGE)
    view = memoryview(region)
    return [view[start : start + length] for start, length in zip(starts, lengths, strict=True)]
