"""The tokenizer that ships with nano."""

import json
from importlib import resources
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from keystone.evaluation.basics import draw_held_out
from keystone.nano.corpus import exercise_documents, stdlib_documents
from keystone.nano.tokenizer import (
    ASSISTANT_ID,
    END_ID,
    PAD_ID,
    SPECIAL_TOKENS,
    SYSTEM_ID,
    USER_ID,
    VOCABULARY_SIZE,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
)

FOLDER = Path(str(resources.files("keystone.nano"))) / "data" / "tokenizer"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer()


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _pieces(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    return [tokenizer.decode([i]) for i in _ids(tokenizer, text)]


def test_it_has_exactly_the_promised_size_and_special_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    assert len(tokenizer) == tokenizer.vocab_size == VOCABULARY_SIZE == 4096
    assert sorted(tokenizer.get_vocab().values()) == list(range(4096))
    assert tokenizer.convert_ids_to_tokens(list(range(len(SPECIAL_TOKENS)))) == list(SPECIAL_TOKENS)
    assert (
        (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id)
        == (END_ID, END_ID, PAD_ID)
        == (0, 0, 1)
    )
    assert (USER_ID, ASSISTANT_ID, SYSTEM_ID) == (2, 3, 4)


@pytest.mark.parametrize(
    "text", ["", " ", "\t\x00", "naïve 漢字 🙂\n", "a  b\r\n\n\n   c", "x" * 300, "\n    \n        y\n"]
)
def test_every_text_comes_back(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    assert tokenizer.decode(_ids(tokenizer, text)) == text


def test_training_text_comes_back(tokenizer: PreTrainedTokenizerBase) -> None:
    for document in exercise_documents(100, 31):
        assert tokenizer.decode(_ids(tokenizer, document.text)) == document.text


def test_digits_stand_alone_without_a_space(tokenizer: PreTrainedTokenizerBase) -> None:
    assert _pieces(tokenizer, "x > 127") == ["x", " >", " ", "1", "2", "7"]
    assert _ids(tokenizer, "[:7]")[1:2] == _ids(tokenizer, "first 7")[-1:]
    assert not [
        token
        for token in tokenizer.get_vocab()
        if sum(c.isdigit() for c in token) and len(token) > 1 and "<" not in token
    ]


@pytest.mark.parametrize("width", [4, 8, 12, 16])
def test_an_indentation_is_one_token(tokenizer: PreTrainedTokenizerBase, width: int) -> None:
    assert _pieces(tokenizer, f"a\n{' ' * width}return x") == ["a", "\n", " " * width, "return", " x"]


def test_a_prompt_and_its_solution_are_cut_as_the_whole_is(tokenizer: PreTrainedTokenizerBase) -> None:
    lengths = []
    for task in draw_held_out(200, 17):
        whole = _ids(tokenizer, task.source)
        assert _ids(tokenizer, task.prompt) + _ids(tokenizer, task.solution) == whole
        lengths.append(len(whole))
    assert max(lengths) <= 160
    assert 60 <= sum(lengths) / len(lengths) <= 110


def test_python_is_compact(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = [document.text for document in stdlib_documents("held-out")]
    tokens = sum(len(tokenizer.backend_tokenizer.encode(text).ids) for text in texts)
    assert sum(len(text.encode()) for text in texts) / tokens > 3.0


def test_special_tokens_in_text_are_special_and_can_be_skipped(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = _ids(tokenizer, "a<|end|>")
    assert ids[-1] == END_ID
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a"


def test_the_chat_template_marks_who_speaks(tokenizer: PreTrainedTokenizerBase) -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|system|>s<|end|><|user|>u<|end|><|assistant|>"
    ids = _ids(tokenizer, str(text))
    assert (ids[0], ids[-1]) == (SYSTEM_ID, ASSISTANT_ID)


def test_a_text_to_continue_begins_as_documents_did_in_training(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer("def f():")["input_ids"] == [END_ID, *_ids(tokenizer, "def f():")]
    assert tokenizer("")["input_ids"] == [END_ID]
    assert tokenizer.decode(tokenizer("x = 1\n")["input_ids"], skip_special_tokens=True) == "x = 1\n"


def test_transformers_finds_it_by_itself(tokenizer: PreTrainedTokenizerBase) -> None:
    found = AutoTokenizer.from_pretrained(FOLDER)
    text = "def f(x):\n    return x + 12\n"
    assert found(text)["input_ids"] == [END_ID, *_ids(tokenizer, text)]
    assert found.eos_token_id == END_ID


def test_the_files_name_no_machine_and_hold_nothing_else() -> None:
    assert sorted(path.name for path in FOLDER.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    config = (FOLDER / "tokenizer_config.json").read_text("utf-8")
    assert not [place for place in ("/root", "/home", "/tmp", "/work", "name_or_path") if place in config]
    assert set(json.loads((FOLDER / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]) >= set(SPECIAL_TOKENS)


def test_the_same_text_gives_the_same_bytes(tmp_path: Path) -> None:
    texts = [document.text for document in exercise_documents(400, 2)]
    for name in ("a", "b"):
        save_tokenizer(train_tokenizer(iter(texts)), tmp_path / name)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
