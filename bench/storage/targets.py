"""What was promised, held against the run: each target with its number, and whether it is met.

Commands are compared with commands and libraries with libraries, since a library is timed without its start; the
worse of the two comparisons decides. ZipNN only compresses: it finds nothing equal, keeps no names and flushes
nothing, yet it is named among the peers, so comparisons of speed are made once with it and once among stores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from bench.storage.deltas import Delta
from bench.storage.growth import Size
from bench.storage.inputs import SETS, Inputs
from bench.storage.memory import Load
from bench.storage.peers import Csf, CsfDelta, CsfLibrary
from bench.storage.rounds import KNOWN, Row
from bench.storage.tables import table

_FLAT = 1.5
"""A cost at the largest size counts as flat up to this many times its cost at the smallest."""


class Results(NamedTuple):
    """Everything one run measured."""

    inputs: Inputs
    rows: Sequence[Row]
    loads: Sequence[Load]
    deltas: Sequence[Delta]
    growth: Sequence[Size]

    def row(self, name: str) -> Row:
        """The row of a tool."""
        return next(row for row in self.rows if row.tool.name == name)


class Target(NamedTuple):
    """One promise. ``met`` is None where nothing was measured."""

    promise: str
    measured: str
    met: bool | None


def targets(results: Results) -> list[Target]:
    """Every number of the storage promise."""
    return [
        *_sizes(results),
        *_puts(results),
        *_gets(results),
        *_loads(results.loads),
        *_deltas(results.deltas),
        *_growth(results.growth),
    ]


def checklist(found: Sequence[Target]) -> str:
    """The promises as a table."""
    words = {True: "met", False: "**not met**", None: "not measured"}
    return table(["promise", "measured", ""], [[one.promise, one.measured, words[one.met]] for one in found])


def _at_most(promise: str, value: float | None, limit: float, digits: int = 4) -> Target:
    return Target(promise, "-" if value is None else f"{value:.{digits}f}", None if value is None else value <= limit)


def _at_least(promise: str, value: float | None, limit: float) -> Target:
    return Target(promise, "-" if value is None else f"{value:.2f}", None if value is None else value >= limit)


def _sizes(results: Results) -> Iterator[Target]:
    ours, zipnn = results.row(Csf.name), results.row("zipnn").stored.get("base")
    base = ours.stored.get("base")
    plain, delta = (row.ratio(results.inputs, *SETS) for row in (ours, results.row(CsfDelta.name)))
    yield _at_most("stored/logical without delta ≤ 0.290", plain, 0.290)
    yield _at_most("stored/logical with delta ≤ 0.235", delta, 0.235)
    yield _at_most("base ≤ 1.001 x ZipNN's size", base / zipnn if base and zipnn else None, 1.001)


def _advantage(results: Results, steps: Sequence[str], wanted: Callable[[Row], bool]) -> tuple[float | None, str]:
    """How many times faster than the fastest peer of its sort, in the worse comparison; and who that was."""
    worst: tuple[float | None, str] = (None, "")
    for ours in (results.row(Csf.name), results.row(CsfLibrary.name)):
        mine = ours.median(*steps)
        peers = [
            (seconds, row.tool.name)
            for row in results.rows
            if not row.tool.name.startswith("csf") and row.tool.library == ours.tool.library and wanted(row)
            for seconds in [row.median(*steps)]
            if seconds is not None
        ]
        if mine and peers:
            seconds, name = min(peers)
            if worst[0] is None or seconds / mine < worst[0]:
                worst = (seconds / mine, f"{ours.tool.name} against {name}")
    return worst


def _puts(results: Results) -> Iterator[Target]:
    flushed = ("put base", "flush base")
    sorts: dict[str, Callable[[Row], bool]] = {"store": lambda row: row.tool.store, "peer, ZipNN too": lambda _: True}
    for sort, wanted in sorts.items():
        factor, who = _advantage(results, flushed, wanted)
        promise = f"durable put ≥ 3 x the fastest {sort}, each with `sync -f`{_named(who)}"
        yield _at_least(promise, factor, 3.0)
    factor, who = _advantage(results, ("put base",), lambda _: True)
    yield _at_least(f"the same without `sync -f`, ours durable and theirs mostly not{_named(who)}", factor, 3.0)
    for row in (results.row(Csf.name), results.row(CsfLibrary.name)):
        first, again = row.median(*flushed), row.median(f"put {KNOWN}", f"flush {KNOWN}")
        yield _at_least(f"put of known bytes ≥ 2 x the first put ({row.tool.name})", _over(first, again), 2.0)


def _gets(results: Results) -> Iterator[Target]:
    sorts: dict[str, Callable[[Row], bool]] = {
        "store": lambda row: row.tool.store and row.tool.compresses,
        "peer, ZipNN too": lambda row: row.tool.compresses,
    }
    for sort, wanted in sorts.items():
        factor, who = _advantage(results, ("get base",), wanted)
        yield _at_least(f"verified get to a file ≥ 1 x the fastest compressing {sort}{_named(who)}", factor, 1.0)


def _loads(loads: Sequence[Load]) -> Iterator[Target]:
    speeds = {(load.checkpoint, load.mode): load.speed for load in loads}
    plain = speeds.get(("base", "safetensors"))
    ways = {"load": "`load_tensors`", "into": "`read_tensors` into memory the caller used before"}
    for mode, words in ways.items():
        factor = _over(speeds.get(("base", mode)), plain)
        yield _at_least(f"verified get to memory ≥ 1.25 x `safetensors` load and clone, {words}", factor, 1.25)


def _deltas(deltas: Sequence[Delta]) -> Iterator[Target]:
    ratios = [row.ours / row.xor for row in deltas if row.ours is not None]
    worst = max(ratios) if ratios else None
    yield _at_most("difference ≤ 0.80 x XOR + planes + zstd, worst of the noises", worst, 0.80, digits=3)


def _growth(growth: Sequence[Size]) -> Iterator[Target]:
    if not growth:
        yield Target("a growing archive: open < 300 ms, put time and memory flat", "-", None)
        return
    small, large = growth[0], growth[-1]
    promise = f"open at {large.chunks:,} chunks < 300 ms"
    yield Target(promise, f"{large.open * 1e3:.1f} ms", large.open < 0.3)
    span = f"{large.chunks:,} over {small.chunks:,} chunks"
    yield _at_most(f"put time is flat: {span} ≤ {_FLAT}", large.put / small.put, _FLAT, digits=2)
    yield _at_most(f"memory is flat: {span} ≤ {_FLAT}", _over(large.put_memory, small.put_memory), _FLAT, digits=2)


def _over(one: float | None, other: float | None) -> float | None:
    return one / other if one and other else None


def _named(who: str) -> str:
    return f" ({who})" if who else ""
