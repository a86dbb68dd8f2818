"""The loss curve: kept as a blob, drawn in a terminal, drawn on a page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise

from adapters import learning_rate
from manifests import TrainingConfig

_BARS = " ▁▂▃▄▅▆▇█"
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 640, 280, 56, 32


def curve_lines(losses: Sequence[float], config: TrainingConfig) -> bytes:
    """The curve as JSON lines: step (from 1), loss, and the rate of that step."""
    rows = (
        {"step": step + 1, "loss": loss, "learning_rate": learning_rate(step, config)}
        for step, loss in enumerate(losses)
    )
    return "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows).encode()


def smoothed(losses: Sequence[float], places: int) -> list[float]:
    """The means of at most `places` stretches of a curve, one after the other."""
    places = min(places, len(losses))
    edges = [round(place * len(losses) / places) for place in range(places + 1)]
    return [sum(losses[a:b]) / (b - a) for a, b in pairwise(edges)]


def curve_text(losses: Sequence[float], *, width: int = 60, height: int = 8) -> str:
    """The curve for a terminal: a column of blocks for each stretch, from nought to the largest mean loss."""
    means = smoothed(losses, width)
    high = max(means) or 1.0
    levels = [round(max(0.0, mean) / high * height * 8) for mean in means]
    rows = []
    for row in range(height, 0, -1):
        cells = "".join(_BARS[max(0, min(8, level - (row - 1) * 8))] for level in levels)
        rows.append(f"{f'{high:.3f}' if row == height else '':>8} |{cells}".rstrip())
    last = f"{len(losses)} steps, loss {losses[0]:.3f} to {losses[-1]:.3f}"
    return "\n".join([*rows, f"{'0':>8} +{'-' * len(means)}", f"{'':10}{last}"])


def curve_svg(losses: Sequence[float], *, title: str) -> str:
    """The curve as one SVG that needs nothing else: every step as a thin line, the mean of stretches as a thick one."""
    high = max(losses) or 1.0
    places = smoothed(losses, 40)
    every = _points([(step + 0.5) / len(losses) for step in range(len(losses))], losses, high)
    means = _points([(place + 0.5) / len(places) for place in range(len(places))], places, high)
    right, base = _WIDTH - 16, _HEIGHT - _BOTTOM
    name = "".join({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"}.get(c, c) for c in title)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{name}"'
        ' font-family="sans-serif" font-size="12">'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/><text x="{_LEFT}" y="18" fill="#222">{name}</text>'
        f'<path d="M{_LEFT} 28V{base}H{right}" fill="none" stroke="#888"/>'
        f'<text x="{_LEFT - 6}" y="34" text-anchor="end" fill="#555">{high:.3f}</text>'
        f'<text x="{_LEFT - 6}" y="{base}" text-anchor="end" fill="#555">0</text>'
        f'<text x="{right}" y="{base + 18}" text-anchor="end" fill="#555">{len(losses)} steps</text>'
        f'<polyline points="{every}" fill="none" stroke="#b8c4d6"/>'
        f'<polyline points="{means}" fill="none" stroke="#1f5fa8" stroke-width="2"/></svg>\n'
    )


def _points(across: Sequence[float], values: Sequence[float], high: float) -> str:
    wide, tall = _WIDTH - 16 - _LEFT, _HEIGHT - _BOTTOM - 28
    return " ".join(
        f"{_LEFT + x * wide:.1f},{28 + (1 - min(1.0, max(0.0, value / high))) * tall:.1f}"
        for x, value in zip(across, values, strict=True)
    )
