"""The page's routes: what they tell, and everything that must not move a ref."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from fastapi.routing import APIRoute
from page_lab import HOSTILE, Told, fill
from starlette.testclient import TestClient

from csf_store import Archive, Digest
from keystone.cli import main
from keystone.serve.app import make_app
from keystone.serve.host import Host
from keystone.serve.page import OPEN_PATHS, PageSettings, page_routes
from keystone.serve.page.routes import once_per_event
from keystone.serve.tokens import BearerTokens
from manifests import Repository
from manifests.refs import Refs

HERE = "http://127.0.0.1:8322"
OPERATOR = PageSettings("operator")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Told]:
    folder = tmp_path_factory.mktemp("told")
    with Archive.create(folder / "archive") as archive:
        return folder / "archive", fill(archive, folder)


@dataclass
class Desk:
    """A client of a server, and the archive behind it."""

    client: TestClient
    archive: Archive
    told: Told

    @property
    def refs(self) -> Refs:
        return Repository(self.archive).refs

    def get(self, path: str, **headers: str) -> Any:
        answer = self.client.get(path, headers=headers)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def act(self, path: str, body: Any, **changes: str | None) -> Any:
        """A request as the page sends it, less what a test changes."""
        token = self.get("/ui/data/state")["token"]
        headers = {
            "Origin": HERE, "Sec-Fetch-Site": "same-origin", "Content-Type": "application/json",
            "X-Keystone-Page": token, **changes,
        }  # fmt: skip
        given = {name: value for name, value in headers.items() if value is not None}
        return self.client.post(path, json=body, headers=given)

    def back(self, ref: str, to: Digest, **changes: str | None) -> Any:
        return self.act("/ui/rollback", {"ref": ref, "expected": str(self.refs.get(ref)), "to": str(to)}, **changes)


@contextmanager
def desk_on(told: tuple[Path, Told], folder: Path, page: PageSettings | None, **options: Any) -> Iterator[Desk]:
    path = Path(shutil.copytree(told[0], folder / "archive"))
    with Archive.open(path) as archive:
        app = make_app(Host(archive, device=torch.device("cpu")), page=page, **options)
        yield Desk(TestClient(app, base_url=HERE, raise_server_exceptions=False), archive, told[1])


@pytest.fixture
def desk(told: tuple[Path, Told], tmp_path: Path) -> Iterator[Desk]:
    with desk_on(told, tmp_path, OPERATOR) as found:
        yield found


def test_the_page_asks_nobody_else_and_runs_nothing_inline(desk: Desk) -> None:
    for path in OPEN_PATHS:
        answer = desk.client.get(path)
        assert answer.status_code == 200
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'")
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", answer.text), path
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", answer.text), path
    page = desk.client.get("/ui").text
    assert not re.search(r"<script(?![^>]*\ssrc=)|\sstyle=|\son[a-z]+=|<style", page)


def test_the_state_says_what_refs_point_at_and_where_they_may_go_back_to(desk: Desk) -> None:
    desk.refs.set("canary", desk.told.second, expected=desk.told.bad)
    desk.refs.set("canary", desk.told.bad, expected=desk.told.second, reason=HOSTILE)
    state, told = desk.get("/ui/data/state"), desk.told
    refs = {ref["name"]: ref for ref in state["refs"]}
    assert {name: ref["target"] for name, ref in refs.items()} == {
        "prod": str(told.second), "canary": str(told.bad), "experiments/merge": str(told.both), "base": str(told.bare),
    }  # fmt: skip
    prod = refs["prod"]
    assert (prod["protected"], prod["back"]["target"]) == (True, str(told.first))
    assert [choice["target"] for choice in prod["back"]["choices"]] == [str(told.first), str(told.bare)]
    assert [move["approval"] is not None for move in prod["history"]] == [False, False, True, True]
    assert refs["base"]["back"]["choices"] == []
    assert refs["canary"]["history"][-1]["reason"] == HOSTILE
    score = state["manifests"][str(told.second)]["scores"][0]
    assert (score["passed"], score["n"], score["score"]) == (97, 150, 97 / 150)
    assert score["interval"]["low"] < score["score"] < score["interval"]["high"]
    assert state["ledger"]["size"] == desk.archive.ledger.size
    assert desk.client.get(f"/ui/data/state?have={desk.archive.ledger.size}").status_code == 204


def test_a_tripped_manifest_says_which_rule_and_why(desk: Desk) -> None:
    detail = desk.get(f"/ui/data/manifest/{desk.told.bad}")
    rules = {rule["rule"]: rule for rule in detail["tripped"]["rules"]}
    assert detail["tripwire"] == "tripped"
    assert all(rule["tripped"] for rule in rules.values())
    assert rules["basics pass@1"]["incumbent"] == 97 / 150
    assert desk.client.get("/ui/data/manifest/b3:zz").status_code == 400
    assert desk.client.get(f"/ui/data/manifest/{Digest.of(b'nothing')}").status_code == 409


def test_the_lineage_draws_a_merge_from_both_parents_and_leads_to_the_right(desk: Desk) -> None:
    graph = desk.get("/ui/data/lineage")
    nodes = {node["digest"]: node for node in graph["nodes"]}
    merged = {edge["from"] for edge in graph["edges"] if edge["kind"] == "merged"}
    assert len(merged) == 2
    assert all(nodes[digest]["kind"] == "adapter" for digest in merged)
    for edge in graph["edges"]:
        assert nodes[edge["from"]]["column"] < nodes[edge["to"]]["column"]
    assert nodes[str(desk.told.second)]["refs"] == ["prod"]
    assert {node["kind"] for node in nodes.values()} == {"base", "adapter", "manifest"}
    assert graph["cut"] == 0


def test_the_story_comes_in_pages_without_a_gap(desk: Desk) -> None:
    desk.refs.set("canary", desk.told.second, expected=desk.told.bad, reason=HOSTILE)
    first = desk.get("/ui/data/story?count=10")
    seen = [event["seq"] for event in first["events"]]
    rest = desk.get(f"/ui/data/story?before={first['start']}&count=200")
    assert rest["start"] == 0
    numbers = seen + [event["seq"] for event in rest["events"]]
    assert numbers == sorted(numbers, reverse=True)
    assert len(set(numbers)) == len(numbers)
    assert any(HOSTILE in event["text"] for event in first["events"])
    assert desk.client.get("/ui/data/story?count=5000").status_code == 400


def test_a_confirmed_rollback_moves_the_ref_and_the_ledger_says_so(desk: Desk) -> None:
    before = str(desk.refs.get("prod"))
    answer = desk.act(
        "/ui/rollback",
        {"ref": "prod", "expected": before, "to": str(desk.told.first), "reason": "it repeats itself"},
    )
    assert answer.status_code == 200, answer.text
    event = desk.refs.history("prod")[-1]
    assert (event.target, event.rollback, event.reason) == (desk.told.first, True, "it repeats itself")
    stale = desk.act("/ui/rollback", {"ref": "prod", "expected": before, "to": str(desk.told.bare)})
    assert stale.status_code == 409
    assert desk.refs.get("prod") == desk.told.first


@pytest.mark.parametrize(
    "changes",
    [
        {"Origin": None},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"X-Keystone-Page": None},
        {"X-Keystone-Page": "guessed"},
    ],
    ids=str,
)
def test_a_request_that_another_site_could_send_moves_nothing(desk: Desk, changes: dict[str, str | None]) -> None:
    size = desk.archive.ledger.size
    assert desk.back("prod", desk.told.first, **changes).status_code == 403
    assert desk.act("/ui/audit", {"target": "prod"}, **changes).status_code == 403
    assert desk.archive.ledger.size == size


def test_a_page_for_other_machines_needs_a_token(told: tuple[Path, Told], tmp_path: Path) -> None:
    tokens = str(tmp_path / "none.json")
    command = ["--archive", str(told[0]), "ui", "--host", "0.0.0.0", "--port", "0", "--no-browser", "--tokens", tokens]
    outcome = CliRunner().invoke(main, command)
    assert outcome.exit_code == 10
    assert "--new-token" in outcome.stderr


def test_many_pages_cost_one_answer_until_something_happens(desk: Desk) -> None:
    asked = []

    def make() -> dict[str, Any]:
        asked.append(desk.archive.ledger.size)
        return {"size": asked[-1]}

    answer = once_per_event(desk.archive, make)
    assert answer() == answer() == {"size": desk.archive.ledger.size}
    desk.refs.set("canary", desk.told.second, expected=desk.told.bad)
    assert answer() == {"size": desk.archive.ledger.size}
    assert len(asked) == 2


def test_a_page_under_another_name_reads_nothing(desk: Desk) -> None:
    for path in ("/ui", "/ui/data/state"):
        assert desk.client.get(path, headers={"Host": "rebound.example"}).status_code == 403


@pytest.mark.parametrize("page", [None, PageSettings("read-only")], ids=["default", "read-only"])
def test_a_server_that_may_only_look_rolls_nothing_back(
    told: tuple[Path, Told], tmp_path: Path, page: PageSettings | None
) -> None:
    with desk_on(told, tmp_path, page) as desk:
        assert desk.get("/ui/data/state")["rights"] == "read-only"
        size = desk.archive.ledger.size
        answer = desk.back("prod", desk.told.first)
        assert answer.status_code == 403
        assert "read-only" in answer.json()["error"]["message"]
        assert desk.archive.ledger.size == size


def test_the_page_is_no_way_around_an_approval(desk: Desk) -> None:
    size = desk.archive.ledger.size
    for target in (desk.told.both, desk.told.bad):  # never a target of prod, no bare base
        assert desk.back("prod", target).status_code == 409
    assert desk.archive.ledger.size == size
    # What tripped later is no good place to go back to, though prod was there, and the page says why.
    assert desk.back("prod", desk.told.first).status_code == 200
    manifest = Repository(desk.archive).load(desk.told.second)
    desk.archive.ledger.append(
        "evidence", kind="tripwire-report", record=str(manifest.tripwire.report), status="tripped",
        assembly=str(manifest.assembly.digest), recipe=str(manifest.tripwire.recipe),
    )  # fmt: skip
    state = desk.get("/ui/data/state")
    prod = next(ref for ref in state["refs"] if ref["name"] == "prod")
    refused = {choice["target"]: choice["refused"] for choice in prod["back"]["choices"]}
    assert "tripped later" in refused[str(desk.told.second)]
    assert desk.back("prod", desk.told.second).status_code == 409
    assert desk.refs.get("prod") == desk.told.first
    # Nothing else acts: no route sets, promotes or protects.
    routes = page_routes(desk.archive, OPERATOR).routes
    acting = {route.path for route in routes if isinstance(route, APIRoute) and route.methods - {"GET", "HEAD"}}
    assert acting == {"/ui/audit", "/ui/rollback"}


def test_with_tokens_the_page_itself_is_open_and_says_nothing(told: tuple[Path, Told], tmp_path: Path) -> None:
    tokens = BearerTokens({})
    token = tokens.issue("operator")
    with desk_on(told, tmp_path, OPERATOR, tokens=tokens) as desk:
        for path in OPEN_PATHS:
            answer = desk.client.get(path)
            assert answer.status_code == 200
            assert "prod" not in re.findall(r"\w+", answer.text)
        for path in ("/ui/data/state", "/ui/data/lineage", "/ui/data/story", f"/ui/data/manifest/{desk.told.bare}"):
            assert desk.client.get(path).status_code == 401
        assert desk.client.post("/ui/rollback", json={}).status_code == 401
        assert desk.client.post("/ui/audit", json={}).status_code == 401
        desk.client.headers["Authorization"] = f"Bearer {token}"
        assert desk.back("prod", desk.told.first).status_code == 200


def test_an_audit_runs_beside_and_tells_its_lines(told: tuple[Path, Told], tmp_path: Path) -> None:
    with desk_on(told, tmp_path, PageSettings("read-only", tmp_path / "memory")) as desk:
        began = desk.act("/ui/audit", {"target": "prod"})
        assert began.status_code == 202
        key = began.json()["key"]
        while (job := desk.get(f"/ui/audit/{key}"))["running"]:
            pass
        assert job["problem"] is None
        assert job["verdict"] == "UNKNOWN"  # its adapter's base is a claim
        verdicts = {line["check"]: line["verdict"] for line in job["lines"]}
        assert verdicts["objects"] == verdicts["ref"] == verdicts["tripwire"] == "PASS"
        assert any((tmp_path / "memory").iterdir())
        assert desk.act("/ui/audit", {"target": "../../etc"}).status_code == 400
        assert desk.client.get("/ui/audit/nothing").status_code == 404
        again = desk.act("/ui/audit", {"target": "nowhere"}).json()["key"]
        while (job := desk.get(f"/ui/audit/{again}"))["running"]:
            pass
        assert "nowhere" in job["problem"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"ref": "prod"}, 400),
        ({"ref": "../prod", "expected": "x", "to": "y"}, 400),
        ({"ref": "prod", "expected": "b3:00", "to": "b3:00"}, 400),
        ({"ref": "nobody", "expected": f"b3:{'0' * 64}", "to": f"b3:{'0' * 64}"}, 409),
        ({"ref": "prod", "expected": f"b3:{'0' * 64}", "to": f"b3:{'0' * 64}", "force": True}, 400),
        ([], 400),
    ],
)
def test_a_body_that_says_something_else_is_refused(desk: Desk, body: object, status: int) -> None:
    size = desk.archive.ledger.size
    assert desk.act("/ui/rollback", body).status_code == status
    assert desk.archive.ledger.size == size
