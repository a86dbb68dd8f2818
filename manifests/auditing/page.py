"""An audit as one page: no scripts, nothing fetched, the lineage drawn. It can be mailed, printed and kept.

Everything on it that came from the archive is escaped: a label is not markup, whoever wrote it.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from csf_store import CsfError, Digest
from manifests.auditing.lines import AuditReport, Verdict
from manifests.errors import ManifestError
from manifests.repository import Repository
from manifests.schema import Manifest

_COLOURS: Mapping[Verdict, str] = {
    Verdict.PASS: "#1a7f37",
    Verdict.FAIL: "#cf222e",
    Verdict.UNKNOWN: "#9a6700",
    Verdict.UNSIGNED: "#0969da",
}
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#1f2328;background:#fff}
h1{font-size:1.3rem}code,svg text{font-family:ui-monospace,monospace;font-size:13px}code{overflow-wrap:anywhere}
table{border-collapse:collapse;width:100%}td,th{padding:.35rem .6rem;border-top:1px solid #d1d9e0;text-align:left;
vertical-align:top}b{white-space:nowrap}svg{max-width:100%;height:auto}
@media(prefers-color-scheme:dark){body{color:#e6edf3;background:#0d1117}td,th{border-color:#3d444d}
svg text{fill:#e6edf3}svg rect{fill:#151b23}}
"""
_WIDTH, _HEIGHT, _ACROSS, _DOWN = 230, 52, 270, 80


def audit_page(repository: Repository, report: AuditReport, *, target: str, when: str) -> str:
    """The whole page.

    Args:
        repository: where the manifest is, for the drawing.
        report: what was found.
        target: what was asked for.
        when: the time of the audit, in words.
    """
    rows = "".join(
        f'<tr><td><b style="color:{_COLOURS[line.verdict]}">{line.verdict.value}</b></td><td>{escape(line.check)}</td>'
        f"<td>{escape(line.message)}"
        + (f"<br><code>{line.subject}</code>" if line.subject is not None else "")
        + "</td></tr>\n"
        for line in report.lines
    )
    try:
        drawing = lineage_svg(repository.load(report.manifest), _verdicts(report)) if report.manifest else ""
    except (CsfError, ManifestError) as error:
        drawing = f"<p>The lineage cannot be drawn: {escape(str(error))}</p>"
    verdict = report.verdict
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>Audit of {escape(target)}</title>'
        f"<style>{_STYLE}</style></head><body>\n"
        f'<h1>Audit of {escape(target)}: <span style="color:{_COLOURS[verdict]}">{verdict.value}</span></h1>\n'
        f"<p><code>{report.manifest}</code><br>{escape(when)}, {len(report.lines)} lines</p>\n"
        f"{drawing}\n<table><thead><tr><th>verdict</th><th>check</th><th>finding</th></tr></thead><tbody>\n"
        f"{rows}</tbody></table></body></html>\n"
    )


def _verdicts(report: AuditReport) -> Mapping[Digest, Verdict]:
    """The gravest verdict on each digest."""
    order = [Verdict.PASS, Verdict.UNSIGNED, Verdict.UNKNOWN, Verdict.FAIL]
    found: dict[Digest, Verdict] = {}
    for line in report.lines:
        if line.subject is not None:
            found[line.subject] = max(found.get(line.subject, Verdict.PASS), line.verdict, key=order.index)
    return found


def lineage_svg(manifest: Manifest, verdicts: Mapping[Digest, Verdict]) -> str:
    """Base on the left, adapters to the right of what they were trained on, the assembly at the end."""
    assembly = manifest.assembly
    parents = {step.adapter: step.parent for step in manifest.lineage}
    depth = {adapter: _depth(adapter, parents) for adapter in parents}
    last = max(depth.values(), default=0) + 1
    columns: dict[int, int] = {}
    places: dict[Digest, tuple[int, int]] = {assembly.base: (0, 0)}
    for adapter in sorted(parents, key=lambda each: (depth[each], each)):
        row = columns.get(depth[adapter], 0)
        columns[depth[adapter]] = row + 1
        places[adapter] = (depth[adapter], row)
    places[assembly.digest] = (last, 0)
    edges = [(parent if parent is not None else assembly.base, adapter) for adapter, parent in parents.items()]
    uses = [(use.adapter, assembly.digest) for use in assembly.adapters] or [(assembly.base, assembly.digest)]
    weights = {use.adapter: f"adapter, weight {use.weight:g}" for use in assembly.adapters}
    titles = {adapter: weights.get(adapter, "ancestor") for adapter in parents}
    titles |= {assembly.base: "frozen base", assembly.digest: f"assembly, {assembly.code}"}
    width, height = (last + 1) * _ACROSS, max([1, *columns.values()]) * _DOWN
    body = "".join(_edge(places[a], places[b]) for a, b in [*edges, *uses])
    body += "".join(
        _box(place, titles[digest], digest, verdicts.get(digest, Verdict.PASS)) for digest, place in places.items()
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" aria-label="lineage">'
        f"{body}</svg>"
    )


def _depth(adapter: Digest, parents: Mapping[Digest, Digest | None]) -> int:
    depth, at = 1, parents[adapter]
    while at is not None:  # a manifest's lineage has no circle: its schema saw to that
        depth, at = depth + 1, parents[at]
    return depth


def _edge(start: tuple[int, int], end: tuple[int, int]) -> str:
    x1, y1 = start[0] * _ACROSS + _WIDTH, start[1] * _DOWN + _HEIGHT // 2
    x2, y2 = end[0] * _ACROSS, end[1] * _DOWN + _HEIGHT // 2
    return f'<path d="M{x1} {y1}C{x1 + 20} {y1} {x2 - 20} {y2} {x2} {y2}" fill="none" stroke="#818b98"/>'


def _box(place: tuple[int, int], title: str, digest: Digest, verdict: Verdict) -> str:
    x, y = place[0] * _ACROSS, place[1] * _DOWN
    return (
        f'<g><title>{digest}</title><rect x="{x + 1}" y="{y + 1}" width="{_WIDTH - 2}" height="{_HEIGHT - 2}" rx="6"'
        f' fill="#f6f8fa" stroke="{_COLOURS[verdict]}" stroke-width="2"/><text x="{x + 12}" y="{y + 21}">'
        f'{escape(title)}</text><text x="{x + 12}" y="{y + 40}">{escape(digest.short)}</text></g>'
    )
