"""What both engines are run on: fixed token ids, in a document that names itself.

Half of the inputs are random ids, from a seed, so that every embedding and every position is reached; half are text.
The longest goes well past three windows, since a wrong window shows only beyond it. Each is split: the first part goes
in with one call, the rest token by token through the cache, so that prefill and decode are both held to the reference.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from csf_store import Digest
from keystone.errors import InvalidInputError
from keystone.parity.verified import BARS
from manifests import Json, ManifestError, canonical_bytes, parse_canonical

KIND = "parity-inputs"
VERSION = 1
SEED = 20_260_101
PROMPTS = (
    "def fibonacci(n: int) -> int:\n    ",
    "The three laws of thermodynamics are",
    "SELECT name, COUNT(*) FROM orders WHERE total > 100 GROUP BY",
)
MAX_CASES = 64
MAX_TOKENS = 1 << 17


@dataclass(frozen=True, slots=True)
class ParityInput:
    """One sequence of token ids.

    Attributes:
        name: for people and for tensor names.
        ids: the tokens.
        prefill: how many go in with the first call, at least one.
        origin: the seed or the text they were made from.
    """

    name: str
    ids: tuple[int, ...]
    prefill: int
    origin: str

    def to_json(self) -> dict[str, Json]:
        """One JSON object."""
        return {"name": self.name, "ids": self.ids, "prefill": self.prefill, "origin": self.origin}


@dataclass(frozen=True, slots=True)
class Specification:
    """The inputs for one base, and the dtypes they are to be run in.

    Attributes:
        base: the tree they are for.
        vocab_size: how wide the logits are.
        dtypes: `float32`, `bfloat16` or both; each input is one case in each.
        inputs: the sequences.
    """

    base: Digest
    vocab_size: int
    dtypes: tuple[str, ...]
    inputs: tuple[ParityInput, ...]

    def __post_init__(self) -> None:
        """Refuse what cannot be run or compared."""
        names = [given.name for given in self.inputs]
        if not names or len(set(names)) != len(names) or len(names) * len(self.dtypes) > MAX_CASES:
            raise InvalidInputError(f"{len(names)} inputs by the names {names[:8]}: each once, and not more than fit")
        if not self.dtypes or not set(self.dtypes) <= BARS.keys() or len(set(self.dtypes)) != len(self.dtypes):
            raise InvalidInputError(f"dtypes {self.dtypes}: say {', '.join(BARS)}, each at most once")
        for given in self.inputs:
            if not 1 <= given.prefill <= len(given.ids) <= MAX_TOKENS:
                raise InvalidInputError(f"input {given.name!r}: {given.prefill} of {len(given.ids)} tokens at first")
            if not all(0 <= token < self.vocab_size for token in given.ids):
                raise InvalidInputError(f"input {given.name!r} holds an id outside 0..{self.vocab_size - 1}")

    def to_bytes(self) -> bytes:
        """RFC 8785 bytes; their BLAKE3 is what a report names as `inputs`."""
        return canonical_bytes(
            {
                "kind": KIND,
                "v": VERSION,
                "base": str(self.base),
                "vocab_size": self.vocab_size,
                "dtypes": self.dtypes,
                "inputs": [given.to_json() for given in self.inputs],
                "record": "for every input and dtype: logits of one full forward pass, [tokens, vocab]",
            }
        )

    @property
    def digest(self) -> Digest:
        """BLAKE3 of `to_bytes()`."""
        return Digest.of(self.to_bytes())

    @classmethod
    def from_bytes(cls, data: bytes) -> "Specification":
        """Read a specification; it comes back from whoever ran the reference, so nothing in it is taken on trust.

        Raises:
            InvalidInputError: it is none.
        """
        try:
            found = parse_canonical(data)
        except ManifestError as error:
            raise InvalidInputError(f"the specification in this reference cannot be read: {error}") from error
        match found:
            case {
                "kind": "parity-inputs",
                "v": 1,
                "base": str(base),
                "vocab_size": int(vocab_size),
                "dtypes": list(dtypes),
                "inputs": list(inputs),
            } if all(isinstance(name, str) for name in dtypes):
                made = cls(Digest.parse(base), vocab_size, tuple(dtypes), tuple(_input(each) for each in inputs))
            case _:
                raise InvalidInputError(f"this is no {KIND} document of version {VERSION}")
        if made.to_bytes() != data:
            raise InvalidInputError("this specification is not in the form `keystone parity capture` writes")
        return made


def _input(value: object) -> ParityInput:
    match value:
        case {"name": str(name), "ids": list(ids), "prefill": int(prefill), "origin": str(origin)} if all(
            type(token) is int for token in ids
        ):
            return ParityInput(name, tuple(ids), prefill, origin)
    raise InvalidInputError(f"the input {str(value)[:120]} is not name, ids, prefill and origin")


def fixed_inputs(vocab_size: int, window: int, texts: Sequence[tuple[str, Sequence[int]]]) -> tuple[ParityInput, ...]:
    """The inputs that `capture` writes.

    Args:
        vocab_size: of the base.
        window: keys the local branch sees, the token itself included.
        texts: prompts and their token ids.
    """
    longest = min(max(200, 3 * window + 8), MAX_TOKENS)
    generator = random.Random(SEED)  # noqa: S311 - its sequence is fixed across releases, which is the point
    whole = tuple(generator.randrange(vocab_size) for _ in range(longest))
    stepped = tuple(generator.randrange(vocab_size) for _ in range(window + 40))
    inputs = [
        ParityInput("random-whole", whole, len(whole), f"seed {SEED}"),
        ParityInput("random-stepped", stepped, len(stepped) - 24, f"seed {SEED}, after random-whole"),
    ]
    for number, (text, ids) in enumerate(texts):
        kept = tuple(token for token in ids if token < vocab_size)
        if kept:
            inputs.append(ParityInput(f"text-{number}", kept, max(1, len(kept) // 2), text))
    return tuple(inputs)
