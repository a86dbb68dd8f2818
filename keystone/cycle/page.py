"""The report as one page: nothing is fetched, nothing runs, and it can be read on a phone, by day and by night."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from keystone.cycle import charts
from keystone.cycle.telling import Chapter

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --soft: #5c6675; --paper: #fbfbf9; --card: #fff; --rule: #d9dce2;
  --base: #8a93a3; --incumbent: #3c6fb4; --good: #1f7a4d; --bad: #b3261e; --unsure: #a56a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7eaf0; --soft: #9aa4b5; --paper: #14171c; --card: #1c2027;
  --rule: #343b47; --base: #8f99ab; --incumbent: #7fb0f2; --good: #5fce97; --bad: #ff8a80; --unsure: #f0b95a; } }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif }
main { max-width: 760px; margin: 0 auto; padding: 24px 16px 64px }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 4px } h2 { font-size: 1.1rem; margin: 36px 0 8px }
p { margin: 8px 0 } .soft, .small { color: var(--soft) } code { font-size: .85em; overflow-wrap: anywhere }
section > svg { max-width: 600px }
section > svg, .cycle { background: var(--card); border: 1px solid var(--rule); border-radius: 10px }
svg { display: block; width: 100%; height: auto } svg text { fill: var(--ink); font: 12px system-ui, sans-serif }
svg text.small { fill: var(--soft); font-size: 11px } svg text.strong { font-weight: 600 }
svg text.good { fill: var(--good) } svg text.bad { fill: var(--bad) } svg text.unsure { fill: var(--unsure) }
.panels { display: grid; gap: 10px; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)) }
.panels svg { background: var(--card); border: 1px solid var(--rule); border-radius: 10px }
.grid { stroke: var(--rule) } .axis, .edge { stroke: var(--soft); fill: none } .line { stroke: var(--soft); fill: none }
line.base { stroke: var(--base); stroke-dasharray: 4 4 }
g.base { stroke: var(--base); fill: var(--base) } g.incumbent { stroke: var(--incumbent); fill: var(--incumbent) }
g.candidate { stroke: var(--good); fill: var(--good) } g line { stroke-width: 2 }
.dot.good, .bar.good, .node.good { fill: var(--good) } .dot.bad, .bar.bad, .node.bad { fill: var(--bad) }
.dot.unsure, .bar.unsure, .node.unsure { fill: var(--unsure) } .node.kept { fill: var(--incumbent) }
.key span { margin-right: 14px; white-space: nowrap } .key i { display: inline-block; width: 10px; height: 10px;
  border-radius: 5px; margin-right: 5px }
.cycle { padding: 12px 16px; margin: 12px 0 } .cycle h3 { margin: 0; font-size: 1rem; display: flex; flex-wrap: wrap;
  gap: 8px; justify-content: space-between } .verdict { font-weight: 700 }
.verdict.good { color: var(--good) } .verdict.bad { color: var(--bad) } .verdict.unsure { color: var(--unsure) }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .9rem }
td, th { text-align: left; padding: 3px 8px 3px 0; border-bottom: 1px solid var(--rule); font-weight: 400 }
ul { margin: 8px 0; padding-left: 20px } li { overflow-wrap: anywhere }
"""

_KEY = (
    '<p class="key small">'
    + "".join(
        f'<span><i style="background: var(--{tone})"></i>{name}</span>'
        for tone, name in (("base", "bare base"), ("incumbent", "incumbent"), ("good", "candidate"))
    )
    + "</p>"
)


_SCORES = (
    "Pass rate on each cycle's own fresh draw, committed to before the run and used once, with 95 % intervals. Within a"
    " cycle all three answered the same tasks."
)
_SIGNALS = "Signals of samples on the frozen sentinel prompts; the dashed line is the bare base."


def page(ref: str, chapters: Sequence[Chapter]) -> str:
    """The whole page.

    Args:
        ref: whose cycles.
        chapters: all of them, oldest first.
    """
    parts = [
        f"<h1>Guarded cycles of {escape(ref)}</h1>",
        f'<p class="soft">{escape(_summary(chapters))}</p>',
        f"<section><h2>Scores</h2><p class=soft>{_SCORES}</p>",
        charts.scores(chapters),
        _KEY,
        "</section><section><h2>Drift from the base</h2>",
        charts.drift(chapters),
        f"</section><section><h2>Diversity and other signs of collapse</h2><p class=soft>{_SIGNALS}</p>",
        '<div class="panels">',
        charts.signal_panels(chapters),
        "</div></section><section><h2>Cycle by cycle</h2>",
        *(_cycle(chapter) for chapter in chapters),
        "</section><section><h2>Lineage</h2>",
        charts.lineage(chapters),
        "</section>",
    ]
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>Cycles of {escape(ref)}</title><style>{_STYLE}</style></head><body><main>"
    )
    return head + "".join(parts) + "</main></body></html>\n"


def _summary(chapters: Sequence[Chapter]) -> str:
    counts: dict[str, int] = {}
    for chapter in chapters:
        counts[chapter.outcome] = counts.get(chapter.outcome, 0) + 1
    told = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    promoted = sum(chapter.promoted for chapter in chapters)
    moved = "the ref moved to none" if not promoted else f"the ref moved to {promoted} of them"
    return f"{len(chapters)} cycles: {told}; {moved}."


def _cycle(chapter: Chapter) -> str:
    cycle = chapter.cycle
    tone = charts.tone_of(chapter)
    rows = "".join(
        f"<tr><th>{escape(what)}</th><td>{escape(role)}</td><td>{escape(str(rate))}</td></tr>"
        for what, rates in (("fresh draw", chapter.fresh), ("sentinel set", chapter.sentinel))
        for role, rate in rates.items()
    )
    reasons = "".join(
        f"<li><b>{what}</b>: {escape(reason.guard)}, against the {escape(reason.reference)}: {escape(reason.text)}</li>"
        for what, found in (("Tripped", chapter.tripped), ("Not excluded", chapter.unclear))
        for reason in found
    )
    notes = []
    if "collected" in cycle.steps:
        notes.append(
            f"{cycle.text('collected', 'kept')} verified answers of {cycle.text('collected', 'sampled')} sampled, and"
            f" {cycle.text('collected', 'external') or 0} exercises that no model wrote."
        )
    if chapter.gain is not None:
        notes.append(f"Against the base, all cycles together: {chapter.gain}.")
    if chapter.effect is not None:
        notes.append(f"A fall of {chapter.effect:.1%} on the fresh draw would have been seen.")
    if why := cycle.text("finished", "why"):
        notes.append(why)
    if chapter.promoted:
        notes.append("The ref moved to it." + (" Then it was taken back." if chapter.back else ""))
    manifest = cycle.text("finished", "manifest")
    return (
        f'<div class="cycle"><h3><span>{escape(cycle.name)} <span class="small">{escape(cycle.time[:16])}</span></span>'
        f'<span class="verdict {tone}">{escape(chapter.outcome)}</span></h3><p>{escape(" ".join(notes))}</p>'
        f"<table>{rows}</table>{f'<ul>{reasons}</ul>' if reasons else ''}"
        f'<p class="small">policy <code>{escape(cycle.text("calibrated", "policy"))}</code>'
        f"{f' · manifest <code>{escape(manifest)}</code>' if manifest else ''}</p></div>"
    )
