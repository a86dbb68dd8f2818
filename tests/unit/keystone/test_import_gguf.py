"""GGUF files: every tensor back under its own name, in its own order, and the tokenizer as it was."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from gguf import GGMLQuantizationType
from gguf_files import BF16, F16, as_quantized, byte_level_keys, write_gguf
from small_checkpoints import byte_tokenizer, family_model, prompt_ids
from transformers import PreTrainedModel

import keystone
from csf_store import Archive, Digest
from keystone.checkpoints import assemble_base
from keystone.checkpoints.gguf_config import llama3_divisors, llama3_scaling, shortest
from keystone.checkpoints.gguf_file import read_gguf
from keystone.checkpoints.gguf_tokenizer import PATTERNS, merges_from_scores, tokenizer_from_metadata
from keystone.checkpoints.huggingface import Choices
from keystone.checkpoints.importing import import_checkpoint, plan_import
from keystone.checkpoints.tokenizers import build_tokenizer
from keystone.cli import main
from keystone.errors import CheckpointError, ConfigurationError, InvalidInputError
from keystone.model import KeystoneForCausalLM

WIDE = {"intermediate_size": 64, "hidden_size": 64}
FULL = Choices(dtype="F32")


def imported(path: Path, archive: Path, choices: Choices = FULL) -> KeystoneForCausalLM:
    with Archive.open(archive, create=True) as opened:
        return assemble_base(opened, import_checkpoint(opened, plan_import(read_gguf(path, choices))).base)


def difference(ours: KeystoneForCausalLM, theirs: PreTrainedModel) -> float:
    ids = prompt_ids(50)
    with torch.no_grad():
        return float((ours(ids).logits - theirs(ids).logits).abs().max())


@pytest.mark.parametrize(
    ("arch", "fields"),
    [
        ("llama", {}),
        ("llama", {"num_key_value_heads": 4, "rms_norm_eps": 1e-5}),
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("qwen2", {}),
        ("qwen2", {"tie_word_embeddings": True}),
    ],
)
def test_a_gguf_file_computes_what_its_model_did(arch: str, fields: dict[str, Any], tmp_path: Path) -> None:
    theirs = family_model(arch, **fields)
    ours = imported(write_gguf(theirs, tmp_path / "tiny.gguf", arch=arch), tmp_path / "archive")
    assert difference(ours, theirs) <= 1e-4
    state = ours.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in theirs.state_dict().items())


@pytest.mark.parametrize(
    "kind", [F16, BF16, *(getattr(GGMLQuantizationType, name) for name in ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"))]
)
def test_quantized_tensors_are_dequantized_and_put_back_in_order(kind: GGMLQuantizationType, tmp_path: Path) -> None:
    theirs = family_model("llama", **WIDE)
    path = write_gguf(theirs, tmp_path / "tiny.gguf", kinds={"": kind})
    # Rows are quantized one by one, so reordering before and after is the same.
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.ndim == 2:
                parameter.copy_(as_quantized(parameter, kind))
    ours = imported(path, tmp_path / "archive")
    state = ours.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in theirs.state_dict().items())
    assert difference(ours, theirs) <= 1e-4


def test_weights_are_bf16_unless_told_otherwise(tmp_path: Path) -> None:
    theirs = family_model("llama")
    ours = imported(write_gguf(theirs, tmp_path / "tiny.gguf"), tmp_path / "archive", Choices())
    assert all(torch.equal(ours.state_dict()[n], t.to(torch.bfloat16)) for n, t in theirs.state_dict().items())


def test_large_tensors_come_in_blocks_of_whole_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = family_model("llama", **WIDE)
    path = write_gguf(theirs, tmp_path / "tiny.gguf")
    monkeypatch.setattr("keystone.checkpoints.gguf_file.BLOCK_BYTES", 64 * 4 * 20)  # 20 rows: a head and a bit
    tensor = next(t for t in read_gguf(path, FULL).tensors if t.name == "blk.0.attn_q.weight")
    assert [len(bytes(block)) for block in tensor.blocks()] == [64 * 4 * 16] * 4
    assert difference(imported(path, tmp_path / "archive"), theirs) <= 1e-4


def test_llama3_scaling_is_found_again_from_its_divisors(tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 1024,
    }  # fmt: skip
    theirs = family_model("llama", rope_parameters=rope, max_position_embeddings=4096)
    plain = 1.0 / 500000.0 ** (torch.arange(0, 8, 2).float() / 8)
    divisors = (plain / theirs.model.rotary_emb.inv_freq).numpy().astype(np.float32)
    assert divisors.max() > 7
    path = write_gguf(theirs, tmp_path / "tiny.gguf", **{"rope_freqs.weight": divisors})
    ours = imported(path, tmp_path / "archive")
    assert torch.equal(ours.model.rotary_emb.inv_freq, theirs.model.rotary_emb.inv_freq)
    assert difference(ours, theirs) <= 1e-4


def test_divisors_that_are_no_llama3_scaling_are_refused() -> None:
    divisors = llama3_divisors(32.0, 8192, 500000.0, 64)
    assert llama3_scaling(divisors, 500000.0, 64)["original_max_position_embeddings"] == 8192
    assert llama3_scaling([1.0] * 32, 500000.0, 64) == {}
    for wrong in ([2.0, *divisors[1:]], divisors[:-1], [d * 1.1 for d in divisors]):
        with pytest.raises(ConfigurationError, match="rope_freqs"):
            llama3_scaling(wrong, 500000.0, 64)


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_scalings_in_the_keys(kind: str, tmp_path: Path) -> None:
    rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0}
    if kind == "yarn":
        rope["original_max_position_embeddings"] = 16
    theirs = family_model("qwen2", rope_parameters=rope)
    keys = {"ARCH.rope.scaling.type": kind, "ARCH.rope.scaling.factor": 4.0}
    if kind == "yarn":
        keys["ARCH.rope.scaling.original_context_length"] = 16
    path = write_gguf(theirs, tmp_path / "tiny.gguf", arch="qwen2", **keys)
    assert difference(imported(path, tmp_path / "archive"), theirs) <= 1e-4


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({"ARCH.expert_count": 8}, "mixture of experts"),
        ({"ARCH.attention.sliding_window": 16}, "sliding_window"),
        ({"ARCH.logit_scale": 0.5}, "logit_scale"),
        ({"ARCH.rope.scaling.type": "longrope"}, "longrope"),
        ({"ARCH.attention.key_length": 16}, "rope.dimension_count"),
        ({"split.count": 3}, "one of 3 parts"),
        ({"ARCH.rope.scaling.attn_factor": 1.5}, "attn_factor"),
    ],
)
def test_metadata_that_cannot_be_honoured_is_refused_by_name(extra: dict[str, Any], named: str, tmp_path: Path) -> None:
    path = write_gguf(family_model("llama"), tmp_path / "tiny.gguf", **extra)
    with pytest.raises(ConfigurationError, match=named):
        read_gguf(path, FULL)


def test_other_architectures_and_query_norms_are_refused(tmp_path: Path) -> None:
    path = write_gguf(family_model("qwen2"), tmp_path / "other.gguf", arch="qwen3")
    with pytest.raises(ConfigurationError, match="norms on queries and keys"):
        read_gguf(path, FULL)
    norms = {"blk.0.attn_q_norm.weight": np.ones(8, dtype=np.float32)}
    path = write_gguf(family_model("llama"), tmp_path / "tiny.gguf", **norms)
    with pytest.raises(CheckpointError, match=r"q_norm.weight \(norms on queries and keys"):
        imported(path, tmp_path / "archive")


def with_infinite_scale(path: Path) -> None:
    reader = gguf.GGUFReader(path, "r+")
    next(t for t in reader.tensors if t.name == "blk.1.ffn_up.weight").data[0, :2] = (0, 0x7C)
    reader.data.flush()


@pytest.mark.parametrize(
    ("hurt", "error", "named"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-64]), InvalidInputError, "not a sound GGUF file"),
        (lambda path: path.write_bytes(path.read_bytes()[:1000]), InvalidInputError, "not a sound GGUF file"),
        (lambda path: path.write_bytes(b"GGML" + path.read_bytes()[4:]), InvalidInputError, "not a sound GGUF file"),
        (lambda path: path.write_bytes(b""), InvalidInputError, "not a sound GGUF file"),
        (with_infinite_scale, CheckpointError, "blk.1.ffn_up.weight"),
    ],
)
def test_broken_files_are_refused(
    hurt: Callable[[Path], object], error: type[Exception], named: str, tmp_path: Path
) -> None:
    path = write_gguf(family_model("llama", **WIDE), tmp_path / "tiny.gguf", kinds={"": GGMLQuantizationType.Q8_0})
    hurt(path)
    with pytest.raises(error, match=named):
        imported(path, tmp_path / "archive")


def test_from_the_command_line_with_template_and_ends(tmp_path: Path) -> None:
    keys = byte_level_keys(300) | {"tokenizer.ggml.eot_token_id": 2}
    path = write_gguf(family_model("llama"), tmp_path / "Tiny-Model.F32.gguf", tokenizer=keys)
    outcomes = []
    for _ in range(2):
        result = CliRunner().invoke(main, ["--archive", str(tmp_path / "archive"), "import", str(path), "--json"])
        assert result.exit_code == 0, result.output
        outcomes.append((json.loads(result.stdout.splitlines()[-1]), (tmp_path / "archive/ledger.jsonl").read_bytes()))
    assert outcomes[0] == outcomes[1]
    last = outcomes[0][0]
    assert last["ref"] == "tiny-model.f32"
    loaded = keystone.load(last["manifest"], archive=tmp_path / "archive", quantization="none")
    source, labels = loaded.manifest.source, loaded.manifest.labels
    assert (source.kind, source.location, source.licence) == ("gguf", "Tiny-Model.F32.gguf", "Apache-2.0")
    assert labels["gguf/file"] == str(Digest.of(path.read_bytes()))
    assert loaded.model.generation_config.eos_token_id == [1, 2]
    assert loaded.tokenizer.bos_token == "<s>"
    chat = loaded.tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert chat == "<s>hi"
    assert loaded.tokenizer("hello")["input_ids"] == [258, 259]


def built(keys: dict[str, Any]) -> Any:
    return build_tokenizer(tokenizer_from_metadata(keys, context=64), "a test")


def test_a_tokenizer_is_the_one_it_was_made_from() -> None:
    """Bytes, merges, control tokens found in a text, and back to the text."""
    ours = built(byte_level_keys(300))
    text = "hello <s> wörld\n  12\t"
    ids = ours(text)["input_ids"]
    assert ids[:2] == [258, 259]
    assert 0 in ids
    assert ours.decode(ids, skip_special_tokens=True) == text.replace("<s>", "")
    plain = byte_tokenizer()
    for character in "aé\n ":
        assert ours(character)["input_ids"] == plain(character)["input_ids"]


CUTS = {
    "gpt-2": ["I", "'ll", " see", " 123", " things", "\n\n ", " OK"],
    "smollm": ["I", "'ll", " see", " ", "1", "2", "3", " things", "\n\n ", " OK"],
    "llama-bpe": ["I", "'ll", " see", " ", "123", " things", "\n\n", " ", " OK"],
    "qwen2": ["I", "'ll", " see", " ", "1", "2", "3", " things", "\n\n", " ", " OK"],
    "tekken": ["I", "'ll", " see", " ", "1", "2", "3", " things", "\n\n", " ", " OK"],
}


@pytest.mark.parametrize("pre", CUTS)
def test_how_a_text_is_cut(pre: str) -> None:
    tokenizer = built(byte_level_keys(300, pre=pre)).backend_tokenizer
    cut = tokenizer.pre_tokenizer.pre_tokenize_str("I'll see 123 things\n\n  OK")
    pieces = ["".join(piece).replace("Ġ", " ").replace("Ċ", "\n") for piece, _ in cut]
    assert pieces == CUTS[pre]


def test_llama3_begins_every_text_and_takes_whole_words_first() -> None:
    tokenizer = built(byte_level_keys(300, pre="llama-bpe"))
    assert tokenizer("ll")["input_ids"] == [0, 260]
    assert set(PATTERNS) >= {"llama-bpe", "qwen2"}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"tokenizer.ggml.pre": "made-up"}, "made-up"),
        ({"tokenizer.ggml.model": "bert"}, "bert"),
        ({"tokenizer.ggml.tokens": ["a", "a"]}, "twice"),
        ({"tokenizer.ggml.tokens": None}, "tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.eos_token_id": 10**6}, "eos_token_id"),
        ({"tokenizer.ggml.merges": ["zz qq"]}, "cannot be rebuilt"),
        ({"tokenizer.huggingface.json": "{"}, "cannot be rebuilt"),
    ],
)
def test_tokenizers_that_cannot_be_rebuilt_are_refused(change: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidInputError, match=named):
        tokenizer_from_metadata({**byte_level_keys(300), **change}, context=64)


def sentencepiece_keys() -> dict[str, Any]:
    words = {"▁": -1.0, "a": -2.0, "b": -2.1, "c": -2.2, "ab": -3.0, "bc": -2.5, "abc": -4.0, "▁a": -3.5, "▁ab": -3.6}
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 259 + list(words.values()),
        "tokenizer.ggml.token_type": [2, 3, 3, *([6] * 256), *([1] * len(words))],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def greedy_pieces(text: str, keys: dict[str, Any]) -> list[str]:
    """SentencePiece's rule, spelled out: join the neighbours that make the best piece, the leftmost of equals first."""
    scores = dict(zip(keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.scores"], strict=True))
    pieces = list(text)
    while True:
        joins = [(-scores[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(pieces)) if a + b in scores]
        if not joins:
            return pieces
        _, at = min(joins)
        pieces[at : at + 2] = ["".join(pieces[at : at + 2])]


@pytest.mark.parametrize("text", ["abc", "abab bcbc", "aabbcc abc", "cab a b c", "abcabcabc"])
def test_sentencepiece_joins_by_score(text: str) -> None:
    keys = sentencepiece_keys()
    tokenizer = built(keys)
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == 1
    expected = greedy_pieces("▁" + text.replace(" ", "▁"), keys)
    assert tokenizer.convert_ids_to_tokens(ids[1:]) == expected
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_sentencepiece_falls_back_to_bytes() -> None:
    tokenizer = built(sentencepiece_keys())
    ids = tokenizer("aé")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids[-2:]) == ["<0xC3>", "<0xA9>"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "aé"


def test_merges_are_listed_best_first() -> None:
    vocabulary = {"a": 0, "b": 1, "ab": 2, "aba": 3, "<c>": 4, "<": 5, "c>": 6}
    assert merges_from_scores(vocabulary, [0, 0, -1, -2, 0, 0, 0], [1, 1, 1, 1, 3, 1, 1]) == [("a", "b"), ("ab", "a")]


def test_fp32_in_the_shortest_words() -> None:
    assert shortest(float(np.float32(1e-5))) == 1e-5
    assert shortest(float(np.float32(500000.0))) == 500000.0
