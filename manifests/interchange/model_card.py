"""The `modelCard` of a CycloneDX component: what a model is for, what it learned from, how well it does.

The CycloneDX library has no classes for model cards yet, so this is the JSON of the schema's `modelCard` by hand; the
document it ends up in is validated as a whole. All numbers are texts there, as the schema wants them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from manifests.canonical import Json, JsonObject, encode
from manifests.evidence import TrainingRecord
from manifests.interchange.facts import AdapterFacts, Facts
from manifests.schema import EvalSummary

PREFIX = "keystone"
"""What the names of our properties begin with."""


def model_card(facts: Facts) -> JsonObject:
    """The card of the whole: every score with its interval, and what nobody has measured."""
    properties = {
        f"{PREFIX}:eval:{number}:{name}": value
        for number, summary in enumerate(facts.manifest.evals, start=1)
        for name, value in _about(summary).items()
    }
    card: dict[str, Json] = {
        "modelParameters": _parameters(facts.manifest.assembly.code, _datasets(facts)),
    }
    if metrics := [_metric(summary) for summary in facts.manifest.evals]:
        card["quantitativeAnalysis"] = {"performanceMetrics": metrics}
    if limits := _limits(facts):
        card["considerations"] = {"technicalLimitations": limits}
    if properties:
        card["properties"] = named(properties)
    return card


def adapter_card(code: str, training: TrainingRecord) -> JsonObject:
    """The card of one adapter: the data it was trained on, by digest, and every setting of the run."""
    config = training.config.to_json()
    settings = {f"{PREFIX}:training:{name}": text(value) for name, value in sorted(config.items())}
    told: dict[str, str | None] = {
        "base_before": str(training.base_before),
        "base_after": str(training.base_after),
        "adapter_tensors": str(training.adapter_tensors),
        "batches": str(training.batches),
        "examples": str(training.examples),
        "experience_records": str(len(training.experience)),
        "final_loss": text(training.final_loss),
        "gate": str(training.gate) if training.gate is not None else None,
        "device": training.device,
        "libraries": " ".join(f"{name}={version}" for name, version in training.libraries.items()),
    }
    settings |= {f"{PREFIX}:training:{name}": value for name, value in told.items() if value is not None}
    return {
        "modelParameters": _parameters(code, [_dataset(str(data)) for data in training.data]),
        "properties": named(settings),
    }


def named(properties: Mapping[str, str]) -> list[Json]:
    """Properties as CycloneDX writes them."""
    return [{"name": name, "value": value} for name, value in properties.items()]


def text(value: Json) -> str:
    """A JSON value as text: a string as it is, anything else in its one canonical form."""
    return value if isinstance(value, str) else encode({"v": value})[5:-1].decode()


def _parameters(code: str, datasets: Sequence[Json]) -> JsonObject:
    found: dict[str, Json] = {
        "task": "text-generation",
        "architectureFamily": "transformer",
        "modelArchitecture": code,
        "inputs": [{"format": "text"}],
        "outputs": [{"format": "text"}],
    }
    if datasets:
        found["datasets"] = datasets
    return found


def _datasets(facts: Facts) -> list[Json]:
    learned: dict[str, None] = {}
    for each in facts.adapters:
        learned |= dict.fromkeys(str(data) for data in (each.training.data if each.training is not None else ()))
    return [_dataset(data) for data in sorted(learned)]


def _dataset(digest: str) -> JsonObject:
    return {"type": "dataset", "name": digest}


def _metric(summary: EvalSummary) -> JsonObject:
    metric: dict[str, Json] = {"type": summary.metric, "value": text(summary.score), "slice": summary.suite}
    if summary.interval is not None:
        low, high = text(summary.interval.low), text(summary.interval.high)
        metric["confidenceInterval"] = {"lowerBound": low, "upperBound": high}
    return metric


def _about(summary: EvalSummary) -> Mapping[str, str]:
    """What a performance metric has no field for."""
    found = {
        "report": str(summary.report),
        "recipe": str(summary.recipe),
        "suite": f"{summary.suite} {summary.suite_digest}",
        "items": str(summary.n),
    }
    if summary.interval is not None:
        found["interval"] = f"{text(summary.interval.level)} {summary.interval.method}"
    return found


def _limits(facts: Facts) -> list[Json]:
    limits: list[Json] = []
    if not facts.manifest.evals:
        limits.append("Nothing was measured on exactly these weights.")
    if facts.manifest.assembly.adapters and facts.wire is None:
        limits.append("The collapse tripwire was not run on these weights.")
    if facts.wire is not None and facts.wire.tripped:
        limits.append(f"The collapse tripwire tripped: {', '.join(facts.wire.tripped)}.")
    limits += [
        f"Nothing proves how adapter {each.adapter} was trained: its record is a claim."
        for each in _unproven(facts.adapters)
    ]
    return limits


def _unproven(adapters: Sequence[AdapterFacts]) -> list[AdapterFacts]:
    return [each for each in adapters if each.training is None]
