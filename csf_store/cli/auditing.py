"""``csf log``: what happened, and proof of it."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from csf_store.cli.session import Session, Value, json_option, pass_session, printable

if TYPE_CHECKING:
    from csf_store.ledger.ledger import Ledger
    from csf_store.ledger.line import LedgerEntry
    from csf_store.ledger.proofs import ConsistencyProof, InclusionProof

_FAILED = 1


class _Time(click.ParamType[str]):
    """An RFC 3339 time with its zone, as the ledger writes it: UTC, microseconds."""

    name = "time"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from csf_store.ledger.line import TIME  # noqa: PLC0415 - not needed for --help

        try:
            moment = datetime.fromisoformat(value)
            if moment.tzinfo is None or "T" not in value.upper():
                raise ValueError
            return moment.astimezone(UTC).strftime(TIME)
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is not a time with its zone; write 2026-01-31T12:00:00Z", param, ctx)


class _Filter(NamedTuple):
    """Which events to show."""

    events: frozenset[str]
    about: str | None
    until: str | None

    def of(self, entries: Iterable[LedgerEntry]) -> Iterator[LedgerEntry]:
        """Those of them that fit; times never decrease, so the first that is too late ends it."""
        for entry in entries:
            if self.until is not None and entry.time > self.until:
                return
            if (not self.events or entry.event in self.events) and (self.about is None or self._mentions(entry)):
                yield entry

    def _mentions(self, entry: LedgerEntry) -> bool:
        wanted = (self.about or "").removeprefix("b3:").lower()
        for value in entry.fields.values():
            if value == self.about:
                return True
            if isinstance(value, str) and value.startswith("b3:") and len(wanted) >= 8 and value[3:].startswith(wanted):
                return True
        return False


@click.command()
@click.option("-n", "--tail", "--limit", "tail", type=click.IntRange(min=1), help="Only the last N of them.")
@click.option("--event", "events", multiple=True, metavar="NAME", help="Only events of that type; may be repeated.")
@click.option("--about", metavar="TEXT", help="Only events that name this digest (or 8 digits of it), ref or name.")
@click.option("--since", type=_Time(), help="Only events at or after this time (RFC 3339).")
@click.option("--until", type=_Time(), help="Only events at or before this time (RFC 3339).")
@click.option("--checkpoint", is_flag=True, help="Print SIZE:ROOT, to keep elsewhere and to compare later.")
@click.option("--prove", metavar="SEQ", type=click.IntRange(min=0), help="Prove that event SEQ is in the ledger.")
@click.option("--consistency", metavar="SIZE[:ROOT]", help="Prove that the ledger begins with that earlier one.")
@click.option("--size", type=click.IntRange(min=0), help="Of the ledger as it was with so many events.")
@click.option(
    "--check",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    help="Check a proof that was saved; needs no archive.",
)
@json_option
@pass_session
def log(
    session: Session,
    *,
    tail: int | None,
    events: tuple[str, ...],
    about: str | None,
    since: str | None,
    until: str | None,
    prove: int | None,
    consistency: str | None,
    size: int | None,
    check: Path | None,
    checkpoint: bool,
) -> None:
    """Show what happened, oldest first; or prove it.

    An auditor keeps a checkpoint outside of the archive. That the ledger still begins with it shows that nothing was
    altered or removed since; that an event is in it shows that the event is as old as the checkpoint. Proofs are those
    of RFC 9162 and can be checked without this program: see FORMAT.md.

    Exits with 1 if something can not be proven, or a proof does not hold.

    \b
    Examples:
      csf log -n 20
      csf log --event ref.set --about prod --since 2026-01-31T12:00:00Z
      csf log --checkpoint > kept-elsewhere
      csf log --consistency "$(cat kept-elsewhere)"
      csf log --prove 7 --json > proof.json
      csf log --check proof.json
    """  # noqa: D301 - \b is for click
    asked = [checkpoint, prove is not None, consistency is not None, check is not None]
    filters = [tail, events or None, about, since, until]
    if sum(asked) > 1 or (any(asked) and any(each is not None for each in filters)):
        raise click.UsageError("--checkpoint, --prove, --consistency and --check stand alone")
    if size is not None and (not any(asked) or check):
        raise click.UsageError("--size goes with --checkpoint, --prove or --consistency")
    if check is not None:
        _check(session, check)
        return
    with session.open() as archive:
        if checkpoint:
            said = archive.ledger.checkpoint(size)
            session.item({"archive": archive.id.hex(), **_plain(said.to_json())}, str(said))
        elif prove is not None:
            _show(session, archive.ledger.inclusion_proof(prove, size))
        elif consistency is not None:
            _consistency(session, archive.ledger, consistency, size)
        else:
            _list(session, archive.ledger, _Filter(frozenset(events), about, until), since, tail)


def _plain(fields: object) -> dict[str, Value]:
    """The same as plain JSON values."""
    plain: dict[str, Value] = json.loads(json.dumps(fields))
    return plain


def _list(session: Session, ledger: Ledger, chosen: _Filter, since: str | None, tail: int | None) -> None:
    start = ledger.first_at(since) if since is not None else 0
    if tail is not None and chosen == _Filter(frozenset(), None, None):
        start = max(start, ledger.size - tail)
    entries: Iterable[LedgerEntry] = chosen.of(ledger.entries(start))
    for entry in deque(entries, maxlen=tail) if tail is not None else entries:
        fields = _plain(entry.fields)
        said = "  ".join(f"{key}={value}" for key, value in fields.items() if value is not None)
        session.item(
            {"seq": entry.seq, "time": entry.time, "event": entry.event, "leaf": entry.leaf.hex(), **fields},
            printable(f"{entry.seq:>6}  {entry.time}  {entry.event:<16}  {said}"),
        )


def _consistency(session: Session, ledger: Ledger, text: str, size: int | None) -> None:
    from csf_store.ledger.proofs import Checkpoint  # noqa: PLC0415 - not needed for --help

    if text.isdecimal() and len(text) < 20:
        _show(session, ledger.consistency_proof(int(text), size))
        return
    kept = Checkpoint.parse(text)
    there = ledger.checkpoint(size)
    found = ledger.checkpoint(kept.size) if kept.size <= there.size else None
    if found == kept:
        _show(session, ledger.consistency_proof(kept.size, size))
        return
    what = f"has the root {found.root.hex()} at that size" if found else f"has only {there.size} events"
    session.item(
        {"ok": False, "kept": _plain(kept.to_json()), "found": _plain(found.to_json()) if found else None},
        f"NOT CONSISTENT  the ledger does not begin with {kept}: it {what}. Events that were there "
        "then were altered or removed: compare ledger.jsonl with a backup",
    )
    click.get_current_context().exit(_FAILED)


def _show(session: Session, proof: InclusionProof | ConsistencyProof) -> None:
    session.item(_plain(proof.to_json()), _said(proof))


def _said(proof: InclusionProof | ConsistencyProof) -> str:
    from csf_store.ledger.proofs import InclusionProof  # noqa: PLC0415 - not needed for --help

    if isinstance(proof, InclusionProof):
        head = [f"event   {proof.seq}", f"line    {printable(proof.line.decode())}", f"is in   {proof.checkpoint}"]
    else:
        head = [f"ledger  {proof.checkpoint}", f"begins  {proof.old}"]
    return "\n".join([*head, *(f"path    {each.hex()}" for each in proof.path)])


def _check(session: Session, file: Path) -> None:
    from csf_store.ledger.proofs import PROOF_LIMIT, InclusionProof, read_proof  # noqa: PLC0415 - as above

    with click.open_file(str(file), "rb") as opened:
        proof = read_proof(opened.read(PROOF_LIMIT + 1))
    good = proof.holds()
    if isinstance(proof, InclusionProof):
        text = f"event {proof.seq} is in {proof.checkpoint}"
    else:
        text = f"{proof.checkpoint} begins with {proof.old}"
    session.item(
        {"ok": good, **_plain(proof.to_json())},
        f"holds: {text}; compare that with the checkpoint you kept" if good else f"DOES NOT HOLD: that {text}",
    )
    if not good:
        click.get_current_context().exit(_FAILED)
