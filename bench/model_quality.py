"""What quantization costs: bits per byte and pass rate of a base in bf16, int8 and nf4, in one run.

    python bench/model_quality.py [--tasks N] [--bytes N]

Prints a markdown table. Tasks are drawn from the held-out side of `basics`, text from the library files that nano never
read; both are the same for every row. Each scheme is also compared item by item with bf16.
"""

import platform
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import click
import torch

from csf_store import Archive
from keystone import import_nano, load
from keystone.cli.quiet import quiet_libraries
from keystone.evaluation import ProcessSandbox, Side, SuiteResult
from keystone.evaluation.basics import draw_held_out
from keystone.evaluation.measuring import bits_per_byte, pass_rate
from keystone.nano.corpus import stdlib_documents

SEED = 2026


@dataclass(frozen=True)
class Row:
    """One scheme's numbers."""

    scheme: str
    megabytes: float
    bits: float
    result: SuiteResult
    seconds: float


def measure(archive: Archive, scheme: str, texts: list[str], tasks: int) -> Row:
    loaded = load("nano", archive=archive, quantization=scheme)
    bits = bits_per_byte(loaded.model, loaded.tokenizer, texts)
    with ProcessSandbox() as sandbox:
        started = time.perf_counter()
        half = tasks // 2
        drawn = draw_held_out(half, SEED, families="seen")
        drawn += draw_held_out(tasks - half, SEED, families="held-out")
        result = pass_rate(loaded, drawn, sandbox)
    return Row(scheme, loaded.weight_bytes / 1e6, bits, result, time.perf_counter() - started)


def held_out_text(limit: int) -> list[str]:
    texts, size = [], 0
    for document in stdlib_documents("held-out"):
        if size >= limit:
            break
        texts.append(document.text[: limit - size])
        size += len(texts[-1])
    return texts


@click.command()
@click.option("--tasks", default=300, show_default=True, help="Held-out tasks to solve.")
@click.option("--bytes", "limit", default=60_000, show_default=True, help="Characters of held-out text to score.")
def main(tasks: int, limit: int) -> None:
    """Print the table."""
    quiet_libraries()
    texts = held_out_text(limit)
    with tempfile.TemporaryDirectory() as folder, Archive.create(Path(folder) / "archive") as archive:
        import_nano(archive)
        rows = [measure(archive, scheme, texts, tasks) for scheme in ("none", "int8", "nf4")]
    click.echo(f"keystone-nano, {tasks} held-out tasks, {sum(map(len, texts)):,} characters of held-out library text;")
    box = f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}"
    click.echo(f"{box}, Python {platform.python_version()}\n")
    heads = ("weights", "MB in memory", "bits per byte", "pass@1 seen families", "pass@1 held-out families")
    heads += ("same verdict as bf16", "tasks/s")
    click.echo(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for row in rows:
        sides = [row.result.by_side[side] for side in (Side.SEEN_FAMILY, Side.UNSEEN_FAMILY)]
        rates = [f"{rate.value:.1%} ({rate.low:.0%}-{rate.high:.0%}, n={rate.total})" for rate in sides]
        pairs = zip(row.result.items, rows[0].result.items, strict=True)
        same = sum(ours.verdict == theirs.verdict for ours, theirs in pairs) / tasks
        name = "bf16" if row.scheme == "none" else row.scheme
        cells = (name, f"{row.megabytes:.1f}", f"{row.bits:.4f}", *rates, f"{same:.1%}", f"{tasks / row.seconds:.1f}")
        click.echo(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
