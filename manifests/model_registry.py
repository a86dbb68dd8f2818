"""The model registry as a document: which models there are, and on what each may be offered.

Nothing in here says "verified". An entry names a head-to-head report, and whoever reads the registry looks at that
report again: a flag can be set by hand, a signed comparison of this very model cannot. Likewise no size is typed in:
`vram_bytes` comes with where it came from. The ledger remembers every version as a `registry.set` event.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import AfterValidator, Field, model_validator

from csf_store import Digest
from manifests.document import Document, Part
from manifests.fields import Count, DigestField, Line, Location, Positive, Real

VramSource: TypeAlias = Literal["fit", "measurement", "endpoint"]
"""`keystone fit`'s sum, a measurement on a card, or what the endpoint says of itself."""

ModelId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@+/-]{0,127}$")]
"""What a person calls a model: ASCII without spaces."""

TaskType = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]


def _task_set(types: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(set(types)))


class RegistryEntry(Part):
    """One model.

    `endpoint` is `keystone:REF` or `keystone:b3:...` for a model of this archive, else an http(s) URL, and `model` its
    name there. `assembly` and `recipe` are what a model of this archive was when it was registered: evidence counts
    for that pair only. `capability` is a claim on a scale of 0 to 100; a measured pass rate replaces it.
    """

    id: ModelId
    endpoint: Location
    model: Line | None = None
    assembly: DigestField | None = None
    recipe: DigestField | None = None
    self_converges: bool = False
    tool_calling: bool = False
    vram_bytes: Positive | None = None
    vram_source: VramSource | None = None
    ctx_tokens: Positive | None = None
    task_types: Annotated[tuple[TaskType, ...], Field(max_length=64), AfterValidator(_task_set)] = ()
    rank: Count = 0
    capability: Annotated[Real, Field(ge=0, le=100)] | None = None
    report: DigestField | None = None
    note: Line = ""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.vram_bytes is None) != (self.vram_source is None):
            raise ValueError(f"{self.id}: a size of memory is given with where it comes from, or not at all")
        local = self.endpoint.startswith("keystone:")
        if not local and not self.endpoint.startswith(("http://", "https://")):
            raise ValueError(f"{self.id}: an endpoint is keystone:REF, keystone:b3:..., http:// or https://")
        if local != (self.assembly is not None) or local != (self.recipe is not None) or local == bool(self.model):
            raise ValueError(
                f"{self.id}: a model of this archive has an assembly and a recipe, one behind a URL its name there"
            )
        return self

    @property
    def is_local(self) -> bool:
        """Whether it is a model of this archive."""
        return self.assembly is not None

    @property
    def identity(self) -> tuple[str, str]:
        """What a head-to-head report must have measured to speak of this entry."""
        if self.assembly is not None:
            return str(self.assembly), str(self.recipe)
        return self.endpoint, str(self.model)


def _ordered(entries: tuple[RegistryEntry, ...]) -> tuple[RegistryEntry, ...]:
    return tuple(sorted(entries, key=lambda entry: entry.id))


class RegistryDocument(Document):
    """All entries, by id."""

    kind: Literal["model-registry"] = "model-registry"
    v: Literal[1] = 1
    models: Annotated[tuple[RegistryEntry, ...], Field(max_length=4096), AfterValidator(_ordered)] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        seen: set[str] = set()
        for entry in self.models:
            if entry.id in seen:
                raise ValueError(f"model {entry.id!r} is registered twice")
            seen.add(entry.id)
        return self

    def links(self) -> tuple[Digest, ...]:
        """The reports that entries lean on; assemblies are bound by digest."""
        return tuple(sorted({entry.report for entry in self.models if entry.report is not None}))
