"""Continuous batching: a thread owns the model, and requests come and go between its steps.

Each round admits what fits, runs one chunk of one prompt (or all short prompts together), then one decode step of
every batch. So a long prompt delays a running stream by one chunk, never by its whole length. Answers with the same
adapters share a batch; batches with other adapters take turns on the same base.

When a batch breaks, nobody can tell which of its sequences was at fault. So each is computed again from its tokens,
alone, and only what breaks again fails: the others go on where they were.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from keystone.model import KeystoneCache, KeystoneConfig
from keystone.model.cache import cache_bytes
from keystone.serve.answers import Answer, deliver
from keystone.serve.batches import Batch, Prompt, Runner
from keystone.serve.errors import (
    BadRequestError,
    BusyError,
    LimitError,
    ModelFailedError,
    ServeError,
    StoppingError,
    TimeLimitError,
)
from keystone.serve.generation import Event, Failed, Generation, GenerationRequest, Timing
from keystone.serve.grammar import Grammars
from keystone.serve.limits import Limits
from keystone.serve.prefixes import PrefixStore, Variant
from keystone.serve.queueing import FairQueue

T = TypeVar("T")
_IDLE_WAIT = 0.5  # seconds; only deadlines of the queue need the thread to look without being woken


@dataclass
class Counters:
    """What an engine did so far; read by `/metrics` without a lock, since each is one number."""

    prompt_tokens: int = 0
    reused_tokens: int = 0
    generated_tokens: int = 0
    requests: int = 0
    refused: int = 0
    failed: int = 0
    cancelled: int = 0
    steps: int = 0
    step_seconds: float = 0.0
    recovered: int = 0
    finished_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=16))


class Engine:
    """One base in memory, answering.

    Args:
        model: the base with whatever adapters are attached; only the engine's thread runs it.
        tokenizer: its tokenizer.
        config: the model's configuration.
        limits: what it takes on.
        select: puts a set of adapters on; called by the engine's thread before each step with other ones.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerFast,
        config: KeystoneConfig,
        *,
        limits: Limits | None = None,
        select: Callable[[Variant], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits or Limits()
        self.tokenizer = tokenizer
        self.config = config
        self.counters = Counters()
        self.ends = end_tokens(config, tokenizer)
        self.grammars = Grammars(tokenizer, config.vocab_size, self.ends)
        first = next(model.parameters())
        self.on_card = first.device.type != "cpu"
        self._dtype = first.dtype
        self._runner = Runner(model, config)
        self._select = select
        self._clock = clock
        self._wake = threading.Condition()
        self._queue = FairQueue()
        self._jobs: deque[Callable[[], None]] = deque()
        self._prompts: deque[Prompt] = deque()
        self._batches: dict[Variant, Batch] = {}
        self._prefixes = PrefixStore(self.limits.prefix_bytes)
        self._draining = self._stopping = False
        self._thread = threading.Thread(target=self._work, name="keystone-engine", daemon=True)
        self._thread.start()

    # For other threads.

    def submit(self, request: GenerationRequest, listener: Callable[[Event], None]) -> Generation:
        """Queue a request.

        Args:
            request: what to generate.
            listener: called by the engine's thread with every event; must be quick.

        Raises:
            LimitError: the prompt or the answer is longer than allowed, or more answers than allowed.
            BusyError: the queue is full.
            StoppingError: the engine takes nothing new.
        """
        self._check(request)
        now = self._clock()
        generation = Generation(request, listener, Timing(now), now + self.limits.seconds)
        with self._wake:
            if self._draining or not self._thread.is_alive():
                raise StoppingError("this model is being unloaded or the server is stopping; try again")
            if len(self._queue) >= self.limits.queued:
                self.counters.refused += 1
                raise BusyError(
                    f"{len(self._queue)} requests are waiting already; try again later", retry_after=self._patience()
                )
            self._queue.put(generation)
            self.counters.requests += 1
            self._wake.notify()
        return generation

    def run(self, job: Callable[[], T]) -> "Future[T]":
        """Let the engine's thread do something to the model between two steps."""
        future: Future[T] = Future()

        def do() -> None:
            try:
                future.set_result(job())
            except Exception as error:  # noqa: BLE001 - whoever waits for the result gets it
                future.set_exception(error)

        with self._wake:
            if self._stopping or not self._thread.is_alive():
                raise StoppingError("this model is being unloaded")
            self._jobs.append(do)
            self._wake.notify()
        return future

    def forget(self, variant: Variant) -> "Future[None]":
        """Drop what is remembered of prompts under a set of adapters."""
        return self.run(lambda: self._prefixes.forget(variant))

    def close(self, *, seconds: float = 0.0) -> None:
        """Take nothing new, finish what runs for so many seconds, then stop; what is left fails."""
        with self._wake:
            self._draining = True
            self._wake.notify()
        self._thread.join(seconds)
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Answers that are being generated, prompts on their way in included."""
        return sum(len(p.answers) for p in list(self._prompts)) + sum(len(b.answers) for b in self._all_batches())

    @property
    def held_bytes(self) -> int:
        """Bytes of keys and values: running answers and remembered beginnings."""
        return sum(batch.cache.nbytes() for batch in self._all_batches()) + self._prefixes.nbytes

    def _all_batches(self) -> list[Batch]:
        return list(self._batches.values())

    def room(self, prompt_tokens: int) -> int:
        """How many tokens an answer to a prompt of this length may have."""
        room = self.config.max_position_embeddings - prompt_tokens
        return room if self.limits.output_tokens is None else min(room, self.limits.output_tokens)

    def _check(self, request: GenerationRequest) -> None:
        length, context = len(request.prompt), self.config.max_position_embeddings
        if not length:
            raise LimitError("the prompt has no tokens", parameter="prompt")
        longest = min(context - 1, self.limits.prompt_tokens or context)
        if length > longest:
            raise LimitError(
                f"the prompt has {length} tokens; this model's context is {context}, and this server takes at most"
                f" {longest}",
                parameter="prompt",
            )
        asked, most = request.max_tokens, self.limits.output_tokens
        if asked is not None and most is not None and asked > most:
            raise LimitError(f"max_tokens is {asked}; this server allows {most}", parameter="max_tokens")
        if request.choices > min(self.limits.choices, self.limits.streams):
            most = min(self.limits.choices, self.limits.streams)
            raise BadRequestError(f"{request.choices} answers at once; this server allows {most}", parameter="n")
        if self._needed([(self._length(request), request.choices)]) > self.limits.cache_bytes:
            raise LimitError(
                "keys and values of this request alone do not fit; ask for fewer tokens", parameter="max_tokens"
            )

    def _length(self, request: GenerationRequest) -> int:
        room = self.room(len(request.prompt))
        return len(request.prompt) + (room if request.max_tokens is None else min(room, request.max_tokens))

    def _patience(self) -> int:
        recent = self.counters.finished_seconds
        mean = sum(recent) / len(recent) if recent else 1.0
        return max(1, min(60, math.ceil(mean * len(self._queue) / self.limits.streams)))

    # The engine's thread.

    def _work(self) -> None:
        error: ServeError = StoppingError("the server stopped before this was finished")
        try:
            with torch.inference_mode():
                while self._pause():
                    self._round()
        except Exception as fault:  # noqa: BLE001 - nobody may be left waiting for a thread that is gone
            error = ModelFailedError(f"the engine broke: {type(fault).__name__}: {fault}")
        finally:
            self._abort(error)

    def _round(self) -> None:
        self._do_jobs()
        self._expire()
        self._admit()
        self._fill()
        for variant in list(self._batches):
            self._decode(variant)

    def _pause(self) -> bool:
        """Wait until there is something to do; False when it is time to leave."""
        with self._wake:
            while not self._stopping:
                if self._jobs or self._prompts or self._batches or len(self._queue):
                    return True
                if self._draining:
                    return False
                self._wake.wait(_IDLE_WAIT)
        return False

    def _do_jobs(self) -> None:
        while self._jobs:
            self._jobs.popleft()()

    def _expire(self) -> None:
        """Let go of what nobody waits for and of what took too long."""
        now = self._clock()
        with self._wake:
            over = [each for each in self._queue.all() if each.cancelled or each.deadline <= now]
            self._queue.remove(over)
        running = [prompt.answers for prompt in self._prompts] + [batch.answers for batch in self._all_batches()]
        over += [
            answer.generation
            for answers in running
            for answer in answers
            if answer.generation.deadline <= now and not answer.generation.cancelled
        ]
        for generation in over:
            if generation.cancelled:
                self.counters.cancelled += 1
            else:
                self.counters.failed += 1
                seconds = self.limits.seconds
                deliver(
                    generation, Failed(TimeLimitError(f"not finished after {seconds:g} seconds, this server's limit"))
                )
                generation.cancel()
        for prompt in self._prompts:
            self._count_gone(prompt.answers)
        self._prompts = deque(prompt for prompt in self._prompts if not prompt.abandoned)
        self._sweep()

    def _sweep(self) -> None:
        for variant, batch in list(self._batches.items()):
            self._count_gone(batch.answers)
            if not batch.sweep():
                del self._batches[variant]

    def _count_gone(self, answers: list[Answer]) -> None:
        self.counters.cancelled += sum(answer.generation.cancelled and not answer.done for answer in answers)

    def _admit(self) -> None:
        """Start requests in their order while there is room; who does not fit is not overtaken."""
        while True:
            with self._wake:
                generation = self._queue.peek()
                if generation is None or not self._fits(generation.request):
                    return
                self._queue.pop()
            self._start(generation)

    def _fits(self, request: GenerationRequest) -> bool:
        if self.running + request.choices > self.limits.streams:
            return False
        shapes: dict[Variant, list[tuple[int, int]]] = {request.variant: [(self._length(request), request.choices)]}
        for prompt in self._prompts:
            length = self._length(prompt.answers[0].generation.request)
            shapes.setdefault(prompt.variant, []).append((length, len(prompt.answers)))
        for variant, batch in self._batches.items():
            shapes.setdefault(variant, []).extend((self._length(a.generation.request), 1) for a in batch.answers)
        return sum(map(self._needed, shapes.values())) <= self.limits.cache_bytes

    def _needed(self, shapes: Iterable[tuple[int, int]]) -> int:
        """Bytes for sequences that share a batch: each gets the room of the longest, and a quarter to grow."""
        lengths, counts = zip(*shapes, strict=True)
        room = min(self.config.max_position_embeddings, max(lengths)) * 5 // 4 + 32
        return cache_bytes(self.config, room, self._dtype, sequences=sum(counts))

    def _start(self, generation: Generation) -> None:
        request = generation.request
        generation.timing.started = self._clock()
        limit = self._length(request) - len(request.prompt)
        answers = [Answer(generation, choice, self.tokenizer, limit) for choice in range(request.choices)]
        cache = self._prefixes.find(request.variant, request.prompt)
        if cache is not None:
            generation.timing.reused = cache.seen
            self.counters.reused_tokens += cache.seen
        self._prompts.append(Prompt(request.prompt, answers, request.variant, cache))
        self.counters.prompt_tokens += len(request.prompt)

    def _fill(self) -> None:
        """One chunk of one prompt; or all short prompts with the same adapters at once."""
        if not self._prompts:
            return
        prompt = self._prompts.popleft()
        size = self.limits.chunk
        if prompt.cache is None and len(prompt.ids) <= size:
            alike = [
                each
                for each in self._prompts
                if each.cache is None and len(each.ids) <= size and each.variant == prompt.variant
            ]
            self._prompts = deque(each for each in self._prompts if each not in alike)
            self._guarded([prompt, *alike], self._fill_short)
        else:
            self._guarded([prompt], self._fill_long)

    def _fill_short(self, prompts: list[Prompt]) -> None:
        self._select(prompts[0].variant)
        if len(prompts) == 1 and len(prompts[0].ids) == self.limits.chunk:
            self._fill_long(prompts)  # a whole chunk is worth a snapshot
            return
        logits_BV, cache = self._runner.together(prompts)  # noqa: N806
        self._branch(prompts, logits_BV, cache)

    def _fill_long(self, prompts: list[Prompt]) -> None:
        (prompt,) = prompts
        self._select(prompt.variant)
        logits_BV = self._runner.chunk(prompt, self.limits.chunk)  # noqa: N806
        if prompt.seen < len(prompt.ids) or prompt.cache is None:
            self._prompts.append(prompt)
            return
        own = KeystoneCache.merge([prompt.cache])  # a copy: the prompt's own cache may be remembered
        self._prefixes.add(prompt.variant, prompt.ids, prompt.cache)
        self._branch(prompts, logits_BV, own)

    def _branch(self, prompts: list[Prompt], logits_BV: Tensor, cache: KeystoneCache) -> None:  # noqa: N803
        """Let the answers go on from their prompts: the first token of each, and a place in a batch."""
        answers = [answer for prompt in prompts for answer in prompt.answers]
        rows = [row for row, prompt in enumerate(prompts) for _ in prompt.answers]
        if rows != list(range(len(prompts))):
            cache.select(rows)
            logits_BV = logits_BV[rows]  # noqa: N806
        variant = prompts[0].variant
        if variant in self._batches:
            self._batches[variant].join(cache, answers)
        else:
            self._batches[variant] = Batch(variant, cache, answers)
        self._take(answers, logits_BV)  # last: whatever broke before can be done again, a drawn token cannot
        self._sweep()

    def _decode(self, variant: Variant) -> None:
        batch = self._batches[variant]
        started = self._clock()
        try:
            self._select(variant)
            logits_BV = self._runner.step(batch)  # noqa: N806
        except Exception as error:  # noqa: BLE001 - whichever sequence was at fault, the others go on
            del self._batches[variant]
            self._again(batch, error)
            return
        self._take(batch.answers, logits_BV)
        self.counters.steps += 1
        self.counters.step_seconds += self._clock() - started
        self._sweep()

    def _take(self, answers: list[Answer], logits_BV: Tensor) -> None:  # noqa: N803
        """Choose a token for each answer; one that cannot fails alone."""
        # Whole batches are asked at once, where anybody asks; a card is asked for no more than it has to give.
        greedy = [answer.plain_greedy for answer in answers]
        likeliest = logits_BV.argmax(-1).tolist() if any(greedy) else [0] * len(answers)
        rows_BV = None if all(greedy) else logits_BV.cpu().numpy()  # noqa: N806
        now = self._clock()
        for row, answer in enumerate(answers):
            if answer.done or answer.generation.cancelled:
                continue
            timing = answer.generation.timing
            timing.first_token = now if timing.first_token is None else timing.first_token
            timing.finished = now  # before the last event is out: who hears it reads this
            try:
                answer.take(None if rows_BV is None else rows_BV[row], likeliest[row], self.ends)
            except Exception as error:  # noqa: BLE001 - the other answers are fine
                self._fail(answer, error)
                continue
            self.counters.generated_tokens += 1
            if answer.done:
                self.counters.finished_seconds.append(now - timing.submitted)

    def _guarded(self, prompts: list[Prompt], fill: Callable[[list[Prompt]], None]) -> None:
        """Run prompts; if that breaks, run each alone, and fail only those that break again."""
        try:
            fill(prompts)
        except Exception as error:  # noqa: BLE001 - one prompt must not take the others with it
            if len(prompts) == 1:
                for answer in prompts[0].answers:
                    self._fail(answer, error)
                return
            for prompt in prompts:
                self.counters.recovered += 1
                self._guarded([prompt], fill)

    def _again(self, batch: Batch, error: Exception) -> None:
        for answer in batch.answers:
            if answer.retries or len(batch.answers) == 1:
                self._fail(answer, error)
                continue
            answer.retries += 1
            self.counters.recovered += 1
            request = answer.generation.request
            # The last token is not repeated: `_branch` draws from the logits after what is here, so it goes in whole.
            self._guarded([Prompt((*request.prompt, *answer.ids), [answer], batch.variant)], self._redo)

    def _redo(self, prompts: list[Prompt]) -> None:
        (prompt,) = prompts
        self._select(prompt.variant)
        while True:
            logits_BV = self._runner.chunk(prompt, self.limits.chunk)  # noqa: N806
            if prompt.cache is not None and prompt.seen == len(prompt.ids):
                self._branch(prompts, logits_BV, KeystoneCache.merge([prompt.cache]))
                return

    def _fail(self, answer: Answer, error: Exception) -> None:
        if answer.generation.cancelled:
            answer.done = True
            return
        self.counters.failed += 1
        known = error if isinstance(error, ServeError) else None
        answer.fail(Failed(known or ModelFailedError(f"the generation broke: {type(error).__name__}: {error}")))

    def _abort(self, error: ServeError) -> None:
        """Tell everybody who still waits."""
        with self._wake:
            waiting = self._queue.all()
            self._queue.remove(waiting)
            jobs, self._jobs = list(self._jobs), deque()
        running = [a.generation for p in self._prompts for a in p.answers]
        running += [a.generation for b in self._all_batches() for a in b.answers]
        for generation in [*waiting, *running]:
            deliver(generation, Failed(error))
            generation.cancel()
        for job in jobs:
            job()
        self._prompts.clear()
        self._batches.clear()


def end_tokens(config: KeystoneConfig, tokenizer: PreTrainedTokenizerFast) -> frozenset[int]:
    """Tokens that end an answer: the configuration's, and the tokenizer's own."""
    configured = config.eos_token_id
    ids = [] if configured is None else [configured] if isinstance(configured, int) else list(configured)
    own = tokenizer.eos_token_id
    return frozenset([*ids, own] if isinstance(own, int) else ids)
