"""What a request may ask for, and what it will need: lengths in tokens, keys and values in bytes."""

from collections.abc import Iterable

import torch

from keystone.model import KeystoneConfig
from keystone.model.cache import cache_bytes
from keystone.serve.errors import BadRequestError, LimitError
from keystone.serve.generation import GenerationRequest
from keystone.serve.limits import Limits


class Admission:
    """The measure of requests to one model.

    Args:
        limits: of the server.
        config: the model's.
        dtype: of its keys and values.
    """

    def __init__(self, limits: Limits, config: KeystoneConfig, dtype: torch.dtype) -> None:
        self._limits = limits
        self._config = config
        self._dtype = dtype

    def room(self, prompt_tokens: int) -> int:
        """How many tokens an answer to a prompt of this length may have."""
        room = self._config.max_position_embeddings - prompt_tokens
        return room if self._limits.output_tokens is None else min(room, self._limits.output_tokens)

    def check(self, request: GenerationRequest) -> None:
        """Refuse what will never fit.

        Raises:
            LimitError: prompt or answer are longer than allowed, or their keys and values larger.
            BadRequestError: more answers than allowed.
        """
        length, context = len(request.prompt), self._config.max_position_embeddings
        if not length:
            raise LimitError("the prompt has no tokens", parameter="prompt")
        longest = min(context - 1, self._limits.prompt_tokens or context)
        if length > longest:
            raise LimitError(
                f"the prompt has {length} tokens; this model's context is {context}, and this server takes at most"
                f" {longest}",
                parameter="prompt",
            )
        asked, most = request.max_tokens, self._limits.output_tokens
        if asked is not None and most is not None and asked > most:
            raise LimitError(f"max_tokens is {asked}; this server allows {most}", parameter="max_tokens")
        if request.choices > min(self._limits.choices, self._limits.streams):
            most = min(self._limits.choices, self._limits.streams)
            raise BadRequestError(f"{request.choices} answers at once; this server allows {most}", parameter="n")
        if self.needed([(self.length(request), request.choices)]) > self._limits.cache_bytes:
            raise LimitError(
                "keys and values of this request alone do not fit; ask for fewer tokens", parameter="max_tokens"
            )

    def length(self, request: GenerationRequest) -> int:
        """Tokens that a sequence of this request may come to."""
        room = self.room(len(request.prompt))
        return len(request.prompt) + (room if request.max_tokens is None else min(room, request.max_tokens))

    def needed(self, shapes: Iterable[tuple[int, int]]) -> int:
        """Bytes for sequences that share a batch: each gets the room of the longest, and a quarter to grow."""
        lengths, counts = zip(*shapes, strict=True)
        room = min(self._config.max_position_embeddings, max(lengths)) * 5 // 4 + 32
        return cache_bytes(self._config, room, self._dtype, sequences=sum(counts))
