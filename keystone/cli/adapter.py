"""`keystone adapter`: what the archive knows of PEFT adapters."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from csf_store import Session, Value, json_option, pass_session
from keystone.cli.adapter_tools import COMMANDS as TOOLS
from keystone.cli.training import COMMANDS as TRAINING

if TYPE_CHECKING:
    from csf_store import Digest
    from manifests import AdapterRecord, Repository


@click.group("adapter")
def adapter_command() -> None:
    """Train, add, show, import, check, merge and compare PEFT adapters.

    An adapter goes in as it is and comes out byte for byte: `csf get DIGEST -o DIR`.
    """


for _tool in (*TRAINING, *TOOLS):
    adapter_command.add_command(_tool)


@adapter_command.command("add")
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--base", required=True, help="The base it was made for: its tree digest, or a manifest or ref of it.")
@click.option("--parent", help="The adapter it was trained on top of.")
@json_option
@pass_session
def add(session: Session, *, directory: Path, base: str, parent: str | None) -> None:
    """Store a PEFT LoRA directory and record which base it belongs to.

    Names, shapes and ranks are checked against the base before anything is written. The base is a claim until a
    training record proves it; an audit says so.

    \b
    Example:
      keystone adapter add my-lora/ --base nano
    """  # noqa: D301 - \b is for click
    from adapters import add_adapter  # noqa: PLC0415 - pydantic, not needed for --help
    from csf_store import Kind  # noqa: PLC0415
    from manifests import Repository  # noqa: PLC0415

    with session.open() as archive:
        repository = Repository(archive)
        tree = resolve_base(repository, base)
        above = archive.resolve(parent, kind=Kind.TREE) if parent else None
        digest, record = add_adapter(repository, directory, base=tree, parent=above)
        archive.pin(digest, kind=Kind.TREE, name=directory.name)
    following = f"keystone manifest create --from {base} --adapter {digest.short}"
    session.item(_fields(digest, record), f"{_text(digest, record)}\nnext: {following}")


@adapter_command.command("show")
@click.argument("adapter")
@json_option
@pass_session
def show(session: Session, *, adapter: str) -> None:
    """Show what is recorded of an adapter.

    \b
    Example:
      keystone adapter show b3:1a2b3c4d
    """  # noqa: D301 - \b is for click
    from csf_store import Kind, NotFoundError  # noqa: PLC0415 - see add
    from manifests import Repository  # noqa: PLC0415

    with session.open() as archive:
        digest = archive.resolve(adapter, kind=Kind.TREE)
        record = Repository(archive).adapter_record(digest)
    if record is None:
        raise NotFoundError(f"{digest} has no adapter record; `keystone adapter add DIR --base BASE` makes one")
    session.item(_fields(digest, record), _text(digest, record))


def resolve_base(repository: "Repository", text: str) -> "Digest":
    """The base tree a person means: a tree digest or prefix, else the base of a manifest or ref."""
    from csf_store import Kind, NotFoundError  # noqa: PLC0415 - see add
    from manifests import ManifestError  # noqa: PLC0415

    try:
        return repository.load(repository.resolve(text)).assembly.base
    except (NotFoundError, ManifestError) as not_a_manifest:
        try:
            return repository.archive.resolve(text, kind=Kind.TREE)
        except NotFoundError:
            raise not_a_manifest from None


def _fields(digest: "Digest", record: "AdapterRecord") -> dict[str, Value]:
    return {
        "adapter": str(digest),
        "base": str(record.base),
        "parent": str(record.parent) if record.parent else None,
        "rank": record.rank,
        "alpha": record.alpha,
        "targets": list(record.targets),
        "training": str(record.training) if record.training else None,
        "claim": record.claim,
    }


def _text(digest: "Digest", record: "AdapterRecord") -> str:
    proof = f"training record {record.training}" if record.training else "a claim: no training record proves it"
    return (
        f"adapter   {digest}\n  base    {record.base}\n  parent  {record.parent or 'none: made on the base itself'}\n"
        f"  rank    {record.rank}, alpha {record.alpha:g}, {len(record.targets)} modules\n  proof   {proof}"
    )
