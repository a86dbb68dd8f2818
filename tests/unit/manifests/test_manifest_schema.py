"""The rules of each document: what is checked when it is made, and how it is told."""

from __future__ import annotations

import unicodedata

import pytest

from csf_store import Digest
from manifests import (
    AdapterRecord,
    AdapterUse,
    Assembly,
    EvalSummary,
    Interval,
    InvalidDocumentError,
    LineageStep,
    Manifest,
    NotCanonicalError,
    Recipe,
    SchemaVersionError,
    Source,
    TrainingConfig,
    TrainingRecord,
    Tripwire,
)
from manifests.migrations import upgrade


def d(text: str) -> Digest:
    return Digest.of(text.encode())


SOURCE = Source(kind="embedded", location="keystone-nano 0.1", licence="Apache-2.0")
ASSEMBLY = Assembly(base=d("base"), tokenizer=d("tokenizer"))
PLAIN = Manifest(assembly=ASSEMBLY, source=SOURCE)


def summary(**changes: object) -> EvalSummary:
    fields: dict[str, object] = {
        "suite": "basics",
        "suite_digest": d("suite"),
        "metric": "pass@1",
        "n": 8,
        "passed": 2,
        "score": 0.25,
        "report": d("report"),
        "recipe": d("recipe"),
    }
    return EvalSummary.model_validate(fields).revised(**changes)


def test_every_field_is_written() -> None:
    assert PLAIN.to_json().keys() == Manifest.model_fields.keys()
    assert PLAIN.to_json()["recipe"] is None


def test_a_document_without_one_field_is_refused_even_where_it_has_a_default() -> None:
    shorter = PLAIN.to_bytes().replace(b'"labels":{},', b"")
    with pytest.raises(NotCanonicalError, match="every field must be written"):
        Manifest.from_bytes(shorter)


def test_unknown_fields_are_refused_by_name() -> None:
    longer = PLAIN.to_bytes().replace(b'"labels":{},', b'"labels":{},"lables":{},')
    with pytest.raises(InvalidDocumentError, match="lables"):
        Manifest.from_bytes(longer)


def test_sets_are_ordered_when_made_and_refused_unordered_when_read() -> None:
    two = sorted([d("x"), d("y")])
    manifest = PLAIN.revised(approvals=(two[1], two[0], two[1]))
    assert manifest.approvals == tuple(two)
    swapped = (
        manifest.to_bytes().replace(str(two[0]).encode(), b"#").replace(str(two[1]).encode(), str(two[0]).encode())
    )
    with pytest.raises(NotCanonicalError, match="sorted"):
        Manifest.from_bytes(swapped.replace(b"#", str(two[1]).encode()))


def test_adapter_order_is_part_of_the_identity() -> None:
    first, second = AdapterUse(adapter=d("1")), AdapterUse(adapter=d("2"))
    assert ASSEMBLY.revised(adapters=(first, second)).digest != ASSEMBLY.revised(adapters=(second, first)).digest


def test_the_assembly_digest_does_not_move_with_the_evidence() -> None:
    richer = PLAIN.revised(evals=(summary(),), labels={"stage": "candidate"})
    assert richer.digest != PLAIN.digest
    assert richer.assembly.digest == PLAIN.assembly.digest


def test_documents_are_frozen_to_the_bottom() -> None:
    labels = {"a": "b"}
    manifest = PLAIN.revised(labels=labels)
    labels["a"] = "c"
    assert manifest.labels == {"a": "b"}
    with pytest.raises(TypeError):
        manifest.labels["a"] = "c"  # type: ignore[index]
    with pytest.raises(TypeError):
        PLAIN.labels["a"] = "c"  # type: ignore[index]


@pytest.mark.parametrize(
    "spelling", ["{hex}", "b3:{HEX}", " b3:{hex}", "b3:{hex}\n", "B3:{hex}", "b3:{short}", "sha256:{hex}"]
)
def test_a_digest_has_one_spelling(spelling: str) -> None:
    digest = d("base")
    other = spelling.format(hex=digest.hex, HEX=digest.hex.upper(), short=digest.hex[:-1]).replace("\n", "\\n")
    with pytest.raises(InvalidDocumentError, match="base"):
        Assembly.from_bytes(ASSEMBLY.to_bytes().replace(str(digest).encode(), other.encode()))


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), 1e300, -(2.0**53), "1", True, None])
def test_weights_are_finite_numbers_in_range(weight: object) -> None:
    with pytest.raises(InvalidDocumentError, match="weight"):
        AdapterUse(adapter=d("a"), weight=weight)  # type: ignore[arg-type]


def test_negative_zero_is_zero() -> None:
    assert str(AdapterUse(adapter=d("a"), weight=-0.0).weight) == "0.0"


def test_an_adapter_is_used_once_and_is_not_the_base() -> None:
    use = AdapterUse(adapter=d("a"))
    with pytest.raises(InvalidDocumentError, match="twice"):
        ASSEMBLY.revised(adapters=(use, use.revised(weight=0.5)))
    with pytest.raises(InvalidDocumentError, match="both the base and an adapter"):
        ASSEMBLY.revised(adapters=(AdapterUse(adapter=ASSEMBLY.base),))


@pytest.mark.parametrize(
    "code", ["keystone-plt", "keystone-plt/0", "Keystone/1", "keystone-plt/1 ", "keystone-plt/01", "x/1\n"]
)
def test_code_ids(code: str) -> None:
    with pytest.raises(InvalidDocumentError, match="code"):
        ASSEMBLY.revised(code=code)


@pytest.mark.parametrize(
    "changes",
    [
        {"quantization": "int8"},
        {"quantization": "none", "modules": ("a",)},
        {"quantization": "nf4", "modules": ("a",)},
        {"quantization": "nf4", "modules": ("a",), "double_quant": True},
        {"quantization": "int8", "modules": ("a",), "double_quant": True},
        {"compute_dtype": "bfloat16"},
        {"quantization": "int4", "modules": ("a",)},
        {"quantization": "int8", "modules": ("a b",)},
        {"quantization": "int8", "modules": ("a..b",)},
        {"quantization": "int8", "modules": ("../a",)},
    ],
)
def test_recipes_that_contradict_themselves(changes: dict[str, object]) -> None:
    with pytest.raises(InvalidDocumentError):
        Recipe(dtype="bfloat16").revised(**changes)


def test_recipe_modules_are_a_set() -> None:
    one = Recipe(dtype="bfloat16", quantization="int8", modules=("b", "a", "b"))
    assert one.modules == ("a", "b")
    assert one.digest == Recipe(dtype="bfloat16", quantization="int8", modules=("a", "b")).digest


def test_scores_agree_with_their_counts_and_intervals() -> None:
    assert summary(interval=Interval(low=0.1, high=0.5, level=0.95, method="wilson")).score == 0.25
    with pytest.raises(InvalidDocumentError, match="2/8"):
        summary(score=0.26)
    with pytest.raises(InvalidDocumentError, match="cannot pass"):
        summary(passed=9, score=9 / 8)
    with pytest.raises(InvalidDocumentError, match="outside its interval"):
        summary(interval=Interval(low=0.3, high=0.5, level=0.95, method="wilson"))
    with pytest.raises(InvalidDocumentError, match="low to high"):
        Interval(low=0.5, high=0.1, level=0.95, method="wilson")
    assert summary(metric="bits_per_byte", passed=None, score=1.75).passed is None


def test_a_tested_tripwire_names_its_report_and_recipe() -> None:
    assert Tripwire(status="clear", report=d("r"), recipe=d("q")).status == "clear"
    for wrong in ({"status": "clear"}, {"status": "tripped", "report": d("r")}, {"report": d("r"), "recipe": d("q")}):
        with pytest.raises(InvalidDocumentError, match="exactly when"):
            Tripwire.model_validate({}).revised(**wrong)


def test_lineage_covers_the_adapters_in_use_and_nothing_else() -> None:
    child, parent, stranger = d("child"), d("parent"), d("stranger")
    steps = (
        LineageStep(adapter=child, parent=parent, record=d("r1")),
        LineageStep(adapter=parent, parent=None, record=d("r2")),
    )
    used = PLAIN.assembly.revised(adapters=(AdapterUse(adapter=child),))
    assert len(PLAIN.revised(assembly=used, lineage=steps).lineage) == 2
    with pytest.raises(InvalidDocumentError, match=f"{parent} has no step"):
        PLAIN.revised(assembly=used, lineage=steps[:1])
    with pytest.raises(InvalidDocumentError, match=str(stranger)):
        PLAIN.revised(assembly=used, lineage=(*steps, LineageStep(adapter=stranger, parent=None, record=d("r3"))))
    with pytest.raises(InvalidDocumentError, match="circle"):
        PLAIN.revised(assembly=used, lineage=(steps[0], steps[1].revised(parent=child)))
    with pytest.raises(InvalidDocumentError, match="twice"):
        PLAIN.revised(assembly=used, lineage=(*steps, steps[1].revised(record=d("other"))))


@pytest.mark.parametrize(
    "location", ["/home/me/model", "~/model", "C:\\model", "c:/model", "file:///x", "\\\\host\\x", "a\nb"]
)
def test_no_machine_paths_in_documents(location: str) -> None:
    with pytest.raises(InvalidDocumentError, match="location"):
        SOURCE.revised(location=location)


@pytest.mark.parametrize(
    "licence",
    [
        "Apache-2.0",
        "MIT OR Apache-2.0",
        "GPL-2.0-only WITH Classpath-exception-2.0",
        "(MIT OR Apache-2.0) AND BSD-3-Clause",
        "LicenseRef-own",
        "NOASSERTION",
        "GPL-2.0+",
    ],
)
def test_spdx_expressions(licence: str) -> None:
    assert SOURCE.revised(licence=licence).licence == licence


@pytest.mark.parametrize(
    "licence",
    [
        "",
        "Apache 2.0",
        "MIT OR",
        "OR MIT",
        "(MIT",
        "MIT)",
        "MIT  OR Apache-2.0",
        " MIT",
        "MIT/Apache",
        "()",
        "MIT\n",
        "(" * 200,
    ],
)
def test_what_is_not_an_spdx_expression(licence: str) -> None:
    with pytest.raises(InvalidDocumentError, match="licence"):
        SOURCE.revised(licence=licence)


@pytest.mark.parametrize(
    "text",
    [
        "\u202eabc",
        "zero\u200bwidth",
        "\ufeff",
        "a\x00b",
        "bell\x07",
        "\x9b31m",
        "tag\U000e0041",
        "line\u2028",
        unicodedata.normalize("NFD", "é"),
        "\ud800",
        "x" * 5000,
    ],
)
def test_tricks_in_text_are_refused(text: str) -> None:
    with pytest.raises(InvalidDocumentError, match="note"):
        SOURCE.revised(note=text)
    with pytest.raises(InvalidDocumentError, match="labels"):
        PLAIN.revised(labels={"key": text})


def test_ordinary_text_of_any_script_is_fine() -> None:
    text = "héllo\n\u043f\u0440\u0438\u0432\u0435\u0442 你好 שלום 🙂"
    assert Source.model_validate_json(SOURCE.revised(note=text).model_dump_json()).note == text


@pytest.mark.parametrize("key", ["", "a b", "é", "-a", "a\n", "x" * 129])
def test_label_keys_are_plain_names(key: str) -> None:
    with pytest.raises(InvalidDocumentError, match="labels"):
        PLAIN.revised(labels={key: "value"})


def record(**changes: object) -> AdapterRecord:
    plain = AdapterRecord(adapter=d("a"), base=d("b"), rank=4, alpha=8.0, targets=("q_proj",), claim=True)
    return plain.revised(**changes)


def test_a_record_is_a_claim_exactly_without_a_training_record() -> None:
    assert record(training=d("t"), claim=False).training == d("t")
    for wrong in ({"claim": False}, {"training": d("t")}):
        with pytest.raises(InvalidDocumentError, match="claim"):
            record(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rank": 0},
        {"rank": 2.0},
        {"rank": True},
        {"targets": ()},
        {"alpha": float("inf")},
        {"parent": d("a")},
        {"targets": ["q"]},
        {"rank": 2**53},
    ],
)
def test_adapter_records_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidDocumentError):
        record(**wrong)


def training(**changes: object) -> TrainingRecord:
    return TrainingRecord(
        base=d("b"),
        base_before=d("x"),
        base_after=d("x"),
        adapter_tensors=d("t"),
        data=(d("data"),),
        batches=d("batches"),
        examples=4,
        config=TrainingConfig(targets=("q_proj",), steps=2),
        losses=(2.0, 1.5),
        final_loss=1.5,
        device="cpu",
        threads=2,
        capability="x86_64 AVX512",
        libraries={"torch": "2.13.0+cpu"},
    ).revised(**changes)


def test_training_records_hold_a_whole_curve() -> None:
    assert TrainingRecord.from_bytes(training().to_bytes()) == training()
    for wrong in ({"losses": (1.5,)}, {"final_loss": 2.0}, {"losses": (2.0, float("nan"))}):
        with pytest.raises(InvalidDocumentError):
            training(**wrong)


def test_kind_and_version_are_told_apart() -> None:
    with pytest.raises(SchemaVersionError, match="'assembly'"):
        Manifest.from_bytes(ASSEMBLY.to_bytes())
    with pytest.raises(SchemaVersionError, match=r"version 2.*upgrade"):
        Assembly.from_bytes(ASSEMBLY.to_bytes().replace(b'"v":1', b'"v":2'))
    for version in (b"0", b"true", b'"1"', b"null", b"1.5"):
        with pytest.raises(SchemaVersionError):
            Assembly.from_bytes(ASSEMBLY.to_bytes().replace(b'"v":1', b'"v":' + version))


def test_errors_name_the_field_and_the_value() -> None:
    data = PLAIN.to_bytes().replace(b'"status":"untested"', b'"status":"fine"')
    with pytest.raises(InvalidDocumentError, match=r"tripwire\.status.*'fine'"):
        Manifest.from_bytes(data)


def test_migrations_are_steps_and_lead_all_the_way() -> None:
    steps = {
        ("note", 1): lambda old: {**old, "v": 2, "text": ""},
        ("note", 2): lambda old: {**{k: x for k, x in old.items() if k != "title"}, "v": 3, "name": old["title"]},
    }
    old = {"kind": "note", "v": 1, "title": "t"}
    assert upgrade(old, kind="note", version=3, steps=steps) == {"kind": "note", "v": 3, "text": "", "name": "t"}
    assert old == {"kind": "note", "v": 1, "title": "t"}
    with pytest.raises(SchemaVersionError, match="no migration leads from version 3"):
        upgrade(old, kind="note", version=4, steps=steps)
    with pytest.raises(SchemaVersionError, match="did not say so"):
        upgrade(old, kind="note", version=2, steps={("note", 1): lambda old: old})
