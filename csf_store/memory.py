"""Memory for tensors. Fresh memory is the hidden cost of a fast read: the kernel clears it page by page on first touch.

With pages of 2 MiB instead of 4 KiB there are 512 times fewer faults. Not in a virtual machine that hands free memory
back to its host, though (free page reporting): it does so by pages of 2 MiB, and taking one back is 512 faults of the
host, 20 times as long. There, small pages come from what was never handed back.

One anonymous mapping serves a whole checkpoint, and lives as long as any view of it does.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final

from csf_store.errors import StorageError

ALIGNMENT: Final = 64
"""A cache line; no dtype needs more, and vector loads are fastest there."""
_REPORTING_ORDER: Final = Path("/sys/module/page_reporting/parameters/page_reporting_order")
LARGE: Final = 1 << 20
"""Clearing the pages of new blocks costs 3 % of a prefill; one of 4 MiB would cost 2 % and leave twice the holes."""
_M_MMAP_THRESHOLD: Final = -3
"""As malloc.h numbers it."""
_LARGEST_ORDER: Final = 64
"""Orders are below this; the kernel's "none" is far above."""


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
    if hasattr(mmap, "MADV_HUGEPAGE") and not _free_pages_go_to_the_host():
        region.madvise(mmap.MADV_HUGEPAGE)
    view = memoryview(region)
    return [view[start : start + length] for start, length in zip(starts, lengths, strict=True)]


def give_back() -> None:
    """Return to the system what was freed; glibc keeps tens of megabytes of it, and other libraries do not ask."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def hold_little_back() -> None:
    """Have this process return every block of `LARGE` bytes or more as soon as it is freed, from now on.

    glibc learns from the first of them to keep such blocks in its heap, up to 32 MiB each. Whatever small thing stays
    between two of them then keeps the heap from shrinking, and a model ends up with a tenth of its size in holes.
    Elsewhere nothing happens.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LARGE)


@cache
def _free_pages_go_to_the_host() -> bool:
    try:
        return int(_REPORTING_ORDER.read_text()) < _LARGEST_ORDER
    except (OSError, ValueError):
        return False
