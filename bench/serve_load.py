"""A server under mixed load for a while: does anything break, grow, or stay unanswered?

Sixteen clients ask nano, and an adapter on it, through both APIs: streams and whole answers, short prompts and long
ones, JSON by schema, several answers at once. Some vanish in the middle of a stream, some send rubbish, some half a
body and then nothing. Meanwhile a ref moves between the base and the adapter, and adapters are loaded and unloaded.

    python bench/serve_load.py                  30 minutes
    python bench/serve_load.py --minutes 3

Prints the outcomes, what the server itself counted, and its memory. It fails (exit 1) where an error was not the
client's, where something stayed unanswered, where memory grew by more than a tenth after the first fifth of the time,
or where leases or running answers are left at the end.
"""

import asyncio
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import click
import httpx
import torch
from peft import LoraConfig, get_peft_model

import keystone
from adapters import add_adapter, write_adapter
from csf_store import Archive, Digest
from manifests import AdapterUse, Repository

CLIENTS = 16
PATIENCE = 300.0
PROMPT = "def mean(values):\n    "
RUBBISH = (b"", b"{", b"[1, 2", b'{"model": 1}', b"\xff\xfe", b'{"model": "prod", "prompt": "x", "n": -1}')
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}


def adapted(repository: Repository, parent: Digest, folder: Path, seed: int) -> Digest:
    """A manifest of nano with a random adapter."""
    torch.manual_seed(seed)
    manifest = repository.load(parent)
    loaded = keystone.load("nano", archive=repository.archive, quantization="none", device="cpu")
    peft = get_peft_model(loaded.model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    write_adapter(peft, folder)
    adapter = add_adapter(repository, folder, base=manifest.assembly.base)[0]
    assembly = manifest.assembly.revised(adapters=(AdapterUse(adapter=adapter, weight=1.0),))
    lineage = repository.trace([adapter], base=manifest.assembly.base)
    return repository.put(manifest.revised(assembly=assembly, parent=parent, lineage=lineage))


class Load:
    """All clients, and what came of their requests.

    Args:
        url: of the server.
        seconds: how long.
    """

    def __init__(self, url: str, seconds: float) -> None:
        self.url = url
        self.end = time.monotonic() + seconds
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._chance = random.Random(0)

    @property
    def on(self) -> bool:
        """Whether there is time left."""
        return time.monotonic() < self.end

    async def client(self, http: httpx.AsyncClient) -> None:
        """One client, one request after the other."""
        kinds = (self.whole, self.stream, self.ollama, self.schema, self.several, self.vanish, self.rubbish, self.half)
        while self.on:
            kind = self._chance.choices(kinds, (4, 4, 2, 2, 1, 3, 2, 1))[0]
            try:
                await kind(http)
            except (httpx.HTTPError, OSError, ValueError, KeyError) as error:
                self._wrong(f"{kind.__name__}: {type(error).__name__}: {error}")

    def _wrong(self, what: str) -> None:
        self.counts["errors"] += 1
        self.wrong.append(what)

    def _body(self, **more: object) -> dict[str, object]:
        model = self._chance.choice(("prod", "prod", "nano", "other"))
        prompt = PROMPT * self._chance.choice((1, 1, 2, 40))
        return {"model": model, "prompt": prompt, "max_tokens": self._chance.choice((8, 40, 90)), **more}

    def _count(self, kind: str, response: httpx.Response, *, good: bool) -> None:
        if response.status_code == 429:
            self.counts["told to come back"] += 1
        elif response.status_code == 200 and good:
            self.counts[kind] += 1
        else:
            self._wrong(f"{kind}: {response.status_code} {response.text[:300]}")

    async def whole(self, http: httpx.AsyncClient) -> None:
        """A whole answer."""
        response = await http.post("/v1/completions", json=self._body())
        self._count("whole", response, good="choices" in response.text)

    async def stream(self, http: httpx.AsyncClient) -> None:
        """A stream to its end."""
        response = await http.post("/v1/completions", json=self._body(stream=True))
        self._count("streamed", response, good=response.text.endswith("data: [DONE]\n\n"))

    async def ollama(self, http: httpx.AsyncClient) -> None:
        """Ollama's API."""
        body = {"model": "prod", "messages": [{"role": "user", "content": PROMPT}], "options": {"num_predict": 30}}
        response = await http.post("/api/chat", json=body)
        self._count("ollama", response, good='"done":true' in response.text)

    async def schema(self, http: httpx.AsyncClient) -> None:
        """JSON by schema, checked."""
        form = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
        body = {"model": "prod", "messages": [{"role": "user", "content": PROMPT}], "response_format": form}
        response = await http.post("/v1/chat/completions", json={**body, "max_tokens": 60})
        good = False
        if response.status_code == 200:
            choice = response.json()["choices"][0]
            text = choice["message"]["content"]
            good = choice["finish_reason"] == "length" or isinstance(json.loads(text)["n"], int)
        self._count("schema", response, good=good)

    async def several(self, http: httpx.AsyncClient) -> None:
        """Several answers at once."""
        response = await http.post("/v1/completions", json=self._body(n=3))
        self._count("several", response, good=response.text.count('"index"') == 3)

    async def vanish(self, http: httpx.AsyncClient) -> None:
        """A stream that is left after its first line."""
        async with http.stream("POST", "/v1/completions", json=self._body(stream=True, max_tokens=400)) as stream:
            async for _ in stream.aiter_lines():
                break
        self.counts["vanished"] += 1

    async def rubbish(self, http: httpx.AsyncClient) -> None:
        """What no API takes."""
        response = await http.post("/v1/completions", content=self._chance.choice(RUBBISH))
        if response.status_code == 400:
            self.counts["rubbish refused"] += 1
        else:
            self._wrong(f"rubbish: {response.status_code} {response.text[:200]}")

    async def half(self, _: httpx.AsyncClient) -> None:
        """Half a body, and then nothing."""
        address, port = self.url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(address, int(port))
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 400\r\n\r\n{")
        await writer.drain()
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
        self.counts["half a body"] += 1

    async def unload(self, http: httpx.AsyncClient) -> None:
        """Adapters that come and go."""
        while self.on:
            for path in ("unload", "load"):
                response = await http.post(f"/keystone/{path}", json={"model": "other"})
                if response.status_code != 200:
                    self._wrong(f"{path}: {response.status_code} {response.text[:200]}")
                self.counts[f"adapter {path}s"] += 1
                await asyncio.sleep(1.5)


async def moving(load: Load, archive: Archive, targets: list[Digest]) -> None:
    """A ref that goes back and forth."""
    refs = Repository(archive).refs
    while load.on:
        now = refs.get("prod")
        other = targets[(targets.index(now) + 1) % len(targets)]
        await asyncio.to_thread(lambda now=now, other=other: refs.set("prod", other, expected=now))
        load.counts["ref moves"] += 1
        await asyncio.sleep(1)


async def watching(load: Load, process: int, memory: list[int]) -> None:
    """The server's memory, every two seconds."""
    while load.on:
        memory.append(resident_bytes(process))
        await asyncio.sleep(2)


def resident_bytes(process: int) -> int:
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def run(load: Load, archive: Archive, targets: list[Digest], process: int) -> list[int]:
    memory: list[int] = []
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=load.url, timeout=PATIENCE, limits=limits) as http:
        others = (moving(load, archive, targets), load.unload(http), watching(load, process, memory))
        await asyncio.gather(*others, *(load.client(http) for _ in range(CLIENTS)))
    return memory


async def settled(url: str) -> tuple[dict[str, object], str]:
    """Health and metrics, once nothing runs any more."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        end = time.monotonic() + 60
        while True:
            health, metrics = (await http.get("/health")).json(), (await http.get("/metrics")).text
            busy = any(each["leases"] for each in health["models"]) or left(metrics)
            if not busy or time.monotonic() > end:
                return health, metrics
            await asyncio.sleep(0.2)


def left(metrics: str) -> float:
    """Answers that still run or wait."""
    samples = [line.rsplit(" ", 1) for line in metrics.splitlines() if not line.startswith("#")]
    return sum(float(value) for name, value in samples if name.startswith(("keystone_running", "keystone_waiting")))


def report(load: Load, memory: list[int], health: dict[str, object], metrics: str) -> bool:
    print(f"outcomes: {dict(load.counts)}")
    for line in metrics.splitlines():
        if line.startswith(("keystone_generated", "keystone_generations", "keystone_decode_steps")):
            print(f"  {line.split('{')[0]} {line.rsplit(' ', 1)[1]}")
    early, late = memory[len(memory) // 5 : 2 * len(memory) // 5], memory[-(len(memory) // 5 or 1) :]
    growth = max(late) / max(early or memory)
    print(f"memory: {max(early or memory) / 2**20:.0f} MiB early, {max(late) / 2**20:.0f} MiB late, {growth:.3f} x")
    leases = sum(each["leases"] for each in health["models"])  # type: ignore[attr-defined,misc]
    print(f"left at the end: {leases} leases, {left(metrics):.0f} answers; health {health['status']}")
    for what, count in Counter(load.wrong).most_common(10):
        print(f"  {count} x {what}")
    return not load.wrong and not leases and not left(metrics) and growth < 1.1


async def main_load(archive: Archive, folder: Path, minutes: float) -> bool:
    repository = Repository(archive)
    nano = keystone.import_nano(archive)
    first, second = (adapted(repository, nano, folder / f"adapter{seed}", seed) for seed in (1, 2))
    repository.refs.set("prod", nano, expected=None)
    repository.refs.set("other", second, expected=None)
    command = [sys.executable, "-m", "keystone.cli", "--archive", str(folder / "archive"), "serve", "--port", "0"]
    server = await asyncio.create_subprocess_exec(
        *command, "--quantize", "none", "--json", "--max-queue", "12", stdout=asyncio.subprocess.PIPE
    )
    try:
        assert server.stdout is not None
        url = json.loads(await server.stdout.readline())["url"]
        load = Load(url, minutes * 60)
        memory = await run(load, archive, [nano, first], server.pid)
        health, metrics = await settled(url)
        good = report(load, memory, health, metrics)
    finally:
        if server.returncode is None:
            server.terminate()
    ended = await asyncio.wait_for(server.wait(), 60)
    print(f"the server ended with {ended}")
    return good


@click.command()
@click.option("--minutes", default=30.0, show_default=True)
def main(*, minutes: float) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        with Archive.create(folder / "archive") as archive:
            good = asyncio.run(main_load(archive, folder, minutes))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
