"""The manifest and its parts: what runs, how its numbers are held, and what is known of it.

- `Assembly`: what runs. Base tree, ordered adapters with weights, tokenizer tree, modeling code id.
- `Recipe`: how its numbers are held. dtype, quantization, the list of quantized modules.
- `Manifest`: one assembly plus source, evaluations, tripwire, lineage, approvals, parent manifest and labels. Its
  digest names the model. Evidence that arrives later makes a *new* manifest with the same assembly.

Assembly and recipe have digests of their own, since evidence is bound to that pair and not to a manifest.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import AfterValidator, Field, model_validator

from csf_store import Digest
from manifests.document import Document, Part
from manifests.evidence import DigestSet, ModuleSet, Score
from manifests.fields import CodeId, DigestField, Labels, Location, Real, SpdxExpression, Text

CODE_ID = "keystone-plt/1"
"""The modeling code of this release."""

KNOWN_CODES = frozenset({CODE_ID})
"""Code ids whose forward pass this release has fixtures for."""

DType: TypeAlias = Literal["float32", "bfloat16", "float16"]
Quantization: TypeAlias = Literal["none", "int8", "nf4"]
TripwireStatus: TypeAlias = Literal["clear", "tripped", "untested"]
SourceKind: TypeAlias = Literal["embedded", "directory", "hub", "gguf", "trained", "upcycled", "merged"]


class AdapterUse(Part):
    """One adapter in an assembly: its tree and the weight it is applied with."""

    adapter: DigestField
    weight: Real = 1.0


class Assembly(Document):
    """What runs. The order of `adapters` is part of the identity; an empty tuple is the bare frozen base."""

    kind: Literal["assembly"] = "assembly"
    v: Literal[1] = 1
    base: DigestField
    adapters: tuple[AdapterUse, ...] = ()
    tokenizer: DigestField
    code: CodeId = CODE_ID

    @model_validator(mode="after")
    def _check(self) -> Self:
        seen: set[Digest] = set()
        for use in self.adapters:
            if use.adapter in seen:
                raise ValueError(f"adapter {use.adapter} is used twice; add up its weights instead")
            if use.adapter == self.base:
                raise ValueError(f"{use.adapter} cannot be both the base and an adapter on it")
            seen.add(use.adapter)
        return self

    def links(self) -> tuple[Digest, ...]:
        """Base, tokenizer and adapters."""
        return tuple(sorted({self.base, self.tokenizer, *(use.adapter for use in self.adapters)}))


class Recipe(Document):
    """How the numbers of an assembly are held while it runs.

    `modules` are the linear modules whose weight is quantized, by full name: none for `none`, at least one otherwise.
    `double_quant` belongs to nf4, null elsewhere. `compute_dtype` is that of the activations of quantized modules:
    always given for nf4; for int8, null means that they are rounded to int8 too, row by row (LLM.int8).
    """

    kind: Literal["recipe"] = "recipe"
    v: Literal[1] = 1
    dtype: DType
    quantization: Quantization = "none"
    modules: ModuleSet = ()
    double_quant: bool | None = None
    compute_dtype: DType | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.quantization == "none") != (not self.modules):
            raise ValueError(f"quantization {self.quantization!r} with {len(self.modules)} quantized modules")
        nf4 = self.quantization == "nf4"
        if nf4 != (self.double_quant is not None) or (nf4 and self.compute_dtype is None):
            raise ValueError("double_quant and compute_dtype are given for nf4, and double_quant only for nf4")
        if self.quantization == "none" and self.compute_dtype is not None:
            raise ValueError("compute_dtype is given for quantized modules, and there are none")
        return self


class Source(Part):
    """Where the base came from and under which licence."""

    kind: SourceKind
    location: Location
    licence: SpdxExpression
    note: Text = ""


class EvalSummary(Score):
    """A score as the manifest carries it, bound to the recipe it was measured with and the report it is taken from."""

    report: DigestField
    recipe: DigestField


class Tripwire(Part):
    """The collapse tripwire's last word. Anything but `untested` names its report and the recipe it ran with."""

    status: TripwireStatus = "untested"
    report: DigestField | None = None
    recipe: DigestField | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        tested = self.status != "untested"
        if tested != (self.report is not None) or tested != (self.recipe is not None):
            raise ValueError(f"status {self.status!r}: a report and a recipe are named exactly when it was tested")
        return self


class LineageStep(Part):
    """One adapter in the graph: its parent (null: trained on the base itself) and the record that says so."""

    adapter: DigestField
    parent: DigestField | None
    record: DigestField


def _ordered_evals(evals: tuple[EvalSummary, ...]) -> tuple[EvalSummary, ...]:
    # The last key makes the order total: a set comes in the order of the day.
    key = lambda e: (e.suite, e.metric, e.recipe, e.report, e.n, e.score, e.model_dump_json())  # noqa: E731
    return tuple(sorted(set(evals), key=key))


def _ordered_steps(steps: tuple[LineageStep, ...]) -> tuple[LineageStep, ...]:
    return tuple(sorted(set(steps), key=lambda s: (s.adapter, s.record, s.model_dump_json())))


class Manifest(Document):
    """What a runnable model is. Immutable; its digest is the model's name.

    `recipe` is the one this manifest asks to be served with; null leaves it to the loader's default. `code_source` is
    the digest of the modeling source it was made with, beside the code id and outside the assembly's identity.
    """

    kind: Literal["manifest"] = "manifest"
    v: Literal[1] = 1
    assembly: Assembly
    code_source: DigestField | None = None
    recipe: Recipe | None = None
    source: Source
    evals: Annotated[tuple[EvalSummary, ...], AfterValidator(_ordered_evals)] = ()
    tripwire: Tripwire = Tripwire()
    approvals: DigestSet = ()
    lineage: Annotated[tuple[LineageStep, ...], AfterValidator(_ordered_steps)] = ()
    parent: DigestField | None = None
    labels: Labels = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_lineage(self) -> Self:
        """The lineage lists each adapter in use and each of its ancestors once, and nothing else."""
        parents = {step.adapter: step.parent for step in self.lineage}
        if len(parents) != len(self.lineage):
            raise ValueError("an adapter appears twice in the lineage")
        reached: set[Digest] = set()
        for use in self.assembly.adapters:
            path: set[Digest] = set()
            at: Digest | None = use.adapter
            while at is not None and at not in reached:
                if at in path:
                    raise ValueError(f"the lineage runs in a circle at adapter {at}")
                if at not in parents:
                    raise ValueError(f"adapter {at} has no step in the lineage; trace it with Repository.trace")
                path.add(at)
                at = parents[at]
            reached |= path
        if surplus := sorted(parents.keys() - reached):
            raise ValueError(f"the lineage names {surplus[0]}, which no adapter in use descends from")
        return self

    def links(self) -> tuple[Digest, ...]:
        """Everything a verified load and an audit of this manifest need from the archive."""
        found = set(self.assembly.links()) | set(self.approvals)
        for step in self.lineage:
            found |= {step.adapter, step.record}
        found |= {summary.report for summary in self.evals}
        found |= {link for link in (self.tripwire.report, self.parent) if link is not None}
        return tuple(sorted(found))
