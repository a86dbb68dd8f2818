"""A directory whose tokenizer is a SentencePiece file alone: rebuilt, and held to the library's own answers."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from small_checkpoints import family_model

from csf_store import Archive
from keystone.checkpoints import archived_tokenizer
from keystone.checkpoints.huggingface import Choices, read_directory
from keystone.checkpoints.importing import import_checkpoint, plan_import
from keystone.checkpoints.sentencepiece_file import with_tokenizer_json
from keystone.checkpoints.tokenizers import build_tokenizer
from keystone.errors import InvalidInputError

sentencepiece = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed: it makes the test's files")

TEXTS = [
    "Hello world, hello there", "  two  spaces ", "def f(x):\n    return x ** 12\n", "naïve — 東京 🚀", "lower newest",
    "1234 5", "\n\n", "a",
]  # fmt: skip
LLAMA = {
    "model_type": "bpe", "byte_fallback": True, "split_digits": True, "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
}  # fmt: skip


def trained(**settings: Any) -> bytes:
    corpus = ["hello world, hello there and everywhere", "lower newer lowest newest", "return x + 12", "for i in range"]
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus * 30), model_writer=file, vocab_size=settings.pop("vocab_size", 330),
        hard_vocab_limit=False, minloglevel=2, **settings,
    )  # fmt: skip
    return file.getvalue()


@pytest.fixture(scope="module")
def llama() -> bytes:
    return trained(**LLAMA)


def test_it_cuts_texts_as_the_library_does(llama: bytes) -> None:
    theirs = sentencepiece.SentencePieceProcessor(model_proto=llama)
    ours = build_tokenizer(with_tokenizer_json({"tokenizer.model": llama}), "here")
    assert len(ours) == theirs.vocab_size()
    for text in TEXTS:
        ids = ours(text)["input_ids"]
        assert ids == [theirs.bos_id(), *theirs.encode(text)], text
        assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(theirs.encode(text)), text
    assert (ours.bos_token, ours.eos_token, ours.unk_token) == ("<s>", "</s>", "<unk>")


def test_a_directory_with_nothing_else_is_imported(llama: bytes, tmp_path: Path) -> None:
    size = sentencepiece.SentencePieceProcessor(model_proto=llama).vocab_size()
    directory = tmp_path / "older"
    family_model("llama", vocab_size=size + 2).save_pretrained(directory)
    (directory / "tokenizer.model").write_bytes(llama)
    (directory / "added_tokens.json").write_text(json.dumps({"<|im_end|>": size + 1, "<|im_start|>": size}))
    config = {"add_bos_token": False, "eos_token": "<|im_end|>", "tokenizer_class": "LlamaTokenizer", "legacy": False}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    with Archive.open(tmp_path / "archive", create=True) as archive:
        tree = import_checkpoint(archive, plan_import(read_directory(directory, Choices()))).tokenizer
        assert {"tokenizer.model", "tokenizer.json"} <= {entry.path for entry in archive.tree(tree).entries}
        tokenizer = archived_tokenizer(archive, tree)
    assert tokenizer.eos_token_id == size + 1
    ids = tokenizer("<|im_start|>hello<|im_end|>")["input_ids"]
    assert (ids[0], ids[-1]) == (size, size + 1)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"model_type": "unigram", "vocab_size": 60}, "unigram model"),
        ({**LLAMA, "normalization_rule_name": "nmt_nfkc"}, "precompiled_charsmap"),
        ({**LLAMA, "remove_extra_whitespaces": True}, "remove_extra_whitespaces"),
    ],
)
def test_models_that_would_be_nearly_right_are_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidInputError, match=named):
        with_tokenizer_json({"tokenizer.model": trained(**settings)})


def test_broken_files_are_refused(llama: bytes) -> None:
    for broken in (
        llama[:-3],
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x0b",
        llama[:5000] + b"\xff" * 9,
        b"",
    ):
        with pytest.raises(InvalidInputError):
            with_tokenizer_json({"tokenizer.model": broken})
    with pytest.raises(InvalidInputError, match="'<pad>' has id 9999"):
        with_tokenizer_json({"tokenizer.model": llama, "added_tokens.json": b'{"<pad>": 9999}'})
