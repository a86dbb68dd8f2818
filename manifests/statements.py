"""What people and running models state: approvals, attestations, and what the source gate let in.

An approval is the promise that moves a protected ref, so it names everything it depends on: the ref, what will run,
what runs now, every report and policy that was looked at, and how long the ledger was. It becomes binding when it is
signed (see `envelopes`), is spent by one promotion, and is void once the ref has moved.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import AfterValidator, Field, PlainSerializer, model_validator

from csf_store import Digest
from manifests.document import Document, Part
from manifests.evidence import DigestSet
from manifests.fields import DigestField, Labels, LedgerPoint, Line, Name, Nonce, Positive, Text, frozen_mapping
from manifests.ref_names import RefName

Ground: TypeAlias = Literal["tests-passed", "grounding-check", "operator-approved"]
"""Why a record may train: nothing else lets experience through the gate."""


class Approval(Document):
    """One person's yes to one promotion.

    `ledger` is the ledger as it was when they said so; `incumbent` is what the ref held then, null for a new ref.
    """

    kind: Literal["approval"] = "approval"
    v: Literal[1] = 1
    ref: RefName
    assembly: DigestField
    recipe: DigestField | None = None
    incumbent: DigestField | None = None
    reports: DigestSet = ()
    policies: DigestSet = ()
    ledger: LedgerPoint
    note: Text = ""

    def links(self) -> tuple[Digest, ...]:
        """The incumbent, the reports and the policies; assembly and recipe are bound by digest."""
        found = {*self.reports, *self.policies}
        return tuple(sorted(found | ({self.incumbent} if self.incumbent is not None else set())))


class Attestation(Document):
    """What a running model said of its own weights: `value` is BLAKE3 keyed by `nonce` over its live tensors.

    It shows drift and mistakes. A host that lies can answer from the archive as well as the auditor can.
    """

    kind: Literal["attestation"] = "attestation"
    v: Literal[1] = 1
    assembly: DigestField
    recipe: DigestField
    nonce: Nonce
    value: DigestField
    tensors: Positive
    device: Line
    libraries: Annotated[
        Mapping[Name, Name], AfterValidator(frozen_mapping), PlainSerializer(dict, return_type=dict[str, str])
    ]


class AcceptedRecord(Part):
    """A Convergence Record that may train, why, and what proves it."""

    record: DigestField
    ground: Ground
    evidence: DigestField | None = None


class RejectedRecord(Part):
    """A record that the gate kept out, and why."""

    record: DigestField
    reason: Line


def _ordered_accepted(records: tuple[AcceptedRecord, ...]) -> tuple[AcceptedRecord, ...]:
    return tuple(sorted(set(records), key=lambda each: (each.record, each.model_dump_json())))


def _ordered_rejected(records: tuple[RejectedRecord, ...]) -> tuple[RejectedRecord, ...]:
    return tuple(sorted(set(records), key=lambda each: (each.record, each.reason)))


class SourceGateReport(Document):
    """What the source gate looked at. `data` are the data sets made of what it accepted, and of nothing else."""

    kind: Literal["source-gate-report"] = "source-gate-report"
    v: Literal[1] = 1
    gate: Name
    settings: Labels = Field(default_factory=dict)
    accepted: Annotated[tuple[AcceptedRecord, ...], AfterValidator(_ordered_accepted)] = ()
    rejected: Annotated[tuple[RejectedRecord, ...], AfterValidator(_ordered_rejected)] = ()
    data: DigestSet = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        seen: set[Digest] = set()
        for record in [*(each.record for each in self.accepted), *(each.record for each in self.rejected)]:
            if record in seen:
                raise ValueError(f"record {record} is judged twice")
            seen.add(record)
        return self

    def links(self) -> tuple[Digest, ...]:
        """The records it accepted and what proves them; data sets may live elsewhere and are named, not held."""
        proofs = {each.evidence for each in self.accepted if each.evidence is not None}
        return tuple(sorted(proofs | {each.record for each in self.accepted}))
