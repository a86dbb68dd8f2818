"""The server under load, against plain `generate` and against itself with one stream, in the same run.

Starts a server on a base of the archive, then measures over HTTP:

- one stream: tokens a second, and how much longer it takes than `generate` on the same prompt;
- N streams: tokens a second together, as a multiple of one stream's; time to first token, as a multiple of one's;
- a mixed load for a while: long and short prompts, clients that vanish, rubbish and half bodies, a ref that moves.

    python bench/serve.py                   the first two, on nano
    python bench/serve.py --minutes 30      the mixed load, too

Run it on an idle machine; the numbers are ratios, and a busy one changes both sides unevenly.
"""

import asyncio
import json
import random
import statistics
import tempfile
import time
from pathlib import Path

import click
import httpx
import torch
from transformers import GenerationConfig

import keystone
from csf_store import Archive
from keystone.serve.app import make_app
from keystone.serve.host import Host
from keystone.serve.limits import Limits
from keystone.serve.running import background
from manifests import Repository

PROMPT = "def mean(values):\n    "
TOKENS = 128
RUBBISH = (b"", b"{", b"[1, 2", b'{"model": 1}', b"\xff\xfe", b'{"model": "nano", "prompt": "x", "n": -1}')


async def one_stream(client: httpx.AsyncClient, model: str, number: int) -> tuple[float, float, int]:
    """Seconds to the first token, seconds in all, and tokens."""
    body = {
        "model": model,
        "prompt": f"# {number}\n{PROMPT}",
        "max_tokens": TOKENS,
        "temperature": 2,
        "seed": number,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    started, first, tokens = time.perf_counter(), None, 0
    async with client.stream("POST", "/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                first = time.perf_counter() if first is None else first
                usage = json.loads(line[6:]).get("usage")
                tokens = usage["completion_tokens"] if usage else tokens
    ended = time.perf_counter()
    return (first or ended) - started, ended - started, tokens


async def together(url: str, model: str, streams: int, rounds: int) -> tuple[float, float]:
    """Median tokens a second of all streams together, and median time to first token."""
    rates, firsts = [], []
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=None)) as client:
        await one_stream(client, model, 0)
        for turn in range(rounds):
            started = time.perf_counter()
            done = await asyncio.gather(*(one_stream(client, model, turn * streams + n) for n in range(streams)))
            rates.append(sum(tokens for _, _, tokens in done) / (time.perf_counter() - started))
            firsts += [first for first, _, _ in done]
    return statistics.median(rates), statistics.median(firsts)


def plain_rate(loaded: keystone.LoadedModel, rounds: int) -> float:
    """Tokens a second of `generate`, one prompt, sampling as the server does."""
    ids = torch.tensor([loaded.tokenizer(f"# 0\n{PROMPT}")["input_ids"]])
    settings = GenerationConfig(
        do_sample=True, temperature=2.0, top_k=0, max_new_tokens=TOKENS, min_new_tokens=TOKENS, pad_token_id=1
    )
    rates = []
    for turn in range(rounds + 1):
        started = time.perf_counter()
        loaded.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        if turn:
            rates.append(TOKENS / (time.perf_counter() - started))
    return statistics.median(rates)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


async def mixed(url: str, model: str, seconds: float, move: "Mover") -> dict[str, int]:
    """Clients of every kind until time is up; counts what came back."""
    counts = {"answered": 0, "vanished": 0, "rubbish": 0, "busy": 0, "errors": 0}
    end = time.monotonic() + seconds
    chance = random.Random(0)

    async def client_loop(client: httpx.AsyncClient) -> None:
        while time.monotonic() < end:
            kind = chance.random()
            body = {
                "model": model,
                "prompt": PROMPT * chance.choice((1, 2, 40)),
                "max_tokens": 40,
                "stream": kind < 0.5,
            }
            try:
                if kind < 0.1:
                    response = await client.post("/v1/completions", content=chance.choice(RUBBISH))
                    counts["rubbish" if response.status_code == 400 else "errors"] += 1
                elif kind < 0.3:
                    async with client.stream("POST", "/v1/completions", json=body) as stream:
                        async for _ in stream.aiter_lines():
                            break
                    counts["vanished"] += 1
                else:
                    response = await client.post("/v1/completions", json=body)
                    bad = response.status_code != 200 or (body["stream"] and "[DONE]" not in response.text)
                    busy = response.status_code == 429
                    counts["busy" if busy else "errors" if bad else "answered"] += 1
            except httpx.HTTPError:
                counts["errors"] += 1

    async def moving() -> None:
        while time.monotonic() < end:
            await asyncio.to_thread(move)
            await asyncio.sleep(1)

    async with httpx.AsyncClient(base_url=url, timeout=120, limits=httpx.Limits(max_connections=None)) as client:
        await asyncio.gather(moving(), *(client_loop(client) for _ in range(16)))
    return counts


class Mover:
    """Moves a ref back and forth between two manifests."""

    def __init__(self, archive: Archive, name: str) -> None:
        self._refs, self._name = Repository(archive).refs, name
        repository = Repository(archive)
        first = repository.resolve(name)
        second = repository.put(repository.load(first).revised(labels={"bench": "other"}, parent=first))
        self._targets = [first, second]

    def __call__(self) -> None:
        """Move it once."""
        now = self._refs.get(self._name)
        other = self._targets[0] if now == self._targets[1] else self._targets[1]
        self._refs.set(self._name, other, expected=now)


@click.command()
@click.option("--archive", type=click.Path(path_type=Path), help="Default: a new one with nano in it.")
@click.option("--model", default="nano", show_default=True)
@click.option("--streams", default=8, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--minutes", default=0.0, help="Of mixed load afterwards.")
@click.option("--quantize", default="none", show_default=True)
def main(*, archive: Path | None, model: str, streams: int, rounds: int, minutes: float, quantize: str) -> None:
    with tempfile.TemporaryDirectory() as folder, Archive.open(archive or folder + "/a", create=True) as opened:
        if archive is None:
            keystone.import_nano(opened)
        plain = plain_rate(keystone.load(model, archive=opened, quantization=quantize), rounds)
        host = Host(opened, (model,), quantization=quantize, limits=Limits())
        host.start()
        try:
            with background(make_app(host)) as url:
                one, first_one = asyncio.run(together(url, model, 1, rounds))
                many, first_many = asyncio.run(together(url, model, streams, rounds))
                print(f"generate, one prompt        {plain:8.1f} tokens/s")
                print(f"server, 1 stream            {one:8.1f} tokens/s   {plain / one - 1:+.1%} time over generate")
                print(f"server, {streams} streams           {many:8.1f} tokens/s   {many / one:.2f} x one stream")
                print(f"first token, 1 stream       {first_one * 1e3:8.1f} ms")
                print(
                    f"first token, {streams} streams      {first_many * 1e3:8.1f} ms   {first_many / first_one:.2f} x"
                )
                if minutes:
                    mover = Mover(opened, model)
                    asyncio.run(mixed(url, model, min(60.0, minutes * 6), mover))
                    before = resident_bytes()
                    counts = asyncio.run(mixed(url, model, minutes * 60, mover))
                    grown = resident_bytes() / before
                    leases = sum(served.leases for served in host.loaded())
                    print(f"mixed load, {minutes:g} min: {counts}, leases left {leases}, memory {grown:.3f} x")
        finally:
            host.close()


if __name__ == "__main__":
    main()
