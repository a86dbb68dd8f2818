"""`keystone ref` and `keystone rollback`: names that move, each move an event of the ledger."""

from typing import TYPE_CHECKING

import click

from csf_store import Session, Value, json_option, pass_session

if TYPE_CHECKING:
    from manifests import RefEvent


@click.group("ref")
def ref_command() -> None:
    """Names for manifests, and their history."""


@ref_command.command("set")
@click.argument("name")
@click.argument("target", metavar="MANIFEST|REF")
@click.option("--expect", metavar="MANIFEST", help="Move only if the ref is here now. Default: where it is seen now.")
@click.option("--reason", help="A sentence for the ledger.")
@json_option
@pass_session
def set_ref(session: Session, *, name: str, target: str, expect: str | None, reason: str | None) -> None:
    """Let NAME point at a manifest.

    \b
    Example:
      keystone ref set prod b3:1a2b3c4d --reason "better on basics"
    """  # noqa: D301 - \b is for click
    from manifests import Repository  # noqa: PLC0415 - pydantic, not needed for --help

    with session.open() as archive:
        repository = Repository(archive)
        digest = repository.resolve(target)
        expected = repository.resolve(expect) if expect else repository.refs.find(name)
        _print(session, repository.refs.set(name, digest, expected=expected, reason=reason))


@ref_command.command("log")
@click.argument("name")
@json_option
@pass_session
def log(session: Session, *, name: str) -> None:
    """Every move of a ref, oldest first.

    \b
    Example:
      keystone ref log prod
    """  # noqa: D301 - \b is for click
    from manifests import Repository  # noqa: PLC0415 - see set

    with session.open() as archive:
        refs = Repository(archive).refs
        refs.get(name)
        for event in refs.history(name):
            _print(session, event)


@ref_command.command("list")
@json_option
@pass_session
def list_refs(session: Session) -> None:
    """Every ref and where it points.

    \b
    Example:
      keystone ref list
    """  # noqa: D301 - \b is for click
    from manifests import Repository  # noqa: PLC0415 - see set

    with session.open() as archive:
        refs = Repository(archive).refs
        for name in refs.names():
            target = refs.find(name)
            session.item({"ref": name, "manifest": str(target) if target else None}, f"{name:<20}  {target or '-'}")


@click.command("rollback")
@click.argument("name", metavar="REF")
@click.option(
    "--to", metavar="MANIFEST", help="An earlier target, or a manifest of the bare base. Default: the last one."
)
@click.option("--reason", help="A sentence for the ledger.")
@click.option("--dry-run", is_flag=True, help="Prove that it would work, and change nothing.")
@json_option
@pass_session
def rollback_command(session: Session, *, name: str, to: str | None, reason: str | None, dry_run: bool) -> None:
    """Move a ref back to its last good manifest, in one step.

    The target is verified down to its last byte first. A rollback is an event like any other, and can be rolled back.

    \b
    Examples:
      keystone rollback prod
      keystone rollback prod --to b3:1a2b3c4d --reason "repeats itself"
    """  # noqa: D301 - \b is for click
    from manifests import Repository  # noqa: PLC0415 - see set

    with session.open() as archive:
        repository = Repository(archive)
        target = repository.resolve(to) if to else None
        if dry_run:
            chosen = target or repository.refs.rollback_target(name)
            repository.refs.check_sound(chosen)
            fields: dict[str, Value] = {"ref": name, "manifest": str(chosen), "dry_run": True}
            session.item(fields, f"{name} would go back to {chosen}; every byte of it verifies")
            return
        _print(session, repository.refs.rollback(name, to=target, reason=reason))


def _print(session: Session, event: "RefEvent") -> None:
    verb = "rolled back to" if event.rollback else "->"
    session.item(
        {
            "ref": event.name,
            "seq": event.seq,
            "time": event.time.isoformat(),
            "manifest": str(event.target) if event.target else None,
            "previous": str(event.previous) if event.previous else None,
            "rollback": event.rollback,
            "reason": event.reason,
        },
        f"{event.time:%Y-%m-%d %H:%M:%S}  {event.name} {verb} {event.target or 'nothing'}"
        + (f"  ({event.reason})" if event.reason else ""),
    )
