"""What a disk may hold after a crash: what is safe at each moment of its journal, and what may become of the rest."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from crash_disk import ROOT, Change, CrashDisk, Names, Op, Sync, SyncNames, Truncate, Write

_SECTORS: Final = (512, 4096)
_EXHAUSTIVE: Final = 4
"""Up to so many undecided operations, every combination of them is tried."""


class State(NamedTuple):
    """What a disk may hold: files by path, directories as None."""

    label: str
    files: dict[str, bytes | None]

    def place(self, root: Path) -> None:
        """Makes it, in a directory that is not there."""
        root.mkdir()
        for name, content in self.files.items():
            if content is None:
                (root / name).mkdir()
            else:
                (root / name).write_bytes(content)


class _Fate(NamedTuple):
    """What became of a change that no sync covers: which of its bytes are there, and whether its length is."""

    kept: tuple[tuple[int, int], ...] | None
    length: bool = True


_KEPT: Final = _Fate(None)
_GONE: Final = _Fate((), length=False)
_ZEROS: Final = _Fate(())
_SURE, _WAITING, _DOOMED = range(3)


class History:
    """Walks along a journal and knows what is safe at each moment."""

    def __init__(self, disk: CrashDisk) -> None:
        self._directories = disk.directories
        self._changes: list[Change] = []
        self._standing: list[int] = []

    def take(self, op: Op) -> None:
        """Moves past an operation."""
        if not isinstance(op, Sync | SyncNames):
            self._changes.append(op)
            self._standing.append(_WAITING)
            return
        after = _DOOMED if isinstance(op, Sync) and op.failed else _SURE
        for number, change in enumerate(self._changes):
            if self._standing[number] == _WAITING and _covers(op, change):
                self._standing[number] = after

    def states(self, chance: random.Random, samples: int) -> Iterator[State]:
        """What the disk may hold now: the telling cases, all of them where they are few, and seeded samples."""
        open_ = [number for number, standing in enumerate(self._standing) if standing != _SURE]
        seen = set()
        for label, fates in self._choices(open_, chance, samples):
            files = self._image(dict(zip(open_, fates, strict=True)))
            key = tuple(sorted(files.items(), key=lambda item: item[0]))
            if key not in seen:
                seen.add(key)
                yield State(label, files)

    def _choices(
        self, open_: Sequence[int], chance: random.Random, samples: int
    ) -> Iterator[tuple[str, Sequence[_Fate]]]:
        changes = [self._changes[number] for number in open_]
        names = [isinstance(change, Names) for change in changes]
        yield "nothing that was not synced", [_GONE] * len(open_)
        if not open_:
            return
        yield "everything", [_KEPT] * len(open_)
        yield "names without bytes", [_KEPT if name else _GONE for name in names]
        yield "names and lengths, zeros for bytes", [_KEPT if name else _ZEROS for name in names]
        yield "bytes without names", [_GONE if name else _KEPT for name in names]
        yield "only the last", [_GONE] * (len(open_) - 1) + [_KEPT]
        yield "all but the first", [_GONE] + [_KEPT] * (len(open_) - 1)
        if len(open_) <= _EXHAUSTIVE:
            for choice in itertools.product((_KEPT, _GONE), repeat=len(open_)):
                yield "one of all", choice
        if isinstance(last := changes[-1], Write):
            size = len(last.data)
            for cut in sorted({1, size // 2, size - 1, chance.randrange(size + 1)}):
                yield (
                    f"the last write up to byte {cut}",
                    [_KEPT] * (len(open_) - 1) + [_Fate(((0, cut),), length=False)],
                )
        for number in range(samples):
            yield f"sample {number}", [_any_fate(change, chance) for change in changes]

    def _image(self, fates: dict[int, _Fate]) -> dict[str, bytes | None]:
        contents: dict[int, bytearray] = {}
        names: dict[int, dict[str, int]] = {ROOT: {}}
        for number, change in enumerate(self._changes):
            fate = fates.get(number, _KEPT)
            if isinstance(change, Names):
                if fate is not _GONE:
                    _rename(names.setdefault(change.directory, {}), change)
            elif isinstance(change, Truncate):
                if fate is not _GONE:
                    content = contents.setdefault(change.file, bytearray())
                    content[change.length :] = bytes(max(0, change.length - len(content)))
            else:
                _write(contents.setdefault(change.file, bytearray()), change, fate)
        files: dict[str, bytes | None] = {}
        waiting = [("", ROOT)]
        while waiting:
            where, directory = waiting.pop()
            for name, inode in sorted(names.get(directory, {}).items()):
                if inode in self._directories:
                    files[where + name] = None
                    waiting.append((f"{where}{name}/", inode))
                else:
                    files[where + name] = bytes(contents.get(inode, b""))
        return files


def _covers(op: Sync | SyncNames, change: Change) -> bool:
    if isinstance(op, SyncNames):
        return isinstance(change, Names) and change.directory == op.directory
    return not isinstance(change, Names) and change.file == op.file


def _rename(names: dict[str, int], change: Names) -> None:
    for name, inode in change.changes:
        if inode is None:
            names.pop(name, None)
        else:
            names[name] = inode


def _write(content: bytearray, change: Write, fate: _Fate) -> None:
    pieces = ((0, len(change.data)),) if fate.kept is None else fate.kept
    end = change.offset + (len(change.data) if fate.length else max((stop for _, stop in pieces), default=0))
    if pieces or fate.length:
        content.extend(bytes(max(0, end - len(content))))
    for start, stop in pieces:
        content[change.offset + start : change.offset + stop] = change.data[start:stop]


def _any_fate(change: Change, chance: random.Random) -> _Fate:
    if not isinstance(change, Write):
        return chance.choice((_KEPT, _GONE))
    match chance.randrange(6):
        case 0 | 1:
            return _KEPT
        case 2:
            return _GONE
        case 3:
            return _ZEROS
        case 4:
            return _Fate(((0, chance.randrange(len(change.data) + 1)),), length=False)
        case _:
            sector = chance.choice(_SECTORS)
            first, size = change.offset // sector, len(change.data)
            edges = range(first * sector, change.offset + size + sector, sector)
            spans = [(max(0, edge - change.offset), min(size, edge + sector - change.offset)) for edge in edges]
            kept = tuple(span for span in spans if span[0] < span[1] and chance.random() < 0.5)
            return _Fate(kept, length=chance.random() < 0.7)
