"""A tokenizer tree from the archive, built in memory."""

import json
from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from csf_store import Archive, Digest
from keystone.errors import CheckpointError

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
SPECIAL_FILE = "special_tokens_map.json"
TEMPLATE_FILE = "chat_template.jinja"
_PROPERTIES = ("single_word", "lstrip", "rstrip", "normalized", "special")
READ_FILES = (TOKENIZER_FILE, CONFIG_FILE, SPECIAL_FILE, TEMPLATE_FILE)


def archived_tokenizer(archive: Archive, tree: Digest) -> PreTrainedTokenizerFast:
    """The tokenizer of a tree that holds `tokenizer.json`, and usually `tokenizer_config.json`.

    Raises:
        CheckpointError: a file is missing or cannot be read as what it should be.
        csf_store.CorruptError: bytes that do not hash to their address.
    """
    blobs = {entry.path: entry.blob for entry in archive.tree(tree).entries}
    files = {name: archive.get_bytes(blobs[name]) for name in READ_FILES if name in blobs}
    return build_tokenizer(files, f"tokenizer {tree}")


def build_tokenizer(files: Mapping[str, bytes], where: str) -> PreTrainedTokenizerFast:
    """A tokenizer from the contents of its files.

    Args:
        files: by name; `tokenizer.json` must be there, the others of `READ_FILES` may.
        where: what they belong to, for messages.

    Raises:
        CheckpointError: a file is missing or cannot be read as what it should be.
    """
    if TOKENIZER_FILE not in files:
        raise CheckpointError(f"{where} holds no {TOKENIZER_FILE}; other tokenizer formats are not read")
    try:
        tokenizer = Tokenizer.from_str(files[TOKENIZER_FILE].decode())
        config: dict[str, Any] = {}
        for name in (SPECIAL_FILE, CONFIG_FILE):  # the newer file has the last word
            if name in files:
                config |= json.loads(files[name])
        if TEMPLATE_FILE in files:
            config["chat_template"] = files[TEMPLATE_FILE].decode()
        for name in ("tokenizer_class", "auto_map", "tokenizer_file", "name_or_path"):
            config.pop(name, None)
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_objects(config))
    except Exception as error:  # the tokenizers library raises no narrower class
        raise CheckpointError(f"{where}: the tokenizer cannot be read: {error}") from error


def _objects(config: dict[str, Any]) -> dict[str, Any]:
    """Settings with tokens and templates as transformers holds them, not as its files spell them."""
    made = {name: _added_token(value) for name, value in config.items()}
    if isinstance(decoder := config.get("added_tokens_decoder"), dict):
        made["added_tokens_decoder"] = {int(index): _added_token(value) for index, value in decoder.items()}
    for name in ("additional_special_tokens", "extra_special_tokens"):
        if isinstance(config.get(name), list):
            made[name] = [_added_token(value) for value in config[name]]
    if isinstance(templates := config.get("chat_template"), list):
        made["chat_template"] = {each["name"]: each["template"] for each in templates}
    return made


def _added_token(value: Any) -> Any:
    """A token that is written out with its properties, as an object; anything else as it is."""
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        return value
    properties = {name: value[name] for name in _PROPERTIES if isinstance(value.get(name), bool)}
    return AddedToken(value["content"], **{"special": True, **properties})
