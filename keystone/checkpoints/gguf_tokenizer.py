"""A tokenizer from GGUF metadata, written as the files that a tokenizer tree holds.

Two kinds are rebuilt: byte-level BPE (`gpt2`), whose merges the file lists and whose way of cutting text first it only
names; and SentencePiece BPE (`llama`), whose merges follow from the pieces' scores. A way of cutting that is not in the
table is refused by name: a tokenizer that is nearly right gives a model that is silently worse.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from keystone.checkpoints.fields import canonical_json
from keystone.checkpoints.sources import Fields
from keystone.checkpoints.tokenizers import CONFIG_FILE, TEMPLATE_FILE, TOKENIZER_FILE
from keystone.errors import InvalidInputError

_CONTROL, _USER, _BYTE, _UNKNOWN, _UNUSED = 3, 4, 6, 2, 5
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _TAIL
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _TAIL
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS: Mapping[str, str] = {
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), _LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _QWEN2),
    "tekken": _TEKKEN,
}
"""Ways of cutting a text before BPE, by llama.cpp's names, as one pattern."""

DIGITS_FIRST = ("smollm", "starcoder", "refact")
"""These cut every digit off first, and then as GPT-2 did."""

GPT2 = ("gpt-2",)
WHOLE_WORDS_FIRST = ("llama-bpe", "llama3", "llama-v3", "tekken")
"""Here a piece that is a token as a whole is not built from merges, and a text begins with its token."""


def tokenizer_from_metadata(metadata: Fields, *, context: int) -> dict[str, bytes]:
    """The files of the tokenizer that a GGUF file describes.

    Args:
        metadata: key to value.
        context: the longest text the model takes, in tokens.

    Raises:
        InvalidInputError: another kind of tokenizer, another way of cutting, or lists that do not fit each other.
    """
    tokens = _strings(metadata, "tokens")
    if len(set(tokens)) != len(tokens):
        raise InvalidInputError("tokenizer.ggml.tokens names a token twice; which id it has cannot be known")
    kinds = metadata.get("tokenizer.ggml.token_type")
    kinds = kinds if isinstance(kinds, list) and len(kinds) == len(tokens) else [1] * len(tokens)
    original = metadata.get("tokenizer.huggingface.json")
    try:
        if isinstance(original, str):
            made = Tokenizer.from_str(original)
        else:
            match metadata.get("tokenizer.ggml.model"):
                case "gpt2":
                    made = _byte_level(metadata, tokens)
                case "llama":
                    made = _sentencepiece(metadata, tokens, kinds)
                case other:
                    raise InvalidInputError(
                        f"tokenizer.ggml.model is {other!r}; gpt2 and llama are rebuilt, or give one with --tokenizer"
                    )
            _add_tokens(made, tokens, kinds)
            _frame(made, metadata, tokens)
        text = json.dumps(json.loads(made.to_str()), ensure_ascii=False, separators=(",", ":"))
    except InvalidInputError:
        raise
    except Exception as error:  # the tokenizers library raises no narrower class
        raise InvalidInputError(f"the tokenizer in this file cannot be rebuilt: {error}") from error
    files = {TOKENIZER_FILE: text.encode(), CONFIG_FILE: canonical_json(_config(metadata, tokens, context))}
    template = metadata.get("tokenizer.chat_template")
    if isinstance(template, str) and template:
        files[TEMPLATE_FILE] = template.encode()
    return files


def _strings(metadata: Fields, name: str) -> list[str]:
    value = metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise InvalidInputError(f"the file holds no tokenizer.ggml.{name}; give a tokenizer with --tokenizer")
    return value


def _byte_level(metadata: Fields, tokens: Sequence[str]) -> Tokenizer:
    pre = metadata.get("tokenizer.ggml.pre")
    pairs = [merge.partition(" ") for merge in _strings(metadata, "merges")]
    merges = [(left, right) for left, _, right in pairs]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    made = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=pre in WHOLE_WORDS_FIRST))
    prefix = metadata.get("tokenizer.ggml.add_space_prefix") is True
    if isinstance(pre, str) and pre in PATTERNS:
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(PATTERNS[pre]), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False),
            ]
        )
    elif pre in DIGITS_FIRST:
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=prefix)]
        )
    elif pre in GPT2:
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    else:
        known = ", ".join(sorted({*PATTERNS, *DIGITS_FIRST, *GPT2}))
        raise InvalidInputError(
            f"tokenizer.ggml.pre is {pre!r}, and how it cuts a text is not known here ({known} are); give the original"
            " tokenizer with --tokenizer"
        )
    if PATTERNS.get(str(pre)) == _QWEN2:
        made.normalizer = normalizers.NFC()
    made.decoder = decoders.ByteLevel()
    return made


def _sentencepiece(metadata: Fields, tokens: Sequence[str], kinds: Sequence[int]) -> Tokenizer:
    for key in ("remove_extra_whitespaces", "precompiled_charsmap"):
        if metadata.get(f"tokenizer.ggml.{key}"):
            raise InvalidInputError(f"tokenizer.ggml.{key} is set, which is not rebuilt; give one with --tokenizer")
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise InvalidInputError("tokenizer.ggml.scores does not have a score for every token")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    unknown = next((token for token, kind in zip(tokens, kinds, strict=True) if kind == _UNKNOWN), None)
    merges = merges_from_scores(vocabulary, scores, kinds)
    made = Tokenizer(models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=_BYTE in kinds))
    prefix = metadata.get("tokenizer.ggml.add_space_prefix") is not False
    steps: list[Any] = [normalizers.Prepend("▁")] if prefix else []
    made.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    back: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*back, decoders.Strip(" ", 1, 0)] if prefix else back)
    return made


def merges_from_scores(
    vocabulary: Mapping[str, int], scores: Sequence[float], kinds: Sequence[int]
) -> list[tuple[str, str]]:
    """The merges that SentencePiece would do, best first: every pair of pieces that makes a piece.

    SentencePiece joins whichever neighbours make the piece of the highest score; BPE joins the pair that comes first in
    its list. Pairs are therefore listed by the score of what they make.
    """
    ranked: list[tuple[float, int, int, str, str]] = []
    for piece, index in vocabulary.items():
        if kinds[index] in (_CONTROL, _BYTE, _UNKNOWN, _UNUSED):
            continue
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocabulary and right in vocabulary:
                ranked.append((-scores[index], vocabulary[left], vocabulary[right], left, right))
    return [(left, right) for *_, left, right in sorted(ranked)]


def _add_tokens(made: Tokenizer, tokens: Sequence[str], kinds: Sequence[int]) -> None:
    """Tokens that are found in a text before anything else; control tokens are left out of what people read."""
    for token, kind in zip(tokens, kinds, strict=True):
        if kind == _CONTROL:
            made.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif kind == _USER:
            made.add_tokens([AddedToken(token, special=False, normalized=False)])


def _frame(made: Tokenizer, metadata: Fields, tokens: Sequence[str]) -> None:
    """What every text begins and ends with."""
    usual = metadata.get("tokenizer.ggml.model") == "llama" or metadata.get("tokenizer.ggml.pre") in WHOLE_WORDS_FIRST
    begin = _token(metadata, tokens, "bos") if _flag(metadata, "add_bos_token", usual=usual) else None
    end = _token(metadata, tokens, "eos") if _flag(metadata, "add_eos_token", usual=False) else None
    if begin is None and end is None:
        return
    shape = [*([begin[0]] if begin else []), "$A", *([end[0]] if end else [])]
    pair = [*shape, *([f"{begin[0]}:1"] if begin else []), "$B:1", *([f"{end[0]}:1"] if end else [])]
    made.post_processor = processors.TemplateProcessing(
        single=shape, pair=pair, special_tokens=[each for each in (begin, end) if each]
    )


def _flag(metadata: Fields, name: str, *, usual: bool) -> bool:
    value = metadata.get(f"tokenizer.ggml.{name}")
    return value if isinstance(value, bool) else usual


def _token(metadata: Fields, tokens: Sequence[str], role: str) -> tuple[str, int] | None:
    index = metadata.get(f"tokenizer.ggml.{role}_token_id")
    if not isinstance(index, int) or isinstance(index, bool):
        return None
    if not 0 <= index < len(tokens):
        raise InvalidInputError(f"tokenizer.ggml.{role}_token_id is {index}, and there are {len(tokens)} tokens")
    return tokens[index], index


def _config(metadata: Fields, tokens: Sequence[str], context: int) -> dict[str, object]:
    fields: dict[str, object] = {"clean_up_tokenization_spaces": False, "model_max_length": context}
    for role, key in (("bos", "bos_token"), ("eos", "eos_token"), ("unknown", "unk_token"), ("padding", "pad_token")):
        found = _token(metadata, tokens, role)
        if found is not None:
            fields[key] = found[0]
    return fields
