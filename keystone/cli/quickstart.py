"""`keystone quickstart`: the story of `keystone.quickstart`, drawn for a person."""

import itertools
import os
import shutil
import sys
import tempfile
from pathlib import Path

import click

from csf_store import Session, json_option, pass_session
from keystone.cli.quiet import quiet_libraries


@click.command("quickstart")
@click.option(
    "--into",
    type=click.Path(path_type=Path),
    help="Where to make the archive. Default: keystone-quickstart here, numbered if it exists.",
)
@json_option
@pass_session
def quickstart_command(session: Session, *, into: Path | None) -> None:
    """The whole story in two minutes, on the embedded base.

    Puts the base into a new archive, loads it quantized, lets it learn through the guarded cycle with its gates as they
    are, promotes the result if its tripwire is clear, moves a name and rolls it back, and audits what it made. The
    archive stays, for you to look around in.

    \b
    Example:
      keystone quickstart
    """  # noqa: D301 - \b is for click
    from rich.console import Console  # noqa: PLC0415 - with torch below, not needed for --help

    from csf_store import Archive  # noqa: PLC0415
    from keystone.cli.story import ConsoleNarrator  # noqa: PLC0415
    from keystone.quickstart import Narrator, run  # noqa: PLC0415 - torch and transformers

    quiet_libraries()
    place = into or _free_name(Path("keystone-quickstart"))
    console = Console(highlight=False)
    narrator = Narrator() if session.json else ConsoleNarrator(console)
    with Archive.create(place) as archive, tempfile.TemporaryDirectory() as work:
        outcome = run(archive, Path(work), narrator)
    home = "" if shutil.which("keystone") else f"{os.path.relpath(Path(sys.executable).parent)}/"
    cycle = outcome.cycle
    session.item(
        {
            "archive": str(place),
            "base": str(outcome.base),
            "candidate": str(outcome.candidate) if outcome.candidate else None,
            "adapter": cycle.text("trained", "adapter") or None,
            "verdict": cycle.outcome,
            "promoted": outcome.promoted,
            "sandbox": outcome.sandbox,
            "audits": [report.verdict.value for report in outcome.audits],
            "seconds": round(outcome.seconds, 1),
        },
        f"\nDone in {outcome.seconds:.0f} s. Serve it, and talk to it:\n\n"
        f"  export CSF_ARCHIVE={place}\n"
        f"  {home}keystone serve prod playground\n"
        "  curl -s http://127.0.0.1:8321/v1/completions -H 'Content-Type: application/json' \\\n"
        '    -d \'{"model": "prod", "prompt": "def keep_even(values):\\n", "max_tokens": 48}\'\n\n'
        "Or look around:\n\n"
        f"  {home}keystone cycle report prod -o cycles.html\n"
        f"  {home}keystone load {outcome.last.short} --prompt 'def keep_even(values):'\n"
        f"  {home}keystone audit {outcome.last.short}\n"
        f"  {home}keystone ref log playground\n",
    )
    if any(report.verdict.value == "FAIL" for report in outcome.audits):
        click.get_current_context().exit(1)


def _free_name(path: Path) -> Path:
    """The path itself, or the first numbered one that does not exist: nobody's files are overwritten."""
    if not path.exists():
        return path
    return next(numbered for n in itertools.count(2) if not (numbered := path.with_name(f"{path.name}-{n}")).exists())
