"""Evidence: what each document refuses, what trips a tripwire, what the ledger hears, and what the schemas say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import jsonschema
import pytest
from manifest_house import SOURCE, House

import adapters  # noqa: F401 - its kinds are among KINDS
from csf_store import Digest, Kind
from manifests import (
    KINDS,
    AcceptedRecord,
    AdapterUse,
    Approval,
    Assembly,
    Attestation,
    Difference,
    Document,
    EvalReport,
    EvalSummary,
    InvalidDocumentError,
    InvalidNameError,
    Manifest,
    ManifestQuery,
    NotCanonicalError,
    NotFoundError,
    Recipe,
    RejectedRecord,
    SchemaVersionError,
    Score,
    SourceGateReport,
    TripwireMeasure,
    TripwirePolicy,
    TripwireReport,
    TripwireRule,
    canonical_bytes,
    differences,
    json_schema,
    judge_tripwire,
    load_any,
    parse_canonical,
    read_any,
    register_kind,
)
from manifests.events import events_of
from manifests.migrations import STEPS

GOLDEN = Path(__file__).parents[2] / "golden" / "manifests"
SUITE, OTHER = Digest.of(b"suite"), Digest.of(b"other")
RULE = TripwireRule(suite="s", suite_digest=SUITE, metric="m", better="higher", limit=0.5)
POINT = f"3:{'ab' * 32}"


def measure(value: float, incumbent: float | None = None, **changes: object) -> TripwireMeasure:
    plain = TripwireMeasure(suite="s", suite_digest=SUITE, metric="m", value=value, report=OTHER)
    if incumbent is not None:
        changes = {"incumbent_value": incumbent, "incumbent_report": OTHER, **changes}
    return plain.revised(**changes)


@pytest.mark.parametrize(
    ("better", "limit", "margin", "value", "incumbent", "trips"),
    [
        ("higher", 0.5, None, 0.5, None, None),
        ("higher", 0.5, None, 0.4999, None, "limit of 0.5"),
        ("lower", 0.5, None, 0.5, None, None),
        ("lower", 0.5, None, 0.5001, None, "limit of 0.5"),
        ("higher", None, 0.25, 0.5, 0.75, None),
        ("higher", None, 0.25, 0.25, 0.75, "behind the incumbent's 0.75"),
        ("lower", None, 0.25, 1.0, 0.75, None),
        ("lower", None, 0.25, 1.25, 0.75, "behind the incumbent's 0.75"),
        ("lower", None, 0.0, 0.1, 0.75, None),
        ("higher", 0.5, 0.25, 0.6, 0.9, "behind"),
        ("higher", None, 0.25, 0.5, None, "no value of an incumbent"),
    ],
)
def test_what_trips(  # noqa: PLR0917 - the table above
    better: Literal["higher", "lower"],
    limit: float | None,
    margin: float | None,
    value: float,
    incumbent: float | None,
    trips: str | None,
) -> None:
    policy = TripwirePolicy(name="p", rules=(RULE.revised(better=better, limit=limit, margin=margin),))
    found = judge_tripwire(policy, [measure(value, incumbent)])
    assert found.keys() == ({"s m"} if trips else set())
    assert not trips or trips in found["s m"]


def test_not_measuring_trips() -> None:
    policy = TripwirePolicy(name="p", rules=(RULE,))
    assert judge_tripwire(policy, []) == {"s m": "it was not measured"}
    assert "measured on suite" in judge_tripwire(policy, [measure(0.9, suite_digest=OTHER)])["s m"]
    assert judge_tripwire(policy, [measure(0.9, metric="x"), measure(0.9)]) == {}


def report(**changes: object) -> TripwireReport:
    plain = TripwireReport(
        assembly=OTHER, recipe=OTHER, policy=SUITE, began=POINT, measures=(measure(0.9),), status="clear"
    )
    return plain.revised(**changes)


def test_documents_refuse_what_makes_no_sense() -> None:
    for changes, says in (
        ({"status": "tripped"}, "0 tripped rules"),
        ({"tripped": ("s m",)}, "1 tripped rules"),
        ({"measures": (measure(0.9), measure(0.8))}, "same suite and metric"),
        ({"began": "3"}, "began"),
        ({"began": f"03:{'ab' * 32}"}, "began"),
    ):
        with pytest.raises(InvalidDocumentError, match=says):
            report(**changes)
    with pytest.raises(InvalidDocumentError, match="could never trip"):
        RULE.revised(limit=None)
    with pytest.raises(InvalidDocumentError, match="same suite and metric"):
        TripwirePolicy(name="p", rules=(RULE, RULE.revised(limit=0.25)))
    with pytest.raises(InvalidDocumentError, match="rules"):
        TripwirePolicy(name="p", rules=())
    with pytest.raises(InvalidDocumentError, match="given together"):
        measure(0.9).revised(incumbent_value=0.5)
    with pytest.raises(InvalidDocumentError, match="judged twice"):
        SourceGateReport(
            gate="g",
            accepted=(AcceptedRecord(record=OTHER, ground="tests-passed"),),
            rejected=(RejectedRecord(record=OTHER, reason="no"),),
        )
    with pytest.raises(InvalidDocumentError, match="ground"):
        AcceptedRecord(record=OTHER, ground="tests-passed").revised(ground="raw-output")
    with pytest.raises(InvalidNameError, match="Prod"):
        Approval(ref="Prod", assembly=OTHER, ledger=POINT)
    with pytest.raises(InvalidDocumentError, match="nonce"):
        Attestation(assembly=OTHER, recipe=OTHER, nonce="ab", value=OTHER, tensors=1, device="cpu", libraries={})


def test_the_ledger_hears_of_evidence_once(house: House) -> None:
    repository, ledger = house.repository, house.archive.ledger
    policy = TripwirePolicy(name="p", rules=(RULE,))
    digest = repository.put_record(policy)
    size = ledger.size
    assert repository.put_record(policy) == digest and ledger.size == size
    told = [entry.fields for entry in ledger.entries() if entry.event == "evidence"]
    assert told == [{"kind": "tripwire-policy", "record": str(digest)}]
    assert ledger.has_pin(digest)
    score = Score(suite="s", suite_digest=SUITE, metric="m", n=1, passed=None, score=0.9)
    measured = repository.put_record(EvalReport(assembly=OTHER, recipe=OTHER, result=score))
    found = repository.put_record(report(policy=digest, measures=(measure(0.9, report=measured),)))
    last = list(ledger.entries())[-1]
    assert (last.event, last.fields["record"], last.fields["status"]) == ("evidence", str(found), "clear")
    assert last.fields["assembly"] == str(OTHER)
    assert load_any(house.archive, found) == repository.load_record(found, TripwireReport)


def test_evidence_put_behind_the_ledgers_back_is_told_when_it_is_put_properly(house: House) -> None:
    policy = TripwirePolicy(name="p", rules=(RULE,))
    house.archive.put_bytes(policy.to_bytes(), kind=Kind.RECORD)
    digest = house.repository.put_record(policy)
    assert [e.fields["record"] for e in house.archive.ledger.entries() if e.event == "evidence"] == [str(digest)]


@pytest.mark.parametrize("name", sorted(path.name for path in GOLDEN.glob("*.v1.json")))
def test_golden_documents_fit_the_exported_schemas(name: str) -> None:
    document = json.loads((GOLDEN / name).read_bytes())
    schema = json_schema(document["kind"])
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(document)
    assert not validator.is_valid({**document, "surprise": 1})
    optional = KINDS[document["kind"]].OPTIONAL
    for key in document:
        without = {k: v for k, v in document.items() if k != key}
        assert validator.is_valid(without) == (key in optional), f"{key} may be left out, or must not"
        assert not (key in optional and validator.is_valid({**document, key: None})), f"{key} may be null"


def test_an_optional_field_is_written_only_where_it_says_something() -> None:
    clear = (GOLDEN / "tripwire-report-clear.v1.json").read_bytes()
    report = TripwireReport.from_bytes(clear)
    assert report.detail is None and report.to_bytes() == clear and b"detail" not in clear
    told = report.revised(detail=OTHER)
    assert told.digest != report.digest and OTHER in told.links()
    assert TripwireReport.from_bytes(told.to_bytes()) == told
    spelled = clear.replace(b'"began"', b'"began"', 1).replace(b',"incumbent"', b',"detail":null,"incumbent"', 1)
    with pytest.raises(NotCanonicalError, match="one form"):
        TripwireReport.from_bytes(spelled)


def test_a_kind_has_one_model() -> None:
    class Impostor(Document):
        kind: Literal["eval-report"] = "eval-report"

    with pytest.raises(InvalidDocumentError, match="two models of the document kind 'eval-report'"):
        register_kind(Impostor)
    assert KINDS["eval-report"] is EvalReport and register_kind(EvalReport) is EvalReport


def test_kinds_by_name() -> None:
    with pytest.raises(NotFoundError, match="tripwire-policy"):
        json_schema("nonsense")
    for name in KINDS:
        assert json_schema(name)["properties"]["kind"]["const"] == name
    with pytest.raises(SchemaVersionError, match="nonsense"):
        read_any(b'{"kind":"nonsense","v":1}')


class EvalReportV2(EvalReport):
    """An eval report of a schema that may come: it says which machine measured."""

    VERSION = 2
    v: Literal[2] = 2  # type: ignore[assignment]
    machine: str


@pytest.mark.parametrize("name", ["eval-report.v1.json"])
def test_a_golden_document_through_a_migration_keeps_its_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = (GOLDEN / name).read_bytes()
    with pytest.raises(SchemaVersionError, match="no migration"):
        EvalReportV2.from_bytes(data)
    monkeypatch.setitem(STEPS, ("eval-report", 1), lambda old: {**old, "v": 2, "machine": "unknown"})  # type: ignore[arg-type]
    read = EvalReportV2.from_bytes(data)
    old = EvalReport.from_bytes(data)
    assert (read.machine, read.result, read.v) == ("unknown", old.result, 2)
    assert read.digest == old.digest == Digest.of(data) != Digest.of(read.to_bytes())
    assert EvalReportV2.from_bytes(read.to_bytes()).digest == Digest.of(read.to_bytes())
    with pytest.raises(SchemaVersionError, match="reads up to 1"):
        EvalReport.from_bytes(read.to_bytes())


def test_find_by_labels_scores_and_parents(house: House) -> None:
    recipe = Recipe(dtype="bfloat16")
    scored = {}
    for share in (0.25, 0.75):
        score = Score(suite="basics", suite_digest=SUITE, metric="pass@1", n=4, passed=int(4 * share), score=share)
        made = EvalReport(assembly=house.manifest().assembly.digest, recipe=recipe.digest, result=score)
        summary = EvalSummary(**dict(score), report=house.repository.put_record(made), recipe=recipe.digest)
        scored[share] = house.repository.put(house.manifest(team="search").revised(evals=(summary,)))
    child = house.repository.put(house.manifest().revised(parent=scored[0.25]))

    def found(**filters: object) -> set[Digest]:
        return {digest for digest, _ in house.repository.find(ManifestQuery(**filters))}  # type: ignore[arg-type]

    assert found(labels={"team": "search"}) == set(scored.values())
    assert found(labels={"team": "other"}) == set()
    assert found(suite="basics", at_least=0.5) == {scored[0.75]} == found(at_least=0.75)
    assert found(at_most=0.5) == {scored[0.25]} and found(suite="other") == set()
    assert found(parent=scored[0.25]) == {child}


def test_differences_name_what_differs_and_nothing_else() -> None:
    base, tokenizer, adapter = (Digest.of(text) for text in (b"base", b"tokenizer", b"adapter"))
    assembly = Assembly(base=base, tokenizer=tokenizer)
    before = Manifest(assembly=assembly, source=SOURCE, labels={"a": "1", "b": "2"})
    assert differences(before, before) == ()
    after = before.revised(labels={"a": "1", "b": "3", "c": "4"}, recipe=Recipe(dtype="bfloat16"))
    found = {each.path: (each.before, each.after) for each in differences(before, after)}
    assert found["label b"] == ("2", "3") and found["label c"] == (None, "4") and "label a" not in found
    assert found["recipe dtype"] == (None, "bfloat16")
    one, half = (assembly.revised(adapters=(AdapterUse(adapter=adapter, weight=w),)) for w in (1.0, 0.5))
    a, b = (Manifest.model_construct(**{**dict(before), "assembly": each}) for each in (one, half))
    assert differences(a, b) == (Difference(f"adapter {adapter}", 1.0, 0.5),)
    gone = {each.path: (each.before, each.after) for each in differences(a, before)}
    assert gone == {f"adapter {adapter}": (1.0, None), "adapter order": ([str(adapter)], [])}


def test_numbers_have_one_spelling() -> None:
    data = canonical_bytes({"x": 1.0})
    assert parse_canonical(data) == {"x": 1}


@pytest.mark.parametrize(
    "query",
    [
        ManifestQuery(),
        ManifestQuery(labels={"team": "search"}),
        ManifestQuery(labels={"team": 'a "quoted" name'}),
        ManifestQuery(labels={"team": "search", "stage": "gamma"}),
        ManifestQuery(tripwire="clear"),
        ManifestQuery(not_tripwire="untested"),
        ManifestQuery(suite="basics", at_least=0.7),
        ManifestQuery(metric="pass@1"),
    ],
)
def test_looking_at_the_bytes_first_finds_what_looking_at_every_document_finds(
    house: House, query: ManifestQuery
) -> None:
    plain = house.manifest()
    wired = house.wired(house.manifest(house.adapter("a")), passed=3)
    made = [plain, wired, wired.revised(labels={"team": "search"})]
    made += [plain.revised(labels={"team": text, "stage": "gamma"}) for text in ("search", 'a "quoted" name', "Suche")]
    for manifest in made:
        house.repository.put(manifest)
    for asked in (query, ManifestQuery(base=house.base), ManifestQuery(adapter=wired.assembly.adapters[0].adapter)):
        slow = [digest for digest in house.repository.manifests() if asked.fits(house.repository.load(digest))]
        assert [digest for digest, _ in house.repository.find(asked)] == slow != []


def test_the_ledger_is_folded_once_and_anew_where_it_is_not_what_it_was(house: House) -> None:
    archive = house.archive
    first = house.repository.put_record(TripwirePolicy(name="p", rules=(RULE,)))
    told = events_of(archive)
    assert str(first) in told.evidence and events_of(archive) is told
    with pytest.raises(ValueError, match="on second thought"), archive.ledger.locked() as tx:
        tx.append("evidence", kind="tripwire-policy", record=str(OTHER))
        assert str(OTHER) in events_of(archive).evidence
        raise ValueError("on second thought")
    assert str(OTHER) not in events_of(archive).evidence and str(first) in events_of(archive).evidence
    archive.ledger.append("evidence", kind="tripwire-policy", record=str(SUITE))
    assert {str(first), str(SUITE)} <= events_of(archive).evidence.keys()
