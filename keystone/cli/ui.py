"""`keystone ui`."""

from pathlib import Path

import click

from csf_store import Session, Value, json_option, pass_session
from keystone.cli.options import audit_state_option
from keystone.cli.quiet import quiet_libraries


@click.command("ui")
@click.argument("targets", metavar="[REF|MANIFEST]...", nargs=-1)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; others need tokens.")
@click.option("--port", default=8322, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--read-only", is_flag=True, help="Look and audit; roll nothing back.")
@click.option("--no-browser", is_flag=True, help="Print the address and open nothing.")
@click.option(
    "--tokens", type=click.Path(path_type=Path), metavar="FILE", help="As `keystone serve`, which makes them."
)
@audit_state_option
@json_option
@pass_session
def ui_command(
    session: Session,
    *,
    targets: tuple[str, ...],
    host: str,
    port: int,
    read_only: bool,
    no_browser: bool,
    tokens: Path | None,
    state: Path | None,
) -> None:
    """Look at the archive in a browser: refs, lineage, scores, tripwire, ledger; audit, and roll back.

    It is the server of `keystone serve` with no model loaded until one is asked for. Rolling back follows the rules of
    `keystone rollback`: a protected ref goes back only to what was good, and nothing here moves it forward. With
    tokens, whoever holds one may roll back, so make them for operators; `keystone serve` shows the page read-only.

    \b
    Examples:
      keystone ui
      keystone ui --read-only --no-browser
      keystone ui prod --port 9000           with a model loaded, and /v1 and /api beside the page
    """  # noqa: D301 - \b is for click
    import torch  # noqa: PLC0415 - not needed for --help

    from keystone.cli.auditing import state_directory  # noqa: PLC0415
    from keystone.cli.serving import token_file  # noqa: PLC0415
    from keystone.serve.app import make_app  # noqa: PLC0415 - torch, transformers and fastapi
    from keystone.serve.host import Host  # noqa: PLC0415
    from keystone.serve.page import PageSettings  # noqa: PLC0415
    from keystone.serve.running import check_exposure, is_loopback, listen, serve  # noqa: PLC0415
    from keystone.serve.tokens import BearerTokens  # noqa: PLC0415

    quiet_libraries()
    known = BearerTokens.read(tokens or token_file())
    check_exposure(host, len(known))
    guarded = tokens is not None or not is_loopback(host)
    page = PageSettings("read-only" if read_only else "operator", state or state_directory())
    with session.open() as archive, listen(host, port) as listening:
        models = Host(archive, targets, device=None if torch.cuda.is_available() else torch.device("cpu"))
        try:
            models.start()

            def ready(url: str) -> None:
                fields: dict[str, Value] = {"url": f"{url}/ui", "rights": page.rights, "tokens": guarded}
                session.item(fields, f"{url}/ui\n  stop with Ctrl-C")
                if not (no_browser or session.json):
                    click.launch(f"{url}/ui")

            app = make_app(models, tokens=known if guarded else None, page=page)
            serve(app, listening, drain_seconds=5.0, ready=ready)
        finally:
            models.close()
