"""A tokenizer tree from the archive, built in memory."""

import json
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from csf_store import Archive, Digest
from keystone.errors import CheckpointError

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"


def archived_tokenizer(archive: Archive, tree: Digest) -> PreTrainedTokenizerFast:
    """The tokenizer of a tree that holds `tokenizer.json`, and usually `tokenizer_config.json`.

    Raises:
        CheckpointError: a file is missing or cannot be read as what it should be.
        csf_store.CorruptError: bytes that do not hash to their address.
    """
    files = {entry.path: entry.blob for entry in archive.tree(tree).entries}
    if TOKENIZER_FILE not in files:
        raise CheckpointError(f"tokenizer {tree} holds no {TOKENIZER_FILE}; other tokenizer formats are not read")
    try:
        tokenizer = Tokenizer.from_str(archive.get_bytes(files[TOKENIZER_FILE]).decode())
        config: dict[str, Any] = json.loads(archive.get_bytes(files[CONFIG_FILE])) if CONFIG_FILE in files else {}
    except Exception as error:  # the tokenizers library raises no narrower class
        raise CheckpointError(f"tokenizer {tree} cannot be read: {error}") from error
    if TEMPLATE_FILE in files:
        config["chat_template"] = archive.get_bytes(files[TEMPLATE_FILE]).decode()
    for name in ("tokenizer_class", "auto_map", "tokenizer_file", "name_or_path"):
        config.pop(name, None)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **config)
