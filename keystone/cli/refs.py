"""`keystone ref`, `approve`, `promote` and `rollback`: names that move, each move an event of the ledger."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from csf_store import Session, Value, json_option, pass_session
from keystone.cli.keys import passphrase_options, unlock

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


@ref_command.command("at")
@click.argument("name")
@click.option("--time", "moment", required=True, metavar="TIME", help="RFC 3339 with its zone: 2026-01-31T12:00:00Z.")
@json_option
@pass_session
def at(session: Session, *, name: str, moment: str) -> None:
    """Where NAME pointed at a moment in the past.

    \b
    Example:
      keystone ref at prod --time 2026-01-31T12:00:00Z
    """  # noqa: D301 - \b is for click
    from datetime import datetime  # noqa: PLC0415 - with the others

    from manifests import Repository  # noqa: PLC0415 - see set

    try:
        time = datetime.fromisoformat(moment)
    except ValueError:
        raise click.UsageError(f"{moment!r} is not a time; write 2026-01-31T12:00:00Z") from None
    with session.open() as archive:
        target = Repository(archive).refs.at(name, time)
    session.item({"ref": name, "time": time.isoformat(), "manifest": str(target)}, str(target))


@ref_command.command("protect")
@click.argument("name")
@click.option("--reason", help="A sentence for the ledger.")
@json_option
@pass_session
def protect(session: Session, *, name: str, reason: str | None) -> None:
    """Let NAME move only with an approval from now on. It need not point anywhere yet.

    There is no way back: a ref that is served from should stay protected. Rolling back needs no approval.

    \b
    Example:
      keystone ref protect prod --reason "customers are served from here"
    """  # noqa: D301 - \b is for click
    from manifests import Repository  # noqa: PLC0415 - see set

    with session.open() as archive:
        _print(session, Repository(archive).refs.protect(name, reason=reason))


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
            target, protected = refs.find(name), refs.is_protected(name)
            fields: dict[str, Value] = {"ref": name, "manifest": str(target), "protected": protected}
            session.item(fields, f"{name:<20}  {target}{'  protected' if protected else ''}")


@click.command("approve")
@click.argument("name", metavar="REF")
@click.argument("target", metavar="MANIFEST|REF")
@click.option("--key", required=True, help="Who signs: a key of `keystone key list`.")
@click.option("--note", default="", help="Why; part of what is signed.")
@passphrase_options
@json_option
@pass_session
def approve_command(
    session: Session, *, name: str, target: str, key: str, note: str, keys: Path | None, passphrase_file: Path | None
) -> None:
    """Sign that a manifest may take over a ref, as things stand now.

    What is signed: the ref, assembly and recipe, the manifest the ref holds, every report and policy, and how long the
    ledger is. The approval is good for one promotion, and void as soon as the ref moves. An adapter is only approved
    after a cycle whose tripwire was clear; the reports signed are that cycle's.

    \b
    Example:
      keystone approve prod b3:1a2b3c4d --key alice --note "better, and nothing lost"
    """  # noqa: D301 - \b is for click
    from keystone.cycle.clearing import require_clear  # noqa: PLC0415
    from manifests import Repository, approval_statement, draft_approval, put_envelope, seal  # noqa: PLC0415 - see set

    with session.open() as archive:
        repository = Repository(archive)
        digest = repository.resolve(target)
        require_clear(repository, digest)
        incumbent = repository.refs.find(name)
        approval = draft_approval(archive, name, repository.load(digest), incumbent=incumbent, note=note)
        signing = unlock(keys, key, passphrase_file)
        envelope = put_envelope(archive, seal(approval_statement(approval), signing))
    fields: dict[str, Value] = {
        "approval": str(envelope),
        "ref": name,
        "manifest": str(digest),
        "incumbent": str(incumbent) if incumbent else None,
        "reports": [str(report) for report in approval.reports],
        "key": str(signing.public.id),
    }
    text = f"{envelope}  {key} approves {digest.short} for {name}, in place of {incumbent.short if incumbent else '-'}"
    session.item(fields, f"{text}\nnext: keystone promote {name} {digest.short} --approval {envelope.short}")


@click.command("promote")
@click.argument("name", metavar="REF")
@click.argument("target", metavar="MANIFEST|REF")
@click.option("--approval", required=True, metavar="DIGEST", help="The approval, as `keystone approve` printed it.")
@click.option("--reason", help="A sentence for the ledger.")
@json_option
@pass_session
def promote_command(session: Session, *, name: str, target: str, approval: str, reason: str | None) -> None:
    """Move a ref forward with an approval, which is thereby spent, and check what it serves then.

    Only what a tripwire has cleared moves a ref; there is no flag to skip that. After the move the model is loaded as
    anybody would load it, and asked again what it was asked when it was measured. If it does not load, or says
    something else, the ref is rolled back at once, and the command exits with 1.

    \b
    Example:
      keystone promote prod b3:1a2b3c4d --approval b3:5e6f7a8b
    """  # noqa: D301 - \b is for click
    from csf_store import Kind  # noqa: PLC0415 - see set
    from keystone.cli.quiet import quiet_libraries  # noqa: PLC0415
    from keystone.cycle.clearing import require_clear  # noqa: PLC0415
    from manifests import Repository  # noqa: PLC0415

    with session.open() as archive:
        repository = Repository(archive)
        envelope = archive.resolve(approval, kind=Kind.RECORD)
        digest = repository.resolve(target)
        require_clear(repository, digest)
        event = repository.refs.promote(name, digest, approval=envelope, reason=reason)
        _print(session, event)
        quiet_libraries()
        from keystone.cycle.switching import check_switch  # noqa: PLC0415 - torch and transformers

        switched = check_switch(repository, name, event)
        if switched.back is None:
            session.note("checked after the switch: it loads, and says what it said when it was measured")
            return
        _print(session, switched.back)
    session.note(f"rolled back: {switched.problem}")
    click.get_current_context().exit(1)


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
    A protected ref goes back only to what was good: a clear tripwire, or a bare base. No approval is needed for that.

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
            chosen = repository.refs.rehearse(name, to=target)
            fields: dict[str, Value] = {"ref": name, "manifest": str(chosen), "dry_run": True}
            session.item(fields, f"{name} would go back to {chosen}; every byte of it verifies")
            return
        _print(session, repository.refs.rollback(name, to=target, reason=reason))


def _print(session: Session, event: "RefEvent") -> None:
    verb = "rolled back to" if event.rollback else "protected at" if event.protects else "->"
    session.item(
        {
            "ref": event.name,
            "seq": event.seq,
            "time": event.time.isoformat(),
            "manifest": str(event.target) if event.target else None,
            "previous": str(event.previous) if event.previous else None,
            "rollback": event.rollback,
            "approval": str(event.approval) if event.approval else None,
            "protects": event.protects,
            "reason": event.reason,
        },
        f"{event.time:%Y-%m-%d %H:%M:%S}  {event.name} {verb} {event.target or 'nothing'}"
        + (f"  ({event.reason})" if event.reason else ""),
    )
