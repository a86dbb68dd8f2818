"""Questions about manifests: which of them fit, and how two of them differ.

Both read documents and nothing else: every answer comes from the documents themselves, and there is no index that
could be stale or could lie. What makes it fast is that a canonical document has one spelling: a text that must be in
it, a digest or a label, can be looked for in its bytes, and a manifest without that text need not be parsed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from csf_store import Digest
from manifests.canonical import Json, encode
from manifests.schema import EvalSummary, Manifest, TripwireStatus


@dataclass(frozen=True, slots=True)
class ManifestQuery:
    """What to look for; every filter that is given must fit.

    Attributes:
        base: the base tree.
        adapter: an adapter in use, or an ancestor of one.
        assembly: what runs, by its digest.
        parent: the manifest it grew from.
        tripwire: the tripwire's last word.
        not_tripwire: what that word must not be.
        labels: labels it must carry, with these values.
        suite: it has a score on this suite; `metric`, `at_least` and `at_most` are about the same score.
    """

    base: Digest | None = None
    adapter: Digest | None = None
    assembly: Digest | None = None
    parent: Digest | None = None
    tripwire: TripwireStatus | None = None
    not_tripwire: TripwireStatus | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    suite: str | None = None
    metric: str | None = None
    at_least: float | None = None
    at_most: float | None = None

    def texts(self) -> tuple[bytes, ...]:
        """What must be somewhere in the bytes of every manifest that fits; one that has it all may fit or not."""
        named = [digest for digest in (self.base, self.adapter, self.parent) if digest is not None]
        spelled = [encode({key: value})[1:-1] for key, value in self.labels.items()]
        for key, text in (("status", self.tripwire), ("suite", self.suite), ("metric", self.metric)):
            spelled += [encode({key: text})[1:-1]] if text is not None else []
        return (*(str(digest).encode() for digest in named), *spelled)

    def fits(self, manifest: Manifest) -> bool:
        """Whether a manifest is one of those asked for."""
        assembly, status = manifest.assembly, manifest.tripwire.status
        return (
            self.base in {None, assembly.base}
            and (self.adapter is None or any(step.adapter == self.adapter for step in manifest.lineage))
            and (self.assembly is None or assembly.digest == self.assembly)
            and self.parent in {None, manifest.parent}
            and self.tripwire in {None, status}
            and self.not_tripwire != status
            and all(manifest.labels.get(key) == value for key, value in self.labels.items())
            and (not self._asks_for_scores or any(self._fits_score(each) for each in manifest.evals))
        )

    @property
    def _asks_for_scores(self) -> bool:
        return any(each is not None for each in (self.suite, self.metric, self.at_least, self.at_most))

    def _fits_score(self, score: EvalSummary) -> bool:
        return (
            self.suite in {None, score.suite}
            and self.metric in {None, score.metric}
            and (self.at_least is None or score.score >= self.at_least)
            and (self.at_most is None or score.score <= self.at_most)
        )


ALL = ManifestQuery()
"""Every manifest."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that two manifests say differently; None where one of them says nothing."""

    path: str
    before: Json
    after: Json


def differences(before: Manifest, after: Manifest) -> tuple[Difference, ...]:
    """What differs between two manifests, in the order of the paths.

    Members of sets are matched by what they are about: an eval by suite, metric and recipe, an adapter by its digest.
    """
    old, new = dict(_facts(before)), dict(_facts(after))
    return tuple(
        Difference(path, old.get(path), new.get(path))
        for path in sorted(old.keys() | new.keys())
        if (path in old) != (path in new) or encode({"": old[path]}) != encode({"": new[path]})
    )


def _facts(manifest: Manifest) -> Iterator[tuple[str, Json]]:
    told = manifest.to_json()
    assembly = manifest.assembly
    yield "base", str(assembly.base)
    yield "tokenizer", str(assembly.tokenizer)
    yield "code", assembly.code
    yield "code_source", told["code_source"]
    yield "adapter order", [str(use.adapter) for use in assembly.adapters]
    for use in assembly.adapters:
        yield f"adapter {use.adapter}", use.weight
    for step in manifest.lineage:
        yield f"lineage {step.adapter}", {"parent": str(step.parent), "record": str(step.record)}
    if manifest.recipe is not None:
        for key, value in manifest.recipe.to_json().items():
            yield f"recipe {key}", value
    for key, value in manifest.source.to_json().items():
        yield f"source {key}", value
    for score, summary in zip(manifest.evals, _sequence(told["evals"]), strict=True):
        yield f"eval {score.suite} {score.metric} on {score.recipe.short} ({score.report.short})", summary
    for key, value in manifest.tripwire.to_json().items():
        yield f"tripwire {key}", value
    for approval in manifest.approvals:
        yield f"approval {approval}", True
    yield "parent", told["parent"]
    for key, text in manifest.labels.items():
        yield f"label {key}", text


def _sequence(value: Json) -> Sequence[Json]:
    return value if isinstance(value, Sequence) and not isinstance(value, str) else ()
