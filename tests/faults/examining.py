"""Looking at an archive that may hold anything, with every promise a hostile one must not break.

Whatever the bytes: only our errors, an end in time, memory within bounds, and not one wrong byte. And an archive that
opens takes a put and gives it back.
"""

from __future__ import annotations

import contextlib
import resource
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from csf_store import Archive, CsfError, Digest, Kind, NamePattern, Query, TensorInfo, compare, find

FRESH: Final = b"a fresh put " * 30
SECONDS: Final = 20
MEMORY: Final = 600 << 20
"""Address space beyond what the process has. A chunk takes 4 MiB, its decoding a few times that."""


class BrokenRuleError(AssertionError):
    """What an archive made us do that nothing may make us do."""


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """An alarm against hanging, and a bound on memory that turns into ``MemoryError``."""

    def late(*_: object) -> None:
        raise BrokenRuleError(f"no end after {SECONDS} s")

    old = signal.signal(signal.SIGALRM, late)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, old)


def examine(path: Path, known: Mapping[Digest, bytes], *, quick: bool = False) -> bool:
    """Does with an archive what one does; returns whether it opened.

    Args:
        path: the archive, which is changed.
        known: contents by digest that may be in it.
        quick: read all, verify and put, but without threads, and leave out what reads the same again.

    Raises:
        BrokenRuleError: if a byte came out wrong, or a fresh put was not taken or not given back.
        Exception: anything that is not our own error, as it was raised.
    """
    try:
        archive = Archive.open(path)
    except CsfError:
        return False
    if quick:
        archive._pipeline.ordered = map  # type: ignore[assignment,method-assign]
    try:
        _use(archive, known, quick=quick)
    finally:
        with contextlib.suppress(CsfError):
            archive.close()
    return True


def _use(archive: Archive, known: Mapping[Digest, bytes], *, quick: bool) -> None:
    listed: set[Digest] = set(known)
    with contextlib.suppress(CsfError):
        for info in archive.objects():
            listed.add(info.digest)
    for digest in sorted(listed):
        kinds: tuple[Kind, ...] = ()
        with contextlib.suppress(CsfError):
            kinds = archive.stat(digest).kinds
        proven = [_read(archive, digest, kind, known.get(digest)) for kind in kinds]
        if Kind.TREE in kinds:
            with contextlib.suppress(CsfError):
                archive.tree(digest)
        if Kind.BLOB in kinds and digest in known and not quick:
            _read_tensors(archive, digest, known[digest], proven=proven[kinds.index(Kind.BLOB)])
    blobs = [digest for digest in sorted(known) if known[digest][8:9] == b"{"] or [Digest(bytes(32))]
    looks: list[Callable[[], object]] = [
        lambda: archive.verify(deep=True),
        lambda: (archive.pins(), archive.ledger.refs()),
        lambda: [entry.fields for entry in archive.ledger.entries()],
        lambda: archive.collect(grace=0, threshold=0, dry_run=True),
        archive.stats,
        lambda: archive.parity(deep=True),
        lambda: find(archive, Query(tensor=NamePattern("*"))),
        lambda: compare(archive, blobs[0], blobs[-1]),
        lambda: archive.repair(dry_run=True),
        archive.repair,
    ]
    for look in looks[: 2 if quick else None]:
        with contextlib.suppress(CsfError):
            look()
    if not quick:  # what is there after a repair is as right as before
        for digest in sorted(listed):
            with contextlib.suppress(CsfError):
                for kind in archive.stat(digest).kinds:
                    _read(archive, digest, kind, known.get(digest))
    _put(archive)


def _read(archive: Archive, digest: Digest, kind: Kind, content: bytes | None) -> bool:
    try:
        found = archive.get_bytes(digest, kind=kind)
    except CsfError:
        return False
    if Digest.of(found) != digest or (content is not None and found != content):
        raise BrokenRuleError(f"{digest} as a {kind}: {len(found)} bytes that are not its own")
    return True


def _read_tensors(archive: Archive, digest: Digest, content: bytes, *, proven: bool) -> None:
    """All of them, which proves the whole. One by one they rest on that, so only then they must be right."""
    places: dict[str, bytearray] = {}

    def place(tensor: TensorInfo) -> memoryview:
        places[tensor.name] = bytearray(tensor.nbytes)
        return memoryview(places[tensor.name])

    with contextlib.suppress(CsfError):
        archive.read_tensors(digest, place)
        if b"".join(places.values()) != content[8 + int.from_bytes(content[:8], "little") :]:
            raise BrokenRuleError(f"{digest}: its tensors have other bytes")
    with contextlib.suppress(CsfError):
        for name in archive.tensors(digest):
            found = bytes(archive.read_tensor(digest, name))
            if proven and found != places.get(name, b""):
                raise BrokenRuleError(f"{digest}: tensor {name!r} has other bytes")


def _put(archive: Archive) -> None:
    try:
        digest = archive.put_bytes(FRESH).digest
        archive.pin(digest, kind=Kind.BLOB, name="fresh")
    except CsfError:
        return  # a ledger that was altered takes no line, a damaged note of a collection allows no put
    if archive.get_bytes(digest) != FRESH:
        raise BrokenRuleError("a fresh put came back otherwise")
