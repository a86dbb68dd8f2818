"""`keystone audit`."""

from typing import TYPE_CHECKING

import click

from csf_store import Session, json_option, pass_session

if TYPE_CHECKING:
    from manifests import AuditReport

COLOURS = {"PASS": "green", "FAIL": "red", "UNKNOWN": "yellow", "UNSIGNED": "cyan"}


@click.command("audit")
@click.argument("target", metavar="MANIFEST|REF")
@click.option("--require-signatures", is_flag=True, help="Exit with 4 when something is unsigned.")
@json_option
@pass_session
def audit_command(session: Session, *, target: str, require_signatures: bool) -> None:
    """Re-hash everything a manifest stands on, walk its lineage to the root, and say what is proven.

    Exits with 0 when nothing failed, 1 for a FAIL, 3 for an UNKNOWN.

    \b
    Examples:
      keystone audit nano
      keystone audit b3:1a2b3c4d --json
    """  # noqa: D301 - \b is for click
    from adapters import fit_problem  # noqa: PLC0415 - pydantic, not needed for --help
    from manifests import Repository, audit  # noqa: PLC0415

    with session.open() as archive:
        report = audit(archive, Repository(archive).resolve(target), fit=fit_problem)
    if session.json:
        for line in report.lines:
            session.item(line.to_json(), "")
        session.item({"manifest": str(report.manifest), "verdict": report.verdict.value}, "")
    else:
        draw(report)
    click.get_current_context().exit(report.exit_code(require_signatures=require_signatures))


def draw(report: "AuditReport") -> None:
    """The report as a tree for people."""
    from rich.console import Console  # noqa: PLC0415 - only people pay for it
    from rich.markup import escape  # noqa: PLC0415
    from rich.tree import Tree  # noqa: PLC0415

    tree = Tree(f"[bold]{report.manifest}[/]")
    for line in report.lines:
        verdict = f"[{COLOURS[line.verdict.value]}]{line.verdict.value:<8}[/]"
        subject = f" [dim]{line.subject.short}[/]" if line.subject else ""
        tree.add(f"{verdict} {escape(line.check)}{subject}  {escape(line.message)}")
    console = Console(highlight=False)
    console.print(tree)
    console.print(f"[bold {COLOURS[report.verdict.value]}]{report.verdict.value}[/]")
