"""Documents are their bytes: reading back is the identity, and no change of any field keeps the digest."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from csf_store import Digest
from manifests import (
    AdapterUse,
    Assembly,
    EvalSummary,
    Interval,
    InvalidDocumentError,
    LineageStep,
    Manifest,
    Recipe,
    Source,
    TensorEntry,
    Tripwire,
    canonical_bytes,
    parse_canonical,
    tensor_set_digest,
)
from manifests.schema import _ordered_evals

QUICK = settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])

digests = st.binary(min_size=32, max_size=32).map(Digest)
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._@+/-]{0,12}", fullmatch=True)
modules = st.from_regex(r"[a-z0-9_]{1,6}(\.[a-z0-9_]{1,6}){0,3}", fullmatch=True)
texts = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20) | st.sampled_from(["é", "你好", "🙂"])
reals = st.floats(-(2.0**52), 2.0**52, allow_nan=False)
counts = st.integers(0, 2**53 - 1)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    dtype = draw(st.sampled_from(["float32", "bfloat16", "float16"]))
    quantization = draw(st.sampled_from(["none", "int8", "nf4"]))
    some = tuple(draw(st.lists(modules, min_size=1, max_size=4))) if quantization != "none" else ()
    extra = {"double_quant": draw(st.booleans()), "compute_dtype": "bfloat16"} if quantization == "nf4" else {}
    return Recipe(dtype=dtype, quantization=quantization, modules=some, **extra)


@st.composite
def summaries(draw: st.DrawFn) -> EvalSummary:
    n = draw(st.integers(1, 1000))
    passed = draw(st.none() | st.integers(0, n))
    score = draw(reals) if passed is None else passed / n
    low, high = score - draw(st.floats(0, 1)), score + draw(st.floats(0, 1))
    interval = Interval(low=low, high=high, level=0.95, method=draw(names)) if draw(st.booleans()) else None
    return EvalSummary(
        suite=draw(names),
        suite_digest=draw(digests),
        metric=draw(names),
        n=n,
        passed=passed,
        score=score,
        interval=interval,
        report=draw(digests),
        recipe=draw(digests),
    )


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    adapters = draw(st.lists(digests, max_size=4, unique=True))
    steps = []
    for n, adapter in enumerate(adapters):
        parent = draw(st.none() | st.sampled_from(adapters[:n])) if n else None
        steps.append(LineageStep(adapter=adapter, parent=parent, record=draw(digests)))
    tested = draw(st.booleans())
    wire = Tripwire(status=draw(st.sampled_from(["clear", "tripped"])), report=draw(digests), recipe=draw(digests))
    return Manifest(
        assembly=Assembly(
            base=draw(digests.filter(lambda digest: digest not in adapters)),
            tokenizer=draw(digests),
            adapters=tuple(AdapterUse(adapter=a, weight=draw(reals)) for a in draw(st.permutations(adapters))),
        ),
        code_source=draw(st.none() | digests),
        recipe=draw(st.none() | recipes()),
        source=Source(
            kind=draw(st.sampled_from(["embedded", "hub", "trained"])),
            location="somewhere " + draw(texts),
            licence="MIT OR Apache-2.0",
            note=draw(texts),
        ),
        evals=tuple(draw(st.lists(summaries(), max_size=3))),
        tripwire=wire if tested else Tripwire(),
        approvals=tuple(draw(st.lists(digests, max_size=3))),
        lineage=tuple(draw(st.permutations(steps))),
        parent=draw(st.none() | digests),
        labels=draw(st.dictionaries(names, texts, max_size=3)),
    )


@QUICK
@given(manifests())
def test_bytes_and_back_is_the_identity(manifest: Manifest) -> None:
    data = manifest.to_bytes()
    again = Manifest.from_bytes(data)
    assert again == manifest and again.to_bytes() == data and again.digest == manifest.digest == Digest.of(data)


def test_summaries_that_differ_in_one_field_have_one_order() -> None:
    """Fields outside the usual sort keys, where a set would come out in the order of its hashes."""
    digest = [Digest(bytes([number]) * 32) for number in range(6)]
    common = {"suite": "s", "metric": "m", "n": 1, "passed": None, "score": 0.0, "report": digest[0]}
    many = [EvalSummary(suite_digest=each, interval=None, recipe=digest[0], **common) for each in digest]
    interval = Interval(low=0.0, high=1.0, level=0.95, method="wilson")
    many += [EvalSummary(suite_digest=digest[0], interval=interval, recipe=digest[0], **common)]
    orders = {_ordered_evals(tuple(random.Random(seed).sample(many, len(many)))) for seed in range(30)}
    assert orders == {tuple(sorted(many, key=EvalSummary.model_dump_json))}


@QUICK
@given(manifests(), st.randoms(use_true_random=False))
def test_the_order_in_which_facts_are_told_does_not_matter(manifest: Manifest, random: Any) -> None:
    shuffled = {}
    for field in ("evals", "approvals", "lineage"):
        items = [*getattr(manifest, field), *getattr(manifest, field)[:1]]
        random.shuffle(items)
        shuffled[field] = tuple(items)
    labels = list(manifest.labels.items())
    random.shuffle(labels)
    assert manifest.revised(**shuffled, labels=dict(labels)).digest == manifest.digest


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of every scalar and every empty container."""
    children = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else []
    found = False
    for key, child in children:
        found = True
        yield from leaves(child, (*path, key))
    if not found:
        yield path


def other(value: Any) -> list[Any]:
    """Values of the same and of other types that are not this one."""
    if isinstance(value, str) and value.startswith("b3:"):
        flipped = value[:-1] + ("0" if value[-1] != "0" else "1")
        return [flipped, None, value.upper(), ""]
    candidates: list[Any] = [
        None,
        True,
        False,
        0,
        1,
        7,
        0.5,
        "",
        "x",
        "int8",
        "float16",
        "keystone-plt/2",
        [],
        {},
        "clear",
    ]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        candidates += [value + 1, -value, math.nextafter(value, math.inf)]
    if isinstance(value, str):
        candidates += [value + "x", value + " ", value.swapcase()]
    return [candidate for candidate in candidates if type(candidate) is not type(value) or candidate != value]


@QUICK
@given(manifests(), st.data())
def test_a_change_of_any_field_is_refused_or_another_digest(manifest: Manifest, data: st.DataObject) -> None:
    document = json.loads(manifest.to_bytes())
    path = data.draw(st.sampled_from(list(leaves(document))))
    where: Any = document
    for key in path[:-1]:
        where = where[key]
    for value in other(where[path[-1]]):
        where[path[-1]] = value
        changed = canonical_bytes(document)
        if changed == manifest.to_bytes():
            continue  # 0 and -0.0, 1 and 1.0: the same number, so the same document
        try:
            accepted = Manifest.from_bytes(changed)
        except InvalidDocumentError:
            continue
        assert accepted != manifest and accepted.digest != manifest.digest


@QUICK
@given(manifests(), st.data())
def test_a_field_added_or_left_out_is_refused(manifest: Manifest, data: st.DataObject) -> None:
    document = json.loads(manifest.to_bytes())
    objects = [document, document["assembly"], document["source"], document["tripwire"]]
    objects += document["evals"] + document["lineage"] + document["assembly"]["adapters"]
    where = data.draw(st.sampled_from(objects))
    key = data.draw(st.sampled_from(sorted(where)))
    for change in ({**where, "surplus": 1}, {k: v for k, v in where.items() if k != key}):
        kept = dict(where)
        where.clear()
        where.update(change)
        try:
            Manifest.from_bytes(canonical_bytes(document))
        except InvalidDocumentError:
            pass
        else:
            raise AssertionError(f"accepted without {key} or with a surplus field")
        where.clear()
        where.update(kept)


@QUICK
@given(manifests(), st.data())
def test_any_changed_byte_is_refused_or_another_digest(manifest: Manifest, data: st.DataObject) -> None:
    original = manifest.to_bytes()
    at = data.draw(st.integers(0, len(original) - 1))
    byte = data.draw(st.integers(1, 255))
    changed = original[:at] + bytes([original[at] ^ byte]) + original[at + 1 :]
    try:
        accepted = Manifest.from_bytes(changed)
    except InvalidDocumentError:
        return
    assert accepted.digest == Digest.of(changed) != manifest.digest


@QUICK
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_with_our_error(data: bytes) -> None:
    try:
        Manifest.from_bytes(data)
    except InvalidDocumentError:
        return
    raise AssertionError("that was no manifest")


unicode_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | unicode_texts,
    lambda children: st.lists(children, max_size=4) | st.dictionaries(unicode_texts, children, max_size=4),
    max_leaves=12,
)


def plain_canonical(value: Any) -> str:
    """RFC 8785 without floats, written out: keys by UTF-16 code units, JSON's own escapes."""
    if isinstance(value, dict):
        keys = sorted(value, key=lambda key: key.encode("utf-16-be", "surrogatepass"))
        return "{" + ",".join(f"{plain_canonical(key)}:{plain_canonical(value[key])}" for key in keys) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(plain_canonical, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


@QUICK
@given(st.dictionaries(unicode_texts, json_values, max_size=4))
def test_canonical_form_against_a_plain_reference(value: dict[str, Any]) -> None:
    data = canonical_bytes(value)
    assert data.decode() == plain_canonical(value)
    assert parse_canonical(data) == value


@QUICK
@given(st.floats(-(2.0**53) + 1, 2.0**53 - 1, allow_nan=False))
def test_numbers_survive_to_the_last_bit(number: float) -> None:
    (found,) = parse_canonical(canonical_bytes({"n": number})).values()
    assert isinstance(found, (int, float)) and float(found) == number


entries = st.lists(
    st.builds(
        TensorEntry, st.text(max_size=6), st.sampled_from(["F32", "BF16"]), st.tuples(st.integers(0, 9)), digests
    ),
    max_size=6,
    unique_by=lambda entry: entry.name,
)


@QUICK
@given(entries, st.randoms(use_true_random=False))
def test_a_tensor_set_has_no_order(tensors: Sequence[TensorEntry], random: Any) -> None:
    shuffled = list(tensors)
    random.shuffle(shuffled)
    try:
        assert tensor_set_digest(shuffled) == tensor_set_digest(tensors)
    except InvalidDocumentError:
        assert any("\ud800" <= char <= "\udfff" for entry in tensors for char in entry.name)
