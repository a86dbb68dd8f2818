"""The drawings of the report: inline SVG, no scripts, colours from the page's style so that they follow its theme."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from keystone.cycle.telling import Chapter, Rate

ROLES = ("base", "incumbent", "candidate")
_WIDTH, _HEIGHT = 460, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 14, 34


def svg(width: int, height: int, title: str, body: str) -> str:
    """One drawing that scales to its column."""
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{body}</svg>"
    )


def scores(chapters: Sequence[Chapter]) -> str:
    """Pass rates on each cycle's fresh draw with their intervals; the three models of a cycle side by side."""
    told = [chapter for chapter in chapters if chapter.fresh]
    rates = [rate for chapter in told for rate in chapter.fresh.values()]
    if not rates:
        return "<p>No candidate was measured yet.</p>"
    low, high = _span([rate.low for rate in rates], [rate.high for rate in rates])
    body = _grid(low, high)
    step = (_WIDTH - _LEFT - _RIGHT) / len(told)
    for place, chapter in enumerate(told):
        middle = _LEFT + step * (place + 0.5)
        for shift, role in enumerate(ROLES):
            if role in chapter.fresh:
                body += _whisker(middle + (shift - 1) * min(26.0, step / 4), chapter.fresh[role], low, high, role)
        body += _text(middle, _HEIGHT - 16, f"cycle {chapter.cycle.number}")
        body += _text(middle, _HEIGHT - 3, chapter.outcome, kind=f"small {tone_of(chapter)}")
    return svg(_WIDTH, _HEIGHT, "Pass rates on fresh draws, with 95 % intervals", body)


def signal_panels(chapters: Sequence[Chapter]) -> str:
    """One small panel for each signal: the base's level and every candidate's."""
    told = [chapter for chapter in chapters if "candidate" in chapter.signals]
    if not told:
        return "<p>No samples were drawn yet.</p>"
    return "".join(_panel(name, told) for name in told[0].signals["candidate"])


def _panel(name: str, told: Sequence[Chapter]) -> str:
    width, height, left, bottom = 200, 96, 8, 78
    values = [chapter.signals["candidate"].get(name, 0.0) for chapter in told]
    base = told[0].signals.get("base", {}).get(name, values[0])
    low, high = min(*values, base), max(*values, base)
    room = (high - low) or max(abs(high), 1e-9)
    low, high = low - 0.15 * room, high + 0.15 * room

    def y(value: float) -> float:
        return bottom - (value - low) / (high - low) * (bottom - 26)

    step = (width - 2 * left) / max(1, len(values))
    points = [(left + step * (place + 0.5), y(value)) for place, value in enumerate(values)]
    line = " ".join(f"{x:.1f},{height_at:.1f}" for x, height_at in points)
    body = f'<line class="base" x1="{left}" x2="{width - left}" y1="{y(base):.1f}" y2="{y(base):.1f}"/>'
    body += f'<polyline class="line" points="{line}"/>'
    for (x, height_at), chapter in zip(points, told, strict=True):
        body += f'<circle class="dot {tone_of(chapter)}" cx="{x:.1f}" cy="{height_at:.1f}" r="3.5"/>'
    body += _text(left, 14, name, anchor="start", kind="strong")
    body += _text(left, height - 4, f"base {base:.3g}, now {values[-1]:.3g}", anchor="start", kind="small")
    return svg(width, height, f"{name}: base {base:.3g}, last candidate {values[-1]:.3g}", body)


def drift(chapters: Sequence[Chapter]) -> str:
    """How far each candidate is from the bare base on the same fresh items, in points of the pass rate."""
    told = [chapter for chapter in chapters if {"candidate", "base"} <= chapter.fresh.keys()]
    if not told:
        return "<p>Nothing was compared with the base yet.</p>"
    height = 34 * len(told) + 30
    gaps = [chapter.fresh["candidate"].value - chapter.fresh["base"].value for chapter in told]
    reach = max(0.05, *(abs(gap) for gap in gaps))
    middle, scale = _WIDTH / 2, (_WIDTH / 2 - 84) / reach
    body = f'<line class="axis" x1="{middle}" x2="{middle}" y1="4" y2="{height - 24}"/>'
    for place, (chapter, gap) in enumerate(zip(told, gaps, strict=True)):
        top = 8 + 34 * place
        start, wide = (middle, gap * scale) if gap >= 0 else (middle + gap * scale, -gap * scale)
        body += (
            f'<rect class="bar {tone_of(chapter)}" x="{start:.1f}" y="{top}" width="{max(wide, 1):.1f}" height="18"/>'
        )
        body += _text(4, top + 14, f"cycle {chapter.cycle.number}", anchor="start")
        anchor = "start" if gap >= 0 else "end"
        body += _text(middle + gap * scale + (5 if gap >= 0 else -5), top + 14, f"{100 * gap:+.1f}", anchor=anchor)
    body += _text(middle, height - 6, "points of the pass rate, against the bare base", kind="small")
    return svg(_WIDTH, height, "Drift from the base", body)


def lineage(chapters: Sequence[Chapter]) -> str:
    """The base at the top; each candidate hangs from the model it was trained on."""
    told = [chapter for chapter in chapters if "trained" in chapter.cycle.steps]
    places = {"": 0}
    rows: list[tuple[str, str, str, int]] = [("base", "the bare frozen base", "kept", 0)]
    at = ""
    for chapter in told:
        cycle, parent = chapter.cycle, places[at]
        fate = "promoted" if chapter.promoted else "not promoted"
        text = f"{cycle.number}  {cycle.digest('trained', 'adapter').short}  {chapter.outcome}, {fate}"
        rows.append((cycle.name, text, "kept" if chapter.promoted and not chapter.back else tone_of(chapter), parent))
        places[cycle.name] = len(rows) - 1
        if chapter.promoted and not chapter.back:
            at = cycle.name
    height = 44 * len(rows) + 8
    body = ""
    for row, (_, text, tone, parent) in enumerate(rows):
        depth = 0 if row == 0 else _depth(rows, row)
        x, y = 20 + 34 * min(depth, 8), 26 + 44 * row
        if row:
            up_x, up_y = 20 + 34 * min(_depth(rows, parent), 8), 26 + 44 * parent
            body += f'<path class="edge" d="M{up_x} {up_y + 9}V{y}H{x - 9}"/>'
        body += f'<circle class="node {tone}" cx="{x}" cy="{y}" r="9"/>' + _text(x + 18, y + 5, text, anchor="start")
    return svg(_WIDTH, height, "Lineage: who was trained on whom", body)


def _depth(rows: Sequence[tuple[str, str, str, int]], row: int) -> int:
    return 0 if row == 0 else 1 + _depth(rows, rows[row][3])


def tone_of(chapter: Chapter) -> str:
    """Good, bad or unsure: the colour of a verdict."""
    return {"IMPROVED": "good", "NON-INFERIOR": "good", "REGRESSED": "bad", "HALTED": "bad"}.get(
        chapter.outcome, "unsure"
    )


def _span(lows: Sequence[float], highs: Sequence[float]) -> tuple[float, float]:
    low, high = max(0.0, min(lows) - 0.03), min(1.0, max(highs) + 0.03)
    return low, max(high, low + 0.05)


def _y(value: float, low: float, high: float) -> float:
    return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _BOTTOM - _TOP)


def _grid(low: float, high: float) -> str:
    body = ""
    for number in range(5):
        value = low + (high - low) * number / 4
        y = _y(value, low, high)
        body += f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        body += _text(_LEFT - 6, y + 4, f"{value:.0%}", anchor="end", kind="small")
    return body


def _whisker(x: float, rate: Rate, low: float, high: float, role: str) -> str:
    top, bottom, y = _y(rate.high, low, high), _y(rate.low, low, high), _y(rate.value, low, high)
    return (
        f'<g class="{role}"><title>{escape(f"{role}: {rate}")}</title>'
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>'
        f'<line x1="{x - 5:.1f}" x2="{x + 5:.1f}" y1="{top:.1f}" y2="{top:.1f}"/>'
        f'<line x1="{x - 5:.1f}" x2="{x + 5:.1f}" y1="{bottom:.1f}" y2="{bottom:.1f}"/>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5"/></g>'
    )


def _text(x: float, y: float, text: str, *, anchor: str = "middle", kind: str = "") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
