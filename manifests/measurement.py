"""What a model took when it ran: memory and speed, as a document beside the plan they are held against.

Bound, like all evidence, to the pair (assembly, recipe). Numbers of one machine say little about another, so the
machine is part of the document: device, threads, capability, libraries.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PlainSerializer

from manifests.document import Document
from manifests.fields import Count, DigestField, Line, Name, Positive, Real, frozen_mapping


class Measurement(Document):
    """One run: a load, a prefill and a decode of one sequence.

    `planned_bytes` is what was foretold before anything was read, `peak_bytes` the most memory that the run held, the
    libraries included: of the process (`rss`), or on the card (`cuda`). `weight_bytes` and `cache_bytes` are parts of
    it, counted. Speeds are in tokens a second, `load_seconds` from the first read to a model ready to run.
    """

    kind: Literal["measurement"] = "measurement"
    v: Literal[1] = 1
    assembly: DigestField
    recipe: DigestField
    memory: Literal["rss", "cuda"]
    planned_bytes: Count
    peak_bytes: Positive
    weight_bytes: Positive
    cache_bytes: Count
    prompt_tokens: Positive
    generated_tokens: Positive
    load_seconds: Annotated[Real, Field(ge=0)]
    prefill_tokens_per_second: Annotated[Real, Field(ge=0)]
    decode_tokens_per_second: Annotated[Real, Field(ge=0)]
    device: Line
    threads: Positive
    capability: Line
    libraries: Annotated[
        Mapping[Name, Name], AfterValidator(frozen_mapping), PlainSerializer(dict, return_type=dict[str, str])
    ]

    @property
    def error(self) -> float:
        """By how much the plan was off, as a share of what was measured; positive where it promised less."""
        return (self.peak_bytes - self.planned_bytes) / self.peak_bytes
