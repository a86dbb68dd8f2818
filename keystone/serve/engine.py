"""Continuous batching: a thread owns the model, and requests come and go between its steps.

This is the door for all other threads: they submit requests and jobs, and look at counts. What the thread does with
them is in `rounds`.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from keystone.generation import end_ids
from keystone.model import KeystoneConfig
from keystone.serve.admission import Admission
from keystone.serve.batches import Runner
from keystone.serve.errors import (
    BusyError,
    ModelFailedError,
    StoppingError,
)
from keystone.serve.generation import Event, Generation, GenerationRequest, Timing
from keystone.serve.grammar import Grammars
from keystone.serve.limits import Limits
from keystone.serve.prefixes import Variant
from keystone.serve.queueing import FairQueue
from keystone.serve.rounds import Rounds

T = TypeVar("T")
_IDLE_WAIT = 0.5  # seconds; only deadlines of the queue need the thread to look without being woken
_GATHER_WAIT = 0.002  # seconds; clients that come together are this close


class Engine:
    """One base in memory, answering.

    Args:
        model: the base with whatever adapters are attached; only the engine's thread runs it.
        tokenizer: its tokenizer.
        config: the model's configuration.
        limits: what it takes on.
        select: puts a set of adapters on; called by the engine's thread before each step with other ones.
        gather: seconds that an engine with nothing to do waits for one more request before it runs those it has; the
            prompts of all that come meanwhile are one call, and nobody waits for another's.
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
        gather: float = _GATHER_WAIT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits or Limits()
        self.tokenizer = tokenizer
        self.config = config
        self.ends = end_ids(model, tokenizer)
        self.grammars = Grammars(tokenizer, config.vocab_size, self.ends)
        first = next(model.parameters())
        self.on_card = first.device.type != "cpu"
        self._admission = Admission(self.limits, config, first.dtype)
        self._gather_seconds = gather
        self._clock = clock
        self._wake = threading.Condition()
        self._queue = FairQueue()
        self._jobs: deque[Callable[[], None]] = deque()
        self._rounds = Rounds(
            Runner(model, config),
            tokenizer,
            ends=self.ends,
            admission=self._admission,
            limits=self.limits,
            queue=self._queue,
            wake=self._wake,
            select=select,
            clock=clock,
        )
        self.counters = self._rounds.counters
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
        self._admission.check(request)
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
        return self.run(lambda: self._rounds.prefixes.forget(variant))

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
        return self._rounds.running

    @property
    def held_bytes(self) -> int:
        """Bytes of keys and values: running answers and remembered beginnings."""
        return self._rounds.held_bytes

    def _patience(self) -> int:
        recent = self.counters.finished_seconds
        mean = sum(recent) / len(recent) if recent else 1.0
        return max(1, min(60, math.ceil(mean * len(self._queue) / self.limits.streams)))

    # The engine's thread.

    def _work(self) -> None:
        try:
            with torch.inference_mode():
                while self._pause():
                    self._do_jobs()
                    self._round()
        finally:
            self._rounds.abort(StoppingError("the server stopped before this was finished"))
            with self._wake:
                jobs, self._jobs = list(self._jobs), deque()
            for job in jobs:
                job()

    def _round(self) -> None:
        """One round. If it breaks as a whole, everybody is told, and those who come next find an engine that works."""
        try:
            self._rounds.round()
        except Exception as fault:  # noqa: BLE001 - this thread serves the next request, too
            self._rounds.abort(ModelFailedError(f"the engine broke: {type(fault).__name__}: {fault}"))

    def _pause(self) -> bool:
        """Wait until there is something to do; False when it is time to leave."""
        with self._wake:
            while not self._stopping:
                if self._jobs or self._rounds.busy:
                    return True
                if len(self._queue):
                    self._gather()
                    return True
                if self._draining:
                    return False
                self._wake.wait(_IDLE_WAIT)
        return False

    def _gather(self) -> None:
        """Wait for requests that come right after the first, as long as each is followed by another in time."""
        waiting = 0
        while waiting < len(self._queue) < self.limits.streams and not (self._jobs or self._draining):
            waiting = len(self._queue)
            self._wake.wait(self._gather_seconds)

    def _do_jobs(self) -> None:
        while self._jobs:
            self._jobs.popleft()()
