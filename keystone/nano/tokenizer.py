"""The tokenizer of keystone-nano: a byte-level BPE of exactly 4,096 tokens, made for small Python.

How text is cut before any merge decides how much a small model has to learn:

- a line break is one token and the whole indentation after it another, so a prompt that ends with its newline is cut
  exactly as the same text was in training;
- words take their leading space, and the parts of a snake_case name are words of their own;
- digits stand alone and never take the space before them, so the 7 in `[:7]` and the 7 in "the first 7" are the same
  token, and copying a number is copying.

`python -m keystone.nano.tokenizer OUT` trains it again; the same corpus gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import click

from keystone.nano.corpus import exercise_documents, stdlib_documents

if TYPE_CHECKING:  # transformers takes seconds to import; whoever only wants the ids does not wait for it
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

VOCABULARY_SIZE = 4096
SPECIAL_TOKENS = ("<|end|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|system|>", "<|reserved_0|>", "<|reserved_1|>")
END_ID, PAD_ID, USER_ID, ASSISTANT_ID, SYSTEM_ID = range(5)
MAX_LENGTH = 1024

_EXERCISES = 20_000
_EXERCISE_SEED = 0
_CUTS = r"\n+|\A +|(?<=\n) +| ?_*\p{L}+|\d| ?[^\s\p{L}\d]+| +|\s+"
_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def load_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer that ships with the package."""
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415 - heavy, and not needed to train the tokenizer

    with resources.as_file(resources.files("keystone.nano") / "data" / "tokenizer") as folder:
        tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
    return tokenizer


def train_tokenizer(texts: Iterator[str]) -> Tokenizer:
    """Learn the merges from `texts`."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers  # noqa: PLC0415 - see above

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CUTS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # Every document nano learned from followed an end token, so a text to continue begins with one, too.
    end = SPECIAL_TOKENS[END_ID]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{end} $A", special_tokens=[(end, END_ID)])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`, the same bytes for the same tokenizer on every machine."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(
        json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False) + "\n", "utf-8"
    )
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL_TOKENS[END_ID],
        "eos_token": SPECIAL_TOKENS[END_ID],
        "pad_token": SPECIAL_TOKENS[PAD_ID],
        "model_max_length": MAX_LENGTH,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "chat_template": _CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def training_texts() -> Iterator[str]:
    """What the tokenizer is trained on: the library's training side, and exercises."""
    for document in stdlib_documents("train"):
        yield document.text
    for document in exercise_documents(_EXERCISES, _EXERCISE_SEED):
        yield document.text


@click.command()
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
def main(out: Path) -> None:
    """Train the tokenizer and write it to OUT."""
    save_tokenizer(train_tokenizer(training_texts()), out)
    click.echo(f"wrote {VOCABULARY_SIZE} tokens to {out}")


if __name__ == "__main__":
    main()
