"""The ``csf`` group: global options, and the table of commands."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from csf_store.cli.command_table import CommandTable
from csf_store.cli.session import Session

_COMMANDS: Final = {
    "init": ("putting", "Make an archive."),
    "put": ("putting", "Store files and directories."),
    "import": ("importing", "Store what an older CSF-Pack container holds."),
    "get": ("getting", "Write a blob or a tree to disk."),
    "ls": ("looking", "List pins, a tree, or a blob's tensors."),
    "stat": ("looking", "Show what is known of a digest."),
    "find": ("searching", "Find what holds a tensor, has a name, or needs something."),
    "diff": ("searching", "Compare two checkpoints tensor by tensor."),
    "cat": ("getting", "Write a blob to standard output."),
    "verify": ("checking", "Read everything again and name what is damaged."),
    "repair": ("checking", "Save what is sound, heal what can be healed, name what is lost."),
    "rm": ("putting", "Unpin: let an object go."),
    "stats": ("upkeep", "Show what the archive holds in numbers."),
    "gc": ("upkeep", "Collect garbage: free the space of what nothing leads to."),
    "parity": ("parity", "Keep what undoes rot, for those with one copy."),
    "log": ("auditing", "Show the ledger, and prove what it says."),
}


@click.group(
    "csf",
    cls=CommandTable,
    home="csf_store.cli",
    table=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "--archive",
    type=click.Path(path_type=Path),
    envvar="CSF_ARCHIVE",
    metavar="DIR",
    help="The archive. Default: $CSF_ARCHIVE, else keystone/archive in your data directory.",
)
@click.version_option(package_name="keystone-sigma0", prog_name="csf")
@click.pass_context
def main(context: click.Context, archive: Path | None) -> None:
    """Keep checkpoints by what they are: content-addressed, deduplicated, crash-safe.

    A digest (b3:...) may be shortened to any unique prefix of 8 or more hex digits.

    \b
    Examples:
      csf put checkpoint/               store a directory; prints its tree digest last
      csf ls b3:1a2b3c4d                what is in it; digests as b3sum prints them
      csf get b3:1a2b3c4d -o copy/      write it back, proven byte for byte
      csf verify                        read everything again

    \b
    Shell completion (bash; likewise zsh_source, fish_source):
      eval "$(_CSF_COMPLETE=bash_source csf)"

    \b
    Exit codes:
      0 done          1 damage, or a difference     2 wrong usage
      5 not found     6 corrupt data                7 input refused
      8 conflict      9 storage trouble             10 refused
      130 interrupted
    """  # noqa: D301 - \b is for click
    context.obj = Session(archive, "csf")
