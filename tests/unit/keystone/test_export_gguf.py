"""GGUF files: read back by gguf, by transformers, and by our own import; refused where they would be another model."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from export_lab import IDS, our_logits, put_adapter, put_base, put_manifest, write_base
from gguf import GGUFReader, dequantize
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM

from csf_store import Archive
from keystone.checkpoints.export import ExportRequest, examine_export, export, gguf_writing
from keystone.checkpoints.export.gguf_vocabulary import PROBES
from keystone.checkpoints.gguf_file import read_gguf
from keystone.checkpoints.gguf_tokenizer import PATTERNS, tokenizer_from_metadata
from keystone.checkpoints.huggingface import Choices
from keystone.checkpoints.importing import import_checkpoint, plan_import
from keystone.errors import RefusedError, StorageError
from manifests import AdapterUse

GGUF = ExportRequest(layout="gguf")
VOCABULARY = 600


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    with Archive.create(tmp_path / "archive") as opened:
        yield opened


def write_tokenizer(
    directory: Path,
    cut: pre_tokenizers.PreTokenizer | None,
    *,
    frame: str | None = None,
    ignore_merges: bool = False,
    normalizer: normalizers.Normalizer | None = None,
) -> Path:
    """A small byte-level BPE that cuts a text in the given way."""
    made = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if cut is not None:
        made.pre_tokenizer = cut
    if normalizer is not None:
        made.normalizer = normalizer
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 40,
        special_tokens=["<|end|>", "<|user|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([*PROBES, "the cat sat on 12345 mats " * 4], trainer)
    if frame is not None:
        made.post_processor = processors.TemplateProcessing(single=frame, special_tokens=[("<|end|>", 0)])
    directory.mkdir()
    made.save(str(directory / "tokenizer.json"))
    config = {"eos_token": "<|end|>", "chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level])


def smollm() -> pre_tokenizers.PreTokenizer:
    digits = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    return write_tokenizer(tmp_path / "tokenizer", smollm())


LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 1024,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 64}
BASES = {
    "plain": ({}, "llama"),
    "wide-heads-and-biases": ({"attention_bias": True, "mlp_bias": True, "head_dim": 32}, "llama"),
    "tied": ({"tie_word_embeddings": True}, "llama"),
    "qwen2": ({"attention_bias": True, "attention_output_bias": False}, "qwen2"),
    "llama3-rope": ({"rope_parameters": LLAMA3}, "llama"),
    "yarn": ({"rope_parameters": YARN}, "llama"),
    "linear": ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 2.0}}, "llama"),
}


@pytest.mark.parametrize(
    ("base", "dtype"),
    [
        ("plain", torch.float32),
        ("plain", torch.bfloat16),
        ("plain", torch.float16),
        ("wide-heads-and-biases", torch.bfloat16),
        ("tied", torch.bfloat16),
        ("qwen2", torch.bfloat16),
    ],
)
def test_every_tensor_comes_back_exactly(
    archive: Archive, tmp_path: Path, tokenizer: Path, base: str, dtype: torch.dtype
) -> None:
    changes, architecture = BASES[base]
    directory = write_base(tmp_path / "base", dtype=dtype, vocab_size=VOCABULARY, **changes)
    manifest = put_base(archive, directory, tokenizer=tokenizer)
    exported = export(archive, manifest, tmp_path / "out", GGUF)
    assert exported.architecture == architecture
    reader = GGUFReader(tmp_path / "out" / "model.gguf")
    found = {
        each.name: (each.tensor_type.name, torch.tensor(dequantize(each.data, each.tensor_type)))
        for each in reader.tensors
    }
    found.pop("rope_freqs.weight", None)
    stored = load_file(directory / "model.safetensors")
    assert len(found) == len(stored)
    matrix = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}[dtype]
    heads, head_dim = {"q_proj": 4, "k_proj": 2}, int(changes.get("head_dim", 16))
    assert found["token_embd.weight"][0] == matrix and found["output_norm.weight"][0] == "F32"
    assert torch.equal(found["token_embd.weight"][1], stored["model.embed_tokens.weight"].float())
    for ours, theirs in (("q_proj", "attn_q"), ("k_proj", "attn_k"), ("v_proj", "attn_v"), ("o_proj", "attn_output")):
        kind, rows = found[f"blk.1.{theirs}.weight"]
        expected = stored[f"model.layers.1.self_attn.{ours}.weight"].float()
        if ours in heads and architecture == "llama":  # element by element, as llama.cpp's converter lays them out
            order = [
                h * head_dim + i + part * head_dim // 2
                for h in range(heads[ours])
                for i in range(head_dim // 2)
                for part in (0, 1)
            ]
            expected = expected[order]
        assert kind == matrix and torch.equal(rows, expected)
    for ours, theirs in (("mlp.gate_proj", "ffn_gate"), ("mlp.up_proj", "ffn_up"), ("mlp.down_proj", "ffn_down")):
        assert torch.equal(found[f"blk.0.{theirs}.weight"][1], stored[f"model.layers.0.{ours}.weight"].float())
    assert ("output.weight" in found) == ("lm_head.weight" in stored)
    assert examine_export(tmp_path / "out").problems == {}


@pytest.mark.parametrize("base", ["plain", "tied", "qwen2"])  # it leaves the biases of a llama out without a word
@pytest.mark.filterwarnings("ignore")  # transformers' GGUF reader, on its own files too
def test_transformers_reads_the_file_as_the_same_function(
    archive: Archive, tmp_path: Path, tokenizer: Path, base: str
) -> None:
    changes, _ = BASES[base]
    manifest = put_base(archive, write_base(tmp_path / "base", vocab_size=VOCABULARY, **changes), tokenizer=tokenizer)
    export(archive, manifest, tmp_path / "out", GGUF)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file="model.gguf", dtype=torch.float32)
    with torch.inference_mode():
        assert (model.eval()(IDS).logits - our_logits(archive, manifest)).abs().max() <= 1e-5


@pytest.mark.parametrize("base", BASES)
def test_our_own_import_reads_it_back_as_the_same_base(
    archive: Archive, tmp_path: Path, tokenizer: Path, base: str
) -> None:
    directory = write_base(tmp_path / "base", vocab_size=VOCABULARY, **BASES[base][0])
    manifest = put_base(archive, directory, tokenizer=tokenizer)
    export(archive, manifest, tmp_path / "out", GGUF)
    checkpoint = read_gguf(tmp_path / "out" / "model.gguf", Choices(dtype="F32"))
    imported = import_checkpoint(archive, plan_import(checkpoint))
    again = put_manifest(archive, imported.base, tokenizer=tokenizer)
    with torch.inference_mode():
        assert torch.equal(our_logits(archive, again), our_logits(archive, manifest))


WAYS = {
    "llama-bpe": (split(PATTERNS["llama-bpe"]), "<|end|> $A", True),
    "qwen2": (split(PATTERNS["qwen2"]), None, False),
    "tekken": (split(PATTERNS["tekken"]), "<|end|> $A", True),
    "smollm": (smollm(), None, False),
    "gpt-2": (pre_tokenizers.ByteLevel(add_prefix_space=False), None, False),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_tokenizer_is_named_and_stays_the_same(archive: Archive, tmp_path: Path, way: str) -> None:
    cut, frame, ignore_merges = WAYS[way]
    normalizer = normalizers.NFC() if way == "qwen2" else None
    directory = write_tokenizer(
        tmp_path / "tokenizer", cut, frame=frame, ignore_merges=ignore_merges, normalizer=normalizer
    )
    base = write_base(tmp_path / "base", vocab_size=VOCABULARY, eos_token_id=[0, 1], pad_token_id=1)
    export(archive, put_base(archive, base, tokenizer=directory), tmp_path / "out", GGUF)
    fields = {name: field.contents() for name, field in GGUFReader(tmp_path / "out" / "model.gguf").fields.items()}
    assert fields["tokenizer.ggml.pre"] == way
    assert (fields["tokenizer.ggml.eos_token_id"], fields["tokenizer.ggml.eot_token_id"]) == (0, 1)
    assert fields["tokenizer.ggml.add_bos_token"] is (frame is not None)
    assert len(fields["tokenizer.ggml.tokens"]) == VOCABULARY
    assert fields["tokenizer.chat_template"].startswith("{% for")
    original = Tokenizer.from_file(str(directory / "tokenizer.json"))
    rebuilt = Tokenizer.from_str(tokenizer_from_metadata(fields, context=64)["tokenizer.json"].decode())
    for text in (*PROBES, "<|user|>hi<|end|>", "The year 1984 isn't 2024."):
        assert rebuilt.encode(text).ids == original.encode(text).ids, text


def test_what_gguf_cannot_hold_is_refused_by_name(archive: Archive, tmp_path: Path, tokenizer: Path) -> None:
    odd = write_tokenizer(tmp_path / "odd", split(r"\w+|\W"))
    framed = write_tokenizer(tmp_path / "framed", smollm(), frame="$A <|end|>")
    words = tmp_path / "words"
    words.mkdir()
    Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")).save(str(words / "tokenizer.json"))
    cases = [
        ({"plt_num_loops": 2}, tokenizer, "2 times, and GGUF has no architecture with loops"),
        (
            {"attention_bias": True, "attention_output_bias": False, "mlp_bias": True},
            tokenizer,
            "combination of biases",
        ),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, tokenizer, "'dynamic'"),
        ({"rope_parameters": {**LLAMA3, "high_freq_factor": 5.0}}, tokenizer, "factors 1 and 4"),
        ({"rope_parameters": {**YARN, "attention_factor": 1.5}}, tokenizer, "attention_factor"),
        ({"eos_token_id": [0, 1, 2, 3]}, tokenizer, "4 end tokens"),
        ({"vocab_size": 300}, tokenizer, "embeddings for 300 ids"),
        ({}, odd, "no name known here"),
        ({}, framed, "frames a text"),
        ({}, words, "no byte-level BPE"),
    ]
    for number, (changes, tree, named) in enumerate(cases):
        base = write_base(tmp_path / f"base{number}", **{"vocab_size": VOCABULARY, **changes})
        with pytest.raises(RefusedError, match=named):
            export(archive, put_base(archive, base, tokenizer=tree), tmp_path / "out", GGUF)
        assert not (tmp_path / "out").exists()


def test_adapters_are_merged_or_refused(archive: Archive, tmp_path: Path, tokenizer: Path) -> None:
    directory = write_base(tmp_path / "base", vocab_size=VOCABULARY, attention_bias=True, tie_word_embeddings=True)
    base = archive.put_tree(directory).digest
    adapter = put_adapter(archive, base, directory, tmp_path, seed=1)
    manifest = put_manifest(archive, base, AdapterUse(adapter=adapter, weight=0.5), tokenizer=tokenizer)
    with pytest.raises(RefusedError, match="--merge"):
        export(archive, manifest, tmp_path / "out", GGUF)
    exported = export(archive, manifest, tmp_path / "out", ExportRequest(layout="gguf", merge=True))
    assert exported.merge is not None and exported.merge.logits is not None
    assert exported.merge.logits.max_abs <= 1e-5
    assert exported.merge.logits.effect > 0.01


def test_a_file_that_reads_back_otherwise_is_not_exported(
    archive: Archive, tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = put_base(archive, write_base(tmp_path / "base", vocab_size=VOCABULARY), tokenizer=tokenizer)
    read_back = gguf_writing._read_back

    def flip(path: Path, written: dict[str, bytes]) -> None:
        with path.open("r+b") as file:
            file.seek(-40, os.SEEK_END)
            file.write(b"\x55")
        read_back(path, written)

    monkeypatch.setattr(gguf_writing, "_read_back", flip)
    with pytest.raises(Exception, match="read back differs"):
        export(archive, manifest, tmp_path / "out", GGUF)
    monkeypatch.setattr(gguf_writing, "_read_back", read_back)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gguf.GGUFWriter.write_tensor_data", full)
    with pytest.raises(StorageError, match="No space left"):
        export(archive, manifest, tmp_path / "out", GGUF)
    assert {path.name for path in tmp_path.iterdir()} == {"archive", "base", "tokenizer"}
