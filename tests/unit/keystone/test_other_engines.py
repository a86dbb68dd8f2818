"""Opponents that are real servers: our own with another base, and transformers' own `serve`.

The latter starts a process with torch in it, which takes half a minute of one core; it runs where KEYSTONE_ENGINES=1.
A llama.cpp server is an opponent like any other: KEYSTONE_LLAMA_SERVER names one, `http://host:port#model`.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from click.testing import CliRunner
from small_checkpoints import family_model, save

from csf_store import Archive, Digest
from keystone.cli.app import main
from keystone.evaluation.head_to_head import report_problem
from keystone.serve.app import make_app
from keystone.serve.host import Host
from keystone.serve.running import background
from manifests import HeadToHead, Repository

LLAMA_SERVER = os.environ.get("KEYSTONE_LLAMA_SERVER", "")
PATIENCE = 120


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    path = tmp_path / "two.jsonl"
    lines = [
        {"name": f"f/{n}", "prompt": f'def f{n}(n):\n    """One more."""\n', "entry_point": f"f{n}",
         "cases": [{"args": [n], "expected": n + 1}]}
        for n in range(2)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def contest(archive: Path, suite: Path, opponent: str) -> HeadToHead:
    """Nano against somebody; what is stored has to bear itself out."""
    asked = ["--archive", archive, "eval", "nano", "--suite", suite, "--against", opponent, "--sandbox", "process"]
    asked += ["--quantize", "none", "--device", "cpu", "--max-new-tokens", "4", "--state", archive / "s", "--json"]
    result = CliRunner().invoke(main, [str(each) for each in asked])
    assert result.exit_code == 0, result.stderr
    lines: list[dict[str, Any]] = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    with Archive.open(archive) as opened:
        repository, digest = Repository(opened), Digest.parse(lines[-1]["report"])
        report = repository.load_record(digest, HeadToHead)
        assert report_problem(repository, digest, report) is None
        items = [json.loads(line) for line in opened.get_bytes(report.opponent.items).splitlines()]
    assert [item["name"] for item in items] == ["f/0", "f/1"]
    assert all(item["completion"] for item in items), "it really said something"
    return report


def test_our_own_server_with_another_base(own_nano_archive: Path, suite: Path, tmp_path: Path) -> None:
    directory = save(family_model(max_position_embeddings=512), tmp_path / "llama")
    other = tmp_path / "other"
    result = CliRunner().invoke(main, ["--archive", str(other), "import", str(directory), "--ref", "small"])
    assert result.exit_code == 0, result.output
    with Archive.open(other) as archive:
        host = Host(archive, ["small"], quantization="none", device=torch.device("cpu"))
        host.start()
        try:
            with background(make_app(host)) as url:
                report = contest(own_nano_archive, suite, f"{url}#small")
        finally:
            host.close()
    assert (report.opponent.api, report.opponent.style) == ("openai-completions", "completion")
    assert (report.opponent.model, report.n) == ("small", 2)


@contextmanager
def transformers_serve(folder: Path) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    program = str(Path(sys.executable).with_name("transformers"))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(folder), "OMP_NUM_THREADS": "1"}
    command = [program, "serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.DEVNULL) as process:
        url, end = f"http://127.0.0.1:{port}", time.monotonic() + PATIENCE
        try:
            while time.monotonic() < end and process.poll() is None:
                try:
                    httpx.get(f"{url}/health", timeout=1)
                    break
                except httpx.HTTPError:
                    time.sleep(0.5)
            yield url
        finally:
            process.terminate()


@pytest.mark.skipif(os.environ.get("KEYSTONE_ENGINES") != "1", reason="a process with torch; KEYSTONE_ENGINES=1")
def test_transformers_own_serve(own_nano_archive: Path, suite: Path, tmp_path: Path) -> None:
    save(family_model(max_position_embeddings=512), tmp_path / "llama")
    with transformers_serve(tmp_path) as url:
        report = contest(own_nano_archive, suite, f"{url}#llama")
    assert report.opponent.endpoint == url


@pytest.mark.skipif(not LLAMA_SERVER, reason="no llama.cpp server; KEYSTONE_LLAMA_SERVER=http://host:port#model")
def test_a_llama_cpp_server(own_nano_archive: Path, suite: Path) -> None:
    contest(own_nano_archive, suite, LLAMA_SERVER)
