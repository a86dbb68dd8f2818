"""The model registry: gates that wishes cannot move, flags that files cannot set, and versions that nobody loses."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from scripted_endpoint import Reply, answered, scripted_client

from csf_store import Archive, Digest
from keystone.cli.app import main
from keystone.errors import InvalidInputError, ModelNotFoundError, RegistryConflictError
from keystone.evaluation.head_to_head import Side, compare, keep_report
from keystone.evaluation.suite_format import CodeItem
from keystone.evaluation.suites import Suite
from keystone.measuring import keep
from keystone.registry import (
    ModelRegistry,
    Standing,
    Task,
    choose,
    export_registry,
    external_entry,
    import_registry,
    local_entry,
    public_fields,
    refreshed,
    selection,
    standing_of,
    vram_budget,
)
from keystone.registry.registering import Claims
from keystone.registry.selection import Budget
from keystone.registry.sharing import FIELDS
from manifests import (
    HeadToHead,
    Measurement,
    MissingLinkError,
    PublicKey,
    RegistryDocument,
    RegistryEntry,
    Repository,
    SigningKey,
    Statement,
    head_to_head_statement,
    put_envelope,
    revoke_key,
    seal,
    trust_key,
)

GB = 10**9
SUITE = Suite("s", tuple(CodeItem("s", f"i{n}", "s", "p", "f") for n in range(10)), Digest.of(b"s"))


def signer(name: str) -> SigningKey:
    private = Ed25519PrivateKey.from_private_bytes(name.encode().ljust(32, b"."))
    return SigningKey(PublicKey(name, private.public_key().public_bytes_raw()), private)


@pytest.fixture(scope="module")
def prepared(nano_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive with nano registered, and alice's key trusted."""
    path = Path(shutil.copytree(nano_archive, tmp_path_factory.mktemp("registry") / "archive"))
    with Archive.open(path) as archive:
        repository = Repository(archive)
        trust_key(archive, signer("alice").public)
        entry = local_entry(repository, "nano", "nano", Claims(("coding",)), quantization="none")
        ModelRegistry(repository).put(entry)
    return path


@pytest.fixture
def registry(prepared: Path, tmp_path: Path) -> Iterator[ModelRegistry]:
    with Archive.open(shutil.copytree(prepared, tmp_path / "archive")) as archive:
        yield ModelRegistry(Repository(archive))


def external(name: str, **about: Any) -> RegistryEntry:
    return RegistryEntry(id=name, endpoint="https://far.example", model=name, **about)


def report_of(registry: ModelRegistry, entry: RegistryEntry, ours: int, theirs: int) -> tuple[Digest, HeadToHead]:
    """A head-to-head that `entry` fought, with items behind it."""
    about = (
        {"assembly": str(entry.assembly), "recipe": str(entry.recipe)}
        if entry.is_local
        else {"endpoint": entry.endpoint, "model": str(entry.model)}
    )

    def lines(passed: int) -> list[dict[str, Any]]:
        return [
            {"name": item.name, "family": item.family, "verdict": "passed" if n < passed else "failed"}
            for n, item in enumerate(SUITE.items)
        ]

    rival = {"endpoint": "http://rival.example", "model": "rival"}
    report = compare(
        registry.repository, SUITE, Side(about, lines(ours)), Side(rival, lines(theirs)),
        margin=0.05, alpha=0.05, settings={},
    )  # fmt: skip
    return keep_report(registry.repository, report), report


def won(registry: ModelRegistry, entry: RegistryEntry, key: str = "alice") -> RegistryEntry:
    digest, report = report_of(registry, entry, 10, 1)
    assert report.verdict == "IMPROVED"
    put_envelope(registry.repository.archive, seal(head_to_head_statement(digest, report), signer(key)))
    return entry.revised(report=digest)


def only_seen(registry: ModelRegistry, digest: Digest) -> Digest:
    """Alice signed that the report is there, and not what it says."""
    aside = Statement((("head-to-head", digest),), "urn:example:seen", {"seen": True})
    put_envelope(registry.repository.archive, seal(aside, signer("alice")))
    return digest


def judged(registry: ModelRegistry, entry: RegistryEntry) -> Standing:
    registry.put(entry, replace=True)
    return standing_of(registry.repository, registry.entry(entry.id))


def test_a_signed_win_verifies_and_is_measured(registry: ModelRegistry) -> None:
    entry = registry.entry("nano")
    assert not standing_of(registry.repository, entry).verified
    standing = judged(registry, won(registry, entry.revised(capability=3.0)))
    assert (standing.verified, standing.capability) == (True, 100.0), "what was measured replaces what was claimed"
    assert "won against rival" in standing.reason
    assert tuple(public_fields(standing)) == FIELDS
    assert public_fields(standing)["verified"] is True


def test_what_does_not_verify(registry: ModelRegistry) -> None:
    entry, far = registry.entry("nano"), external("far")
    _, lost = report_of(registry, entry, 1, 10)
    assert lost.verdict == "REGRESSED"
    cases = {
        "of another model": won(registry, far).report,
        "no win": keep_report(registry.repository, lost),
        "no signature that counts: nobody signed": only_seen(registry, report_of(registry, entry, 10, 0)[0]),
        "not trusted|nobody here knows": won(registry, entry, "mallory").report,
    }
    for said, report in cases.items():
        standing = judged(registry, entry.revised(report=report))
        assert not standing.verified
        assert any(part in standing.reason for part in said.split("|")), standing.reason
    # The same weights held otherwise are not what was measured.
    other = won(registry, entry).revised(recipe=Digest.of(b"another recipe"))
    assert "of another model" in judged(registry, other).reason
    # A forged report: signed by alice, and its items do not bear it out.
    digest, honest = report_of(registry, entry, 2, 1)
    forged = honest.revised(
        p_better=0.0, p_inferior=0.0, p_worse=1.0, difference=0.9, verdict="IMPROVED",
        rules=honest.rules.revised(look=9),
    )  # fmt: skip
    digest = keep_report(registry.repository, forged)
    put_envelope(registry.repository.archive, seal(head_to_head_statement(digest, forged), signer("alice")))
    assert "does not hold" in judged(registry, entry.revised(report=digest)).reason


def test_a_key_that_was_stolen_takes_its_verification_along(registry: ModelRegistry) -> None:
    entry = won(registry, registry.entry("nano"))
    assert judged(registry, entry).verified
    revoke_key(registry.repository.archive, signer("alice").public.id, since=1)
    standing = standing_of(registry.repository, entry)
    assert (standing.verified, "revoked" in standing.reason) == (False, True)


def test_a_ref_that_moved_is_another_model(registry: ModelRegistry) -> None:
    entry = won(registry, registry.entry("nano"))
    repository = registry.repository
    nano = repository.refs.get("nano")
    manifest = repository.load(nano)
    tree = repository.archive.tree(manifest.assembly.tokenizer)
    other = repository.archive.put_tree_entries(tree.entries[:1]).digest
    moved = repository.put(manifest.revised(assembly=manifest.assembly.revised(tokenizer=other)))
    repository.refs.set("nano", moved, expected=nano)
    standing = judged(registry, entry)
    assert (standing.verified, standing.vram_bytes) == (False, None)
    assert "moved to another assembly" in standing.reason
    (choice,) = choose([standing], Task("coding"), Budget(100 * GB, "test"))
    assert choice.place is None, "of what is there now nobody knows the size"
    repository.refs.rollback("nano")
    assert standing_of(repository, entry).verified


def test_the_registry_moves_by_compare_and_swap_and_remembers(registry: ModelRegistry) -> None:
    first, seen = registry.head(), registry.load()
    registry.put(external("far"))
    with pytest.raises(RegistryConflictError, match="somebody changed it first"):
        registry.set(seen.revised(models=()), expected=first)
    assert [entry.id for entry in registry.load().models] == ["far", "nano"]
    with pytest.raises(RegistryConflictError, match="registered already"):
        registry.put(external("far"))
    registry.remove("far")
    with pytest.raises(ModelNotFoundError, match="there is nano"):
        registry.remove("far")
    assert registry.load() == seen, "equal registries are one document"
    history = registry.history()
    assert [digest for _, digest in history] == [first, history[1][1], first]
    assert len(registry.repository.load_record(history[1][1], RegistryDocument).models) == 2
    with pytest.raises(MissingLinkError):
        registry.put(external("near", report=Digest.of(b"nowhere")))


def test_an_edit_is_applied_to_what_somebody_else_made_meanwhile(registry: ModelRegistry) -> None:
    calls = []

    def slow(document: RegistryDocument) -> RegistryDocument:
        if not calls:
            registry.put(external("quick"))
        calls.append(document)
        return document.revised(models=(*document.models, external("slow")))

    registry.change(slow)
    assert [entry.id for entry in registry.load().models] == ["nano", "quick", "slow"]
    assert len(calls) == 2


def standing(name: str, **about: Any) -> Standing:
    """An entry with a standing of its own making; for the gates, which look at nothing else."""
    verified, url = about.pop("verified", False), about.pop("url", "https://far.example")
    size = about.pop("gb", None)
    if size is not None:
        about |= {"vram_bytes": int(size * GB), "vram_source": "endpoint"}
    entry = RegistryEntry(id=name, endpoint=url, model=name, **about)
    return Standing(entry, verified, "", entry.capability)


def order(standings: list[Standing], task: str = "coding", gb: float = 8, **about: Any) -> list[str]:
    found = choose(standings, Task(task, **about), Budget(int(gb * GB), "test"))
    return [choice.standing.entry.id if choice.place else f"-{choice.standing.entry.id}" for choice in found]


def test_evidence_comes_before_capability_and_capability_before_rank() -> None:
    crowd = [
        standing("boaster", capability=100.0, rank=0),
        standing("winner", capability=20.0, rank=9, verified=True),
        standing("better", capability=40.0, rank=8, verified=True),
        standing("silent", rank=1),
        standing("modest", capability=0.0, rank=7),
    ]
    assert order(crowd) == ["better", "winner", "boaster", "modest", "silent"]
    assert order(crowd, "kernel") == ["boaster", "silent", "modest", "better", "winner"], "ranks, and nothing else"
    twins = [
        standing("b", capability=5.0, rank=2),
        standing("a", capability=5.0, rank=2),
        standing("c", capability=5.0),
    ]
    assert order(twins) == ["c", "a", "b"]


def test_what_does_not_fit_the_card_is_not_offered_whatever_it_won() -> None:
    here = "http://127.0.0.1:11434"
    crowd = [
        standing("large", url=here, gb=8.001, verified=True, capability=99.0),
        standing("exact", url=here, gb=8.0),
        standing("unknown", url="http://localhost:1", verified=True),
        standing("far", gb=80.0),
        standing("elsewhere"),
    ]
    assert order(crowd) == ["elsewhere", "exact", "far", "-large", "-unknown"]
    assert order(crowd, "kernel") == ["elsewhere", "exact", "far", "-large", "-unknown"], "memory still has its say"
    assert order(crowd, gb=24)[0] == "large"


def test_what_is_asked_of_a_model_it_must_say_it_has() -> None:
    crowd = [
        standing("plain"),
        standing("tools", tool_calling=True, ctx_tokens=4096),
        standing("prose", task_types=("prose",), tool_calling=True, ctx_tokens=10**6),
    ]
    assert order(crowd) == ["plain", "tools", "-prose"]
    assert order(crowd, tools=True) == ["tools", "-plain", "-prose"]
    assert order(crowd, tokens=4097) == ["-plain", "-prose", "-tools"]
    assert order(crowd, "prose", tokens=5000) == ["prose", "-plain", "-tools"]


def test_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    assert vram_budget({"VRAM_BUDGET_GB": "24.5"}).nbytes == 24_500_000_000
    for wrong in ("", "0", "-1", "nan", "inf", "8GB", "1e9"):
        with pytest.raises(InvalidInputError, match="VRAM_BUDGET_GB"):
            vram_budget({"VRAM_BUDGET_GB": wrong})
    monkeypatch.setattr(selection, "_cards", lambda: [8 << 30, 24 << 30, 16 << 30])
    assert vram_budget({}).nbytes == 24 << 30
    monkeypatch.setattr(selection, "_cards", list)
    assert vram_budget({}).nbytes == 8 * GB


def test_memory_is_the_plan_until_somebody_measured_this_very_pair(registry: ModelRegistry) -> None:
    entry, repository = registry.entry("nano"), registry.repository
    assert entry.vram_source == "fit"
    measured = Measurement(
        assembly=entry.assembly, recipe=entry.recipe, memory="rss", planned_bytes=1, peak_bytes=777_000_001,
        weight_bytes=1, cache_bytes=0, prompt_tokens=1, generated_tokens=1, load_seconds=0.0,
        prefill_tokens_per_second=1.0, decode_tokens_per_second=1.0, device="d", threads=1, capability="c",
        libraries={},
    )  # fmt: skip
    keep(repository.archive, measured)
    assert refreshed(repository, entry, None).vram_source == "fit", "memory of the machine is not memory of a card"
    keep(repository.archive, measured.revised(memory="cuda", recipe=Digest.of(b"another")))
    keep(repository.archive, measured.revised(memory="cuda"))
    again = refreshed(repository, entry, None)
    assert (again.vram_bytes, again.vram_source) == (777_000_001, "measurement")
    assert public_fields(judged(registry, again))["vramGB"] == 0.778, "rounded up, so that it never fits by rounding"


def test_an_endpoint_says_what_it_holds() -> None:
    def script(path: str, body: dict[str, object]) -> Reply:
        pages = {
            "/api/tags": {"models": [{"name": "rival"}]},
            "/api/show": {"capabilities": ["tools"]},
            "/api/ps": {"models": [{"name": "rival", "size_vram": 5 * GB}]},
        }
        return answered(pages[path]) if path in pages else answered({}, 404)

    made = external_entry("r", scripted_client(script), Claims(capability=50.0))
    assert (made.vram_bytes, made.vram_source, made.tool_calling) == (5 * GB, "endpoint", True)
    assert not external_entry("r", scripted_client(script), Claims(tool_calling=False)).tool_calling
    with pytest.raises(ModelNotFoundError, match="does not list a model 'rival'"):
        external_entry("r", scripted_client(lambda path, body: answered({"data": [], "models": []})), Claims())


def test_a_file_goes_out_and_comes_back_with_its_flags_looked_at_again(registry: ModelRegistry) -> None:
    registry.put(won(registry, registry.entry("nano")), replace=True)
    registry.put(external("far", tool_calling=True, ctx_tokens=9, task_types=("b", "a"), rank=4, note="n"))
    told = json.loads(export_registry(registry))
    assert list(told) == ["_doc", "models"]
    assert [tuple(each) for each in told["models"]] == [FIELDS, FIELDS]
    assert [each["verified"] for each in told["models"]] == [False, True]
    told["models"][0] |= {"verified": True, "vramGB": 3.5, "capabilityScore": 77}
    told["models"].append({"id": "new", "endpoint": "http://127.0.0.1:11434/v1", "verified": True})
    told["models"].append({"id": "gone", "endpoint": "keystone:gone"})
    result = import_registry(registry, json.dumps(told).encode())
    assert result.taken == ["far", "nano", "new"]
    assert [(name, reason[:17]) for name, reason in result.skipped] == [("gone", "no ref 'gone' in ")]
    assert [name for name, _ in result.doubts] == ["far", "far", "new"]
    after = {entry.id: standing_of(registry.repository, entry) for entry in registry.load().models}
    assert {name: each.verified for name, each in after.items()} == {"far": False, "nano": True, "new": False}
    assert (after["far"].capability, after["far"].entry.vram_bytes) == (77.0, None)
    assert after["new"].entry.identity == ("http://127.0.0.1:11434", "new")


@pytest.mark.parametrize(
    "models",
    [
        [{"id": "a"}],
        [{"endpoint": "http://h"}],
        [{"id": "a", "endpoint": "http://h"}, {"id": "a", "endpoint": "http://i"}],
        [{"id": "a", "endpoint": "http://h", "verified": "true"}],
        [{"id": "a", "endpoint": "http://h", "verified": 1}],
        [{"id": "a", "endpoint": "http://h", "capabilityScore": 1e9}],
        [{"id": "a", "endpoint": "http://h", "capabilityScore": True}],
        [{"id": "a", "endpoint": "http://h", "capabilityScore": float("nan")}],
        [{"id": "a", "endpoint": "http://h", "capabilityScore": float("inf")}],
        [{"id": "a", "endpoint": "http://h", "vramGB": -1}],
        [{"id": "a", "endpoint": "http://h", "vramGB": "8"}],
        [{"id": "a", "endpoint": "http://h", "rank": 1.5}],
        [{"id": "a", "endpoint": "http://h", "rank": -1}],
        [{"id": "a", "endpoint": "http://h", "rank": 2**60}],
        [{"id": "a", "endpoint": "http://h", "ctxTokens": 0}],
        [{"id": "a", "endpoint": "http://h", "taskTypes": "coding"}],
        [{"id": "a", "endpoint": "http://h", "taskTypes": [1]}],
        [{"id": "a", "endpoint": "http://h", "report": "b3:" + "0" * 64}],
        [{"id": {}, "endpoint": "http://h"}],
        ["a"],
        "a",
        None,
        [[]] * 5000,
    ],
)
def test_a_hostile_file_changes_nothing(registry: ModelRegistry, models: object) -> None:
    head = registry.head()
    with pytest.raises(InvalidInputError):
        import_registry(registry, json.dumps({"_doc": "", "models": models}).encode())
    assert registry.head() == head


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[" * 100_000,
        b"\xff\xfe",
        b'{"models": [], "more": 1}',
        b'{"models": [{"id": "a", "endpoint": "http://h", "verified": false, "verified": true}]}',
        b" " * (5 << 20),
    ],
)
def test_what_is_no_file_of_ours_changes_nothing(registry: ModelRegistry, data: bytes) -> None:
    with pytest.raises(InvalidInputError):
        import_registry(registry, data)


@pytest.mark.parametrize(
    "fields",
    [
        {"id": "a b"},
        {"id": "\x1b[31mred"},
        {"id": "a" * 129},
        {"endpoint": "file:///etc/passwd"},
        {"endpoint": "http://user:secret@h"},
        {"endpoint": "keystone:../../etc"},
        {"note": "two\nlines"},
        {"note": "\u202edesrever"},
        {"taskTypes": ["Coding!"]},
    ],
)
def test_a_value_that_no_document_may_hold_is_skipped_by_name(registry: ModelRegistry, fields: dict[str, Any]) -> None:
    model = {"id": "a", "endpoint": "http://h", **fields}
    result = import_registry(registry, json.dumps({"models": [model]}).encode())
    assert (result.taken, len(result.skipped)) == ([], 1)
    assert "secret" not in result.skipped[0][1]


def _keystone(archive: Path, *arguments: object) -> tuple[int, list[dict[str, Any]], str]:
    result = CliRunner().invoke(main, ["--archive", str(archive), "models", *(str(each) for each in arguments)])
    lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    return result.exit_code, lines, result.stderr


def test_from_the_command_line(registry: ModelRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = registry.repository.archive.path
    monkeypatch.setenv("VRAM_BUDGET_GB", "4")
    entry = won(registry, registry.entry("nano"))
    other = won(registry, external("far"))
    registry.repository.archive.close()
    assert _keystone(path, "add", "far", "https://far.example#far", "--no-probe", "--capability", "99")[0] == 0
    assert _keystone(path, "add", "far", "https://far.example#far", "--no-probe")[0] == 8
    code, lines, said = _keystone(path, "verify", "nano", "--report", other.report, "--json")
    assert (code, lines, "is of another model" in said) == (10, [], True)
    code, lines, said = _keystone(path, "select", "coding", "--json")
    assert [line["model"]["id"] for line in lines] == ["far", "nano"], said
    code, lines, said = _keystone(path, "verify", "nano", "--report", entry.report, "--json")
    assert (code, lines[0]["verified"], lines[0]["report"]) == (0, True, str(entry.report)), said
    code, lines, _ = _keystone(path, "select", "coding", "--json")
    assert [(line["place"], line["model"]["id"]) for line in lines] == [(1, "nano"), (2, "far")]
    code, lines, _ = _keystone(path, "list", "--json")
    assert [tuple(line) for line in lines] == [FIELDS, FIELDS]
    file = tmp_path / "local-registry.json"
    assert _keystone(path, "export", file)[0] == 0
    assert json.loads(file.read_text())["models"] == lines
    code, lines, _ = _keystone(path, "import", file, "--json")
    assert (code, lines[-1]["taken"]) == (0, ["far", "nano"])
    assert _keystone(path, "remove", "far")[0] == 0
    assert _keystone(path, "show", "far")[0] == 5
    monkeypatch.setenv("VRAM_BUDGET_GB", "0.1")
    code, lines, said = _keystone(path, "select", "coding", "--json")
    assert (code, lines[0]["place"], "takes 0." in lines[0]["refused"]) == (5, None, True)
