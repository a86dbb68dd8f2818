"""`ParityReport`: how closely our forward pass follows a run of the vendor's engine on the same base.

A base that was imported from the vendor's layout is only believed to be computed right. A parity report is the proof
for one base and one generation of our code: the logits of a reference run, ours beside them, the bar and the worst
value. It names the reference by digest and does not hold it: logits over a large vocabulary are hundreds of megabytes.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import AfterValidator, Field, model_validator

from csf_store import Digest
from manifests.document import Document, Part
from manifests.fields import CodeId, DigestField, Line, Name, Positive, Real

ParityDType: TypeAlias = Literal["float32", "bfloat16"]
ParityMetric: TypeAlias = Literal["max-abs-delta", "relative-frobenius"]


class ParityCase(Part):
    """One input, run by both.

    `worst` is the measured value of the metric over all positions, null where a logit of ours was not finite. `tokens`
    is how many positions were compared, `prefill` how many of them went in with the first call; the rest followed one
    by one through the cache.
    """

    name: Name
    dtype: ParityDType
    metric: ParityMetric
    tokens: Positive
    prefill: Positive
    bar: Annotated[Real, Field(gt=0)]
    worst: Annotated[Real, Field(ge=0)] | None
    passed: bool

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.passed != (self.worst is not None and self.worst <= self.bar):
            raise ValueError(f"case {self.name!r}: passed is {self.passed}, and {self.worst} stands against {self.bar}")
        if self.prefill > self.tokens:
            raise ValueError(f"case {self.name!r} feeds {self.prefill} of {self.tokens} tokens at first")
        return self


def _ordered_cases(cases: tuple[ParityCase, ...]) -> tuple[ParityCase, ...]:
    return tuple(sorted(cases, key=lambda case: case.name))


class ParityReport(Document):
    """Ours against the vendor's, on one base.

    `code` and `code_source` say which of our code computed, `reference` is the file of the vendor's logits and `inputs`
    the specification they were made for (see `keystone.parity`), `engine` what made them in its own words.
    """

    kind: Literal["parity-report"] = "parity-report"
    v: Literal[1] = 1
    base: DigestField
    code: CodeId
    code_source: DigestField
    reference: DigestField
    inputs: DigestField
    engine: Line
    device: Line
    cases: Annotated[tuple[ParityCase, ...], Field(min_length=1), AfterValidator(_ordered_cases)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len({case.name for case in self.cases}) != len(self.cases):
            raise ValueError("a case appears twice")
        return self

    @property
    def passed(self) -> bool:
        """Whether every case stayed within its bar."""
        return all(case.passed for case in self.cases)

    def links(self) -> tuple[Digest, ...]:
        """The base. The reference is named, not held."""
        return (self.base,)
