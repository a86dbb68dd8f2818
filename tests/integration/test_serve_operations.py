"""What an operator relies on: refs that move under load, who may ask, clients that vanish, and a clean end."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import pytest
import torch
from serving_clients import Server, random_adapter, server_on, with_adapter

from csf_store import Archive, Digest
from keystone.attestation import expected_attestation
from keystone.errors import InvalidInputError, RefusedError
from keystone.serve import fields, holding
from keystone.serve.limits import Limits
from keystone.serve.running import check_exposure
from keystone.serve.tokens import BearerTokens
from manifests import AdapterUse, Repository

CODE = "def add(a, b):\n"


@pytest.fixture(scope="module")
def server(nano_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    limits = Limits(streams=8, queued=8)
    with server_on(nano_archive, tmp_path_factory.mktemp("operations"), "nano", "tuned", limits=limits) as running:
        running.refs.set("prod", running.nano, expected=None)
        running.host.follow("prod")
        running.host.refresh()
        yield running


def ask(server: Server, model: str, **more: object) -> httpx.Response:
    body = {"model": model, "prompt": CODE, "temperature": 0, "max_tokens": 8, **more}
    return httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)


def fingerprint(server: Server, model: str) -> str:
    return str(ask(server, model, max_tokens=1).headers["X-Keystone-Manifest"])


def idle(server: Server) -> None:
    """Wait until the engines have nothing to do, by their own word."""
    for base in server.host.bases():
        while base.engine.running or base.engine.waiting:
            base.engine.run(lambda: None).result()


def test_a_ref_that_moves_takes_the_server_along_and_drops_nobody(server: Server) -> None:
    seen: list[str] = []
    url = f"{server.url}/v1/completions"
    body = {"model": "prod", "prompt": CODE, "max_tokens": 400, "stream": True, "seed": 1, "temperature": 2}
    with httpx.stream("POST", url, json=body, timeout=60) as running:
        assert running.headers["X-Keystone-Manifest"] == str(server.nano)
        lines = running.iter_lines()
        next(lines)
        server.refs.set("prod", server.tuned, expected=server.nano)
        server.host.refresh()
        seen.append(fingerprint(server, "prod"))
        server.refs.rollback("prod")
        server.host.refresh()
        seen.append(fingerprint(server, "prod"))
        rest = [line.removeprefix("data: ") for line in lines if line]
    assert seen == [str(server.tuned), str(server.nano)]
    assert rest[-1] == "[DONE]"
    assert {json.loads(line)["system_fingerprint"] for line in rest[:-1]} == {str(server.nano)}


def test_the_watch_itself_notices_a_move(server: Server) -> None:
    server.refs.set("prod", server.tuned, expected=server.nano)
    for _ in range(2000):
        if (now := fingerprint(server, "prod")) != str(server.nano):
            break
    assert now == str(server.tuned)
    server.refs.set("prod", server.nano, expected=server.tuned)
    server.host.refresh()


def test_a_ref_to_something_broken_keeps_what_answered_and_says_so(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = Repository(server.archive)
    base = repository.load(server.nano).assembly.base
    adapter = random_adapter(repository, base, tmp_path / "adapter", seed=9)
    broken = repository.put(with_adapter(repository, server.nano, adapter))
    _damage(monkeypatch, adapter)
    server.refs.set("prod", broken, expected=server.nano)
    server.host.refresh()
    assert fingerprint(server, "prod") == str(server.nano)
    health = httpx.get(f"{server.url}/health").json()
    assert health["status"] == "degraded"
    assert str(broken) in health["problems"][0]
    server.refs.set("prod", server.nano, expected=broken)
    server.host.refresh()
    assert httpx.get(f"{server.url}/health").json()["status"] == "ok"


def _damage(monkeypatch: pytest.MonkeyPatch, adapter: Digest) -> None:
    """Let reading this adapter fail as damage on disk would."""
    real = holding.read_adapters

    def failing(archive: Archive, uses: Sequence[AdapterUse]) -> object:
        if any(use.adapter == adapter for use in uses):
            raise InvalidInputError("damaged on disk")
        return real(archive, uses)

    monkeypatch.setattr(holding, "read_adapters", failing)


def test_adapters_that_no_name_wants_leave_memory(server: Server, tmp_path: Path) -> None:
    repository = Repository(server.archive)
    base = repository.load(server.nano).assembly.base
    adapter = random_adapter(repository, base, tmp_path / "adapter", seed=5)
    third = repository.put(with_adapter(repository, server.nano, adapter, weight=0.5))
    (held,) = server.host.bases()
    before = held.live.adapters
    server.refs.set("prod", third, expected=server.nano)
    server.host.refresh()
    assert fingerprint(server, "prod") == str(third)
    assert len(held.live.adapters) == len(before) + 1
    server.refs.set("prod", server.nano, expected=third)
    server.host.refresh()
    assert held.live.adapters == before
    assert ask(server, str(third)).status_code == 404


def test_a_client_that_leaves_stops_its_generation(server: Server) -> None:
    url = f"{server.url}/v1/completions"
    body = {"model": "nano", "prompt": CODE, "max_tokens": 1000, "temperature": 2, "stream": True}
    (held,) = server.host.bases()
    counters = held.engine.counters
    cancelled, generated = counters.cancelled, counters.generated_tokens
    with httpx.stream("POST", url, json=body, timeout=60) as stream:
        next(stream.iter_lines())
    idle(server)
    assert counters.cancelled == cancelled + 1
    assert counters.generated_tokens - generated < 1000
    address, port = server.url.removeprefix("http://").split(":")
    raw = json.dumps({**body, "stream": False}).encode()
    for cut in (len(raw), len(raw) // 2):
        with socket.create_connection((address, int(port))) as half:
            head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(raw)}\r\n\r\n"
            half.sendall(head.encode() + raw[:cut])
    idle(server)
    assert ask(server, "nano").status_code == 200
    assert all(served.leases == 0 for served in server.host.loaded())


def test_a_full_queue_is_a_429_with_retry_after(server: Server) -> None:
    (held,) = server.host.bases()
    release, reached = threading.Event(), threading.Event()

    def hold() -> None:
        reached.set()
        release.wait(60)

    held.engine.run(hold)
    assert reached.wait(60)
    waiting = [threading.Thread(target=ask, args=(server, "nano")) for _ in range(8)]
    for thread in waiting:
        thread.start()
    while held.engine.waiting < 8:
        pass
    refused = ask(server, "nano")
    release.set()
    for thread in waiting:
        thread.join()
    assert refused.status_code == 429
    assert int(refused.headers["Retry-After"]) >= 1
    assert refused.json()["error"]["code"] == "queue_full"


def test_other_host_names_and_origins_get_nothing(server: Server) -> None:
    evil = httpx.get(f"{server.url}/v1/models", headers={"Host": "evil.example"})
    assert (evil.status_code, evil.json()["error"]["code"]) == (403, "forbidden_host")
    asked = httpx.options(
        f"{server.url}/v1/models", headers={"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    )
    assert not [name for name in asked.headers if name.startswith("access-control")]


def test_live_weights_attest_what_the_archive_says_adapter_by_adapter(server: Server) -> None:
    nonce = "5a" * 32
    repository = Repository(server.archive)
    (held,) = server.host.bases()
    values = {}
    for name, digest in (("nano", server.nano), ("tuned", server.tuned)):
        ask(server, name)
        said = httpx.get(f"{server.url}/keystone/attest", params={"model": name, "nonce": nonce}).json()
        manifest = repository.load(digest)
        expected = expected_attestation(server.archive, manifest, held.recipe, bytes.fromhex(nonce))
        assert said["value"] == str(expected)
        assert said["assembly"] == str(manifest.assembly.digest)
        values[name] = said["value"]
    assert values["nano"] != values["tuned"]
    assert httpx.get(f"{server.url}/keystone/attest", params={"model": "nano", "nonce": "5a"}).status_code == 400
    weight = held.live.model.model.norm.weight
    with torch.no_grad():
        weight[0] += 1
        changed = httpx.get(f"{server.url}/keystone/attest", params={"model": "nano", "nonce": nonce}).json()
        weight[0] -= 1
    assert changed["value"] != values["nano"]


def test_metrics_and_tokenize(server: Server) -> None:
    ask(server, "nano")
    text = httpx.get(f"{server.url}/metrics").text
    samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert int(samples['keystone_http_requests_total{path="/v1/completions",status="200"}']) >= 1
    assert any(name.startswith("keystone_generated_tokens_total") and int(n) > 0 for name, n in samples.items())
    answer = httpx.post(f"{server.url}/tokenize", json={"model": "nano", "prompt": CODE}).json()
    assert answer["count"] == len(answer["tokens"]) == len(answer["texts"])
    assert CODE in "".join(answer["texts"])


def test_a_body_that_never_comes_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fields, "BODY_SECONDS", 0.05)
    address, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((address, int(port)), timeout=60) as half:
        half.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{")
        assert b" 408 " in half.recv(200)


def test_tokens_are_asked_for_and_kept_as_hashes(nano_archive: Path, tmp_path: Path) -> None:
    tokens = BearerTokens({})
    secret = tokens.issue("alice")
    tokens.write(tmp_path / "tokens.json")
    assert secret not in (tmp_path / "tokens.json").read_text()
    assert (tmp_path / "tokens.json").stat().st_mode & 0o777 == 0o600
    known = BearerTokens.read(tmp_path / "tokens.json")
    with server_on(nano_archive, tmp_path, "nano", tokens=known) as server:
        url = f"{server.url}/v1/models"
        for headers in ({}, {"Authorization": "Bearer nonsense"}, {"Authorization": f"Basic {secret}"}):
            refused = httpx.get(url, headers=headers)
            assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        assert httpx.get(url, headers={"Authorization": f"Bearer {secret}", "Host": "box.lan"}).status_code == 200
        assert httpx.get(f"{server.url}/health").status_code == 200


def test_other_machines_need_tokens() -> None:
    check_exposure("127.0.0.1", 0)
    check_exposure("0.0.0.0", 1)
    with pytest.raises(RefusedError, match="--new-token"):
        check_exposure("0.0.0.0", 0)


def test_the_command_serves_and_ends_well_on_a_signal(nano_archive: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "keystone.cli", "--archive", str(nano_archive), "serve", "nano", "--port", "0"]
    with subprocess.Popen(
        [*command, "--quantize", "none", "--threads", "1", "--json"], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        body = {"model": "nano", "prompt": CODE, "max_tokens": 60, "stream": True, "temperature": 2, "seed": 1}
        with httpx.stream("POST", f"{said['url']}/v1/completions", json=body, timeout=60) as stream:
            lines = stream.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert process.wait(60) in (0, -signal.SIGTERM)
