"""What a cycle stores beside the documents that manifests know: the experience of one cycle, and signals of samples."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from adapters import Outcome, SignalTable
from csf_store import Archive, Digest, Kind
from keystone.errors import InvalidInputError
from manifests import DigestField, Document, EvalReport, Repository

Count = Annotated[int, Field(ge=0, le=10**9)]


class CycleRecords(Document):
    """What one cycle collected: the training set is this list of Convergence Records and nothing else.

    Attributes:
        records: the incumbent's own answers, in the order they were found.
        external: records that no model wrote, mixed in; their share of all is what the plan asks for.
        sampled: answers that were sampled.
        passed: of those, how many passed their tests.
        duplicates: of those, how many taught nothing new.
        contaminated: of those, how many came too close to a hold-out.
    """

    kind: Literal["cycle-records"] = "cycle-records"
    v: Literal[1] = 1
    records: tuple[DigestField, ...]
    external: tuple[DigestField, ...] = ()
    sampled: Count
    passed: Count
    duplicates: Count
    contaminated: Count

    def links(self) -> tuple[Digest, ...]:
        """The records."""
        return tuple(sorted({*self.records, *self.external}))


class SignalReport(Document):
    """Signals of one model's samples on the sentinel prompts.

    Attributes:
        assembly: the model.
        recipe: how its numbers were held.
        suite_digest: of the sentinel set.
        seed: of the samples.
        items: blob of lines `{"family", "item", "values"}`.
    """

    kind: Literal["signal-report"] = "signal-report"
    v: Literal[1] = 1
    assembly: DigestField
    recipe: DigestField
    suite_digest: DigestField
    seed: Annotated[int, Field(ge=0, le=2**53 - 1)]
    items: DigestField

    def links(self) -> tuple[Digest, ...]:
        """The numbers."""
        return (self.items,)


def keep(repository: Repository, document: Document) -> Digest:
    """Store a document that nothing links to, for good."""
    archive = repository.archive
    with archive.keeping():
        digest = repository.put_record(document)
        archive.pin(digest, kind=Kind.RECORD)
    return digest


def put_signals(archive: Archive, table: SignalTable) -> Digest:
    """The blob of a table of signals."""
    lines = [
        {
            "item": item,
            "family": family,
            "values": {name: float(values[place]) for name, values in sorted(table.values.items())},
        }
        for place, (item, family) in enumerate(zip(table.items, table.families, strict=True))
    ]
    text = "".join(json.dumps(line, sort_keys=True, separators=(",", ":")) + "\n" for line in lines)
    return archive.put_bytes(text.encode()).digest


def read_signals(repository: Repository, report: Digest) -> SignalTable:
    """The table of a signal report."""
    blob = repository.load_record(report, SignalReport).items
    rows = [json.loads(line) for line in repository.archive.get_bytes(blob).splitlines()]
    if not rows:
        raise InvalidInputError(f"signal report {report} is about no items; sample again")
    values = {name: np.array([row["values"][name] for row in rows], dtype=np.float64) for name in rows[0]["values"]}
    return SignalTable(tuple(row["item"] for row in rows), tuple(row["family"] for row in rows), values)


def read_outcomes(repository: Repository, report: Digest) -> tuple[Outcome, ...]:
    """Who passed what, from an eval report's items."""
    items = repository.load_record(report, EvalReport).items
    if items is None:
        raise InvalidInputError(f"eval report {report} keeps no results of items, so nothing can be compared")
    rows = [json.loads(line) for line in repository.archive.get_bytes(items).splitlines()]
    return tuple(Outcome(row["name"], row["family"], row["verdict"] == "passed") for row in rows)
