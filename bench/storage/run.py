"""``csf`` against backup programs and model stores: sizes, speeds, durability, growth; all in one run.

    python -m bench.storage.run [--quick] [--write]
    make bench-storage

Prints Markdown. With ``--write`` the section between two marker lines of ``bench/README.md`` is replaced by it, and
the plot is saved beside it. The peers are installed by ``python -m bench.storage.install``; one that is missing keeps
its row and says so. Run it on an idle machine: it says so itself when the machine was not.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import click

from bench.storage import tables
from bench.storage.deltas import measure_deltas
from bench.storage.growth import CHUNKS, QUICK_CHUNKS, measure_growth
from bench.storage.inputs import FULL_MEGABYTES, QUICK_MEGABYTES, SETS, Inputs, make_inputs
from bench.storage.install import HOME, VENV, Peer, peers
from bench.storage.machine import Machine, describe
from bench.storage.memory import measure_loads
from bench.storage.peers import tools
from bench.storage.plot import growth_svg
from bench.storage.probing import probe
from bench.storage.rounds import measure
from bench.storage.targets import Results, checklist, targets

README = Path(__file__).parents[1] / "README.md"
PLOT = Path(__file__).parents[1] / "storage-growth.svg"
BEGIN, END = "<!-- storage: begin -->", "<!-- storage: end -->"
_TRACED_MEGABYTES = 25

_T = TypeVar("_T")


class Scale(NamedTuple):
    """How much is measured."""

    megabytes: int
    rounds: int
    load_rounds: int
    chunks: tuple[int, ...]


FULL = Scale(FULL_MEGABYTES, 3, 5, CHUNKS)
QUICK = Scale(QUICK_MEGABYTES, 1, 2, QUICK_CHUNKS)


def say(line: str) -> None:
    """Progress, for the person who waits."""
    click.echo(f"{time.strftime('%H:%M:%S')} {line}", err=True)


def measure_all(scale: Scale, work: Path, installed: dict[str, Peer]) -> Results:
    """Everything, one after the other: two measurements at once would measure each other."""
    say(f"making inputs of {scale.megabytes} MB a set")
    inputs = make_inputs(work / "inputs", scale.megabytes)
    rows = measure(tools(VENV), installed, inputs, work, rounds=scale.rounds, say=say)
    say("counting flushes, flipping bits")
    probe(rows, make_inputs(work / "small", _TRACED_MEGABYTES), work)
    loads = _section("loads into memory", lambda: measure_loads(inputs, work, scale.load_rounds, say))
    deltas = _section("differences", lambda: measure_deltas(inputs, scale.megabytes, work, say))
    growth = _section("growth", lambda: measure_growth(work, scale.chunks, say))
    return Results(inputs, rows, loads, deltas, growth)


def _section(name: str, measured: Callable[[], Sequence[_T]]) -> Sequence[_T]:
    """One table of its own. If it can not be had, that is said, and the tables before it are not lost."""
    try:
        return measured()
    except Exception as error:  # noqa: BLE001 - twenty minutes of other tables are worth more
        say(f"{name}: FAILED: {type(error).__name__}: {error}")
        return []


def report(results: Results, machine: Machine, scale: Scale, command: str, installed: dict[str, Peer]) -> str:
    """The whole section, from its first line to the picture."""
    inputs, rows = results.inputs, results.rows
    picture = f"\n\n![cost against size]({PLOT.name})"
    sections = {
        "Promises": checklist(targets(results)),
        "Size": tables.sizes(rows, inputs, installed),
        "Put": _PUT + tables.puts(rows, inputs, installed),
        "Get to a file": _GET + tables.gets(rows, inputs, installed),
        "Get to memory": _LOAD + tables.loads(results.loads) if results.loads else _FAILED,
        "Differences": _DELTA + tables.deltas(results.deltas) if results.deltas else _FAILED,
        "A growing archive": tables.growth(results.growth) + picture if results.growth else _FAILED,
    }
    parts = [f"`{command}`, {machine.text()}", _method(inputs, scale)]
    return "\n\n".join([*parts, *(f"### {title}\n\n{text}" for title, text in sections.items())])


def _method(inputs: Inputs, scale: Scale) -> str:
    total = sum(inputs.size(name) for name in SETS)
    return f"""\
Three sets, {total / 1e6:.0f} MB together: bf16 weights with {inputs.entropy:.2f} bits of entropy in the exponents; the
fine-tune changed {len(inputs.changed)} tensors, {inputs.share:.1%} of the bytes. Inputs, stores and results lie on one
file system and in the page cache. Median of {scale.rounds} rounds in which the tools take turns, of
{scale.load_rounds} for loads into memory; GB are 10^9 bytes of logical data. Commands are timed whole; libraries (csf
as a library, hf_xet, zipnn) inside their process, without start and imports."""


_PUT = """\
Most peers say "done" while the data is only in the page cache, so each put is also timed with a `sync -f` of the file
system after it. Known bytes are the base again, from a copy under another path.

"""
_GET = """\
As with puts: some tools flush what they restore, most do not, so there is a column with `sync -f`. The last
column is a trial: in the largest stored file of a small set one bit was flipped, and the set was fetched; five times.

"""
_LOAD = """\
Every load is a process of its own. `safetensors` verifies nothing; the archive verifies everything it gives out.

"""
_FAILED = "This part of the run failed; its messages said why."
_DELTA = """\
The tensors that the fine-tune changed, at four strengths of noise. Real pairs of checkpoints are in the tables
of `bench/codecs.py`.

"""


def write(section: str, picture: str) -> None:
    """Replaces what stands between the markers, or adds it at the end with its heading."""
    if picture:
        PLOT.write_text(picture)
    text = README.read_text()
    if BEGIN not in text:
        text = f"{text.rstrip()}\n\n## Storage\n\n{BEGIN}\n{END}\n"
    before, _, rest = text.partition(BEGIN)
    README.write_text(f"{before}{BEGIN}\n{section}\n{END}{rest.partition(END)[2]}")


@click.command()
@click.option("--quick", is_flag=True, help="Small sets, one round: for development, not for a table.")
@click.option("--write", "keep", is_flag=True, help="Put the result into bench/README.md, and the plot beside it.")
@click.option(
    "--work", type=click.Path(path_type=Path), default=HOME, show_default=True, help="Where to work; emptied after."
)
def main(work: Path, *, quick: bool, keep: bool) -> None:
    """Measure, and print the tables."""
    scale = QUICK if quick else FULL
    work.mkdir(parents=True, exist_ok=True)
    machine, installed = describe(work), peers()
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="run-", dir=work) as folder:
        results = measure_all(scale, Path(folder), installed)
    small = "; small sets, on which the start of every program weighs" if quick else ""
    command = f"make bench-storage{' BENCH=--quick' if quick else ''}"
    section = report(results, machine, scale, command, installed)
    section += f"\n\nThe run took {(time.perf_counter() - begun) / 60:.0f} minutes{small}."
    if keep:
        write(section, growth_svg(results.growth) if results.growth else "")
    click.echo(section)


if __name__ == "__main__":
    main()
