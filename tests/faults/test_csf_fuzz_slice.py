"""A fast slice of ``make fuzz``: a thousand broken archives and some, the same ones every time."""

import json
import random
from pathlib import Path

from fuzz_archives import fuzzing, summary
from mutations import Mutator
from pieces import load, put_together, store, take_apart

COUNT = 1200


def test_a_thousand_broken_archives(tmp_path: Path) -> None:
    with fuzzing(20261122, tmp_path) as fuzz:
        failures = [failure for number in range(COUNT) if (failure := fuzz.one(number))]
        assert not failures, "\n".join(failures)
        assert fuzz.counts.total() == COUNT
        # Both outcomes are common, or the mutations reach nothing.
        assert fuzz.counts["opened"] > COUNT // 2, summary(fuzz.counts)
        assert fuzz.counts["refused"] > COUNT // 20, summary(fuzz.counts)


def test_a_broken_rule_is_noticed_kept_and_found_again(tmp_path: Path) -> None:
    with fuzzing(1, tmp_path) as fuzz:
        fuzz.contents = {
            digest: content + b"!" for digest, content in fuzz.contents.items()
        }  # all that is read is wrong
        failures = [failure for number in range(30) if (failure := fuzz.one(number))]
        assert fuzz.counts["wrong"] == len(failures) > 10
        assert all("BrokenRuleError" in failure for failure in failures)
        kept = sorted(path for path in tmp_path.iterdir() if path.is_dir())
        assert len(kept) == len(failures)
        assert "BrokenRuleError" in fuzz.look(load(kept[0]))


def test_the_same_seed_draws_the_same(tmp_path: Path) -> None:
    with fuzzing(1, tmp_path) as fuzz:
        drawn = [Mutator(fuzz.corpus, random.Random(5)).draw() for _ in range(2)]
    assert drawn[0] == drawn[1]


def test_what_is_taken_apart_is_put_together_again(tmp_path: Path) -> None:
    """The forger makes what the writer makes, to the last byte; else its forgeries would prove little."""
    with fuzzing(1, tmp_path) as fuzz:
        segments = [
            (name, data, bytes.fromhex(json.loads(files["csf.json"])["archive"]))
            for files in fuzz.corpus.values()
            for name, data in files.items()
            if name.endswith(".csfs")
        ]
    whole = 0
    for name, data, archive_id in segments:
        pieces, sealed = take_apart(name, data)
        again = put_together(name, archive_id, pieces, sealed=sealed)
        assert data.startswith(again) or len(data) < 64
        whole += data == again
    assert whole > 4
    store(fuzz.corpus["whole"], tmp_path / "copy")
    assert load(tmp_path / "copy") == fuzz.corpus["whole"]
