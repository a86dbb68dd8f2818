"""The two plots of `bench/cycle.py`, as small SVG files that read on a light and on a dark page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Protocol

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 420, 230, 46, 12, 34, 40
COLOURS = {"guarded": "#2f8f5b", "unguarded": "#d0453a", "base": "#8a93a3"}


class Row(Protocol):
    """What is drawn of a cycle, see `bench/cycle.py`."""

    arm: str
    number: int
    verdict: str
    passed: int
    items: int
    low: float
    high: float
    base: float
    distinct_2: float
    entropy: float
    kl: float


def write_plots(rows: Sequence[Row], folder: Path) -> None:
    """`cycle-pass-rate.svg` and `cycle-drift.svg`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cycle-pass-rate.svg").write_text(_pass_rates(rows), encoding="utf-8")
    (folder / "cycle-drift.svg").write_text(_drift(rows), encoding="utf-8")


def _pass_rates(rows: Sequence[Row]) -> str:
    values = [*(row.low for row in rows), *(row.high for row in rows), *(row.base for row in rows)]
    low, high = min(values) - 0.02, max(values) + 0.02
    last = max(row.number for row in rows)
    x, y = _scales(last, low, high)
    body = _frame("Pass rate on fresh held-out tasks, 95 % intervals", low, high, y, lambda value: f"{value:.0%}")
    first = next(row for row in rows if row.number == 1)
    for arm in ("guarded", "unguarded"):
        chosen = [row for row in rows if row.arm == arm]
        points = [(0, first.base), *((row.number, row.passed / row.items) for row in chosen)]
        body += _line([(x(number), y(value)) for number, value in points], COLOURS[arm])
        for row in chosen:
            at, colour = x(row.number), COLOURS[arm]
            body += f'<path d="M{at:.1f} {y(row.low):.1f}V{y(row.high):.1f}" stroke="{colour}"/>'
            body += _dot(at, y(row.passed / row.items), colour, f"{arm} {row.number}: {row.verdict}")
            shift = -12 if arm == "guarded" else 20
            body += _text(at, y(row.passed / row.items) + shift, row.verdict, size=8, colour=colour)
    body += _dot(x(0), y(first.base), COLOURS["base"], "the bare base")
    return _svg(body + _key() + _ticks(last, x))


def _drift(rows: Sequence[Row]) -> str:
    values = [row.kl for row in rows]
    low, high = 0.0, max(values) * 1.15 or 1.0
    last = max(row.number for row in rows)
    x, y = _scales(last, low, high)
    body = _frame("Drift: KL from the base on own samples, nats a token", low, high, y, lambda value: f"{value:.2f}")
    for arm in ("guarded", "unguarded"):
        chosen = [row for row in rows if row.arm == arm]
        body += _line([(x(0), y(0.0)), *((x(row.number), y(row.kl)) for row in chosen)], COLOURS[arm])
        for row in chosen:
            told = f"{arm} {row.number}: KL {row.kl:.3f}, distinct-2 {row.distinct_2:.3f}, entropy {row.entropy:.3f}"
            body += _dot(x(row.number), y(row.kl), COLOURS[arm], told)
    return _svg(body + _key() + _ticks(last, x))


Scale = Callable[[float], float]


def _scales(last: int, low: float, high: float) -> tuple[Scale, Scale]:
    def x(number: float) -> float:
        return LEFT + 14 + number / max(1, last) * (WIDTH - LEFT - RIGHT - 50)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    return x, y


def _frame(title: str, low: float, high: float, y: Scale, told: Callable[[float], str]) -> str:
    body = _text(LEFT, 16, title, anchor="start", size=12, weight=600)
    for number in range(4):
        value = low + (high - low) * number / 3
        body += f'<path d="M{LEFT} {y(value):.1f}H{WIDTH - RIGHT}" stroke="#888" stroke-opacity=".25"/>'
        body += _text(LEFT - 5, y(value) + 3, told(value), anchor="end", size=9)
    return body


def _ticks(last: int, x: Scale) -> str:
    names = ["base", *(f"cycle {number}" for number in range(1, last + 1))]
    return "".join(_text(x(number), HEIGHT - 24, name, size=9) for number, name in enumerate(names))


def _key() -> str:
    body = ""
    for place, arm in enumerate(("guarded", "unguarded")):
        at = LEFT + 14 + 90 * place
        body += _dot(at, HEIGHT - 9, COLOURS[arm], arm) + _text(at + 8, HEIGHT - 6, arm, anchor="start", size=10)
    return body


def _line(points: Sequence[tuple[float, float]], colour: str) -> str:
    told = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{told}" fill="none" stroke="{colour}" stroke-width="2"/>'


def _dot(x: float, y: float, colour: str, title: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"><title>{escape(title)}</title></circle>'


def _text(
    x: float, y: float, text: str, *, anchor: str = "middle", size: int = 11, colour: str = "#7a8290", weight: int = 400
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}"'
        f' fill="{colour}">{escape(text)}</text>'
    )


def _svg(body: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
        f' font-family="system-ui, sans-serif" role="img">{body}</svg>\n'
    )
