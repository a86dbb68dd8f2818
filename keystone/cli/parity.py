"""`keystone parity`: is our forward pass the vendor's? Inputs for a reference run, the comparison, and its reports."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from csf_store import Session, json_option, pass_session, progress_bar
from keystone.cli.quiet import quiet_libraries

if TYPE_CHECKING:
    from csf_store import Digest
    from manifests import ParityReport


@click.group("parity")
def parity_command() -> None:
    """Compare our forward pass with the vendor's engine, for owners of the real weights."""


@parity_command.command("capture")
@click.argument("target", metavar="MANIFEST|REF")
@click.argument("out", type=click.Path(path_type=Path), metavar="OUT")
@click.option("--dtype", "dtypes", multiple=True, type=click.Choice(["float32", "bfloat16"]), help="Default: both.")
@json_option
@pass_session
def capture_command(session: Session, *, target: str, out: Path, dtypes: tuple[str, ...]) -> None:
    """Write fixed inputs, and a script that runs the vendor's engine on them.

    OUT becomes a directory of spec.json, inputs.safetensors and reference.py. The script needs torch and transformers,
    and nothing of Keystone; it writes reference.safetensors.

    \b
    Example:
      keystone parity capture loopcoder parity/
      python parity/reference.py PATH_OF_THE_VENDORS_CHECKPOINT
      keystone parity check loopcoder parity/reference.safetensors
    """  # noqa: D301 - \b is for click
    from keystone.parity.capture import capture  # noqa: PLC0415 - torch, not needed for --help

    quiet_libraries()
    with session.open() as archive:
        made = capture(archive, target, out, dtypes=dtypes or ("float32", "bfloat16"))
    tokens = sum(len(given.ids) for given in made.inputs)
    session.item(
        {
            "directory": str(out),
            "base": str(made.base),
            "inputs": str(made.digest),
            "cases": len(made.inputs) * len(made.dtypes),
            "tokens": tokens,
        },
        f"{out}: {len(made.inputs)} inputs of {tokens} tokens in {', '.join(made.dtypes)}\n"
        f"next: python {out / 'reference.py'} PATH_OF_THE_VENDORS_CHECKPOINT",
    )


@parity_command.command("check")
@click.argument("target", metavar="MANIFEST|REF")
@click.argument("reference", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="REFERENCE")
@json_option
@pass_session
def check_command(session: Session, *, target: str, reference: Path) -> None:
    """Run our model on a reference's inputs, compare, and store the report. Exits with 1 when a bar is missed.

    Bars: in fp32 no logit differs by more than 5e-4; in bf16 the relative Frobenius error is at most 0.045.

    \b
    Example:
      keystone parity check loopcoder parity/reference.safetensors
    """  # noqa: D301 - \b is for click
    from keystone.parity.checking import check, open_reference  # noqa: PLC0415 - see capture

    quiet_libraries()
    with open_reference(reference) as opened:
        total = len(opened.names)
    with session.open() as archive, progress_bar(session, "check", total, unit="objects") as progress:
        digest, report = check(archive, target, reference, progress=progress)
    show_report(session, digest, report)
    if not report.passed:
        click.get_current_context().exit(1)


@parity_command.command("show")
@click.argument("target", metavar="MANIFEST|REF")
@json_option
@pass_session
def show_command(session: Session, *, target: str) -> None:
    """Show the parity reports on a manifest's base. Exits with 1 when none of them verifies it.

    \b
    Example:
      keystone parity show loopcoder
    """  # noqa: D301 - \b is for click
    from keystone.parity import is_verified, reports_of  # noqa: PLC0415 - pydantic, see capture
    from manifests import Repository  # noqa: PLC0415

    with session.open() as archive:
        repository = Repository(archive)
        base = repository.load(repository.resolve(target)).assembly.base
        for digest, report in reports_of(archive, base):
            show_report(session, digest, report)
        verified = is_verified(archive, base)
    said = (
        "verified against the vendor's engine" if verified else "not verified: no passing report with the present code"
    )
    session.item({"base": str(base), "verified": verified}, f"base {base}: {said}")
    if not verified:
        click.get_current_context().exit(1)


def show_report(session: Session, digest: "Digest", report: "ParityReport") -> None:
    """A report's cases, then the report."""
    for case in report.cases:
        worst = "not finite" if case.worst is None else f"{case.worst:.3g}"
        measured = f"{case.metric} {worst} (bar {case.bar:g}), {case.tokens} tokens"
        session.item(
            {"report": str(digest), **case.to_json()},
            f"{'PASS' if case.passed else 'FAIL'}  {case.name:<24} {measured}",
        )
    verdict = "passed" if report.passed else "FAILED"
    session.item(
        {
            "report": str(digest),
            "base": str(report.base),
            "code": report.code,
            "engine": report.engine,
            "reference": str(report.reference),
            "inputs": str(report.inputs),
            "passed": report.passed,
        },
        f"report {digest}: {verdict}, {report.code} against {report.engine or 'an engine it does not name'}",
    )
