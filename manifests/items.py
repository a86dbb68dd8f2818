"""Per-item results: what a score is recomputed from.

A blob of JSON lines, one object an item. Every item has a `name` of its own. Where items pass or fail it has a
`verdict`, and only `passed` passes; where they are measured it has a `value`, and a `weight` if not all count the same.
Whatever else a line says is for people.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from manifests.errors import InvalidDocumentError
from manifests.evidence import Interval, Score

PASSED = "passed"
_Z_OF_LEVEL = {0.9: 1.6448536269514722, 0.95: 1.959963984540054, 0.99: 2.5758293035489004}
_CLOSE = 1e-9


@dataclass(frozen=True, slots=True)
class Item:
    """One item's result: whether it passed, or what was measured; one of the two."""

    name: str
    passed: bool | None
    value: float
    weight: float


def read_items(data: bytes) -> tuple[Item, ...]:
    """Read a blob of per-item results.

    Raises:
        InvalidDocumentError: naming the line that is none, or a name that comes twice.
    """
    items = []
    seen: set[str] = set()
    for number, line in enumerate(data.splitlines(), 1):
        item = _item(number, line)
        if item.name in seen:
            raise InvalidDocumentError(f"item {item.name!r} comes twice (line {number}); each counts once")
        seen.add(item.name)
        items.append(item)
    return tuple(items)


def _item(number: int, line: bytes) -> Item:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidDocumentError(f"line {number} of the items is no JSON: {error}") from error
    name = found.get("name") if isinstance(found, dict) else None
    verdict, value = (found.get(key) for key in ("verdict", "value")) if isinstance(found, dict) else (None, None)
    if not isinstance(name, str) or (verdict is None) == (value is None):
        raise InvalidDocumentError(f"line {number} of the items needs a name, and either a verdict or a value")
    weight = found.get("weight", 1.0)
    if verdict is not None and isinstance(verdict, str):
        return Item(name, verdict == PASSED, 1.0 if verdict == PASSED else 0.0, 1.0)
    measured, counts = _finite(value), _finite(weight)
    if measured is None or counts is None or counts <= 0:
        raise InvalidDocumentError(f"line {number} of the items: value and weight are finite numbers, weight above 0")
    return Item(name, None, measured, counts)


def _finite(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def score_problem(score: Score, items: Sequence[Item]) -> str | None:
    """What a score says that its items do not support, or None."""
    if len(items) != score.n:
        return f"it says {score.n} items, there are results of {len(items)}"
    counted = [item.passed for item in items]
    if score.passed is not None:
        if None in counted:
            return "it counts items that passed, and the items have no verdicts"
        if counted.count(True) != score.passed:
            return f"it says {score.passed} passed, the items say {counted.count(True)}"
    else:
        mean = math.fsum(i.value * i.weight for i in items) / math.fsum(i.weight for i in items)
        if not math.isclose(mean, score.score, rel_tol=_CLOSE, abs_tol=_CLOSE):
            return f"it says {score.score}, the items give {mean}"
    return _interval_problem(score, score.interval) if score.interval is not None else None


def _interval_problem(score: Score, told: Interval) -> str | None:
    z = _Z_OF_LEVEL.get(told.level)
    if told.method != "wilson" or score.passed is None or z is None:
        return None  # a method that cannot be recomputed from counts
    low, high = wilson(score.passed, score.n, z)
    if math.isclose(low, told.low, abs_tol=_CLOSE) and math.isclose(high, told.high, abs_tol=_CLOSE):
        return None
    return f"it says an interval of {told.low} to {told.high}, {score.passed} of {score.n} gives {low} to {high}"


def wilson(passed: int, n: int, z: float) -> tuple[float, float]:
    """The Wilson score interval of a share; `z` is the normal quantile of its level."""
    share, weight = passed / n, 1 + z * z / n
    centre = (share + z * z / (2 * n)) / weight
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / weight
    return (0.0 if passed == 0 else centre - spread), (1.0 if passed == n else centre + spread)
