"""`keystone audit`."""

import os
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import click

from csf_store import Session, json_option, pass_session, progress_bar
from keystone.cli.keys import key_store, keys_option
from keystone.cli.options import audit_state_option
from keystone.cli.quiet import quiet_libraries
from keystone.tied_weights import TIED

if TYPE_CHECKING:
    from csf_store import Archive, Digest
    from keystone.asking import Endpoint
    from keystone.recomputing import Recomputation
    from manifests import Auditor, AuditReport, LiveWeights, Manifest

COLOURS = {"PASS": "green", "FAIL": "red", "UNKNOWN": "yellow", "UNSIGNED": "cyan"}


@click.command("audit")
@click.argument("target", metavar="[MANIFEST|REF|REF@TIME|RECORD|DIRECTORY]", required=False)
@click.option("--endpoint", metavar="URL", help="Audit what a running server has in memory: TARGET, or all of it.")
@click.option(
    "--token-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The server's bearer token. Default: $KEYSTONE_TOKEN.",
)
@click.option("--keep", is_flag=True, help="Store what the server attested as evidence, if it is right.")
@click.option("--timeout", default=600.0, show_default=True, type=click.FloatRange(0.1), help="Seconds for an answer.")
@click.option("--require-signatures", is_flag=True, help="Exit with 4 when something is unsigned.")
@click.option("--quick", is_flag=True, help="Take as proven what an earlier audit proved and no file changed since.")
@click.option("--html", "page", type=click.Path(dir_okay=False, path_type=Path), help="Also write one page to read.")
@audit_state_option
@keys_option
@json_option
@pass_session
def audit_command(
    session: Session,
    *,
    target: str | None,
    endpoint: str | None,
    token_file: Path | None,
    keep: bool,
    timeout: float,
    require_signatures: bool,
    quick: bool,
    page: Path | None,
    state: Path | None,
    keys: Path | None,
) -> None:
    """Re-hash everything a manifest stands on, walk its lineage to the root, and say what is proven.

    The first audit of an archive keeps the checkpoint of its ledger in your state directory, outside the archive; later
    ones prove that the ledger still begins with it. A directory that `keystone export` wrote is compared with its own
    list and with the archive. A record (a report, a policy, an attestation) is audited by itself: what it claims is
    computed again from what it names.

    With --endpoint, a running server hashes the weights in its memory with a nonce just made, and the same is computed
    from this archive: which manifest it runs, whether the ref points there, which tensor was changed. That detects
    drift and mistakes. It does not detect a hostile host, which can answer right and compute with something else.

    Exits with 0 when nothing failed, 1 for a FAIL, 3 for an UNKNOWN; 4 for an UNSIGNED with --require-signatures.

    \b
    Examples:
      keystone audit nano
      keystone audit prod@2026-01-31T12:00:00Z
      keystone audit b3:1a2b3c4d --html audit.html
      keystone audit ./exported --json
      keystone audit --endpoint http://127.0.0.1:8321 prod
    """  # noqa: D301 - \b is for click
    if target is None and endpoint is None:
        raise click.UsageError("name what to audit, or a server with --endpoint")
    if endpoint is None and (keep or token_file is not None):
        raise click.UsageError("--keep and --token-file are about a server: give --endpoint")
    server = _server(endpoint, token_file, timeout) if endpoint is not None else None
    from adapters import document_problem, fit_problem  # noqa: PLC0415 - pydantic, not needed for --help
    from manifests import Auditor, AuditorState, Repository, audit_page  # noqa: PLC0415

    store = key_store(keys)
    own = {public.id: public for public in map(store.public, store.names())}
    with session.open() as archive:
        memory = AuditorState(state or state_directory())
        done: list[Callable[[int], None]] = []
        auditor = Auditor(
            archive,
            fit=fit_problem,
            tied=TIED,
            state=memory,
            quick=quick,
            known=own,
            documents=document_problem,
            recompute=_recompute,
            progress=lambda count: done[0](count) if done else None,
        )
        total = auditor.planned_bytes(target) if target is not None and not _is_directory(target) else 0
        with progress_bar(session, "audit", total) if total else nullcontext() as bar:
            done[:] = [bar] if bar is not None else []
            found = auditor.audit_server(server, target) if server is not None else None
            report = found.report if found is not None else _report(auditor, str(target))
        if found is not None:
            for attestation in found.attestations if keep else ():
                kept = Repository(archive).put_record(attestation)
                session.item({"kept": str(kept)}, f"kept as evidence: attestation {kept}")
        if page is not None:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            title = str(target or endpoint)
            page.write_text(audit_page(Repository(archive), report, target=title, when=now), encoding="utf-8")
    _print(session, report, served=server is not None)
    click.get_current_context().exit(report.exit_code(require_signatures=require_signatures))


def _print(session: Session, report: "AuditReport", *, served: bool) -> None:
    if session.json:
        for line in report.lines:
            session.item(line.to_json(), "")
        manifest = str(report.manifest) if report.manifest is not None else None
        session.item({"manifest": manifest, "verdict": report.verdict.value}, "")
        return
    draw(report)
    if served:
        session.note("A server's answer shows drift and mistakes; it does not detect a hostile host.")


def _server(url: str, token_file: Path | None, seconds: float) -> "Endpoint":
    from keystone.asking import Endpoint  # noqa: PLC0415 - see audit_command
    from keystone.errors import InvalidInputError  # noqa: PLC0415

    token = os.environ.get("KEYSTONE_TOKEN") or None
    if token_file is not None:
        try:
            token = token_file.read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            raise InvalidInputError(f"no token can be read from {token_file}: {error}") from error
    return Endpoint(url, token=token, seconds=seconds)


def _recompute(archive: "Archive", manifest: "Manifest", recipe: "Digest", nonce: str) -> "LiveWeights | str":
    """Torch comes only when a server has answered."""
    return _recomputation()(archive, manifest, recipe, nonce)


@cache
def _recomputation() -> "Recomputation":
    from keystone.cli.lean import import_lean  # noqa: PLC0415 - torch and transformers

    import_lean(bitsandbytes=True)
    from keystone.recomputing import Recomputation  # noqa: PLC0415 - only after the lean imports

    quiet_libraries()
    return Recomputation()


def _is_directory(target: str) -> bool:
    """Whether a person means a directory and not a ref of that name."""
    return Path(target).is_dir() and ("/" in target or os.sep in target or (Path(target) / "keystone.json").is_file())


def _report(auditor: "Auditor", target: str) -> "AuditReport":
    if _is_directory(target):
        return _export_report(auditor, Path(target))
    return auditor.audit_target(target)


def _export_report(auditor: "Auditor", directory: Path) -> "AuditReport":
    """An exported directory: its files against its list, then the manifest it says it is."""
    from keystone.checkpoints.export import examine_export  # noqa: PLC0415 - see audit_command
    from manifests import AuditLine, AuditReport, Verdict  # noqa: PLC0415

    found = examine_export(directory)
    lines = [
        AuditLine("export", Verdict.FAIL, found.manifest, f"{path} {what}") for path, what in found.problems.items()
    ]
    if not lines:
        text = f"{found.files} files hash to what keystone.json says of them"
        lines.append(AuditLine("export", Verdict.PASS, found.manifest, text))
    report = auditor.audit(found.manifest)
    return AuditReport(manifest=found.manifest, lines=(*lines, *report.lines))


def state_directory() -> Path:
    """What an auditor remembers between audits, if nothing else is said."""
    from platformdirs import user_state_path  # noqa: PLC0415 - not needed for --help

    return user_state_path("keystone", appauthor=False) / "audits"


def draw(report: "AuditReport") -> None:
    """The report as a tree for people."""
    from rich.console import Console  # noqa: PLC0415 - only people pay for it
    from rich.markup import escape  # noqa: PLC0415
    from rich.tree import Tree  # noqa: PLC0415

    tree = Tree(f"[bold]{report.manifest or 'no manifest'}[/]")
    for line in report.lines:
        verdict = f"[{COLOURS[line.verdict.value]}]{line.verdict.value:<8}[/]"
        subject = f" [dim]{_short(line.subject)}[/]" if line.subject else ""
        tree.add(f"{verdict} {escape(line.check)}{subject}  {escape(line.message)}")
    console = Console(highlight=False)
    console.print(tree)
    console.print(f"[bold {COLOURS[report.verdict.value]}]{report.verdict.value}[/]")


def _short(digest: "Digest") -> str:
    return digest.short
