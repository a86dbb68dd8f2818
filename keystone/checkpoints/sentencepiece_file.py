"""A `tokenizer.model` alone, as Llama 2, Mistral and TinyLlama came: SentencePiece's own file, read as data.

The file is a protocol buffer of pieces, scores and a few settings. Its wire format is four kinds of fields, so it is
read here without the library and without running anything; `gguf_tokenizer` then rebuilds the tokenizer as it does for
GGUF files, which hold the same lists. BPE models whose normalizer does nothing but mark spaces are rebuilt, as this
architecture's families use them; others are refused by name.
"""

import struct
from collections.abc import Iterator, Mapping

from keystone.checkpoints.fields import canonical_json, parse_object
from keystone.checkpoints.gguf_tokenizer import tokenizer_from_metadata
from keystone.checkpoints.sources import Fields
from keystone.checkpoints.tokenizers import CONFIG_FILE, TOKENIZER_FILE
from keystone.errors import InvalidInputError

SENTENCEPIECE_FILE = "tokenizer.model"
ADDED_FILE = "added_tokens.json"
_USER_DEFINED = 4
_KINDS = {1: "unigram", 2: "BPE", 3: "word", 4: "character"}
_ROLES = {"unknown": (40, 0), "bos": (41, 1), "eos": (42, 2), "padding": (43, -1)}
"""Where the trainer's settings say which piece plays a role, and which one does where they do not."""
_CONTEXT = 2**31 - 1

Field = tuple[int, int | bytes]


def with_tokenizer_json(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files of a tokenizer, with a `tokenizer.json` made from its `tokenizer.model` where it has only that.

    Args:
        files: name to content; settings of `tokenizer_config.json` and `added_tokens.json` hold.

    Raises:
        InvalidInputError: the file is broken, or a model that is not rebuilt here.
    """
    if TOKENIZER_FILE in files or SENTENCEPIECE_FILE not in files:
        return dict(files)
    config = parse_object(files[CONFIG_FILE], CONFIG_FILE) if CONFIG_FILE in files else {}
    metadata = _metadata(files[SENTENCEPIECE_FILE])
    _add_tokens(metadata, _added(files, config))
    for name in ("add_bos_token", "add_eos_token"):
        if isinstance(config.get(name), bool):
            metadata[f"tokenizer.ggml.{name}"] = config[name]
    made = tokenizer_from_metadata(metadata, context=_CONTEXT)
    settings = {**parse_object(made[CONFIG_FILE], CONFIG_FILE), **config}
    if settings.get("model_max_length") == _CONTEXT:
        del settings["model_max_length"]  # nobody has said it
    # They are in tokenizer.json now, and one place is enough.
    settings.pop("added_tokens_decoder", None)
    return {**files, TOKENIZER_FILE: made[TOKENIZER_FILE], CONFIG_FILE: canonical_json(settings)}


def _metadata(data: bytes) -> dict[str, object]:
    """The file in GGUF's words."""
    tokens: list[str] = []
    scores: list[float] = []
    kinds: list[int] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    try:
        for number, value in _fields(data):
            if number == 1:
                piece = dict(_fields(_bytes(value)))
                tokens.append(_bytes(piece[1]).decode())
                scores.append(struct.unpack("<f", _bytes(piece.get(2, bytes(4))))[0])
                kinds.append(_whole(piece.get(3, 1)))
            elif number == 2:
                trainer.update(_fields(_bytes(value)))
            elif number == 3:
                normalizer.update(_fields(_bytes(value)))
    except (KeyError, UnicodeDecodeError, ValueError, struct.error) as error:
        raise InvalidInputError(
            f"{SENTENCEPIECE_FILE} is no sound SentencePiece file ({error}); fetch it again"
        ) from error
    kind = _whole(trainer.get(3, 1))
    if kind != 2 or trainer.get(24, 0) or not normalizer.get(5, 1):
        raise InvalidInputError(
            f"{SENTENCEPIECE_FILE} is a {_KINDS.get(kind, 'strange')} model"
            + (" of its own way with spaces" if kind == 2 else "")
            + "; plain BPE models are rebuilt here: give a tokenizer.json with --tokenizer"
        )
    roles = {role: _signed(_whole(trainer.get(number, usual))) for role, (number, usual) in _ROLES.items()}
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.add_space_prefix": bool(normalizer.get(3, 1)),
        "tokenizer.ggml.remove_extra_whitespaces": bool(normalizer.get(4, 1)),
        "tokenizer.ggml.precompiled_charsmap": bool(normalizer.get(2, b"")),
        **{f"tokenizer.ggml.{role}_token_id": index for role, index in roles.items() if index >= 0},
    }


def _added(files: Mapping[str, bytes], config: Fields) -> dict[int, str]:
    """Tokens beyond the pieces, by id, from either file that may name them."""
    added: dict[int, str] = {}
    decoder = config.get("added_tokens_decoder")
    for index, entry in (decoder if isinstance(decoder, dict) else {}).items():
        if str(index).isdigit() and isinstance(entry, dict) and isinstance(entry.get("content"), str):
            added[int(index)] = entry["content"]
    if ADDED_FILE in files:
        named = parse_object(files[ADDED_FILE], ADDED_FILE)
        added |= {index: token for token, index in named.items() if isinstance(index, int)}
    return added


def _add_tokens(metadata: dict[str, object], added: Mapping[int, str]) -> None:
    tokens, scores, kinds = (metadata[f"tokenizer.ggml.{name}"] for name in ("tokens", "scores", "token_type"))
    if not (isinstance(tokens, list) and isinstance(scores, list) and isinstance(kinds, list)):
        return
    for index, token in sorted(added.items()):
        if index < len(tokens) and tokens[index] == token:
            continue
        if index != len(tokens) or token in tokens:
            raise InvalidInputError(
                f"the added token {token!r} has id {index}, and the pieces before it end at {len(tokens) - 1}; give a"
                " tokenizer.json with --tokenizer"
            )
        tokens.append(token)
        scores.append(0.0)
        # Found in a text as a whole; that it is not to be shown, transformers reads from the settings.
        kinds.append(_USER_DEFINED)


def _fields(data: bytes) -> Iterator[Field]:
    """Number and content of each field of a message; fixed-width ones as their bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        match key & 7:
            case 0:
                value, at = _varint(data, at)
                yield key >> 3, value
                continue
            case 1:
                length = 8
            case 5:
                length = 4
            case 2:
                length, at = _varint(data, at)
            case other:
                raise ValueError(f"a field of wire type {other} at byte {at}")
        if length > len(data) - at:
            raise ValueError(f"a field of {length} bytes at byte {at}, beyond the end")
        yield key >> 3, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError(f"a number without an end at byte {at}")


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, bytes):
        return value
    raise ValueError("a number where text should be")


def _whole(value: int | bytes) -> int:
    if isinstance(value, int):
        return value
    raise ValueError("text where a number should be")
