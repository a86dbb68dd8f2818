"""What quantization costs, as numbers that can be checked from outside."""

import json
import math
from pathlib import Path

import torch
from click.testing import CliRunner

import keystone
from keystone.cli import main
from keystone.evaluation.measuring import bits_per_byte
from keystone.quality import _predict

TEXT = "def total(values):\n    found = 0\n    for value in values:\n        found += value\n    return found\n" * 7


def test_predictions_are_compared_token_by_token(nano_archive: Path) -> None:
    reference = keystone.load("nano", archive=nano_archive, quantization="none")
    other = keystone.load("nano", archive=nano_archive, quantization="nf4")
    bits, divergence, agreement, tokens = _predict(reference, reference, [TEXT], None)
    assert (divergence, agreement) == (0.0, 1.0)
    assert math.isclose(bits, bits_per_byte(reference.model, reference.tokenizer, [TEXT]), rel_tol=1e-5)
    bits, divergence, agreement, _ = _predict(reference, other, [TEXT], None)
    assert 0 < divergence < 0.5
    assert 0.5 < agreement < 1
    ids = torch.tensor(reference.tokenizer(TEXT)["input_ids"])[:257]
    assert tokens >= len(ids) - 1
    with torch.inference_mode():
        ours = other.model(ids[None, :-1]).logits[0].float().log_softmax(-1)
        theirs = reference.model(ids[None, :-1]).logits[0].float().log_softmax(-1)
    expected = (theirs.exp() * (theirs - ours)).sum(-1).mean() / math.log(2)
    found = _predict(reference, other, [reference.tokenizer.decode(ids)], None)[1]
    assert math.isclose(found, float(expected), rel_tol=0.2)


def test_the_command_prints_a_row_for_each_scheme(own_nano_archive: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text(TEXT)
    command = ["--archive", str(own_nano_archive), "bench", "quality", "nano", "--text", str(tmp_path / "text")]
    result = CliRunner().invoke(main, [*command, "--quantize", "int8", "--device", "cpu", "--json"])
    assert result.exit_code == 0, result.output
    (row,) = map(json.loads, result.stdout.splitlines())
    assert row["quantization"] == "int8"
    assert row["bits_per_byte"] > 0
    assert row["weight_bytes"] < row["peak_bytes"]
    assert row["stored_bytes"] < 1.2 * row["weight_bytes"]
    assert row["tokens_per_second"] > 0
    (tmp_path / "text").write_bytes(b"\xff\xfe\xff")
    assert CliRunner().invoke(main, command).exit_code == 7
