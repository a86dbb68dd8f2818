"""A tokenizer as GGUF metadata, and the proof that it is still the same tokenizer.

GGUF holds a byte-level BPE's tokens and merges, but of the way a text is cut first only a name, which llama.cpp has
code for. So each name that is known here is tried: the tokenizer that our own reader rebuilds from the metadata must
give the original's ids for texts that tell the known ways apart. Where none does, the export is refused: a tokenizer
that is nearly right gives a model that is silently worse.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from tokenizers import Tokenizer

from csf_store import Archive, Digest
from keystone.checkpoints.export.source import ExportSource, json_object
from keystone.checkpoints.gguf_tokenizer import DIGITS_FIRST, GPT2, PATTERNS, tokenizer_from_metadata
from keystone.errors import InvalidInputError, RefusedError

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Kinds of tokens, by GGUF's numbers."""

CANDIDATES = ("llama-bpe", "qwen2", "tekken", "smollm", "gpt-2")
"""One name for each way of cutting that the reader knows; the others are further names of these."""

PROBES = (
    "Hello, World! It's 2024, isn't it? WE'LL SEE'S",
    "1234567 + 89 = 1234656; 3.14159e-10, 0x1F, 1,000,000",
    "def f(x, y=None):\n    return [x ** 2 for _ in range(10)]\n\n\n\t\tpass   \n",
    "  leading and   several   spaces \t tabs\r\nand\r\n\r\nlines  ",
    "naïve café Ünïcödé ÇA ßtraße ŒUVRE ǅungla",
    "日本語のテキスト、한국어 텍스트。Русский текст; العربية ١٢٣ हिन्दी",
    "emoji 🙂👩‍👩‍👧 and symbols ©™…—“quotes” ½ ² Ⅷ",
    "camelCaseIDsAndHTTPServer snake_case kebab-case a/b\\c //comment /* x */ #!@$%^&*()",
    "e\u0301 o\u0308 A\u030a\u200b\u00a0nbsp",
    "'s 'S 'll 'LL 're 'VE don't DON'T",
    "...\n\n!!!\n?? ) ]}\n;",
)
"""Texts on which the ways of cutting differ: digits, contractions, case, line ends, runs of spaces, scripts, marks."""


@dataclass(frozen=True)
class GgufVocabulary:
    """What goes into the file.

    Attributes:
        pre: the name of the way a text is cut.
        tokens: every token, in order of ids, up to the rows of the embedding.
        kinds: of each token.
        merges: `left right`, best first.
        special: role (`bos`, `eos`, `eot`, `eom`, `padding`) -> id.
        add_bos: whether a text begins with its token.
        template: the chat template, if there is one.
    """

    pre: str
    tokens: tuple[str, ...]
    kinds: tuple[int, ...]
    merges: tuple[str, ...]
    special: Mapping[str, int]
    add_bos: bool
    template: str | None

    def metadata(self) -> dict[str, object]:
        """As the keys of a GGUF file, for our own reader."""
        made: dict[str, object] = {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": self.pre,
            "tokenizer.ggml.tokens": list(self.tokens),
            "tokenizer.ggml.token_type": list(self.kinds),
            "tokenizer.ggml.merges": list(self.merges),
            "tokenizer.ggml.add_bos_token": self.add_bos,
            "tokenizer.ggml.add_space_prefix": False,
        }
        return made | {f"tokenizer.ggml.{role}_token_id": index for role, index in self.special.items()}


def gguf_vocabulary(source: ExportSource) -> GgufVocabulary:
    """The vocabulary of a manifest's tokenizer.

    Raises:
        RefusedError: it is no byte-level BPE, it has no known name for how it cuts a text, or GGUF cannot hold it.
        CheckpointError: the tree holds no readable tokenizer.
    """
    tree = source.manifest.assembly.tokenizer
    files = _files(source.archive, tree)
    if "tokenizer.json" not in files:
        raise RefusedError(f"tokenizer {tree} holds no tokenizer.json; GGUF is written from that alone")
    fields = json_object(files["tokenizer.json"], f"tokenizer.json in {tree}")
    model = fields.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE" or "ByteLevel" not in json.dumps(fields["decoder"]):
        raise RefusedError(
            f"tokenizer {tree} is no byte-level BPE; only those are written, since only those are proven"
        )
    original = Tokenizer.from_str(files["tokenizer.json"].decode())
    unnamed = GgufVocabulary(
        pre="",
        tokens=_tokens(original, source.config.vocab_size, tree),
        kinds=_kinds(original, source.config.vocab_size),
        merges=_merges(model.get("merges"), tree),
        special=_special(source),
        add_bos=_adds_bos(original, _special(source), tree),
        template=_template(files, tree),
    )
    fitting = [made for pre in CANDIDATES if same_ids(original, made := replace(unnamed, pre=pre))]
    if fitting:
        # A small vocabulary may not tell two ways apart; the one that is written as the original is comes first.
        return next((made for made in fitting if _cuts_alike(original, made)), fitting[0])
    known = ", ".join(sorted({*PATTERNS, *DIGITS_FIRST, *GPT2}))
    raise RefusedError(
        f"tokenizer {tree} cuts texts in a way that has no name known here ({known} have); llama.cpp would cut them"
        " otherwise and the model would see other tokens"
    )


def same_ids(original: Tokenizer, made: GgufVocabulary) -> bool:
    """Whether the tokenizer that a reader rebuilds from the metadata is the original, as far as the probes tell."""
    try:
        rebuilt = _rebuilt(made)
    except InvalidInputError:
        return False
    added = [token for token, kind in zip(made.tokens, made.kinds, strict=True) if kind in (CONTROL, USER_DEFINED)]
    probes = [*PROBES, *(f"a {token}b {token}" for token in added[:256])]
    return all(original.encode(probe).ids == rebuilt.encode(probe).ids for probe in probes)


def _rebuilt(made: GgufVocabulary) -> Tokenizer:
    return Tokenizer.from_str(tokenizer_from_metadata(made.metadata(), context=1)["tokenizer.json"].decode())


def _cuts_alike(original: Tokenizer, made: GgufVocabulary) -> bool:
    steps = [json.loads(each.to_str())["pre_tokenizer"] for each in (original, _rebuilt(made))]
    return bool(steps[0] == steps[1])


def _files(archive: Archive, tree: Digest) -> dict[str, bytes]:
    wanted = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    return {entry.path: archive.get_bytes(entry.blob) for entry in archive.tree(tree).entries if entry.path in wanted}


def _tokens(original: Tokenizer, rows: int, tree: Digest) -> tuple[str, ...]:
    vocabulary = original.get_vocab(with_added_tokens=True)
    by_id = {index: token for token, index in vocabulary.items()}
    if by_id and max(by_id) >= rows:
        raise RefusedError(f"tokenizer {tree} has id {max(by_id)}, and the model has embeddings for {rows} ids alone")
    return tuple(by_id.get(index, f"[PAD{index}]") for index in range(rows))


def _kinds(original: Tokenizer, rows: int) -> tuple[int, ...]:
    known = set(original.get_vocab(with_added_tokens=True).values())
    kinds = [NORMAL if index in known else UNUSED for index in range(rows)]
    for index, token in original.get_added_tokens_decoder().items():
        kinds[index] = CONTROL if token.special else USER_DEFINED
    return tuple(kinds)


def _merges(value: object, tree: Digest) -> tuple[str, ...]:
    def texts() -> Iterator[str]:
        for merge in value if isinstance(value, list) else []:
            pair = merge if isinstance(merge, list) else str(merge).split(" ")
            if len(pair) != 2 or any(not isinstance(part, str) or " " in part or not part for part in pair):
                raise RefusedError(f"tokenizer {tree} has the merge {str(merge)[:80]!r}, which GGUF has no form for")
            yield " ".join(pair)

    return tuple(texts())


def _special(source: ExportSource) -> dict[str, int]:
    ends = source.config.eos_token_id
    listed = [] if ends is None else list(ends) if isinstance(ends, list) else [ends]
    if len(listed) > 3:
        raise RefusedError(f"this base has {len(listed)} end tokens; GGUF holds three")
    found = dict(zip(("eos", "eot", "eom"), listed, strict=False))
    others = (("bos", source.config.bos_token_id), ("padding", source.config.pad_token_id))
    return found | {role: index for role, index in others if isinstance(index, int) and index >= 0}


def _adds_bos(original: Tokenizer, special: Mapping[str, int], tree: Digest) -> bool:
    plain, framed = original.encode("x", add_special_tokens=False).ids, original.encode("x").ids
    if framed == plain:
        return False
    if framed == [special.get("bos"), *plain]:
        return True
    raise RefusedError(f"tokenizer {tree} frames a text with more than its first token; GGUF cannot say how")


def _template(files: Mapping[str, bytes], tree: Digest) -> str | None:
    if "chat_template.jinja" in files:
        return files["chat_template.jinja"].decode()
    config = json_object(files.get("tokenizer_config.json", b"{}"), f"tokenizer_config.json in {tree}")
    template = config.get("chat_template")
    return template if isinstance(template, str) else None
