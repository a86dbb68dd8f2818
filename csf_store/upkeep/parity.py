"""Parity for an archive: made for sealed segments, looked after, and used to mend what rotted.

It is for those who have one copy. Who has another archive needs none: ``csf repair --from`` heals from that.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from csf_store.durable import fill, storage_errors, write_all
from csf_store.errors import CorruptError, CsfError, InvalidInputError, NotFoundError
from csf_store.framing import FramingError, check_segment_header
from csf_store.recovery import Looked, look
from csf_store.segment import PART, segment_id_of
from csf_store.segment import SUFFIX as SEGMENT_SUFFIX
from csf_store.store import Store
from csf_store.upkeep.parity_file import PERCENT, SUFFIX, Parity, write_parity

PARITY: Final = "parity"
_ROOM: Final = 4 << 20


class ParityState(NamedTuple):
    """What there is for a segment.

    Attributes:
        segment: its file name.
        size: bytes of the segment.
        parity: bytes of its parity; 0 if there is none.
        percent: how much of the segment may be lost, in percent.
        damaged: blocks of 4 KiB of the segment that do not fit their checksums; None if that was not looked at.
        trouble: what is wrong with the parity file; empty if nothing is.
    """

    segment: str
    size: int
    parity: int
    percent: float
    damaged: int | None
    trouble: str


def parity_path(store: Store, segment: str) -> Path:
    """Where the parity of a segment is, if there is any."""
    return store.root / PARITY / f"{segment.removesuffix(SEGMENT_SUFFIX)}{SUFFIX}"


def _sealed(store: Store) -> dict[str, int]:
    return {name: state.size for name, state in sorted(store.segments().items()) if state.sealed}


def add_parity(
    store: Store, *, percent: float = PERCENT, anew: bool = False, progress: Callable[[int], None] | None = None
) -> tuple[str, ...]:
    """Makes parity for every sealed segment that has none; returns their names.

    Args:
        store: the segments.
        percent: how much of a segment may be lost.
        anew: also replace the parity that is there.
        progress: called with the bytes of segments done.

    Raises:
        CorruptError: if a segment is damaged: parity of damage would keep the damage.
        InvalidInputError: if ``zfec`` is not installed.
    """
    made = []
    for name, size in _sealed(store).items():
        path = store.directory / name
        if parity_path(store, name).exists() and not anew:
            if progress:
                progress(size)
            continue
        _insist_sound(store, path)
        ids = (store.archive_id, segment_id_of(name) or b"")
        write_parity(store.fs, path, parity_path(store, name), ids=ids, percent=percent, progress=progress)
        made.append(name)
    return tuple(made)


def _insist_sound(store: Store, path: Path, name: str | None = None) -> None:
    """Every byte of a sealed segment is as it was written, or an error."""
    segment_id = segment_id_of(name or path.name) or b""
    found = look(store.fs, path, segment_id)
    if found is None:
        raise NotFoundError(f"{path} is gone; run csf verify")
    if not is_sound(store, name or path.name, found):
        raise CorruptError(f"{path} is damaged, or was never sealed; run csf repair")


def is_sound(store: Store, name: str, looked: Looked) -> bool:
    """Whether a segment file that was read is sealed and whole to its last byte."""
    try:
        check_segment_header(looked.head, store.archive_id, segment_id_of(name) or b"")
    except FramingError:
        return False
    return looked.scan.sealed and not looked.scan.gaps and looked.scan.tail is None


def parity_states(store: Store, *, deep: bool = False) -> tuple[ParityState, ...]:
    """What parity there is; ``deep`` also holds every block of the segments against its checksum."""
    states = []
    for name, size in _sealed(store).items():
        path = parity_path(store, name)
        if not path.exists():
            states.append(ParityState(name, size, 0, 0.0, None, ""))
            continue
        try:
            with Parity(store.fs, path, store.archive_id, segment_id_of(name) or b"") as parity:
                shape = parity.shape
                percent = 100 * shape.r / shape.k
                damaged = _count(store, parity, name) if deep else None
                states.append(ParityState(name, size, shape.file_size, percent, damaged, ""))
        except CsfError as error:
            states.append(ParityState(name, size, path.stat().st_size, 0.0, None, str(error)))
    return tuple(states)


def _count(store: Store, parity: Parity, name: str) -> int:
    with storage_errors(store.directory / name):
        fd = store.fs.open(store.directory / name, os.O_RDONLY)
        try:
            return sum(map(len, parity.damaged(fd).values()))
        finally:
            store.fs.close(fd)


def remove_parity(store: Store, *, orphans_only: bool = False) -> int:
    """Deletes parity files: all, or those whose segment is gone. Returns how many."""
    directory = store.root / PARITY
    if not directory.is_dir():
        return 0
    segments = {parity_path(store, name).name for name in store.fs.scan(store.directory)} if orphans_only else set()
    with storage_errors(directory):
        going = [name for name in store.fs.scan(directory) if name.endswith(SUFFIX) and name not in segments]
        for name in going:
            store.fs.unlink(directory / name)
        if going:
            store.fs.fsync_directory(directory)
    return len(going)


def mend(store: Store, name: str) -> int:
    """Makes a damaged sealed segment what it was; returns the damaged blocks. The caller is alone with the archive.

    The mended copy is written beside, checked to its last byte, and takes the name in one step.

    Raises:
        NotFoundError: if it has no parity.
        CorruptError: if the parity does not suffice.
    """
    path, segment_id = store.directory / name, segment_id_of(name) or b""
    if not parity_path(store, name).exists():
        raise NotFoundError(f"segment {name} has no parity; csf parity add makes it for sound ones")
    copy = path.with_name(name + PART)
    with Parity(store.fs, parity_path(store, name), store.archive_id, segment_id) as parity, storage_errors(path):
        source = store.fs.open(path, os.O_RDONLY)
        try:
            patches = parity.patches(source)
            _write_mended(store, source, copy, parity.shape.size, patches)
        finally:
            store.fs.close(source)
    try:
        _insist_sound(store, copy, name)
    except CorruptError as error:
        store.fs.unlink(copy)
        raise CorruptError(f"segment {name}: its parity does not give a sound segment; heal from elsewhere") from error
    with storage_errors(path):
        store.fs.replace(copy, path)
        store.fs.fsync_directory(store.directory)
    return len(patches)


def _write_mended(store: Store, source: int, copy: Path, size: int, patches: dict[int, bytes]) -> None:
    target = store.fs.open(copy, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    room = bytearray(_ROOM)  # patches lie at whole blocks, and so do windows: none crosses a border
    try:
        for at in range(0, size, _ROOM):
            window = memoryview(room)[: min(_ROOM, size - at)]
            got = fill(store.fs, source, [window], at)
            window[got:] = bytes(len(window) - got)
            for place in [place for place in patches if at <= place < at + len(window)]:
                window[place - at : place - at + len(patches[place])] = patches[place]
            write_all(store.fs, target, [window])
        store.fs.fsync(target)
    finally:
        store.fs.close(target)


def can_mend(store: Store, name: str) -> bool:
    """Whether it is worth trying: parity is there, and so is what computes with it."""
    if not parity_path(store, name).exists():
        return False
    try:
        import zfec  # noqa: F401, PLC0415 - optional
    except ImportError:
        raise InvalidInputError(
            f"segment {name} is damaged and has parity, but zfec is missing; run pip install 'keystone-sigma0[parity]'"
        ) from None
    return True
