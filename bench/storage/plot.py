"""The growth table as a picture: an SVG of a few kilobytes, drawn without a plotting library."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from bench.storage.growth import CHECKPOINT_MB, Size

_WIDTH, _HEIGHT = 250, 190
_LEFT, _TOP, _RIGHT, _BOTTOM = 46, 30, 12, 34
_INK, _GRID, _LINE = "#3a3f47", "#d9dde3", "#1769aa"


class _Panel(NamedTuple):
    title: str
    value: Callable[[Size], float]


_PANELS = (
    _Panel("open, ms", lambda size: size.open * 1e3),
    _Panel(f"put {CHECKPOINT_MB:.0f} MB, s", lambda size: size.put),
    _Panel(f"get {CHECKPOINT_MB:.0f} MB, s", lambda size: size.get),
    _Panel("memory of a put, MB", lambda size: size.put_memory / 1e6),
)


def growth_svg(sizes: Sequence[Size]) -> str:
    """Four panels over the number of chunks, on a logarithmic axis. Every vertical axis begins at zero."""
    width = _WIDTH * len(_PANELS)
    box = f'viewBox="0 0 {width} {_HEIGHT}" width="{width}" height="{_HEIGHT}" font-family="sans-serif" font-size="11"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {box} role="img" aria-label="Cost against the number of chunks">',
        f'<rect width="{width}" height="{_HEIGHT}" fill="#ffffff"/>',
    ]
    for number, panel in enumerate(_PANELS):
        parts.append(f'<g transform="translate({number * _WIDTH} 0)">{_panel(panel, sizes)}</g>')
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: _Panel, sizes: Sequence[Size]) -> str:
    values = [panel.value(size) for size in sizes]
    top = _round_up(max(*values, 1e-9) * 1.1)
    low, high = (math.log10(end.chunks) for end in (sizes[0], sizes[-1]))

    def x(chunks: int) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (math.log10(chunks) - low) / max(high - low, 1e-9)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * value / top

    parts = [f'<text x="{_LEFT}" y="18" fill="{_INK}" font-weight="bold">{panel.title}</text>']
    for step in range(3):
        level = top * step / 2
        parts.append(f'<path d="M{_LEFT} {y(level):.1f}H{_WIDTH - _RIGHT}" stroke="{_GRID}"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{y(level) + 4:.1f}" fill="{_INK}" text-anchor="end">{level:g}</text>')
    for power in range(math.ceil(low), math.floor(high) + 1):
        label = {3: "1k", 4: "10k", 5: "100k", 6: "1M"}.get(power, f"1e{power}")
        place = f'x="{x(10**power):.1f}" y="{_HEIGHT - _BOTTOM + 15}"'
        parts.append(f'<text {place} fill="{_INK}" text-anchor="middle">{label}</text>')
    points = " ".join(f"{x(size.chunks):.1f},{y(value):.1f}" for size, value in zip(sizes, values, strict=True))
    parts.append(f'<polyline points="{points}" fill="none" stroke="{_LINE}" stroke-width="2"/>')
    for point in points.split():
        across, _, down = point.partition(",")
        parts.append(f'<circle cx="{across}" cy="{down}" r="2.5" fill="{_LINE}"/>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(
        f'<text x="{middle}" y="{_HEIGHT - 4}" fill="{_INK}" text-anchor="middle">chunks in the archive</text>'
    )
    return "".join(parts)


def _round_up(value: float) -> float:
    """The next of 1, 2, 4, 5, 8, 10 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 5, 8, 10) if step * power >= value * (1 - 1e-9))
