"""`POST /council`: the server's own models, no address from a request, and no verdict but the sandbox's."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch

from csf_store import Archive, Digest
from keystone.council.serving import council_routes
from keystone.evaluation import ProcessSandbox
from keystone.registry import ModelRegistry, local_entry
from keystone.registry.registering import Claims
from keystone.serve.app import make_app
from keystone.serve.host import Host
from keystone.serve.running import background
from keystone.serve.tokens import BearerTokens
from manifests import Deliberation, RegistryEntry, Repository

ADD = {"task": "Add two numbers.", "tests": "assert add(1, 2) == 3\n", "members": ["nano"], "max_tokens": 4}


@pytest.fixture(scope="module")
def archive(nano_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    path = shutil.copytree(nano_archive, tmp_path_factory.mktemp("council") / "archive")
    with Archive.open(path) as opened:
        registry = ModelRegistry(Repository(opened))
        registry.put(local_entry(registry.repository, "ours", "nano", Claims(), quantization="none"))
        registry.put(RegistryEntry(id="gone", endpoint="http://127.0.0.1:1", model="gone"))
        yield opened


@pytest.fixture(scope="module")
def url(archive: Archive) -> Iterator[str]:
    host = Host(archive, ["nano"], quantization="none", device=torch.device("cpu"))
    host.start()
    try:
        with (
            ProcessSandbox(workers=1) as sandbox,
            background(make_app(host, council=council_routes(host, sandbox))) as running,
        ):
            yield running
    finally:
        host.close()


def ask(url: str, **fields: object) -> httpx.Response:
    return httpx.post(f"{url}/council", json={**ADD, **fields}, timeout=60)


def test_a_served_model_is_heard_and_what_it_said_is_judged(url: str, archive: Archive) -> None:
    told = ask(url, samples=2, members=["nano", "gone"], budget=20).json()
    assert (told["verified"], told["agreement"], told["winner"], told["program"]) == (
        False,
        "none-verified",
        None,
        None,
    )
    verdicts = [(each["member"], each["verdict"]) for each in told["proposals"]]
    assert [member for member, _ in verdicts] == ["nano", "gone", "nano"]
    assert verdicts[1] == ("gone", "unanswered"), "who cannot be reached is said to be silent, and asked no more"
    repository = Repository(archive)
    found = repository.load_record(Digest.parse(told["deliberation"]), Deliberation)
    assert found.members[0].manifest == repository.resolve("nano")
    ours = ask(url, members=["ours"], tests="assert add(1, 2) is not None\n").json()
    assert ours["members"][0]["manifest"] == str(repository.resolve("nano"))


@pytest.mark.parametrize(
    ("fields", "status", "said"),
    [
        ({"members": ["http://169.254.169.254/#x"]}, 400, "an address is not taken"),
        ({"members": ["../../etc/passwd"]}, 404, "not served here"),
        ({"members": ["nano", "nano"]}, 400, "twice"),
        ({"members": []}, 400, "members"),
        ({"members": ["nano"] * 9}, 400, "members"),
        ({"tests": "assert True"}, 400, "cannot be told"),
        ({"tests": "add(1, 2)"}, 400, "verify nothing"),
        ({"samples": 10**6}, 400, "samples"),
        ({"budget": -1}, 400, "budget"),
        ({"sandbox": "none"}, 400, "sandbox"),
    ],
)
def test_what_is_no_council_is_refused_by_name(url: str, fields: dict[str, object], status: int, said: str) -> None:
    answer = ask(url, **fields)
    assert (answer.status_code, said in answer.json()["error"]["message"]) == (status, True), answer.text


def test_a_page_of_another_origin_cannot_ask_in_disguise(url: str) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = httpx.post(f"{url}/council", content=b"{}", headers={"content-type": kind})
        assert (answer.status_code, "application/json" in answer.text) == (400, True)


def test_there_is_no_council_unless_it_was_asked_for_and_none_without_a_token(archive: Archive) -> None:
    host = Host(archive, (), device=torch.device("cpu"))
    tokens = BearerTokens({})
    token = tokens.issue("alice")
    host.start()
    try:
        with background(make_app(host, tokens=tokens)) as url:
            assert ask(url).status_code == 401
            known = {"authorization": f"Bearer {token}"}
            assert httpx.post(f"{url}/council", json=ADD, headers=known).status_code == 404
    finally:
        host.close()
