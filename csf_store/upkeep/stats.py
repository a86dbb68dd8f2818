"""What an archive holds in numbers: how much was put, how much of it is different, how much it takes.

*Logical* is what the same things would take as plain files. *Unique* is what is left of that when every chunk is
counted once. *Stored* is what the segments take. All sums are made by SQLite from the index; only pinned trees and what
leads to them are read.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from csf_store.codecs import codec
from csf_store.codecs.base import CodecError
from csf_store.digest import Digest
from csf_store.durable import storage_errors
from csf_store.errors import CorruptError, NotFoundError
from csf_store.framing import RECORD_HEADER_SIZE
from csf_store.ledger.ledger import Ledger
from csf_store.ledger.line import JSON
from csf_store.objects import INLINE_LIMIT, KINDS, Kind
from csf_store.reading import Reading
from csf_store.store import Store

_PARITY: Final = "parity"
_QUARANTINE: Final = "quarantine"


class CodecTotals(NamedTuple):
    """Chunks in one form: how many, and their bytes decoded and stored."""

    codec: str
    chunks: int
    raw: int
    stored: int

    @property
    def ratio(self) -> float:
        """Stored bytes per raw byte."""
        return self.stored / self.raw if self.raw else 1.0


class KindTotals(NamedTuple):
    """Objects of one kind: how many, bytes of their content, and of their records."""

    kind: str
    objects: int
    raw: int
    stored: int


class Stats(NamedTuple):
    """An archive in numbers; sizes in bytes.

    Attributes:
        pinned: logical bytes of what pins and refs lead to: each tree with all its files, each blob not in a tree.
        unreadable: pinned things whose size can not be told, because they are damaged.
        blobs: bytes of all different blobs.
        unique: raw bytes of all different chunks, and of small blobs, which have none.
        stored: bytes of all segments.
        differences: chunks stored as differences to others.
        chunks: chunks in all.
        codecs: chunks by form.
        kinds: objects by kind.
        unlisted: bytes of segments that the index does not go by: second copies and what crashes left.
        sealed: sealed segments.
        unsealed: segments that are not full yet.
        ledger: lines of the ledger.
        caches: bytes of the index and of what else can be made anew.
        parity: bytes of parity files.
        quarantine: bytes of damaged files that were set aside.
    """

    pinned: int
    unreadable: int
    blobs: int
    unique: int
    stored: int
    differences: int
    chunks: int
    codecs: tuple[CodecTotals, ...]
    kinds: tuple[KindTotals, ...]
    unlisted: int
    sealed: int
    unsealed: int
    ledger: int
    caches: int
    parity: int
    quarantine: int

    @property
    def dedup(self) -> float:
        """How many bytes of blobs there are for each unique byte."""
        return self.blobs / self.unique if self.unique else 1.0

    @property
    def ratio(self) -> float:
        """Stored bytes per logical byte of all blobs."""
        return self.stored / self.blobs if self.blobs else 1.0


def gather(archive: Reading, store: Store, ledger: Ledger) -> Stats:
    """Adds everything up."""
    chunks = store.keeper.sure(lambda index: index.chunk_totals())
    objects = store.keeper.sure(lambda index: index.object_totals(INLINE_LIMIT))
    kinds = tuple(KindTotals(_kind_name(kind), *sums) for kind, *sums, _ in objects)
    states = store.segments().values()
    listed = sum(RECORD_HEADER_SIZE * number + stored for _, _, number, _, stored in chunks)
    listed += sum(RECORD_HEADER_SIZE * number + stored for _, number, _, stored, _ in objects)
    pinned, unreadable = _pinned(archive, store, ledger)
    segments = _size(store, store.directory, ".csfs")
    return Stats(
        pinned=pinned,
        unreadable=unreadable,
        blobs=sum(each.raw for each in kinds if each.kind == Kind.BLOB),
        unique=sum(raw for _, _, _, raw, _ in chunks) + sum(small for kind, *_, small in objects if kind == 1),
        stored=segments,
        differences=sum(number for _, different, number, _, _ in chunks if different),
        chunks=sum(number for _, _, number, _, _ in chunks),
        codecs=_by_codec(chunks),
        kinds=kinds,
        unlisted=max(0, segments - listed),
        sealed=sum(state.sealed for state in states),
        unsealed=sum(not state.sealed for state in states),
        ledger=ledger.size,
        caches=sum(_size(store, store.root, f".sqlite{ending}") for ending in ("", "-wal")),
        parity=_size(store, store.root / _PARITY, ""),
        quarantine=sum(_size(store, path, "") for path in (store.root / _QUARANTINE).glob("*/")),
    )


def _by_codec(chunks: Iterable[tuple[int, bool, int, int, int]]) -> tuple[CodecTotals, ...]:
    totals: dict[int, list[int]] = {}
    for number, _, *sums in chunks:
        totals[number] = [a + b for a, b in zip(totals.get(number, [0, 0, 0]), sums, strict=True)]
    return tuple(CodecTotals(_codec_name(number), *sums) for number, sums in sorted(totals.items()))


def _codec_name(number: int) -> str:
    try:
        return codec(number).name
    except CodecError:
        return str(number)


def _kind_name(number: int) -> str:
    return str(KINDS.get(number, number))


def _size(store: Store, directory: Path, ending: str) -> int:
    try:
        return sum(found.size for name, found in store.fs.scan(directory).items() if name.endswith(ending))
    except FileNotFoundError:
        return 0
    except OSError:
        with storage_errors(directory):
            raise


def _pinned(archive: Reading, store: Store, ledger: Ledger) -> tuple[int, int]:
    """Bytes of the trees and blobs that pins and refs lead to through manifests and records, each counted once.

    Also how many of them can not be read.
    """
    waiting = [pin.digest for pin in ledger.pins()]
    waiting += [moves[-1].target for moves in ledger.refs().values() if moves[-1].target is not None]
    seen: set[Digest] = set()
    total = unreadable = 0
    while waiting:
        digest = waiting.pop()
        if digest in seen:
            continue
        seen.add(digest)
        try:
            blob = store.find_object(bytes(digest), Kind.BLOB)
            if archive.contains(digest, Kind.TREE):
                total += archive.tree(digest).size
            elif blob is not None:
                total += blob.raw
            else:
                waiting += archive.links(digest)
        except (CorruptError, NotFoundError):
            unreadable += 1
    return total, unreadable


def document(stats: Stats) -> dict[str, JSON]:
    """The numbers as JSON."""
    plain: dict[str, JSON] = {name: value for name, value in stats._asdict().items() if isinstance(value, int)}
    return {
        **plain,
        "codecs": [{**each._asdict(), "ratio": round(each.ratio, 4)} for each in stats.codecs],
        "kinds": [each._asdict() for each in stats.kinds],
        "dedup": round(stats.dedup, 4),
        "ratio": round(stats.ratio, 4),
    }
