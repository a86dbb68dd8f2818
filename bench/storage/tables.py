"""The tables, as Markdown. Each takes what was measured and says in its heading what it answers.

A number that was not measured is a dash; a tool that could not be run keeps its row and says why.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.storage.deltas import Delta
from bench.storage.growth import CHECKPOINT_MB, Size
from bench.storage.inputs import SETS, Inputs
from bench.storage.install import Peer
from bench.storage.memory import Load
from bench.storage.rounds import KNOWN, Row

_NONE = "-"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are aligned to the right. Messages are made to fit."""
    rule = "|".join(["---"] + ["--:"] * (len(heads) - 1))
    lines = [f"| {' | '.join(heads)} |", f"|{rule}|", *(f"| {' | '.join(map(_cell, cells))} |" for cells in rows)]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())


def _ratio(value: float | None) -> str:
    return _NONE if value is None else f"{value:.4f}"


def _speed(size: int, seconds: float | None) -> str:
    return _NONE if seconds is None else f"{size / seconds / 1e9:.3f}"


def _name(row: Row, peers: dict[str, Peer]) -> str:
    version = peers[row.tool.program].version if row.tool.program in peers else ""
    return f"{row.tool.name} ({version})" if version else row.tool.name


def sizes(rows: Sequence[Row], inputs: Inputs, peers: dict[str, Peer]) -> str:
    """Stored bytes over logical bytes, per set and together, and the base against ZipNN."""
    zipnn = next((row.stored.get("base") for row in rows if row.tool.name == "zipnn"), None)
    lines = []
    for row in rows:
        base = row.stored.get("base")
        against = f"{base / zipnn:.4f}" if base and zipnn else _NONE
        cells = [_ratio(row.ratio(inputs, name)) for name in SETS]
        total = row.ratio(inputs, *SETS)
        lines.append([_name(row, peers), *cells, f"**{total:.4f}**" if total else row.problem or _NONE, against])
    return table(["stored/logical", *SETS, "all three", "base / ZipNN's base"], lines)


def puts(rows: Sequence[Row], inputs: Inputs, peers: dict[str, Peer]) -> str:
    """Speed of a put of the base: until the tool says done, until it is on disk, and of known bytes."""
    size = inputs.size("base")
    lines = []
    for row in rows:
        first = row.median("put base", "flush base")
        again = row.median(f"put {KNOWN}", f"flush {KNOWN}")
        lines.append(
            [
                _name(row, peers),
                _speed(size, row.median("put base")) if not row.problem else row.problem,
                _speed(size, first),
                _speed(size, again),
                f"{first / again:.1f}" if first and again else _NONE,
                _NONE if row.flushes is None else str(row.flushes),
                row.tool.flushes + (f" ({row.tool.note})" if row.tool.note else ""),
            ]
        )
    heads = ["GB/s", "put", "put, then `sync -f`", "known bytes, then `sync -f`", "known / first"]
    return table([*heads, "flushing calls in a put", "flushed when it says done"], lines)


def gets(rows: Sequence[Row], inputs: Inputs, peers: dict[str, Peer]) -> str:
    """Speed of a get of the base to a file, and how it is checked."""
    lines = []
    for row in rows:
        speeds = [
            row.problem or _speed(inputs.size("base"), row.median("get base")),
            _speed(inputs.size("base"), row.median("get base", "flush out base")),
            _speed(inputs.size("fine-tune"), row.median("get fine-tune")),
        ]
        compresses = "yes" if row.tool.compresses else "no"
        lines.append([_name(row, peers), compresses, *speeds, row.tool.verifies, row.flipped])
    heads = ["GB/s", "compresses", "get base", "get base, then `sync -f`", "get fine-tune"]
    return table([*heads, "verified by", "one bit flipped"], lines)


def loads(measured: Sequence[Load]) -> str:
    """Speed of a load into memory, against safetensors in the same process conditions."""
    plain = {load.checkpoint: load.speed for load in measured if load.mode == "safetensors"}
    lines = [
        [
            f"{load.checkpoint}: {load.way}",
            f"{load.speed:.3f}",
            f"{load.size / max(load.seconds) / 1e9:.3f}-{load.size / min(load.seconds) / 1e9:.3f}",
            f"{load.speed / plain[load.checkpoint]:.2f}",
        ]
        for load in measured
    ]
    if "delta-coded" not in plain:
        lines.append(["delta-coded: not built", _NONE, _NONE, _NONE])
    return table(["GB/s", "median", "slowest-fastest", "over safetensors"], lines)


def deltas(measured: Sequence[Delta]) -> str:
    """Size of changed tensors by strength of noise."""
    lines = [
        [
            f"{row.noise:g}",
            f"{row.logical / 1e6:.0f}",
            f"{row.alone / row.logical:.4f}",
            f"{row.xor / row.logical:.4f}",
            "not built" if row.ours is None else f"{row.ours / row.logical:.4f}",
            _NONE if row.ours is None else f"{row.ours / row.xor:.3f}",
        ]
        for row in measured
    ]
    heads = ["noise", "MB changed", "csf, no base", "XOR + planes + zstd-3", "csf, --base", "csf / XOR"]
    return table(heads, lines)


def growth(measured: Sequence[Size]) -> str:
    """Cost by number of chunks."""
    lines = [
        [
            f"{size.chunks:,}",
            f"{size.segment_bytes / 1e6:.0f}",
            f"{size.index_bytes / 1e6:.0f}",
            f"{size.open * 1e3:.1f}",
            f"{size.put * 1e3:.0f}",
            f"{size.get * 1e3:.0f}",
            f"{size.open_memory / 1e6:.1f}",
            f"{size.put_memory / 1e6:.0f}",
        ]
        for size in measured
    ]
    heads = ["chunks", "segments, MB", "index, MB", "open, ms", f"put {CHECKPOINT_MB:.0f} MB, ms", "get it, ms"]
    return table([*heads, "memory of open, MB", "memory of put, MB"], lines)
