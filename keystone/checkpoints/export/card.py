"""README.md of an export: a model card that the Hub can read, and that says how to check every word of it.

The front matter has the Hub's own fields, written by `huggingface_hub`. Scores become a `model-index` only where they
were measured on exactly what is in the directory: evidence is bound to an assembly and a recipe, so what was measured
on int8 weights, or before adapters were merged, is told in the text and not claimed in the metadata.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from huggingface_hub import EvalResult, ModelCardData

from csf_store import Digest
from keystone.checkpoints.licences import hub_licence
from keystone.identity import source_digest
from manifests import EvalSummary, Manifest, Recipe, claims_of, hub_id

DType: TypeAlias = Literal["float32", "bfloat16", "float16"]

_HUB_DATASETS = {"humaneval": "openai/openai_humaneval"}
"""Suites that are data sets of the Hub, by their names there."""

_VERIFY = """`keystone.json` lists the BLAKE3 digest of every file here (`b3sum FILE` prints the same hex) and holds the
manifest itself, whose RFC 8785 bytes hash to the manifest digest above. Whoever has the archive runs
`keystone audit {digest}`, which hashes all of it again and walks the lineage to the base."""


@dataclass(frozen=True)
class CardFacts:
    """What a card is written from.

    Attributes:
        manifest: what was exported.
        digest: its digest.
        title: heading, the directory's name.
        layout: `transformers`, `vendor` or `gguf`.
        architecture: the class that loads it.
        dtype: of the weights, as torch names it, or `mixed`.
        parameters: how many.
        loops: how often the layers run.
        merged: adapters were merged into the weights.
        as_stored: dtype and values are those of the base.
        usage: how to load it, Markdown.
        notes: what a reader should know besides.
    """

    manifest: Manifest
    digest: Digest
    title: str
    layout: str
    architecture: str
    dtype: str
    parameters: int
    loops: int
    merged: bool
    as_stored: bool
    usage: str
    notes: Sequence[str] = ()


def model_card(facts: CardFacts) -> bytes:
    """The whole README.md."""
    return f"---\n{front_matter(facts)}\n---\n\n{_body(facts)}".encode()


def front_matter(facts: CardFacts) -> str:
    """The Hub's metadata as YAML."""
    manifest = facts.manifest
    tags = ["keystone", *(["parallel-loop-transformer"] if facts.loops > 1 else [])]
    tags += ["gguf"] if facts.layout == "gguf" else []
    tags += ["lora"] if manifest.assembly.adapters else []
    given: dict[str, object] = {
        **_licence(manifest.source.licence),
        "library_name": "gguf" if facts.layout == "gguf" else "transformers",
        "pipeline_tag": "text-generation",
        "tags": tags,
    }
    if base := hub_id(manifest.source):
        given["base_model"] = base
        if relation := _relation(facts):
            given["base_model_relation"] = relation
    measured = [_eval_result(summary) for summary in manifest.evals if _is_about(summary, facts)]
    if measured:
        given |= {"model_name": facts.title, "eval_results": measured}
    return str(ModelCardData(**given).to_yaml(line_break="\n")).strip()  # type: ignore[arg-type]


def _relation(facts: CardFacts) -> str | None:
    """The Hub's word for how this came from its base; the bare base in another form has none that would be true."""
    if not facts.manifest.assembly.adapters:
        return "finetune" if facts.manifest.source.kind in ("upcycled", "trained") else None
    return "finetune" if facts.merged else "adapter"


def _licence(expression: str) -> Mapping[str, str]:
    name, called = hub_licence(expression)
    return {"license": name} if called is None else {"license": name, "license_name": called}


def _is_about(summary: EvalSummary, facts: CardFacts) -> bool:
    return facts.as_stored and not facts.merged and summary.recipe == _plain_recipe(facts)


def _plain_recipe(facts: CardFacts) -> Digest | None:
    """The recipe of unquantized weights in one dtype; mixed ones have none, so nothing was measured on it."""
    known: dict[str, DType] = {"float32": "float32", "bfloat16": "bfloat16", "float16": "float16"}
    return Recipe(dtype=known[facts.dtype]).digest if facts.dtype in known else None


def _eval_result(summary: EvalSummary) -> EvalResult:
    return EvalResult(
        task_type="text-generation",
        dataset_type=_HUB_DATASETS.get(summary.suite, summary.suite),
        dataset_name=summary.suite,
        # The field `revision` is for a commit of a dataset on the Hub, which a digest of ours is not.
        dataset_args={"suite": str(summary.suite_digest)},
        metric_type=summary.metric,
        metric_name=f"{summary.metric} over {summary.n} items",
        metric_value=summary.score,
        metric_args={
            "report": str(summary.report),
            "recipe": str(summary.recipe),
            "n": summary.n,
            **({} if summary.interval is None else {"interval": summary.interval.to_json()}),
        },
    )


def _body(facts: CardFacts) -> str:
    manifest = facts.manifest
    assembly, source = manifest.assembly, manifest.source
    rows = [("manifest", facts.digest), ("assembly", assembly.digest), ("base tree", assembly.base)]
    rows += [(f"adapter {n}, weight {use.weight:g}", use.adapter) for n, use in enumerate(assembly.adapters, start=1)]
    rows += [("tokenizer tree", assembly.tokenizer), ("modeling source", manifest.code_source or source_digest())]
    digests = "\n".join(f"| {name} | `{digest}` |" for name, digest in rows)
    parts = [
        f"# {cell(facts.title)}",
        _summary(facts),
        f"Source of the base: {cell(source.location)} ({source.kind}), licence {cell(source.licence)}."
        + (f" {cell(source.note)}" if source.note else ""),
        *(f"- {note}" for note in facts.notes),
        "## Use",
        facts.usage,
        "## What it is made of",
        f"| part | BLAKE3 |\n|---|---|\n{digests}",
        "## Measured",
        _scores(facts),
        *_claims(manifest),
        "## How to verify",
        _VERIFY.format(digest=facts.digest),
    ]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _summary(facts: CardFacts) -> str:
    loops = f"{facts.loops} loops" if facts.loops > 1 else "1 loop"
    return (
        f"Exported from Keystone as `{facts.layout}`: {facts.architecture}, {facts.parameters:,} parameters in"
        f" {facts.dtype}, {loops}, code `{facts.manifest.assembly.code}`."
    )


def _scores(facts: CardFacts) -> str:
    if not facts.manifest.evals:
        return "Nothing is recorded."
    rows = [
        f"| {cell(each.suite)} | {cell(each.metric)} | {each.score:.4g}{_interval(each)} | {each.n} | "
        f"{'these weights' if _is_about(each, facts) else 'another form of this model'} | `{each.report.short}` |"
        for each in facts.manifest.evals
    ]
    head = "| suite | metric | score | items | measured on | report |\n|---|---|---|---|---|---|\n"
    return head + "\n".join(rows)


def _interval(summary: EvalSummary) -> str:
    found = summary.interval
    return "" if found is None else f" ({found.low:.3g} to {found.high:.3g} at {found.level:g})"


def _claims(manifest: Manifest) -> list[str]:
    """What the source's publisher says, in a section that says whose words they are."""
    rows = [f"| {cell(name)} | {cell(said)} |" for name, said in claims_of(manifest).items()]
    if not rows:
        return []
    head = "What the publisher of the base says of it. Nothing of it was verified.\n\n| field | claim |\n|---|---|\n"
    return ["## Claimed", head + "\n".join(rows)]


def cell(text: str) -> str:
    """Text from a document as plain text in Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", " ".join(text.split()))
