"""The server against plain `generate`, against itself with one stream, and against transformers' own `serve`.

Three bases, each measured in one run with everything else idle: nano (two loops), and two with one loop and random
weights, as large as nano and of 113 million parameters. Servers are processes of their own, so that the clients here
share no interpreter with them. For one stream and for several: tokens a second, and milliseconds to the first token.

    python bench/serve.py                            all of it
    python bench/serve.py --base nano --rounds 7     one of nano, small, large
    python bench/serve.py --no-peer                  without transformers' serve

One server runs at a time; rounds with one stream, with several, and of `generate` take turns, and medians are
compared. transformers' serve is measured as it starts and with `--continuous-batching`, where that starts. It runs the
one-loop bases as the Llamas that they are.
Run it on an idle machine; a busy one changes both sides unevenly.
"""

import asyncio
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import click
import httpx
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

import keystone
from csf_store import Archive
from keystone.nano.embedded import DATA
from keystone.nano.tokenizer import END_ID

PROMPT = "def mean(values):\n    "
TOKENS = 128
START_SECONDS = 300
SHAPES = {
    "small": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 4},
    "large": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
}


@dataclass
class Contestant:
    """A server, and what was measured of it, by number of streams."""

    name: str
    url: str
    model: str
    more: dict[str, object] = field(default_factory=dict)
    rates: dict[int, list[float]] = field(default_factory=dict)
    firsts: dict[int, list[float]] = field(default_factory=dict)

    def rate(self, streams: int) -> float:
        """Tokens a second of all streams together, the median."""
        return statistics.median(self.rates[streams])

    def first(self, streams: int) -> float:
        """Seconds to the first token, the median."""
        return statistics.median(self.firsts[streams])


async def one_stream(client: httpx.AsyncClient, contestant: Contestant, number: int) -> tuple[float, int]:
    """Seconds to the first token, and tokens. Random draws, so that both sides have the same to do."""
    body = {"model": contestant.model, "prompt": f"# {number}\n{PROMPT}", "max_tokens": TOKENS, **contestant.more}
    body |= {"temperature": 1.0, "seed": number}
    started, first, tokens = time.perf_counter(), None, TOKENS
    async with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            first = time.perf_counter() if first is None else first
            if '"finish_reason":"stop"' in line.replace(" ", ""):
                tokens = 0  # an end token: this one counts for nothing, see `together`
    return (first or time.perf_counter()) - started, tokens


async def together(contestant: Contestant, streams: int, turn: int) -> None:
    """A round: so many streams at once."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=contestant.url, timeout=600, limits=limits) as client:
        # Connections are there before the clock runs: eight of them would cost the client more than the server.
        await asyncio.gather(*(client.get("/health") for _ in range(streams)))
        started = time.perf_counter()
        numbers = range(turn * streams, (turn + 1) * streams)
        done = await asyncio.gather(*(one_stream(client, contestant, number) for number in numbers))
        seconds = time.perf_counter() - started
    if turn < 0 or not all(tokens for _, tokens in done):
        return  # warming up; or one ended before its time, and the others had less company
    contestant.rates.setdefault(streams, []).append(streams * TOKENS / seconds)
    contestant.firsts.setdefault(streams, []).extend(first for first, _ in done)


def generate_rate(loaded: keystone.LoadedModel, streams: int) -> float:
    """Tokens a second of `generate`, sampling as the server does."""
    ids = torch.tensor([loaded.tokenizer(f"# 0\n{PROMPT}")["input_ids"]] * streams)
    settings = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, max_new_tokens=TOKENS, min_new_tokens=TOKENS, pad_token_id=1
    )
    started = time.perf_counter()
    loaded.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    return streams * TOKENS / (time.perf_counter() - started)


def random_llama(folder: Path, shape: dict[str, int]) -> None:
    """A Llama with nano's tokenizer, random weights and no end token: every answer has the length it was asked for."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096,
        **shape,
        num_key_value_heads=shape["num_attention_heads"] // 2,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    shutil.copy(DATA / "tokenizer" / "tokenizer.json", folder)
    fields = json.loads((DATA / "tokenizer" / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**fields, "eos_token": None, "bos_token": None}))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@contextmanager
def process(command: list[str], url: str, log: Path) -> Iterator[bool]:
    """A server for as long as the block lasts; False if it did not come up."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with log.open("wb") as said, subprocess.Popen(command, stdout=said, stderr=said, env=environment) as running:
        try:
            yield answers(url, running)
        finally:
            running.terminate()
            try:
                running.wait(30)
            except subprocess.TimeoutExpired:
                running.kill()


def answers(url: str, running: "subprocess.Popen[bytes]") -> bool:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and running.poll() is None:
        try:
            return httpx.get(f"{url}/health", timeout=5).status_code < 500
        except httpx.TransportError:
            time.sleep(0.2)
    return False


def commands(base: str, archive: Path, llama: Path | None) -> Iterator[tuple[Contestant, list[str]]]:
    """Our server, and transformers' where it can run this base; each with the command that starts it."""
    port = free_port()
    ours = [sys.executable, "-m", "keystone.cli", "--archive", str(archive), "serve", base, "--port", str(port)]
    # Nano was trained to end; `generate` is kept from it in the same way.
    more: dict[str, object] = {"logit_bias": {str(END_ID): -100}} if llama is None else {}
    yield Contestant("keystone serve", f"http://127.0.0.1:{port}", base, more), [*ours, "--quantize", "none"]
    if llama is None:
        return
    for name, more in (("transformers serve", []), ("transformers serve, batching", ["--continuous-batching"])):
        port = free_port()
        theirs = [str(Path(sys.executable).parent / "transformers"), "serve", str(llama), "--port", str(port)]
        yield Contestant(name, f"http://127.0.0.1:{port}", str(llama)), [*theirs, "--device", "cpu", *more]


def race(
    each: Contestant, command: list[str], log: Path, *, streams: int, rounds: int, beside: Callable[[], None]
) -> bool:
    """Start a server, let it run its rounds, and stop it; one that cannot do this here is named and left out."""
    click.echo(f"{each.name}, {rounds} rounds", err=True)
    with process(command, each.url, log) as up:
        try:
            if not up:
                raise httpx.ConnectError("it does not come up")
            for count in (1, 2):
                asyncio.run(together(each, count, -1))
            for turn in range(rounds):
                beside()
                for count in (1, streams):
                    asyncio.run(together(each, count, turn))
        except httpx.HTTPError as error:
            said = log.read_text(errors="replace")[-300:]
            click.echo(f"{each.name} is left out: {type(error).__name__}: {error}; {said}", err=True)
            return False
    return True


def measure(base: str, streams: int, rounds: int, *, peer: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, llama = Path(name), None
        archive = folder / "archive"
        if base == "nano":
            with Archive.create(archive) as opened:
                keystone.import_nano(opened)
        else:
            llama = folder / "llama"
            random_llama(llama, SHAPES[base])
            command = [sys.executable, "-m", "keystone.cli", "--archive", str(archive), "import", str(llama)]
            subprocess.run([*command, "--ref", base, "--licence", "Apache-2.0"], check=True, stdout=subprocess.DEVNULL)
        with Archive.open(archive) as opened:
            loaded = keystone.load(base, archive=opened, quantization="none", device="cpu")
        generate_rate(loaded, 1)
        plain: dict[int, list[float]] = {1: [], streams: []}

        def generate() -> None:
            for count, rates in plain.items():
                rates.append(generate_rate(loaded, count))

        raced = []
        for each, command in commands(base, archive, llama):
            if raced and not peer:
                break
            beside = (lambda: None) if raced else generate
            if race(each, command, folder / "log", streams=streams, rounds=rounds, beside=beside):
                raced.append(each)
        report(base, streams, raced, {count: statistics.median(rates) for count, rates in plain.items()})


def report(base: str, streams: int, racing: list[Contestant], plain: dict[int, float]) -> None:
    print(f"\n{base}: tokens a second and ms to the first token, medians; 1 stream and {streams}")
    print(f"{'':30}{'1':>9}{streams:>9}{'ratio':>8}{'ms, 1':>9}{f'ms, {streams}':>9}{'ratio':>8}")
    print(f"{'generate':30}{plain[1]:9.1f}{plain[streams]:9.1f}{plain[streams] / plain[1]:8.2f}")
    for each in racing:
        one, many, first, firsts = each.rate(1), each.rate(streams), each.first(1) * 1e3, each.first(streams) * 1e3
        print(f"{each.name:30}{one:9.1f}{many:9.1f}{many / one:8.2f}{first:9.1f}{firsts:9.1f}{firsts / first:8.2f}")
    ours, *peers = racing
    print(f"one stream takes {plain[1] / ours.rate(1) - 1:+.1%} of generate's time more")
    for each in peers:
        one, many = ours.rate(1) / each.rate(1), ours.rate(streams) / each.rate(streams)
        print(f"against {each.name}: {one:.2f} x with one stream, {many:.2f} x with {streams}")


@click.command()
@click.option("--base", "bases", multiple=True, type=click.Choice(["nano", *SHAPES]), help="Default: all.")
@click.option("--streams", default=8, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--peer/--no-peer", default=True, show_default=True, help="transformers' serve.")
def main(*, bases: tuple[str, ...], streams: int, rounds: int, peer: bool) -> None:
    for base in bases or ("nano", *SHAPES):
        measure(base, streams, rounds, peer=peer)


if __name__ == "__main__":
    main()
