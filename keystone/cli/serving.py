"""`keystone serve`."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from csf_store import Session, json_option, pass_session
from keystone.cli.quiet import quiet_libraries

if TYPE_CHECKING:
    from fastapi import APIRouter

    from keystone.quantize import Quantization
    from keystone.serve.host import Host
    from keystone.serve.limits import Limits


def _aliases(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    pairs = {name: target for name, _, target in (value.partition("=") for value in values)}
    if "" in pairs or "" in pairs.values():
        raise click.BadParameter("say NAME=REF or NAME=MANIFEST")
    return pairs


@click.command("serve")
@click.argument("targets", metavar="[REF|MANIFEST]...", nargs=-1)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; others need tokens.")
@click.option("--port", default=8321, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--alias", "aliases", multiple=True, callback=_aliases, metavar="NAME=TARGET", help="A further name.")
@click.option(
    "--quantize",
    "quantization",
    type=click.Choice(["none", "int8", "nf4"]),
    help="How to hold the weights. Default: the manifest's recipe, else int8 on a CPU and nf4 on a CUDA card.",
)
@click.option("--device", help="cpu, cuda, cuda:1 ... Default: the first CUDA card, else the CPU.")
@click.option("--tokens", type=click.Path(path_type=Path), metavar="FILE", help="Hashes of the tokens that may ask.")
@click.option("--new-token", metavar="NAME", help="Make a token, print it once, keep its hash, and stop.")
@click.option("--max-queue", default=128, show_default=True, type=click.IntRange(1), help="Requests that may wait.")
@click.option("--max-streams", default=32, show_default=True, type=click.IntRange(1), help="Answers at a time.")
@click.option("--max-prompt", type=click.IntRange(1), help="Tokens of a prompt. Default: the model's context.")
@click.option("--max-output", type=click.IntRange(1), help="Tokens of an answer. Default: the model's context.")
@click.option("--max-seconds", default=600.0, show_default=True, type=click.FloatRange(1), help="For one request.")
@click.option("--max-body", default=4096, show_default=True, type=click.IntRange(1), help="KiB of one request.")
@click.option("--max-models", default=2, show_default=True, type=click.IntRange(1), help="Bases in memory.")
@click.option("--council", is_flag=True, help="Offer POST /council; what members write runs in the sandbox.")
@click.option("--cache-memory", default=2048, show_default=True, type=click.IntRange(1), help="MiB of keys and values.")
@click.option("--threads", type=click.IntRange(1), help="Of one step, on a CPU. Default: one for each core.")
@json_option
@pass_session
def serve_command(
    session: Session,
    *,
    targets: tuple[str, ...],
    host: str,
    port: int,
    aliases: dict[str, str],
    quantization: "Quantization | None",
    device: str | None,
    tokens: Path | None,
    new_token: str | None,
    max_queue: int,
    max_streams: int,
    max_prompt: int | None,
    max_output: int | None,
    max_seconds: float,
    max_body: int,
    max_models: int,
    council: bool,
    cache_memory: int,
    threads: int | None,
) -> None:
    """Serve manifests to clients of OpenAI's and Ollama's APIs.

    Without a target, every ref and manifest of the archive is served, each loaded when it is first asked for. A ref
    that moves takes the running server along within a second; requests in flight finish where they began.

    \b
    Examples:
      keystone serve nano                                      http://127.0.0.1:8321/v1 and /api
      keystone serve prod nano --alias default=prod
      keystone serve prod --new-token alice                    prints a token once; then:
      keystone serve prod --host 0.0.0.0
    """  # noqa: D301 - \b is for click
    from keystone.serve.limits import Limits  # noqa: PLC0415 - numbers, but it keeps the others' company

    limits = Limits(
        body_bytes=max_body << 10,
        prompt_tokens=max_prompt,
        output_tokens=max_output,
        seconds=max_seconds,
        queued=max_queue,
        streams=max_streams,
        cache_bytes=cache_memory << 20,
        prefix_bytes=cache_memory << 18,
        models=max_models,
    )
    path = token_file() if tokens is None else tokens
    if new_token is not None:
        _issue(session, path, new_token)
        return
    if threads is not None:
        import torch  # noqa: PLC0415 - heavy

        # Threads that wait for each other in every layer crawl where other work takes their cores.
        torch.set_num_threads(threads)
    _serve(
        session,
        targets,
        address=(host, port),
        aliases=aliases,
        quantization=quantization,
        device=device,
        tokens=path,
        explicit=tokens is not None,
        limits=limits,
        council=council,
    )


def _serve(
    session: Session,
    targets: tuple[str, ...],
    *,
    address: tuple[str, int],
    aliases: dict[str, str],
    quantization: "Quantization | None",
    device: str | None,
    tokens: Path,
    explicit: bool,
    limits: "Limits",
    council: bool,
) -> None:
    from keystone.loader import usable_device  # noqa: PLC0415 - torch and transformers
    from keystone.serve.app import make_app  # noqa: PLC0415 - likewise, and fastapi
    from keystone.serve.host import Host  # noqa: PLC0415
    from keystone.serve.running import check_exposure, is_loopback, listen, serve  # noqa: PLC0415
    from keystone.serve.tokens import BearerTokens  # noqa: PLC0415

    quiet_libraries()
    known = BearerTokens.read(tokens)
    check_exposure(address[0], len(known))
    wants_tokens = explicit or not is_loopback(address[0])
    place = None if device is None else usable_device(device)
    with session.open() as archive, listen(*address) as listening:
        host = Host(archive, targets, aliases=aliases, quantization=quantization, device=place, limits=limits)
        try:
            host.start()
            names = ", ".join(line.name for line in host.names()) or "nothing yet: the archive has no ref"

            def ready(url: str) -> None:
                session.item(
                    {"url": url, "models": [line.name for line in host.names()], "tokens": wants_tokens},
                    f"serving {names}\n  OpenAI  {url}/v1\n  Ollama  {url}\n  stop with Ctrl-C",
                )

            with _council(host) if council else contextlib.nullcontext() as routes:
                app = make_app(host, tokens=known if wants_tokens else None, council=routes)
                serve(app, listening, drain_seconds=30.0, ready=ready)
        finally:
            host.close()


@contextlib.contextmanager
def _council(host: "Host") -> "Iterator[APIRouter]":
    """Its route; where the sandbox cannot be had, the server does not start."""
    from keystone.council.serving import council_routes  # noqa: PLC0415 - torch, transformers and fastapi
    from keystone.evaluation.opening import open_sandbox  # noqa: PLC0415

    with open_sandbox() as sandbox:
        yield council_routes(host, sandbox)


def token_file() -> Path:
    """Where the hashes of tokens are kept if nothing else is said."""
    from platformdirs import user_config_path  # noqa: PLC0415 - not needed for --help

    return user_config_path("keystone") / "serve-tokens.json"


def _issue(session: Session, path: Path, name: str) -> None:
    from keystone.serve.tokens import BearerTokens  # noqa: PLC0415

    known = BearerTokens.read(path)
    token = known.issue(name)
    known.write(path)
    session.item(
        {"name": name, "token": token, "file": str(path)},
        f"{token}\nkept as a hash in {path}; it is not shown again",
    )
