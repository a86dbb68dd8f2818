"""What an engine's thread does between two looks at its queue: one round of everything that runs.

Each round admits what fits, runs one chunk of one prompt (or all short prompts together), then one decode step of
every batch. So a long prompt delays a running stream by one chunk, never by its whole length. Answers with the same
adapters share a batch; batches with other adapters take turns on the same base.

When a batch breaks, nobody can tell which of its sequences was at fault. So each is computed again from its tokens,
alone, and only what breaks again fails: the others go on where they were.
"""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor
from transformers import PreTrainedTokenizerFast

from keystone.model import KeystoneCache
from keystone.serve.admission import Admission
from keystone.serve.answers import Answer, deliver
from keystone.serve.batches import Batch, Prompt, Runner
from keystone.serve.errors import ModelFailedError, ServeError, TimeLimitError
from keystone.serve.generation import Failed, Generation, GenerationRequest
from keystone.serve.limits import Limits
from keystone.serve.prefixes import PrefixStore, Variant
from keystone.serve.queueing import FairQueue


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


class Rounds:
    """Everything that an engine generates at the moment. Only its thread calls `round` and `abort`.

    Args:
        runner: the model.
        tokenizer: its tokenizer.
        ends: tokens that end an answer.
        admission: what requests will need.
        limits: of the server.
        queue: requests that wait.
        wake: guards the queue.
        select: puts a set of adapters on.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        runner: Runner,
        tokenizer: PreTrainedTokenizerFast,
        *,
        ends: frozenset[int],
        admission: Admission,
        limits: Limits,
        queue: FairQueue,
        wake: threading.Condition,
        select: Callable[[Variant], None],
        clock: Callable[[], float],
    ) -> None:
        self.counters = Counters()
        self.limits = limits
        self.tokenizer = tokenizer
        self.ends = ends
        self.prefixes = PrefixStore(limits.prefix_bytes)
        self._runner = runner
        self._admission = admission
        self._queue = queue
        self._wake = wake
        self._select = select
        self._clock = clock
        self._prompts: deque[Prompt] = deque()
        self._batches: dict[Variant, Batch] = {}

    @property
    def busy(self) -> bool:
        """Whether anything runs."""
        return bool(self._prompts or self._batches)

    @property
    def running(self) -> int:
        """Answers that are being generated, prompts on their way in included."""
        return sum(len(p.answers) for p in list(self._prompts)) + sum(len(b.answers) for b in self._all_batches())

    @property
    def held_bytes(self) -> int:
        """Bytes of keys and values: running answers and remembered beginnings."""
        return sum(batch.cache.nbytes() for batch in self._all_batches()) + self.prefixes.nbytes

    def _all_batches(self) -> list[Batch]:
        return list(self._batches.values())

    def round(self) -> None:
        """Let go of what is over, start what fits, and run one step of everything."""
        self._expire()
        self._admit()
        self._fill()
        for batch in self._all_batches():
            if self._batches.get(batch.variant) is batch:  # its clients may have left during another's turn
                self._decode(batch)

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
            try:
                self._start(generation)
            except Exception as error:  # noqa: BLE001 - nobody else is to wait for it
                self.counters.failed += 1
                deliver(generation, Failed(_broken(error)))
                generation.cancel()

    def _fits(self, request: GenerationRequest) -> bool:
        if self.running + request.choices > self.limits.streams:
            return False
        shapes: dict[Variant, list[tuple[int, int]]] = {
            request.variant: [(self._admission.length(request), request.choices)]
        }
        for prompt in self._prompts:
            length = self._admission.length(prompt.answers[0].generation.request)
            shapes.setdefault(prompt.variant, []).append((length, len(prompt.answers)))
        for variant, batch in self._batches.items():
            shapes.setdefault(variant, []).extend(
                (self._admission.length(a.generation.request), 1) for a in batch.answers
            )
        return sum(map(self._admission.needed, shapes.values())) <= self.limits.cache_bytes

    def _start(self, generation: Generation) -> None:
        request = generation.request
        generation.timing.started = self._clock()
        limit = self._admission.length(request) - len(request.prompt)
        answers = [Answer(generation, choice, self.tokenizer, limit) for choice in range(request.choices)]
        cache = self.prefixes.find(request.variant, request.prompt)
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
        self.prefixes.add(prompt.variant, prompt.ids, prompt.cache)
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

    def _decode(self, batch: Batch) -> None:
        started = self._clock()
        try:
            self._select(batch.variant)
            logits_BV = self._runner.step(batch)  # noqa: N806
        except Exception as error:  # noqa: BLE001 - whichever sequence was at fault, the others go on
            del self._batches[batch.variant]
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
        answer.fail(Failed(_broken(error)))

    def abort(self, error: ServeError) -> None:
        """Tell everybody who still waits."""
        with self._wake:
            waiting = self._queue.all()
            self._queue.remove(waiting)
        running = [a.generation for p in self._prompts for a in p.answers]
        running += [a.generation for b in self._all_batches() for a in b.answers]
        for generation in [*waiting, *running]:
            deliver(generation, Failed(error))
            generation.cancel()
        self._prompts.clear()
        self._batches.clear()


def _broken(error: Exception) -> ServeError:
    if isinstance(error, ServeError):
        return error
    return ModelFailedError(f"the generation broke: {type(error).__name__}: {error}")
