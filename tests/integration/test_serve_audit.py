"""A running server is held against the archive: what was changed in its memory is named, and nothing else is."""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from serving_clients import Server, random_adapter, server_on

from csf_store import Archive, Digest
from keystone.asking import Endpoint
from keystone.checkpoints import read_adapter_tensors
from keystone.cli import main
from keystone.errors import InvalidInputError
from keystone.recomputing import Recomputation
from keystone.serve.tokens import BearerTokens
from manifests import Attestation, Auditor, AuditReport, Repository, ServerAnswer, ServerAudit, Verdict

RECOMPUTE = Recomputation()


@pytest.fixture(scope="module")
def secret() -> tuple[BearerTokens, str]:
    tokens = BearerTokens({})
    return tokens, tokens.issue("auditor")


@pytest.fixture(scope="module")
def server(
    nano_archive: Path, tmp_path_factory: pytest.TempPathFactory, secret: tuple[BearerTokens, str]
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("audited")
    with server_on(nano_archive, folder, "nano", "tuned", tokens=secret[0]) as running:
        yield running


@pytest.fixture
def endpoint(server: Server, secret: tuple[BearerTokens, str]) -> Endpoint:
    return Endpoint(server.url, token=secret[1], seconds=60)


def ask(server: Server, endpoint: Endpoint, target: str | None = None) -> ServerAudit:
    return Auditor(server.archive, recompute=RECOMPUTE).audit_server(endpoint, target)


def verdicts(report: AuditReport, *checks: str) -> dict[str, Verdict]:
    return {line.check: line.verdict for line in report.lines if line.check in checks}


def live(report: AuditReport) -> tuple[Verdict, str]:
    (line,) = (line for line in report.lines if line.check == "live")
    return line.verdict, line.message


def test_an_untouched_server_runs_what_the_archive_says(server: Server, endpoint: Endpoint) -> None:
    for target, manifest in (("nano", server.nano), ("tuned", server.tuned), (str(server.tuned), server.tuned)):
        report = ask(server, endpoint, target).report
        found = verdicts(report, "endpoint", "nonce", "serving", "served-ref", "live", "objects")
        assert set(found.values()) == {Verdict.PASS}, found
        assert report.manifest == manifest
        assert ("served-ref" in found) == (target in {"nano", "tuned"})
        assert "drift and mistakes" in live(report)[1]
    everything = ask(server, endpoint)
    assert [line.verdict for line in everything.report.lines if line.check == "live"] == [Verdict.PASS] * 2
    assert len(everything.attestations) == 2


def flipped(tensor: torch.Tensor, byte: int) -> None:
    with torch.no_grad():
        tensor.data.view(-1).view(torch.uint8)[byte] ^= 1


def test_one_bit_of_a_base_weight_is_named_under_every_adapter(server: Server, endpoint: Endpoint) -> None:
    (held,) = server.host.bases()
    module = held.live.model.get_submodule("model.layers.3.mlp.up_proj")
    flipped(module.weight, 4321)
    try:
        for target in ("nano", "tuned"):
            assert live(ask(server, endpoint, target).report) == (
                Verdict.FAIL,
                "the live weights are not those of the archive: model.layers.3.mlp.up_proj.weight is changed",
            )
    finally:
        flipped(module.weight, 4321)
    assert live(ask(server, endpoint, "tuned").report)[0] is Verdict.PASS


def test_one_bit_of_an_adapter_is_named_and_the_base_is_not_blamed(server: Server, endpoint: Endpoint) -> None:
    (held,) = server.host.bases()
    name, weight = next((n, p) for n, p in held.live.model.named_parameters() if "lora_B" in n)
    flipped(weight, 7)
    try:
        verdict, text = live(ask(server, endpoint, "tuned").report)
        assert verdict is Verdict.FAIL and "lora_B" in text and text.count("is changed") == 1, (name, text)
        assert live(ask(server, endpoint, "nano").report)[0] is Verdict.PASS
    finally:
        flipped(weight, 7)


def test_an_adapters_weight_in_the_model_is_named(server: Server, endpoint: Endpoint) -> None:
    (held,) = server.host.bases()
    layer = next(module for module in held.live.model.modules() if isinstance(getattr(module, "scaling", None), dict))
    (name,) = layer.scaling
    before = layer.scaling[name]
    layer.scaling[name] = before * 1.001
    try:
        verdict, text = live(ask(server, endpoint, "tuned").report)
        assert verdict is Verdict.FAIL and ".scaling." in text
    finally:
        layer.scaling[name] = before


def test_a_swapped_adapter_is_named(server: Server, endpoint: Endpoint, tmp_path: Path) -> None:
    """The server believes that it runs `tuned`; another adapter's tensors are in its place."""
    repository = Repository(server.archive)
    other = random_adapter(repository, repository.load(server.nano).assembly.base, tmp_path / "other", seed=9)
    (use,) = repository.load(server.tuned).assembly.adapters
    (held,) = server.host.bases()
    (name,) = held.live.adapters
    _, wrong = read_adapter_tensors(server.archive, other)
    _, right = read_adapter_tensors(server.archive, use.adapter)

    def put(tensors: Mapping[str, torch.Tensor]) -> None:
        live_ones = dict(held.live._wrapped.named_parameters())
        with torch.inference_mode():
            for key, tensor in tensors.items():
                live_ones[key.replace(".weight", f".{name}.weight")].copy_(tensor)

    put(wrong)
    try:
        verdict, text = live(ask(server, endpoint, "tuned").report)
        assert verdict is Verdict.FAIL and f"lora_A.{use.adapter.hex[:12]}" in text and " more" in text
        assert live(ask(server, endpoint, "nano").report)[0] is Verdict.PASS
    finally:
        put(right)
    assert live(ask(server, endpoint, "tuned").report)[0] is Verdict.PASS


def test_another_base_of_the_same_shapes_is_named(server: Server, endpoint: Endpoint) -> None:
    (held,) = server.host.bases()
    torch.manual_seed(3)
    kept = {name: weight.detach().clone() for name, weight in held.live.model.named_parameters() if "lora" not in name}
    with torch.no_grad():
        for name, weight in held.live.model.named_parameters():
            if name in kept:
                weight.normal_(std=0.02)
    try:
        verdict, text = live(ask(server, endpoint, "nano").report)
        assert verdict is Verdict.FAIL and f"and {len(kept) - 4} more" in text
    finally:
        with torch.no_grad():
            for name, weight in held.live.model.named_parameters():
                if name in kept:
                    weight.copy_(kept[name])


@pytest.fixture
def elsewhere(server: Server, tmp_path: Path) -> Iterator[Archive]:
    """An auditor's own copy of the archive: what they do there, the server does not see."""
    with Archive.open(shutil.copytree(server.archive.path, tmp_path / "elsewhere")) as archive:
        yield archive


def test_a_server_that_lags_behind_its_ref(server: Server, endpoint: Endpoint, elsewhere: Archive) -> None:
    moved = Repository(elsewhere).refs.set("tuned", server.nano, expected=server.tuned)
    report = Auditor(elsewhere, recompute=RECOMPUTE).audit_server(endpoint, "tuned").report
    (line,) = (line for line in report.lines if line.check == "served-ref")
    assert (line.verdict, line.subject) == (Verdict.FAIL, server.tuned)
    assert f"left it with event {moved.seq}" in line.message
    assert verdicts(report, "serving", "live") == {"serving": Verdict.PASS, "live": Verdict.PASS}


def test_a_manifest_that_this_archive_has_never_seen(server: Server, endpoint: Endpoint, nano_archive: Path) -> None:
    with Archive.open(nano_archive) as archive:
        found = Auditor(archive, recompute=RECOMPUTE).audit_server(endpoint, "tuned")
    assert verdicts(found.report, "endpoint", "nonce", "serving", "live") == {
        "endpoint": Verdict.PASS,
        "nonce": Verdict.PASS,
        "serving": Verdict.UNKNOWN,
    }
    assert found.report.manifest is None and not found.attestations


def test_an_answer_that_was_given_before(server: Server, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it was, and with the fresh nonce written over the old one."""
    old = endpoint.attest("nano", "5a" * 32)
    monkeypatch.setattr(endpoint, "attest", lambda *_: old)
    found = ask(server, endpoint, "nano")
    assert verdicts(found.report, "nonce") == {"nonce": Verdict.FAIL} and not found.attestations
    told = Attestation.from_bytes(old.body)

    def renamed(_: str, nonce: str) -> ServerAnswer:
        return ServerAnswer(old.manifest, told.revised(nonce=nonce).to_bytes())

    monkeypatch.setattr(endpoint, "attest", renamed)
    report = ask(server, endpoint, "nano").report
    assert verdicts(report, "nonce", "live") == {"nonce": Verdict.PASS, "live": Verdict.FAIL}
    assert "another nonce" in live(report)[1]


def test_an_answer_about_another_assembly(server: Server, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    ask_truly = endpoint.attest

    def mixed(_: str, nonce: str) -> ServerAnswer:
        return ServerAnswer(str(server.tuned), ask_truly("nano", nonce).body)

    monkeypatch.setattr(endpoint, "attest", mixed)
    assert verdicts(ask(server, endpoint, "tuned").report, "serving") == {"serving": Verdict.FAIL}
    monkeypatch.setattr(endpoint, "attest", lambda _, nonce: ask_truly("nano", nonce))
    assert verdicts(ask(server, endpoint, str(server.tuned)).report, "serving") == {"serving": Verdict.FAIL}


def test_names_that_the_server_does_not_know(server: Server, endpoint: Endpoint) -> None:
    report = ask(server, endpoint, "nothing/like-it").report
    assert verdicts(report, "endpoint") == {"endpoint": Verdict.FAIL}
    assert report.manifest is None and "not served here" in report.lines[0].message


def test_no_token_and_no_server_prove_nothing(server: Server) -> None:
    for url, says in ((server.url, "--token-file"), ("http://127.0.0.1:9", "no answer")):
        report = ask(server, Endpoint(url, seconds=5), "nano").report
        (line,) = (line for line in report.lines if line.check == "endpoint")
        assert line.verdict is Verdict.UNKNOWN and says in line.message
        assert report.exit_code() == 3


@pytest.mark.parametrize("url", ["ftp://box", "http://", "http://me:secret@box", "http://box?x=1", "http://box:port"])
def test_what_is_no_servers_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidInputError, match="URL"):
        Endpoint(url)


def test_the_command_says_what_belongs_together(tmp_path: Path) -> None:
    for arguments in ([], ["nano", "--keep"], ["nano", "--token-file", str(Path(__file__))]):
        found = CliRunner().invoke(main, ["--archive", str(tmp_path), "audit", *arguments])
        assert found.exit_code == 2, found.output


def test_the_command_audits_a_server_and_keeps_its_word(
    server: Server, secret: tuple[BearerTokens, str], tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(secret[1] + "\n")
    arguments = ["--archive", str(server.archive.path), "audit", "--endpoint", server.url, "--json"]
    arguments += ["--state", str(tmp_path / "state"), "--keys", str(tmp_path / "keys")]
    found = CliRunner().invoke(main, [*arguments, "nano", "--keep", "--token-file", str(tmp_path / "token")])
    lines = [json.loads(line) for line in found.stdout.splitlines()]
    assert {line["check"]: line["verdict"] for line in lines if "check" in line}["live"] == "PASS"
    kept = Digest.parse(next(line["kept"] for line in lines if "kept" in line))
    assert found.exit_code == 0 and any(pin.digest == kept for pin in server.archive.pins())
    refused = CliRunner().invoke(main, [*arguments, "nano"], env={"KEYSTONE_TOKEN": "wrong"})
    assert refused.exit_code == 3
    page = tmp_path / "page.html"
    people = [each for each in arguments if each != "--json"]
    shown = CliRunner().invoke(main, [*people, "nano", "--html", str(page)], env={"KEYSTONE_TOKEN": secret[1]})
    assert shown.exit_code == 0 and "does not detect a hostile host" in shown.stdout
    assert "live" in page.read_text() and "<svg" in page.read_text()
    trusted = CliRunner().invoke(main, [*arguments, "nano"], env={"KEYSTONE_TOKEN": secret[1]})
    assert trusted.exit_code == 0
