"""Pieces of the audit by themselves: casts, the page, what an auditor remembers, objects proven once."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from manifest_house import House, put_tree
from safetensors.numpy import save

from csf_store import Archive, Checkpoint, Digest
from manifests import (
    AuditLine,
    Auditor,
    AuditorState,
    AuditReport,
    RefNotFoundError,
    TensorEntry,
    Verdict,
    audit_page,
    lineage_svg,
    tensor_set_digest,
)
from manifests.auditing import objects
from manifests.auditing.base_forms import _cast, tensor_sets_in_memory


def test_casts_round_as_torch_does() -> None:
    torch = pytest.importorskip("torch")
    generator = np.random.default_rng(3)
    bits = generator.integers(0, 2**32, 20_000, dtype=np.uint64).astype("<u4")
    wide = bits.view("<f4")
    wide = np.concatenate(
        [wide[np.isfinite(wide)], np.float32([0.0, -0.0, 1.00390625, 1.01171875, np.inf, 65504, 65520])]
    )
    for code, dtype in (("BF16", torch.bfloat16), ("F16", torch.float16)):
        expected = torch.from_numpy(wide.copy()).to(dtype)
        assert _cast(wide.tobytes(), "F32", code) == expected.view(torch.uint8).numpy().tobytes(), code
        narrow = expected.view(torch.uint8).numpy().tobytes()
        assert _cast(narrow, code, "F32") == expected.float().numpy().tobytes()
    assert np.isnan(np.frombuffer(_cast(np.float32([np.nan]).tobytes(), "F32", "BF16"), "<u2").view("<u2")).sum() == 0
    assert _cast(np.float32([np.nan]).tobytes(), "F32", "BF16") == b"\xc0\x7f"


def test_a_base_in_memory_as_stored_cast_and_with_a_second_name(house: House) -> None:
    weights = np.arange(6, dtype="<f4").reshape(2, 3)
    base = put_tree(house.archive, {"model.safetensors": save({"embed": weights})})
    stored = TensorEntry("embed", "F32", (2, 3), Digest.of(weights.tobytes()))
    found = list(tensor_sets_in_memory(house.archive, base, {"head": "embed", "absent": "nothing"}))
    tied = TensorEntry("head", "F32", (2, 3), stored.digest)
    assert found[:2] == [tensor_set_digest([stored, tied]), tensor_set_digest([stored])]
    half = Digest.of(weights.astype("<f2").tobytes())
    assert tensor_set_digest([TensorEntry("embed", "F16", (2, 3), half)]) in found
    assert list(tensor_sets_in_memory(house.archive, house.tokenizer, {})) == []


def test_the_lineage_is_drawn_and_everything_is_escaped(house: House) -> None:
    parent = house.adapter("parent")
    digest = house.put(house.adapter("child", parent=parent), house.adapter("other"))
    manifest = house.repository.load(digest)
    svg = lineage_svg(manifest, {parent: Verdict.FAIL})
    root = ET.fromstring(svg)
    texts = [element.text for element in root.iter("text")]
    assert len(texts) == 10 and {"frozen base", "ancestor", "adapter, weight 1"} <= set(texts)
    assert svg.count("<path") == 5 and "#cf222e" in svg  # three steps, two uses; the parent in red
    line = AuditLine("eval", Verdict.FAIL, digest, "<b>&'\"")
    page = audit_page(house.repository, AuditReport(digest, (line,)), target="<i>", when="now")
    assert "<b>&'" not in page and "&lt;b&gt;&amp;" in page and "<i>" not in page
    assert not re.search(r"(src|href)=|<script|@import|url\(", page)
    absent = audit_page(house.repository, AuditReport(None, (line,)), target="x", when="now")
    assert "<svg" not in absent and "FAIL" in absent
    gone = audit_page(house.repository, AuditReport(Digest.of(b"?"), (line,)), target="x", when="now")
    assert "cannot be drawn" in gone


def test_what_an_auditor_remembers(house: House, tmp_path: Path) -> None:
    state = AuditorState(tmp_path / "state")
    manifest = house.put()
    assert state.recall(house.archive) is None
    Auditor(house.archive, state=state).audit(manifest)
    first = state.recall(house.archive)
    assert first is not None and first.checkpoint == house.archive.ledger.checkpoint()
    assert str(house.base) in first.unchanged(house.archive)
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / "state",)] == [0o700]
    other = house.put(name="other")
    assert first.unchanged(house.archive) == {}  # the segment grew
    Auditor(house.archive, state=state).audit(other)
    second = state.recall(house.archive)
    assert second is not None and second.checkpoint.size > first.checkpoint.size
    with Archive.create(tmp_path / "another") as another:
        assert state.recall(another) is None


def test_what_was_proven_stays_proven_while_its_segment_looks_the_same(house: House, tmp_path: Path) -> None:
    state = AuditorState(tmp_path / "state")
    one, two = house.put(), house.put(house.adapter("a"))
    for manifest in (one, two):
        Auditor(house.archive, state=state).audit(manifest)
    known = state.recall(house.archive)
    assert known is not None and {str(one), str(two)} <= known.proven.keys()
    (segment,) = (Path(house.archive.path) / "segments").iterdir()
    segment.touch()
    assert known.unchanged(house.archive) == {}


def test_an_object_is_hashed_once(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Digest] = []
    verify = house.archive.verify

    def counting(digests: list[Digest], **options: bool) -> object:
        asked.extend(digests)
        return verify(digests, **options)

    manifests = [house.put(house.adapter(tag)) for tag in "abc"]
    monkeypatch.setattr(house.archive, "verify", counting)
    auditor = Auditor(house.archive)
    for manifest in manifests:
        auditor.audit(manifest)
    assert asked.count(house.base) == 1 and len(asked) == len(set(asked))


def test_what_a_person_means(house: House) -> None:
    refs, one, two = house.repository.refs, house.put(), house.put(n="2")
    refs.set("prod", one, expected=None)
    between = refs.history("prod")[0].time
    refs.set("prod", two, expected=one)
    auditor = Auditor(house.archive)
    assert auditor.resolve("prod") == (two, "prod") and auditor.resolve(str(one)) == (one, None)
    assert auditor.resolve(f"prod@{between.isoformat()}")[0] in {one, two}  # one microsecond may hold both
    with pytest.raises(RefNotFoundError, match="refs here: prod"):
        auditor.audit_target("other")


def test_a_finding_without_an_object_condemns_all_that_was_asked(house: House) -> None:
    class Strange:
        def verify(self, digests: list[Digest], **_: bool) -> object:
            report = house.archive.verify([])
            return report._replace(
                findings=(house.archive.verify([Digest.of(b"?")]).findings[0]._replace(digest=None),)
            )

    prover = objects.ObjectProver(Strange())  # type: ignore[arg-type]
    assert prover.problems([house.base, house.tokenizer]).keys() == {house.base, house.tokenizer}
    assert list(prover.proven()) == []
    assert Checkpoint(0, bytes(32)) != house.archive.ledger.checkpoint()


def test_an_audit_says_how_much_it_hashes_and_how_far_it_is(house: House) -> None:
    first = house.put(house.adapter("a" * 5000))
    house.repository.refs.set("main", first, expected=None)
    house.repository.refs.set("main", house.put(house.adapter("b" * 7000)), expected=first)
    told: list[int] = []
    auditor = Auditor(house.archive, progress=told.append)
    planned = auditor.planned_bytes("main")
    base = sum(entry.size for entry in house.archive.tree(house.base).entries)
    assert auditor.audit_target("main").manifest is not None
    assert sum(told) == planned - base > 12_000  # no training record: no second look at the base
    assert auditor.planned_bytes("main") == base  # all is proven by now
    assert auditor.planned_bytes("nothing-like-it") == 0
