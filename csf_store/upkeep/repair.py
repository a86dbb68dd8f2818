"""Repair: make the best of damage, lose nothing more, and say by name what can not be had again.

0. Where a damaged segment has parity (``parity``), that makes it what it was.
1. Read every segment. Damaged are those that do not hold together where something was promised, those of another
   archive or under another name, and those that hold differences to a chunk that is lost.
2. Of damaged segments the sound records are copied to new ones. What is missing then is looked for in what was set
   aside before and in other archives, and stored anew.
3. Publish the new segments, write the journal, and build the index anew from what is there. Damaged files are moved to
   ``quarantine/``, never deleted.

What is still missing is not listed by the new index, so putting the same file again stores it again, and everything
that needed it is whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from csf_store.digest import Digest
from csf_store.durable import FileStat, storage_errors, write_new
from csf_store.errors import ConflictError, CorruptError, RefusedError
from csf_store.journal import JOURNAL, QUARANTINE, Journal, read_journal, write_journal
from csf_store.keeping import COLLECT_LOCK, Waiting, alone
from csf_store.ledger.ledger import Ledger
from csf_store.ledger.line import JSON
from csf_store.objects import KINDS
from csf_store.pipeline import Pipeline
from csf_store.recovery import Looked, look
from csf_store.segment import segment_id_of
from csf_store.store import Store
from csf_store.upkeep.diagnosis import Diagnosis, Patient, examine
from csf_store.upkeep.finishing import finish, upkeep
from csf_store.upkeep.healing import Healed, Healer, SetAside, Source
from csf_store.upkeep.inventory import Hurt, Inventory, Key, Missing, hurt_by
from csf_store.upkeep.parity import can_mend, is_sound, mend
from csf_store.upkeep.rewrite import Rewriter, clear_parts

WAIT = 60.0


class Damaged(NamedTuple):
    """A damaged segment: its file name, what is wrong, and how many sound records were taken out of it."""

    segment: str
    why: str
    salvaged: int


class Mended(NamedTuple):
    """A segment that parity made whole: its file name, and how many blocks of 4 KiB were wrong."""

    segment: str
    blocks: int


class LostRecord(NamedTuple):
    """What is not to be had again: a chunk (kind 0) or an object, and where it was if anybody knows."""

    digest: Digest
    kinds: tuple[int, ...]
    segment: str | None
    offset: int | None


class RepairReport(NamedTuple):
    """What a repair did, or would do.

    Attributes:
        dry_run: whether nothing was changed.
        segments: segments read.
        mended: those that parity made whole again, and the damaged blocks of each.
        damaged: those that were replaced and moved to quarantine.
        healed: what was lost and found elsewhere.
        lost: what was not.
        hurt: the objects that can not be read as they were, directly or through what they need.
        pins: names (or digests) of pins that are hurt.
        refs: refs whose present or earlier targets are hurt.
        ledger: what is wrong with the ledger; nobody repairs that.
        notes: what is unusual but harmless.
        quarantine: where damaged files were moved, relative to the archive; None if there were none.
    """

    dry_run: bool
    segments: int
    mended: tuple[Mended, ...]
    damaged: tuple[Damaged, ...]
    healed: tuple[Healed, ...]
    lost: tuple[LostRecord, ...]
    hurt: tuple[Hurt, ...]
    pins: tuple[str, ...]
    refs: tuple[str, ...]
    ledger: tuple[str, ...]
    notes: tuple[str, ...]
    quarantine: str | None

    @property
    def ok(self) -> bool:
        """Whether everything that was ever promised is there."""
        return not self.lost and not self.hurt and not self.ledger


class Repair:
    """One repair."""

    def __init__(
        self,
        store: Store,
        ledger: Ledger,
        pipeline: Pipeline,
        *,
        sources: Sequence[Source] = (),
        progress: Callable[[int], None] | None = None,
        waiting: Waiting | None = None,
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._pipeline = pipeline
        self._sources = sources
        self._progress = progress
        self._waiting = waiting
        self._looked: dict[str, tuple[FileStat, Looked]] = {}
        self._mended: list[Mended] = []
        self._notes: list[str] = []
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        self._into = f"{QUARANTINE}/{now}-{secrets.token_hex(3)}"

    def run(self, *, dry_run: bool, wait: float) -> RepairReport:
        """Repairs.

        Raises:
            ConflictError: if others were in the way for longer than the wait.
            StorageError: if there is no room for what is to be written; nothing was changed.
        """
        if self._store.keeping_here:
            raise RefusedError("this thread keeps things from being taken away; repair outside of keeping()")
        if not dry_run:
            self._set_journal_aside()
        with upkeep(self._store, self._ledger, wait=wait, waiting=self._waiting):
            if not dry_run:
                clear_parts(self._store.fs, self._store.directory)
            self._store.rest()
            self._store.refresh()
            self._look()  # the long part, while others go on
            if dry_run:
                return self._repair(None)[0]
            self._mend()
            rewriter = Rewriter(self._store.fs, self._store.directory, self._store.archive_id, self._store.seal_at)
            with contextlib.ExitStack() as locks:
                try:
                    report, journal = self._alone(rewriter, wait, locks)
                except BaseException:
                    rewriter.discard()
                    raise
                if journal is not None:
                    finish(self._store, self._ledger, journal)
            if report.damaged or not report.ok:
                self._keep(report)
        return report

    def _mend(self) -> None:
        """Sealed segments do not change, so nobody minds: readers go on in the file they have open."""
        for name in self._ill():
            try:
                self._mended.append(Mended(name, mend(self._store, name)))
            except CorruptError as error:
                self._notes.append(str(error))

    def _ill(self) -> list[str]:
        """Damaged segments that have parity."""
        return [
            name
            for name, (_, looked) in self._looked.items()
            if not is_sound(self._store, name, looked) and can_mend(self._store, name)
        ]

    def _keep(self, report: RepairReport) -> None:
        """Writes the report where the damaged files are: who looks at them later wants to know."""
        fs, path = self._store.fs, self._store.root / f"{self._into}.json"
        with storage_errors(path):
            fs.mkdir(path.parent)
            fs.fsync_directory(self._store.root)
            write_new(fs, path, json.dumps(document(report), indent=1, sort_keys=True).encode() + b"\n")

    def _alone(
        self, rewriter: Rewriter, wait: float, locks: contextlib.ExitStack
    ) -> tuple[RepairReport, Journal | None]:
        store = self._store
        lock = store.root / COLLECT_LOCK
        with alone(store.fs, lock, "puts are running", wait=wait, waiting=self._waiting):
            store.refresh()
            self._look()  # just what changed meanwhile
            report, damaged = self._repair(rewriter)
            for patient in damaged:
                self._keep_still(patient, locks)
            came = rewriter.publish()
            journal = None
            if damaged:
                gone = tuple(patient.name for patient in damaged)
                journal = Journal(secrets.token_hex(16), gone, came, self._into, 0, 0)
                write_journal(store.fs, store.root, store.archive_id, journal)
            store.keeper.rebuild()
            store.refresh()
        return report, journal

    def _keep_still(self, patient: Patient, locks: contextlib.ExitStack) -> None:
        """Nobody may write to a segment that goes: a writer that rests would go on in a file in quarantine."""
        fs = self._store.fs
        with storage_errors(patient.path):
            if self._looked[patient.name][1].scan.sealed:
                return
            fd = fs.open(patient.path, os.O_RDONLY)
            locks.callback(fs.close, fd)
            if not fs.try_lock(fd):
                raise ConflictError(
                    f"segment {patient.name} is damaged and another process writes to it; end that, then repair again"
                )

    def _set_journal_aside(self) -> None:
        """A journal that can not be followed stands in the way of every put; what it says is lost anyway."""
        store = self._store
        try:
            read_journal(store.fs, store.root, store.archive_id)
        except CorruptError:
            target = store.root / self._into
            with storage_errors(target):
                store.fs.mkdir(target)
                store.fs.fsync_directory(store.root)
                store.fs.fsync_directory(target.parent)
                with contextlib.suppress(FileExistsError):
                    store.fs.link(store.root / JOURNAL, target / JOURNAL)
                store.fs.fsync_directory(target)
                store.fs.unlink(store.root / JOURNAL)
                store.fs.fsync_directory(store.root)

    # -- looking -----------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Reads every segment that was not read yet or has changed since."""
        with storage_errors(self._store.directory):
            files = {
                name: found
                for name, found in self._store.fs.scan(self._store.directory).items()
                if segment_id_of(name) is not None
            }
        self._looked = {name: each for name, each in self._looked.items() if files.get(name) == each[0]}
        todo = [name for name in sorted(files) if name not in self._looked]
        for name, looked in self._pipeline.ordered(self._read, todo):
            if looked is not None:
                self._looked[name] = files[name], looked

    def _read(self, name: str) -> tuple[str, Looked | None]:
        looked = look(self._store.fs, self._store.directory / name)
        if looked is not None and self._progress:
            self._progress(looked.size)
        return name, looked

    # -- deciding ----------------------------------------------------------------------------------------------------

    def _repair(self, rewriter: Rewriter | None) -> tuple[RepairReport, list[Patient]]:
        """Works out what is damaged and what is missing, and fills the new segments."""
        diagnosis = examine(self._store, {name: looked for name, (_, looked) in self._looked.items()})
        inventory = diagnosis.inventory
        audit = self._ledger.another()
        try:
            found = audit.audit()
        finally:
            audit.close()
        targets = {
            name: [move.target for move in moves if move.target is not None] for name, moves in found.refs.items()
        }
        roots = {bytes(pin.digest) for pin in found.pins}
        roots.update(bytes(target) for each in targets.values() for target in each)
        inventory.forget_unpromised(diagnosis.unsealed, diagnosis.promised.keys(), roots)
        missing = inventory.missing(diagnosis.promised, roots)
        healer = Healer(inventory, self._with_quarantine(missing), rewriter)
        while missing and healer.heal(missing):
            missing = inventory.missing(diagnosis.promised, roots)
        damaged = diagnosis.damaged(inventory)
        salvaged = self._salvage(damaged, inventory, rewriter)
        hurt = hurt_by(inventory, missing)
        bad = {each.digest for each in hurt}
        return RepairReport(
            dry_run=rewriter is None,
            segments=len(self._looked),
            mended=tuple(self._mended),
            damaged=tuple(Damaged(patient.name, patient.why, salvaged[patient.name]) for patient in damaged),
            healed=tuple(healer.healed),
            lost=tuple(_lost(missing, diagnosis)),
            hurt=hurt,
            pins=tuple(dict.fromkeys(pin.name or str(pin.digest) for pin in found.pins if bytes(pin.digest) in bad)),
            refs=tuple(sorted(name for name, each in targets.items() if any(bytes(target) in bad for target in each))),
            ledger=found.findings,
            notes=(*self._notes, *(self._promise() if rewriter is None else ()), *diagnosis.notes, *found.notes),
            quarantine=self._into if damaged else None,
        ), damaged

    def _promise(self) -> list[str]:
        return [f"segment {name} has parity, from which it may be made whole" for name in self._ill()]

    def _with_quarantine(self, missing: Missing) -> Iterable[Source]:
        if not missing or not (self._store.root / QUARANTINE).is_dir():
            return self._sources
        return [SetAside(self._store.fs, self._store.root), *self._sources]

    def _salvage(self, damaged: Iterable[Patient], inventory: Inventory, rewriter: Rewriter | None) -> dict[str, int]:
        """Copies what is sound and in use out of damaged segments."""
        counts = {}
        for patient in damaged:
            rows = [held.row() for held in patient.held if inventory.uses(held)]
            if rewriter is not None:
                rewriter.copy(patient.path, rows, segment_id=patient.segment_id)
            counts[patient.name] = len(rows)
        return counts


def _lost(missing: Missing, diagnosis: Diagnosis) -> Iterator[LostRecord]:
    def place(keys: Iterable[Key]) -> tuple[str | None, int | None]:
        return next((diagnosis.promised[key] for key in keys if key in diagnosis.promised), (None, None))

    for digest, kinds in sorted(missing.objects.items()):
        yield LostRecord(Digest(digest), tuple(sorted(kinds)), *place((digest, kind) for kind in kinds))
    for digest in sorted(missing.chunks):
        yield LostRecord(Digest(digest), (0,), *place([(digest, 0)]))


def document(report: RepairReport) -> dict[str, JSON]:
    """A report as JSON."""
    return {
        "damaged": [each._asdict() for each in report.damaged],
        "dry_run": report.dry_run,
        "healed": [
            {"digest": str(Digest(each.digest)), "kind": kind_name(each.kind), "from": each.source}
            for each in report.healed
        ],
        "hurt": [
            {
                "digest": str(Digest(each.digest)),
                "kinds": [kind_name(kind) for kind in each.kinds],
                "causes": [str(Digest(cause)) for cause in each.causes],
            }
            for each in report.hurt
        ],
        "ledger": list(report.ledger),
        "mended": [each._asdict() for each in report.mended],
        "lost": [
            {
                "digest": str(each.digest),
                "kinds": [kind_name(kind) for kind in each.kinds],
                "segment": each.segment,
                "offset": each.offset,
            }
            for each in report.lost
        ],
        "notes": list(report.notes),
        "ok": report.ok,
        "pins": list(report.pins),
        "quarantine": report.quarantine,
        "refs": list(report.refs),
        "segments": report.segments,
    }


def kind_name(kind: int) -> str:
    """What a kind is called; 0 is a chunk."""
    return str(KINDS.get(kind, kind)) if kind else "chunk"
