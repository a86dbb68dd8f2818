"""``csf verify``."""

from __future__ import annotations

import click

from csf_store.cli.progress import progress_bar
from csf_store.cli.session import Session, human_size, json_option, pass_session

_DAMAGED = 1


@click.command()
@click.argument("digests", nargs=-1, metavar="[DIGEST]...")
@click.option("--all", "every", is_flag=True, help="Also whether objects that nothing pins are complete.")
@click.option("--deep", is_flag=True, help="Also decode everything, and hash every object as a whole.")
@json_option
@pass_session
def verify(session: Session, digests: tuple[str, ...], *, every: bool, deep: bool) -> None:
    """Read every byte of every segment again, with index and ledger, and name what is damaged.

    With DIGESTs: decode just these objects and what they link to, and hash each as a whole.
    Exits with 1 if anything is wrong.

    \b
    Examples:
      csf verify
      csf verify --all --deep
      csf verify b3:1a2b3c4d
    """  # noqa: D301 - \b is for click
    with session.open() as archive:
        chosen = [archive.resolve(text) for text in digests] if digests else None
        with progress_bar(session, "verify", archive.segment_bytes()) as progress:
            report = archive.verify(chosen, deep=deep, reachable_only=not every, progress=progress)
    for finding in report.findings:
        session.item(
            {
                "what": finding.what,
                "digest": str(finding.digest) if finding.digest else None,
                "segment": finding.segment,
                "offset": finding.offset,
            },
            f"DAMAGED  {finding}",
        )
    for note in report.notes:
        session.item({"note": note}, f"note: {note}")
    count = len(report.findings)
    session.item(
        {
            "ok": report.ok,
            "findings": count,
            "segments": report.segments,
            "objects": report.objects,
            "bytes": report.bytes,
        },
        f"{'ok' if report.ok else f'{count} findings'}: {report.segments} segments, {report.objects} objects, "
        f"{human_size(report.bytes)} read",
    )
    if not report.ok:
        click.get_current_context().exit(_DAMAGED)
