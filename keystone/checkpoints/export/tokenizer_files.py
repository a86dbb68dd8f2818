"""The tokenizer's files beside the weights, so that `AutoTokenizer` finds them.

They are copied as they are. A tokenizer tree may come from anybody, so only files that tokenizers are made of go out;
the rest is listed as left out. A configuration that names code of its own (`auto_map`) is rewritten to the plain fast
tokenizer, which is what this package runs.
"""

from __future__ import annotations

import json
import re

from csf_store import Archive, Digest
from keystone.checkpoints.export.source import json_object
from keystone.checkpoints.export.writing import ExportDirectory
from keystone.errors import CheckpointError

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
_KNOWN = re.compile(
    r"tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json|vocab\.json|vocab\.txt"
    r"|merges\.txt|chat_template\.jinja|additional_chat_templates/[A-Za-z0-9_-]+\.jinja|tokenizer\.model"
)
_PLAIN_CLASS = "PreTrainedTokenizerFast"


def write_tokenizer(archive: Archive, tree: Digest, directory: ExportDirectory) -> list[str]:
    """Write a tokenizer tree's files.

    Returns:
        Paths of the tree that were left out.

    Raises:
        CheckpointError: it holds no `tokenizer.json`, or a configuration that is none.
    """
    entries = {entry.path: entry for entry in archive.tree(tree).entries}
    if TOKENIZER_FILE not in entries:
        raise CheckpointError(f"tokenizer {tree} holds no {TOKENIZER_FILE}; other tokenizer formats are not read")
    for path, entry in entries.items():
        if not _KNOWN.fullmatch(path):
            continue
        data = archive.get_bytes(entry.blob)
        directory.write(path, _without_code(data, f"{path} in {tree}") if path == CONFIG_FILE else data)
    if CONFIG_FILE not in entries:
        directory.write(CONFIG_FILE, _json({"tokenizer_class": _PLAIN_CLASS}))
    return sorted(path for path in entries if not _KNOWN.fullmatch(path))


def _without_code(data: bytes, where: str) -> bytes:
    fields = json_object(data, where)
    if "auto_map" not in fields:
        return data
    del fields["auto_map"]
    return _json({**fields, "tokenizer_class": _PLAIN_CLASS})


def _json(fields: object) -> bytes:
    return (json.dumps(fields, indent=2, ensure_ascii=False) + "\n").encode()
