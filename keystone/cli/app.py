"""The `keystone` group: global options, and the table of commands."""

from pathlib import Path

import click

from csf_store import CommandTable, Session

COMMANDS = {
    "quickstart": ("quickstart", "The whole story in two minutes, on the embedded base."),
    "load": ("loading", "Assemble, verify and quantize a manifest, and let it answer."),
    "eval": ("evaluating", "Measure a manifest on a suite, by executing what it writes."),
    "fit": ("fit", "Say whether a model fits a box, before loading it."),
    "cache": ("caching", "Quantized weights that are kept: list them, drop them."),
    "bench": ("benching", "Measure what each way to hold a model costs it."),
    "models": ("models", "The model registry: who is there, and who may lead a task."),
    "council": ("council", "Several models propose, tests decide."),
    "serve": ("serving", "Answer clients of OpenAI's and Ollama's APIs."),
    "ui": ("ui", "Look at the archive in a browser; audit, roll back."),
    "import": ("importing", "Bring a base into the archive."),
    "parity": ("parity", "Compare our forward pass with the vendor's engine."),
    "export": ("exporting", "Write a manifest as a directory that other software loads."),
    "experience": ("experience", "Collect, add and judge what may train."),
    "adapter": ("adapter", "Train, add, show and combine PEFT adapters."),
    "cycle": ("cycle", "Learn safely: collect, gate, train, evaluate, tripwire; stop at the operator."),
    "holdout": ("holdout", "Draws of held-out tasks, and what of them is spent."),
    "manifest": ("manifest", "Create, show, compare and find manifests."),
    "ref": ("refs", "Names for manifests, and their history."),
    "approve": ("refs", "Sign that a manifest may take over a ref."),
    "promote": ("refs", "Move a ref forward with an approval."),
    "rollback": ("refs", "Move a ref back to its last good manifest, in one step."),
    "log": ("log", "Tell what happened, in sentences."),
    "key": ("keys", "Operator keys: make, trust, revoke."),
    "sign": ("keys", "Sign a manifest or an eval report."),
    "verify-signature": ("keys", "Say what every signature on something is worth."),
    "checkpoint": ("keys", "Signed checkpoints of the ledger."),
    "audit": ("auditing", "Re-hash everything a manifest stands on, and say what is proven."),
}


@click.group(
    "keystone",
    cls=CommandTable,
    home="keystone.cli",
    table=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "--archive",
    type=click.Path(path_type=Path),
    envvar="CSF_ARCHIVE",
    metavar="DIR",
    help="The archive. Default: $CSF_ARCHIVE, else keystone/archive in your data directory.",
)
@click.version_option(package_name="keystone-sigma0", prog_name="keystone")
@click.pass_context
def main(context: click.Context, archive: Path | None) -> None:
    """Know which weights are running, prove it, and go back in one step.

    Wherever a manifest is asked for, a ref, a digest (b3:...) or a unique prefix of 8 or more hex digits will do.

    \b
    Examples:
      keystone quickstart                       everything once, on the embedded base
      keystone import nano                      the embedded base into the archive, as ref `nano`
      keystone load nano --prompt "def add("    verified, quantized, talking
      keystone audit nano                       what is proven about it
      keystone rollback prod                    one step back

    \b
    Shell completion (bash; likewise zsh_source, fish_source):
      eval "$(_KEYSTONE_COMPLETE=bash_source keystone)"

    \b
    Exit codes:
      0 done        1 a check failed     2 wrong usage     3 audit: unknown   4 audit: unsigned
      5 not found   6 corrupt data       7 input refused   8 conflict         9 storage trouble
      10 refused by a rule               130 interrupted
    """  # noqa: D301 - \b is for click
    context.obj = Session(archive, "keystone")
