"""One answer while it grows: its draws, its text, and what of both may be sent already."""

from collections import deque
from collections.abc import Collection

from keystone.serve.generation import Failed, Finished, FinishReason, Generation, Piece
from keystone.serve.sampling import Row, Sampler, TokenScore, score
from keystone.serve.text import Decoder, Detokeniser, StopFilter


class Answer:
    """One choice of one request.

    Attributes:
        generation: the request it belongs to.
        ids: the tokens so far; the last one has not been through the model.
        done: whether it is complete; nothing is sent any more.
        retries: how often it had to be computed again after a batch broke.
    """

    def __init__(self, generation: Generation, choice: int, tokenizer: Decoder, limit: int) -> None:
        request = generation.request
        self.generation = generation
        self.choice = choice
        self.ids: list[int] = []
        self.done = False
        self.retries = 0
        self._limit = limit
        self._guide = None if request.grammar is None else request.grammar.guide()
        self._sampler = Sampler(request.sampling, choice, request.prompt)
        self._text = Detokeniser(tokenizer, request.marks)
        self._stops = StopFilter(request.stops)
        self._scores: deque[tuple[int, TokenScore]] = deque()
        self._decoded = 0
        self._sent = 0

    @property
    def plain_greedy(self) -> bool:
        """Whether it takes the likeliest token, so that a whole batch can be asked at once."""
        return self.generation.request.sampling.plain_greedy and self._guide is None

    def take(self, logits_V: Row | None, likeliest: int, ends: Collection[int]) -> None:  # noqa: N803
        """Choose the next token and send what text it makes certain.

        Args:
            logits_V: `[V]`; may be None for a plain greedy answer.
            likeliest: the token with the highest logit; read for a plain greedy answer only.
            ends: tokens that end an answer.
        """
        sampling = self.generation.request.sampling
        if logits_V is None or self.plain_greedy:
            token = likeliest
            self._sampler.accept(token)
        else:
            token = self._sampler.draw(logits_V if self._guide is None else self._guide.mask(logits_V))
        self.ids.append(token)
        if token in ends and not self.generation.request.ignore_end:
            self._finish("stop")
            return
        complete = self._guide is not None and self._guide.accept(token)
        text = self._text.feed(token)
        self._decoded += len(text)
        if sampling.scores and logits_V is not None:
            self._scores.append((self._decoded, score(logits_V, token, sampling.alternatives)))
        self._send(self._stops.feed(text))
        if self._stops.stopped is not None:
            self._end("stop")
        elif complete:
            self._finish("stop")
        elif len(self.ids) >= self._limit:
            self._finish("length")

    def fail(self, failed: Failed) -> None:
        """End the whole request; its other answers notice by themselves."""
        self.done = True
        deliver(self.generation, failed)
        self.generation.cancel()

    def _finish(self, reason: FinishReason) -> None:
        rest = self._text.flush()
        self._decoded += len(rest)
        text = self._stops.feed(rest)
        if self._stops.stopped is not None:
            reason = "stop"
        self._send(text + self._stops.flush())
        self._end(reason)

    def _send(self, text: str) -> None:
        self._sent += len(text)
        ready: list[TokenScore] = []
        while self._scores and self._scores[0][0] <= self._sent:
            ready.append(self._scores.popleft()[1])
        if text or ready:
            deliver(self.generation, Piece(self.choice, text, tuple(ready)))

    def _end(self, reason: FinishReason) -> None:
        self.done = True
        deliver(self.generation, Finished(self.choice, reason, len(self.ids)))


def deliver(generation: Generation, event: Piece | Finished | Failed) -> None:
    """Hand an event to whoever listens, unless nobody does any more."""
    if generation.cancelled:
        return
    try:
        generation.deliver(event)
    except Exception:  # noqa: BLE001 - a listener's failure is the listener's, and must not reach the other answers
        generation.cancel()
