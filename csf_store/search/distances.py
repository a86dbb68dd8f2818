"""How far tensors moved between two checkpoints: changed ones are read side by side, a stretch of a few MiB at a time.

Memory does not depend on the size of a tensor, and stretches are read, decoded and compared on all cores. A chunk that
both sides share is read once: it adds nothing to the difference, but to the norm of what was before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from csf_store.digest import Digest
from csf_store.framing import CHUNK_SIZE
from csf_store.objects import Kind
from csf_store.pipeline import Pipeline
from csf_store.reading import Reading
from csf_store.retrieve import OpenObject
from csf_store.safetensors_layout import DTYPE_BITS
from csf_store.search.diff import Comparison, TensorDifference, TensorVersion
from csf_store.search.tensor_values import Distance, distance


class _Stretch(NamedTuple):
    """Some values of a tensor that changed, by number."""

    before: TensorVersion
    after: TensorVersion
    start: int
    end: int


def measure(
    archive: Reading, comparison: Comparison, *, progress: Callable[[int], None] | None = None
) -> Iterator[TensorDifference]:
    """Gives every tensor difference in order, with its distance where there is one to measure.

    Args:
        archive: where both sides are.
        comparison: what ``compare`` said of them.
        progress: called with bytes of the first side just measured.

    Raises:
        CorruptError: if a chunk that has to be read is damaged.
        NotFoundError: if one of the files was collected meanwhile.
    """
    reader = _Reader(archive)
    pipeline = Pipeline()
    try:
        measured = pipeline.ordered(reader.measure, _stretches(comparison))
        for each in comparison.tensors:
            before = each.before
            if not each.measurable or before is None:
                yield each
                continue
            total, left = Distance(), before.info.nbytes
            while left:
                size, found = next(measured)
                total += found
                left -= size
                if progress:
                    progress(size)
            yield each._replace(distance=total)
    finally:
        pipeline.close()


def _stretches(comparison: Comparison) -> Iterator[_Stretch]:
    for each in comparison.tensors:
        if each.measurable and each.before is not None and each.after is not None:
            widths = [DTYPE_BITS[version.info.dtype] for version in (each.before, each.after)]
            count = each.before.info.nbytes * 8 // widths[0]
            step = CHUNK_SIZE * 8 // min(widths)
            for start in range(0, count, step):
                yield _Stretch(each.before, each.after, start, min(start + step, count))


class _Reader:
    """Reads and measures stretches; from several threads at once."""

    def __init__(self, archive: Reading) -> None:
        self._archive = archive
        self._records: dict[Digest, OpenObject] = {}

    def measure(self, stretch: _Stretch) -> tuple[int, Distance]:
        """Bytes on the first side, and how far they moved."""
        before, after = stretch.before, stretch.after
        old = self._read(before, stretch)
        same_type = before.info.dtype == after.info.dtype
        number = stretch.start * DTYPE_BITS[before.info.dtype] // 8 // CHUNK_SIZE
        shared = same_type and before.chunks[number] == after.chunks[number]
        new = None if shared else self._read(after, stretch)
        return len(old), distance(before.info.dtype, old, new, after_dtype=after.info.dtype)

    def _read(self, version: TensorVersion, stretch: _Stretch) -> memoryview:
        bits = DTYPE_BITS[version.info.dtype]
        start, end = stretch.start * bits // 8, stretch.end * bits // 8
        out = memoryview(bytearray(end - start))
        self._archive.read_range(self._record(version.blob), version.info.offset + start, out)
        return out

    def _record(self, blob: Digest) -> OpenObject:
        if blob not in self._records:  # two threads may both read it, and then keep the same
            self._records[blob] = self._archive.record(blob, Kind.BLOB)
        return self._records[blob]
