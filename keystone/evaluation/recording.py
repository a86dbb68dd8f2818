"""From results to scores, from scores to a report, and to a manifest that carries it.

A report is bound to the assembly and the recipe that were measured, and to the digest of the suite. Its per-item
results are a blob, from which anybody can count again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from csf_store import Digest
from keystone.errors import InvalidInputError
from keystone.evaluation.estimates import LEVEL, bootstrap, pass_at_k
from keystone.evaluation.journal import Line
from keystone.evaluation.running import Settings
from keystone.evaluation.scoring import Rate, Verdict
from keystone.evaluation.suites import Suite
from keystone.loader import LoadedModel
from manifests import EvalReport, EvalSummary, Interval, Repository, Score

BITS_PER_BYTE = "bits-per-byte"
PASS_AT = "pass@"  # noqa: S105 - a metric, no secret


@dataclass(frozen=True)
class Recorded:
    """What an evaluation left in the archive.

    Attributes:
        items: blobs of per-item results, one for each metric, from which its score can be counted again.
        summaries: one for each metric, in the order asked for, each naming its report.
        manifest: the new manifest: same assembly, these evaluations added.
    """

    items: tuple[Digest, ...]
    summaries: tuple[EvalSummary, ...]
    manifest: Digest


def scores(suite: Suite, settings: Settings, results: Sequence[Line], ks: Sequence[int] = (1,)) -> tuple[Score, ...]:
    """The scores of a whole set of results.

    Args:
        suite: what was evaluated.
        settings: how.
        results: lines of `keystone.evaluation.running.evaluate`.
        ks: for which k to give pass@k; texts have bits per byte instead.

    Raises:
        InvalidInputError: a k beyond the number of samples.
    """
    if suite.kind == "text":
        return (_bits_per_byte(suite, results),)
    check_ks(suite, settings, ks)
    passed: dict[str, int] = {item.name: 0 for item in suite.items}
    for line in results:
        passed[str(line["name"])] += line["verdict"] == Verdict.PASSED
    return tuple(_pass_at(suite, settings.samples, list(passed.values()), k) for k in dict.fromkeys(ks))


def check_ks(suite: Suite, settings: Settings, ks: Sequence[int]) -> None:
    """Refuse a k beyond the number of samples, before anything is sampled.

    Raises:
        InvalidInputError: naming the k.
    """
    beyond = [k for k in ks if k > settings.samples]
    if suite.kind == "code" and beyond:
        raise InvalidInputError(f"pass@{beyond[0]} needs at least {beyond[0]} samples of an item: say --n {beyond[0]}")


def record(
    repository: Repository,
    loaded: LoadedModel,
    suite: Suite,
    settings: Settings,
    *,
    results: Sequence[Line],
    measured: Sequence[Score],
    sandbox: str,
) -> Recorded:
    """Store results, reports, and a manifest that carries them; no ref moves.

    Storing the same evaluation again changes nothing: everything is named by what it is.
    """
    with repository.archive.keeping():
        recipe = loaded.recipe.digest
        summaries, blobs = [], []
        for score in measured:
            lines = item_lines(suite, settings, results, score.metric)
            data = "".join(json.dumps(line, sort_keys=True, separators=(",", ":")) + "\n" for line in lines)
            items = repository.archive.put_bytes(data.encode()).digest
            blobs.append(items)
            report = EvalReport(
                assembly=loaded.manifest.assembly.digest,
                recipe=recipe,
                result=score,
                items=items,
                seeds=(settings.seed,),
                settings=_labels(suite, settings, sandbox),
            )
            fields = {name: getattr(score, name) for name in Score.model_fields}
            summaries.append(EvalSummary(**fields, report=repository.put_record(report), recipe=recipe))
        known = set(loaded.manifest.evals)
        digest = loaded.digest
        if not known.issuperset(summaries):
            manifest = loaded.manifest.revised(evals=(*loaded.manifest.evals, *summaries), parent=loaded.digest)
            digest = repository.put(manifest)
    return Recorded(tuple(blobs), tuple(summaries), digest)


def item_lines(suite: Suite, settings: Settings, results: Sequence[Line], metric: str) -> list[Line]:
    """One line an item, in the form that an audit counts again: a `verdict`, or a `value` and its `weight`.

    With several answers an item, its value is its own pass@k, and the answers are listed under `samples`.
    """
    if suite.kind == "text":
        return [
            {**line, "value": float(str(line["bits"])) / float(str(line["bytes"])), "weight": line["bytes"]}
            for line in results
        ]
    if settings.samples == 1:
        return list(results)
    k = int(metric.removeprefix(PASS_AT))
    answers: dict[str, list[Line]] = {item.name: [] for item in suite.items}
    for line in results:
        answers[str(line["name"])].append(line)
    lines: list[Line] = []
    for item in suite.items:
        passed = sum(line["verdict"] == Verdict.PASSED for line in answers[item.name])
        samples = [{key: line[key] for key in ("verdict", "detail", "completion")} for line in answers[item.name]]
        value = pass_at_k(settings.samples, passed, k)
        lines.append({"name": item.name, "family": item.family, "value": value, "samples": samples})
    return lines


def _pass_at(suite: Suite, samples: int, passed: Sequence[int], k: int) -> Score:
    n = len(passed)
    each = [pass_at_k(samples, count, k) for count in passed]
    count: int | None = None
    if samples == 1 or (len(set(each)) == 1 and each[0] in {0.0, 1.0}):
        # Items that all fail, or all pass, leave the bootstrap nothing to resample: it would claim certainty.
        rate = Rate.of(round(sum(each)), n)
        value = rate.value
        interval = Interval(low=min(rate.low, value), high=max(rate.high, value), level=LEVEL, method="wilson")
        count = rate.passed if samples == 1 else None
    else:
        interval = bootstrap(each)
        value = min(max(sum(each) / n, interval.low), interval.high)
    return Score(
        suite=suite.name,
        suite_digest=suite.digest,
        metric=f"{PASS_AT}{k}",
        n=n,
        passed=count,
        score=value,
        interval=interval,
    )


def _bits_per_byte(suite: Suite, results: Sequence[Line]) -> Score:
    bits = [float(str(line["bits"])) for line in results]
    sizes = [float(str(line["bytes"])) for line in results]
    interval = bootstrap(bits, sizes)
    value = min(max(sum(bits) / sum(sizes), interval.low), interval.high)
    return Score(
        suite=suite.name,
        suite_digest=suite.digest,
        metric=BITS_PER_BYTE,
        n=len(bits),
        passed=None,
        score=value,
        interval=interval,
    )


def _labels(suite: Suite, settings: Settings, sandbox: str) -> dict[str, str]:
    if suite.kind == "text":
        return {"kind": "text"}
    greedy = settings.temperature == 0
    decoding = "greedy" if greedy else f"temperature={settings.temperature:g} top_p={settings.top_p:g}"
    return {
        "sandbox": sandbox,
        "decoding": decoding,
        "samples": str(settings.samples),
        "batch_size": str(settings.batch_size),
        "max_new_tokens": str(settings.max_new_tokens),
        "style": settings.style,
    }
