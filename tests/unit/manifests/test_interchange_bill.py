"""A bill of materials against the validator that brings its schemas, and against the bytes it speaks of."""

import dataclasses
import hashlib
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from blake3 import blake3
from manifest_house import House, signer

from csf_store import CsfError, Digest
from manifests import (
    EvalSummary,
    ExportedFiles,
    InvalidDocumentError,
    ManifestError,
    MissingExtraError,
    RefusedError,
    Source,
    Tripwire,
    bill_differences,
    bill_subject,
    collect_facts,
    cyclonedx_bill,
    cyclonedx_problem,
    hash_pieces,
    planned_hashing,
    trust_key,
    write_cyclonedx,
)
from manifests.interchange.hub import source_url


@pytest.fixture
def full(house: House) -> Digest:
    """Two adapters, one with a parent; measured, guarded, approved, and grown from the bare base."""
    alice = signer("alice")
    trust_key(house.archive, alice.public)
    bare = house.put()
    house.repository.refs.set("prod", bare, expected=None)
    parent = house.adapter("parent")
    manifest = house.wired(house.manifest(house.adapter("child", parent=parent), house.adapter("other")))
    source = Source(kind="hub", location="hf://org/name@main", licence="Apache-2.0")
    labels = {"team": "search", "claimed/base_model": "a/b (unverified)"}
    candidate = house.repository.put(manifest.revised(parent=bare, source=source, labels=labels))
    approval = house.approve("prod", candidate, alice)
    return house.repository.put(house.repository.load(candidate).revised(approvals=(approval,), parent=candidate))


def properties(of: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["value"] for each in of["properties"]}


def test_a_full_bill_is_valid_and_says_what_the_manifest_says(house: House, full: Digest) -> None:
    data = cyclonedx_bill(house.archive, full)
    assert cyclonedx_problem(data) is None
    bill, manifest = json.loads(data), house.repository.load(full)
    model = bill["metadata"]["component"]
    card = model["modelCard"]
    (summary,) = manifest.evals
    assert summary.interval is not None
    assert card["quantitativeAnalysis"]["performanceMetrics"] == [
        {
            "type": "pass@1",
            "slice": "basics",
            "value": "0.75",
            "confidenceInterval": {
                "lowerBound": repr(summary.interval.low),
                "upperBound": repr(summary.interval.high),
            },
        }
    ]
    about = properties(card)
    assert about["keystone:eval:1:report"] == str(summary.report)
    assert about["keystone:eval:1:interval"] == "0.95 wilson"
    ancestors = {(each["name"], each["version"]) for each in model["pedigree"]["ancestors"]}
    lineage = {step.adapter for step in manifest.lineage}
    used = {use.adapter for use in manifest.assembly.adapters}
    assert ancestors == {
        ("base", str(house.base)),
        ("parent manifest", str(manifest.parent)),
        *(("adapter", str(adapter)) for adapter in used),
        *(("parent adapter", str(adapter)) for adapter in lineage - used),
    }
    assert len(lineage - used) == 1
    told = properties(model)
    assert told["keystone:tripwire:status"] == "clear"
    assert told["keystone:recipe:dtype"] == "bfloat16"
    assert told["keystone:approval:1"] == str(manifest.approvals[0])
    assert told["keystone:approval:1:signature:1"].startswith("alice ")
    assert told["keystone:approval:1:counts"] == "yes"
    assert told["keystone:claim:base_model"] == "a/b (unverified)"
    assert told["keystone:label:team"] == "search"
    assert model["licenses"] == [{"license": {"acknowledgement": "declared", "id": "Apache-2.0"}}]
    assert model["externalReferences"][0]["url"] == "https://huggingface.co/org/name/tree/main"
    needs = {each["ref"]: set(each.get("dependsOn", ())) for each in bill["dependencies"]}
    assert needs[model["bom-ref"]] == {each["bom-ref"] for each in bill["components"]}


def test_every_hash_is_that_of_the_file_that_comes_out(house: House, full: Digest) -> None:
    bill = json.loads(cyclonedx_bill(house.archive, full))
    seen = 0
    for component in bill["components"]:
        files = {entry.path: entry for entry in house.archive.tree(Digest.parse(component["version"])).entries}
        assert {each["name"] for each in component["components"]} == set(files)
        for each in component["components"]:
            data = house.archive.get_bytes(files[each["name"]].blob)
            assert hashes(each) == {"BLAKE3": blake3(data).hexdigest(), "SHA-256": hashlib.sha256(data).hexdigest()}
            assert properties(each)["keystone:size"] == str(len(data))
            seen += 1
    assert seen == sum(len(house.archive.tree(Digest.parse(each["version"])).entries) for each in bill["components"])
    document = house.repository.load(full).to_bytes()
    found = hashes(bill["metadata"]["component"])
    assert found == {"BLAKE3": full.hex, "SHA-256": hashlib.sha256(document).hexdigest()}


def hashes(of: dict[str, Any]) -> dict[str, str]:
    return {each["alg"]: each["content"] for each in of["hashes"]}


def test_a_bill_depends_on_the_manifest_alone(house: House, full: Digest) -> None:
    first = cyclonedx_bill(house.archive, full)
    house.put(house.adapter("something else"))
    done: list[int] = []
    assert cyclonedx_bill(house.archive, full, progress=done.append) == first
    assert sum(done) == planned_hashing(house.archive, house.repository.load(full))
    bare = json.loads(cyclonedx_bill(house.archive, house.put()))
    assert bare["serialNumber"] != json.loads(first)["serialNumber"]
    arrived = next(e.time for e in house.archive.ledger.entries() if e.fields.get("digest") == str(full))
    assert json.loads(first)["metadata"]["timestamp"].replace("+00:00", "Z") == arrived


def test_the_validator_bites(house: House, full: Digest) -> None:
    whole = cyclonedx_bill(house.archive, full)
    breaks: list[tuple[str, dict[str, object]]] = [
        ("metadata/component", {"type": "model"}),
        ("metadata/component/hashes/0", {"content": "abc"}),
        ("metadata/component/modelCard", {"score": 1}),
        ("metadata/component/modelCard/quantitativeAnalysis/performanceMetrics/0", {"value": 0.75}),
        ("", {"serialNumber": "urn:uuid:1"}),
        ("metadata", {"timestamp": "yesterday"}),
    ]
    for path, change in breaks:
        bill = at = json.loads(whole)
        for step in path.split("/") if path else ():
            at = at[int(step) if step.isdecimal() else step]
        at.update(change)
        assert cyclonedx_problem(json.dumps(bill).encode()) is not None, path


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON document that holds a text or a number."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, (*path, key))
    else:
        yield path


def refused(house: House, data: bytes) -> bool:
    try:
        return bool(bill_differences(house.archive, data))
    except (ManifestError, CsfError):
        return True


def test_a_forged_field_is_found_wherever_it_is(house: House, full: Digest) -> None:
    whole = cyclonedx_bill(house.archive, full)
    assert bill_differences(house.archive, whole) == ()
    assert bill_subject(whole) == full
    places = sorted(leaves(json.loads(whole)), key=str)
    assert len(places) > 150
    metric = ("metadata", "component", "modelCard", "quantitativeAnalysis", "performanceMetrics", 0, "value")
    for place in [metric, *random.Random(7).sample(places, 11)]:
        bill = at = json.loads(whole)
        for step in place[:-1]:
            at = at[step]
        old = at[place[-1]]
        at[place[-1]] = f"{old[:-1]}{'1' if old[-1] != '1' else '2'}" if isinstance(old, str) else old + 1
        assert refused(house, json.dumps(bill).encode()), place
    for lost in ("modelCard", "pedigree", "licenses"):
        bill = json.loads(whole)
        del bill["metadata"]["component"][lost]
        assert f"metadata.component.{lost} is missing" in bill_differences(house.archive, json.dumps(bill).encode())
    bill = json.loads(whole)
    bill["metadata"]["component"]["publisher"] = "somebody"
    (difference,) = bill_differences(house.archive, json.dumps(bill).encode())
    assert difference == "metadata.component.publisher is nothing that the archive tells"
    for rubbish in (b"", b"[]", b"{}", b"\xff", b"[" * 100_000):
        with pytest.raises(InvalidDocumentError):
            bill_subject(rubbish)


def test_the_bill_of_an_exported_directory_is_checked_too(house: House, full: Digest) -> None:
    facts = collect_facts(house.archive, full)
    held = facts.files(house.base)[0]
    made = hash_pieces("merged.safetensors", [b"made by a merge"])
    whole = write_cyclonedx(facts, ExportedFiles("transformers", (held, made)))
    assert bill_differences(house.archive, whole) == ()
    (difference,) = bill_differences(house.archive, whole.replace(b'"transformers"', b'"gguf"'))
    assert difference.startswith("serialNumber says")
    bill = json.loads(whole)
    for row in bill["metadata"]["component"]["components"]:
        for each in row["hashes"]:
            each["content"] = each["content"] if row["name"] != held.path or each["alg"] == "BLAKE3" else "0" * 64
    (difference,) = bill_differences(house.archive, json.dumps(bill).encode())
    assert "0000" in difference
    assert held.sha256[:20] in difference


def test_a_manifest_the_ledger_never_heard_of_has_no_time(house: House, full: Digest) -> None:
    unheard = dataclasses.replace(collect_facts(house.archive, full), arrived=None)
    assert "timestamp" not in json.loads(write_cyclonedx(unheard))["metadata"]


def test_no_bill_leaves_that_the_validator_refuses(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manifests.interchange.cyclonedx.model_card", lambda facts: {"score": 1})
    with pytest.raises(InvalidDocumentError, match=r"no CycloneDX 1\.6"):
        cyclonedx_bill(house.archive, house.put())


def test_no_score_goes_out_that_its_report_does_not_give(house: House) -> None:
    manifest, _ = house.measured(house.manifest())
    (summary,) = manifest.evals
    better = EvalSummary(**{**dict(summary), "passed": 4, "score": 1.0, "interval": None})
    other = house.measured(house.manifest(house.adapter("a")))[0].evals
    for evals in ((better,), other):
        forged = house.repository.put(manifest.revised(evals=evals))
        with pytest.raises(RefusedError, match=r"eval report b3:.*(does not say|it measured)"):
            cyclonedx_bill(house.archive, forged)
    wired = house.wired(house.manifest(house.adapter("b")))
    wire = Tripwire(status="tripped", report=wired.tripwire.report, recipe=wired.tripwire.recipe)
    with pytest.raises(RefusedError, match="tripwire report b3:"):
        collect_facts(house.archive, house.repository.put(wired.revised(tripwire=wire)))


def test_licences_and_places_in_words_that_others_know(house: House) -> None:
    for licence, said in (
        ("MIT OR Apache-2.0", [{"acknowledgement": "declared", "expression": "MIT OR Apache-2.0"}]),
        ("LicenseRef-llama3", [{"license": {"acknowledgement": "declared", "name": "LicenseRef-llama3"}}]),
        ("NOASSERTION", None),
    ):
        source = Source(kind="directory", location="a place", licence=licence)
        bill = json.loads(cyclonedx_bill(house.archive, house.repository.put(house.manifest().revised(source=source))))
        model = bill["metadata"]["component"]
        assert model.get("licenses") == said
        assert "externalReferences" not in model
        assert properties(model).get("keystone:licence") == (None if said else "nobody says which it is")
    assert source_url(Source(kind="directory", location="https://example.org/m", licence="MIT")) is not None


def test_a_missing_extra_is_named_and_the_package_imports_without_it() -> None:
    script = """
import sys
for name in ("cyclonedx", "model_signing"):
    sys.modules[name] = None
from manifests import check_cyclonedx, check_model_signing, MissingExtraError
for check in (check_cyclonedx, check_model_signing):
    try:
        check()
    except MissingExtraError as error:
        print(error)
"""
    outcome = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    lines = outcome.stdout.splitlines()
    assert "extra `sbom`: pip install 'cyclonedx-python-lib[json-validation]'" in lines[0]
    assert "extra `signing`: pip install model-signing pyOpenSSL" in lines[1]
    assert MissingExtraError.exit_code == 10
