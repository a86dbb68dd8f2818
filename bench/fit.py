"""The plan of `keystone fit` against what a load, a prefill and a decode really take, each in a process of its own.

    python bench/fit.py [--gigabytes G] [GGUF ...]

keystone-nano, a base of noise of about the size asked for, and any GGUF files; bf16, int8 and nf4. A quantized scheme
is measured on the first load, which quantizes, and on the second, which reads what the first kept.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import click
from load import make_base

from csf_store import Archive
from keystone.nano.embedded import DATA
from manifests import Assembly, Manifest, Repository, Source

KEYSTONE = [sys.executable, "-c", "from keystone.cli import main; main()", "--archive"]


def keystone(archive: Path, *arguments: str) -> str:
    """What a command prints."""
    return subprocess.run([*KEYSTONE, str(archive), *arguments], check=True, capture_output=True, text=True).stdout


def put_noise(archive: Path, base: Path, name: str) -> None:
    """A base that is in no checkpoint, with nano's tokenizer."""
    with Archive.open(archive) as opened:
        repository = Repository(opened)
        assembly = Assembly(base=opened.put_tree(base).digest, tokenizer=opened.put_tree(DATA / "tokenizer").digest)
        source = Source(kind="directory", location="made", licence="Apache-2.0")
        repository.refs.set(name, repository.put(Manifest(assembly=assembly, source=source)), expected=None)


@click.command()
@click.option("--gigabytes", default=1.0, show_default=True, help="Of the base of noise, in bf16.")
@click.argument("gguf", nargs=-1, type=click.Path(exists=True, path_type=Path))
def main(*, gigabytes: float, gguf: tuple[Path, ...]) -> None:
    """Print one row for each model, scheme and load."""
    with tempfile.TemporaryDirectory(prefix="keystone-fit-") as folder:
        archive = Path(folder, "archive")
        keystone(archive, "import", "nano", "--ref", "nano")
        make_base(Path(folder, "noise"), gigabytes)
        put_noise(archive, Path(folder, "noise"), "noise")
        for file in gguf:
            keystone(archive, "import", str(file), "--ref", file.stem.lower())
        click.echo("| model | weights | load | planned MB | measured MB | off |\n|---|---|---|---|---|---|")
        worst = 0.0
        for name in ("nano", "noise", *(file.stem.lower() for file in gguf)):
            for scheme, loads in (("none", ("only",)), ("int8", ("first", "second")), ("nf4", ("first", "second"))):
                for load in loads:
                    asked = ("--device", "cpu", "--context", "1024", "--quantize", scheme)
                    found = json.loads(keystone(archive, "fit", name, *asked, "--measure", "--json").splitlines()[-1])
                    planned, peak = found["planned_bytes"], found["peak_bytes"]
                    off = peak / planned - 1
                    worst = max(worst, abs(off))
                    click.echo(f"| {name} | {scheme} | {load} | {planned / 1e6:.0f} | {peak / 1e6:.0f} | {off:+.1%} |")
        click.echo(f"\nfurthest off: {worst:.1%}")


if __name__ == "__main__":
    main()
