"""Parity: a few percent beside a sealed segment, from which damaged bytes of it can be computed again.

The segment is seen as ``k`` shares side by side, padded with zeros, and each share as rows of 4 KiB. The blocks that
stand in the same row make one Reed-Solomon word with ``r`` more of parity, so any ``r`` blocks of a row may be lost;
and a stretch of damage meets each row only once in a share. A checksum for every block, those of the parity included,
tells which blocks are lost. Header and checksums stand at both ends of the file.

All of it may be deleted at any time. ``FORMAT.md`` has the table; the code words are those of the ``zfec`` package.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from blake3 import blake3

from csf_store.durable import FileSystem, read_exact, storage_errors, write_all
from csf_store.errors import CorruptError, InvalidInputError

if TYPE_CHECKING:
    import zfec

SUFFIX: Final = ".csfp"
BLOCK: Final = 4096
MAX_SHARES: Final = 100
PERCENT: Final = 5.0
_MAGIC: Final = b"\x89CSFPAR\n"
_VERSION: Final = 1
_HEAD: Final = struct.Struct("<8sHHHHI4xQ16s16s32s16x16s")
HEADER_SIZE: Final = _HEAD.size
_SUM: Final = 8
_CHECKSUM: Final = 16
_STRIP: Final = 32
"""Rows that are worked on at a time: with 100 shares 13 MB."""


class Shape(NamedTuple):
    """How a segment of ``size`` bytes is divided: ``k`` shares and ``r`` of parity."""

    size: int
    k: int
    r: int

    @property
    def rows(self) -> int:
        """Blocks in a share."""
        return -(-self.size // (self.k * BLOCK))

    @property
    def share(self) -> int:
        """Bytes in a share."""
        return self.rows * BLOCK

    @property
    def table(self) -> int:
        """Bytes of the checksums."""
        return (self.k + self.r) * self.rows * _SUM

    @property
    def file_size(self) -> int:
        """Bytes of the parity file."""
        return 2 * (HEADER_SIZE + self.table) + self.r * self.share


def shape_for(size: int, percent: float) -> Shape:
    """The shape for a segment.

    Raises:
        InvalidInputError: if the percentage is none.
    """
    if not 0 < percent <= 100:
        raise InvalidInputError(f"{percent:g} percent of parity is impossible; choose more than 0 and at most 100")
    k = max(1, min(MAX_SHARES, -(-size // BLOCK)))
    return Shape(size, k, max(1, round(k * percent / 100)))


def _zfec() -> type[zfec.Encoder]:
    try:
        import zfec  # noqa: PLC0415 - optional, and only for those who want parity
    except ImportError as error:
        raise InvalidInputError(
            "parity needs the package zfec; run pip install 'keystone-sigma0[parity]', then try again"
        ) from error
    encoder: type[zfec.Encoder] = zfec.Encoder
    return encoder


def _sums(data: bytes) -> bytes:
    view = memoryview(data)
    return b"".join(blake3(view[at : at + BLOCK]).digest(length=_SUM) for at in range(0, len(data), BLOCK))


def _strips(shape: Shape) -> Iterator[tuple[int, int]]:
    """First row and number of rows of each strip."""
    for row in range(0, shape.rows, _STRIP):
        yield row, min(_STRIP, shape.rows - row)


def _stretch(fs: FileSystem, fd: int, shape: Shape, share: int, *, row: int, rows: int) -> bytes:
    """Rows of a share of the segment, padded with zeros."""
    at = share * shape.share + row * BLOCK
    length = max(0, min(rows * BLOCK, shape.size - at))
    return read_exact(fs, fd, length, at).ljust(rows * BLOCK, b"\0") if length else bytes(rows * BLOCK)


def _header(shape: Shape, archive_id: bytes, segment_id: bytes, table: bytes) -> bytes:
    whole = blake3(table).digest()
    fields = (_MAGIC, _VERSION, HEADER_SIZE, shape.k, shape.r, BLOCK, shape.size, archive_id, segment_id, whole)
    body = _HEAD.pack(*fields, bytes(_CHECKSUM))[:-_CHECKSUM]
    return body + blake3(segment_id + body).digest(length=_CHECKSUM)


def write_parity(
    fs: FileSystem,
    segment: Path,
    out: Path,
    *,
    ids: tuple[bytes, bytes],
    percent: float,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Writes the parity of a sealed segment, durable and whole or not at all; returns its bytes.

    Args:
        fs: where the files are.
        segment: the segment; the caller knows that it is sound.
        out: the parity file; replaced if it exists.
        ids: archive id and segment id.
        percent: parity in percent of the segment.
        progress: called with the bytes of the segment done.

    Raises:
        InvalidInputError: if ``zfec`` is not installed, or the percentage is impossible.
    """
    encoder_of = _zfec()
    with storage_errors(segment):
        source = fs.open(segment, os.O_RDONLY)
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        with storage_errors(out):
            fs.mkdir(out.parent)
            target = fs.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            try:
                shape = shape_for(fs.stat(source).size, percent)
                _fill(fs, source, target, shape, encoder_of=encoder_of, ids=ids, progress=progress)
                fs.fsync(target)
            finally:
                fs.close(target)
            fs.replace(temporary, out)
            fs.fsync_directory(out.parent)
            fs.fsync_directory(out.parent.parent)
    finally:
        fs.close(source)
        with storage_errors(out):
            fs.unlink(temporary)
    return shape.file_size


def _fill(
    fs: FileSystem,
    source: int,
    target: int,
    shape: Shape,
    *,
    encoder_of: type[zfec.Encoder],
    ids: tuple[bytes, bytes],
    progress: Callable[[int], None] | None,
) -> None:
    encoder = encoder_of(shape.k, shape.k + shape.r)
    numbers = tuple(range(shape.k, shape.k + shape.r))
    table = [bytearray() for _ in range(shape.k + shape.r)]
    parity = [bytearray() for _ in numbers]  # a few percent of a segment
    for row, rows in _strips(shape):
        data = [_stretch(fs, source, shape, share, row=row, rows=rows) for share in range(shape.k)]
        for share, stretch in enumerate((*data, *encoder.encode(data, numbers))):
            table[share] += _sums(stretch)
            if share >= shape.k:
                parity[share - shape.k] += stretch
        if progress:
            progress(min(shape.size, shape.k * rows * BLOCK))
    sums = b"".join(table)
    head = _header(shape, *ids, sums)
    write_all(fs, target, [head, sums, *parity, sums, head])


class Parity:
    """A parity file, opened and checked: its header, and one of the two copies of its checksums."""

    def __init__(self, fs: FileSystem, path: Path, archive_id: bytes, segment_id: bytes) -> None:
        """Opens it.

        Raises:
            CorruptError: if neither end of it holds together, or it is another segment's.
        """
        self.path = path
        self._fs = fs
        with storage_errors(path):
            self._fd = fs.open(path, os.O_RDONLY)
        try:
            with storage_errors(path):
                self.shape, self._table = self._read(archive_id, segment_id)
        except BaseException:
            fs.close(self._fd)
            raise

    def __enter__(self) -> Parity:
        return self

    def __exit__(self, *_: object) -> None:
        self._fs.close(self._fd)

    def _read(self, archive_id: bytes, segment_id: bytes) -> tuple[Shape, bytes]:
        size = self._fs.stat(self._fd).size
        for head_at in (0, max(0, size - HEADER_SIZE)):
            head = read_exact(self._fs, self._fd, HEADER_SIZE, head_at)
            if len(head) != HEADER_SIZE:
                continue
            *_, k, r, block, length, archive, segment, whole, checksum = _HEAD.unpack(head)
            if blake3(segment_id + head[:-_CHECKSUM]).digest(length=_CHECKSUM) != checksum:
                continue
            shape = Shape(length, k, r)
            if (archive, segment, block) != (archive_id, segment_id, BLOCK) or not 0 < k <= k + r <= 256:
                continue
            if head != _header_with(head, shape) or shape.file_size != size:
                continue
            for table_at in (HEADER_SIZE, size - HEADER_SIZE - shape.table):
                table = read_exact(self._fs, self._fd, shape.table, table_at)
                if blake3(table).digest() == whole:
                    return shape, table
        raise CorruptError(f"{self.path} is damaged at both ends, or not this segment's; csf parity add makes it anew")

    def _sum(self, share: int, row: int) -> bytes:
        at = (share * self.shape.rows + row) * _SUM
        return self._table[at : at + _SUM]

    def _parity(self, share: int, row: int) -> bytes:
        at = HEADER_SIZE + self.shape.table + (share - self.shape.k) * self.shape.share + row * BLOCK
        return read_exact(self._fs, self._fd, BLOCK, at)

    def damaged(self, segment: int) -> dict[int, set[int]]:
        """Of an open segment: rows with damaged blocks, and in which shares these are."""
        found: dict[int, set[int]] = {}
        shape = self.shape
        for row, rows in _strips(shape):
            for share in range(shape.k):
                sums = _sums(_stretch(self._fs, segment, shape, share, row=row, rows=rows))
                for number in range(rows):
                    if sums[number * _SUM : (number + 1) * _SUM] != self._sum(share, row + number):
                        found.setdefault(row + number, set()).add(share)
        return found

    def patches(self, segment: int) -> dict[int, bytes]:
        """What to write where, in an open damaged segment, to make it what it was.

        Raises:
            CorruptError: if more is damaged than the parity makes up for.
            InvalidInputError: if ``zfec`` is not installed.
        """
        _zfec()
        from zfec import Decoder  # noqa: PLC0415 - optional

        shape = self.shape
        made: dict[int, bytes] = {}
        for row, bad in self.damaged(segment).items():
            blocks = {
                share: _stretch(self._fs, segment, shape, share, row=row, rows=1)
                for share in range(shape.k)
                if share not in bad
            }
            for share in range(shape.k, shape.k + shape.r):
                if len(blocks) < shape.k and _sums(block := self._parity(share, row)) == self._sum(share, row):
                    blocks[share] = block
            if len(blocks) < shape.k:
                raise CorruptError(
                    f"{self.path.name}: {len(bad)} blocks of one row are damaged, more than the parity makes up for; "
                    "heal from another archive"
                )
            whole = Decoder(shape.k, shape.k + shape.r).decode(list(blocks.values()), tuple(blocks))
            for share in bad:
                if _sums(whole[share]) != self._sum(share, row):
                    raise CorruptError(f"{self.path.name}: what was computed does not fit its checksum")
                at = share * shape.share + row * BLOCK
                made[at] = whole[share][: max(0, shape.size - at)]
        return made


def _header_with(head: bytes, shape: Shape) -> bytes:
    """The header as this version would write it, around the ids and sums that are in it."""
    *_, archive, segment, whole, checksum = _HEAD.unpack(head)
    fields = (_MAGIC, _VERSION, HEADER_SIZE, shape.k, shape.r, BLOCK, shape.size, archive, segment, whole)
    return _HEAD.pack(*fields, checksum)
