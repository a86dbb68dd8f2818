"""Which segments are damaged, what they still hold, and what was promised of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from csf_store.framing import (
    ZERO_DIGEST,
    FramingError,
    check_segment_header,
    is_foreign,
    segment_header_is_torn,
    segment_id_in,
)
from csf_store.index import Index
from csf_store.index_rows import SegmentState
from csf_store.recovery import Looked, Scan, look
from csf_store.segment import segment_id_of
from csf_store.store import Store
from csf_store.upkeep.inventory import Held, Inventory, Key


class Patient(NamedTuple):
    """A segment, examined.

    Attributes:
        name: of its file.
        path: of its file.
        segment_id: under which its records are keyed: that of its name, or of its header if that is another's.
        why: what is wrong; empty if nothing is.
        held: its sound records.
    """

    name: str
    path: Path
    segment_id: bytes
    why: str
    held: tuple[Held, ...]


class Diagnosis(NamedTuple):
    """All segments, examined.

    Attributes:
        patients: every segment.
        inventory: what they hold.
        promised: digest and kind of everything the index lists or has lost, and where it was.
        unsealed: the files of unsealed segments.
        notes: what is unusual but harmless.
    """

    patients: tuple[Patient, ...]
    inventory: Inventory
    promised: dict[Key, tuple[str, int]]
    unsealed: frozenset[Path]
    notes: tuple[str, ...]

    def damaged(self, inventory: Inventory) -> list[Patient]:
        """Those to be replaced: damaged, or holding differences that nobody can decode any more."""
        found = []
        for patient in self.patients:
            why = patient.why
            if not why and any(
                held.entry.base != ZERO_DIGEST and not _decodable(inventory, held) for held in patient.held
            ):
                why = "it holds differences to chunks that are lost"
            if why:
                found.append(patient._replace(why=why))
        return found


def _decodable(inventory: Inventory, held: Held) -> bool:
    base = inventory.chunks.get(held.entry.base)
    return base is not None and base.entry.base == ZERO_DIGEST and base.entry.raw_length == held.entry.raw_length


def examine(store: Store, looked: Mapping[str, Looked]) -> Diagnosis:
    """Examines segments that were read."""
    states = store.segments()
    inventory = Inventory(store.fs)
    patients, unsealed, notes = [], [], []
    shorter = {lost.segment for lost in store.lost()}
    for name, each in looked.items():
        patient, said = _examine(store, name, states.get(name), each)
        if name in shorter and not patient.why:
            patient = patient._replace(why="it became shorter: records that it held are gone")
        notes += said
        patients.append(patient)
        if not each.scan.sealed:
            unsealed.append(patient.path)
    for patient in sorted(patients, key=lambda each: bool(each.why)):  # of two copies, the one that may stay counts
        inventory.add(patient.path, patient.segment_id, [held.entry for held in patient.held])
    promised = store.keeper.using(lambda index: _promised(index, states))
    return Diagnosis(tuple(patients), inventory, promised, frozenset(unsealed), tuple(notes))


def _examine(store: Store, name: str, state: SegmentState | None, looked: Looked) -> tuple[Patient, list[str]]:
    path = store.directory / name
    segment_id = segment_id_of(name) or b""
    end = state.end if state else 0
    sealed = bool(state and state.sealed)
    found: Scan | None = looked.scan
    why = ""
    try:
        check_segment_header(looked.head, store.archive_id, segment_id)
    except FramingError as error:
        if not end and segment_header_is_torn(looked.head, store.archive_id, segment_id):
            return Patient(name, path, segment_id, "", ()), [f"segment {name} was begun and never written to"]
        why = str(error)
        stated = segment_id_in(looked.head, store.archive_id)
        if stated is not None:  # one of ours under another name
            segment_id = stated
            again = look(store.fs, path, segment_id)
            found = again.scan if again else None
        elif is_foreign(looked.head, store.archive_id):
            found = None  # nobody here was promised anything of it
    notes = []
    gaps = [] if found is None else [*found.gaps, *([found.tail] if found.tail else [])]
    for gap in gaps:
        if sealed or gap.offset < end:
            why = why or f"{gap.reason} at offset {gap.offset}"
        else:
            notes.append(f"segment {name} holds {gap.length} bytes of a write that was cut short at {gap.offset}")
    if found is not None and sealed and not found.sealed and not found.tail:
        why = why or "it was sealed and its end is missing"
    held = tuple(Held(path, segment_id, entry) for entry in (found.records if found else ()))
    return Patient(name, path, segment_id, why, held), notes


def _promised(index: Index, states: Mapping[str, SegmentState]) -> dict[Key, tuple[str, int]]:
    names = {state.id: name for name, state in states.items()}
    places: dict[Key, tuple[str, int]] = {
        (lost.digest, lost.kind): (lost.segment, lost.offset) for lost in index.lost()
    }
    for rows in (index.chunk_rows(), index.object_rows()):
        for row in rows:
            places[row.digest, row.where.kind] = names.get(row.where.segment, "?"), row.where.offset
    return places
