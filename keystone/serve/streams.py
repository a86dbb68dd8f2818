"""The bridge between engines, which are threads, and HTTP handlers, which are coroutines.

An `AnswerStream` holds the lease on a model, submits the prompts of one HTTP request, and yields their events in one
order. Whatever way a handler ends, `close` takes its generations back and gives up the lease.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar
from weakref import WeakKeyDictionary

from starlette.requests import ClientDisconnect, Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from keystone.serve.call_reader import CallReader, ToolCall
from keystone.serve.generation import Event, Failed, Finished, FinishReason, Generation, GenerationRequest, Piece
from keystone.serve.host import Lease
from keystone.serve.sampling import TokenScore
from keystone.serve.tools import Toolbox

T = TypeVar("T")
Numbered = tuple[int, Piece | Finished]


@dataclass
class Choice:
    """One complete answer."""

    text: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    scores: list[TokenScore] = field(default_factory=list)
    reason: FinishReason = "stop"
    tokens: int = 0


class Mailbox:
    """Events on their way from engines' threads to one event loop: one wake-up for all that come together.

    Waking a loop is a system call and a fight over the interpreter; an engine that did it for every token of every
    stream would spend more time on that than on some models.

    Args:
        loop: whose coroutines wait for the events.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._letters: deque[tuple[asyncio.Queue[tuple[int, Event]], int, Event]] = deque()
        self._called = False

    def post(self, queue: "asyncio.Queue[tuple[int, Event]]", choice: int, event: Event) -> None:
        """Bring an event to a queue of the loop; from any thread.

        Raises:
            RuntimeError: the loop is closed.
        """
        self._letters.append((queue, choice, event))
        if not self._called:
            self._called = True
            try:
                self._loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:
                self._called = False
                raise

    def _deliver(self) -> None:
        self._called = False  # before the first look: whoever comes after the last one calls again
        while self._letters:
            queue, choice, event = self._letters.popleft()
            queue.put_nowait((choice, event))


_mailboxes: "WeakKeyDictionary[asyncio.AbstractEventLoop, Mailbox]" = WeakKeyDictionary()


def mailbox() -> Mailbox:
    """The running loop's."""
    loop = asyncio.get_running_loop()
    if loop not in _mailboxes:
        _mailboxes[loop] = Mailbox(loop)
    return _mailboxes[loop]


class AnswerStream:
    """All answers to one HTTP request.

    Args:
        lease: on the model that answers; given up by `close`.

    Attributes:
        box: the tools that answers may call; None where there are none.
    """

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.box: Toolbox | None = None
        self.generations: list[Generation] = []
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._mailbox = mailbox()
        self._open = 0

    def submit(self, request: GenerationRequest) -> None:
        """Queue a prompt; its answers are numbered after those of the prompts before it.

        Raises:
            ServeError: what `Engine.submit` raises; the prompts before it are taken back by `close`.
        """
        first = self._open

        def listen(event: Event) -> None:
            choice = first + event.choice if isinstance(event, Piece | Finished) else first
            self._mailbox.post(self._events, choice, event)

        self.generations.append(self.lease.engine.submit(request, listen))
        self._open += request.choices

    def __len__(self) -> int:
        return self._open

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(len(generation.request.prompt) for generation in self.generations)

    async def bunches(self) -> AsyncIterator[list[Numbered]]:
        """Every event with the number of its answer, as many at once as are there, until all answers are complete.

        Raises:
            ServeError: a generation failed; what came before it is out by then.
        """
        left = self._open
        readers = [None if self.box is None else CallReader(self.box) for _ in range(left)]
        failed: Failed | None = None
        while left and failed is None:
            waiting = [await self._events.get()]
            while not self._events.empty():
                waiting.append(self._events.get_nowait())
            bunch: list[Numbered] = []
            for choice, event in waiting:
                if isinstance(event, Failed):
                    failed = event
                    break
                left -= isinstance(event, Finished)
                reader = readers[choice]
                bunch += [(choice, seen) for seen in ([event] if reader is None else with_calls(reader, event))]
            if bunch:
                yield bunch
        if failed is not None:
            raise failed.error

    async def collect(self) -> list[Choice]:
        """All answers, complete."""
        choices = [Choice() for _ in range(self._open)]
        async for bunch in self.bunches():
            for number, event in bunch:
                choice = choices[number]
                if isinstance(event, Finished):
                    choice.reason, choice.tokens = event.reason, event.tokens
                else:
                    choice.text += event.text
                    choice.calls += event.calls
                    choice.scores += event.scores
        return choices

    def close(self) -> None:
        """Take back what still runs, and give up the lease; a second time does nothing."""
        for generation in self.generations:
            generation.cancel()
        self.lease.release()


def with_calls(reader: CallReader, event: Piece | Finished) -> Iterator[Piece | Finished]:
    """The same events, with calls taken out of the text."""
    if isinstance(event, Piece):
        text, calls = reader.feed(event.text)
        if text or calls or event.scores:
            yield Piece(event.choice, text, event.scores, calls)
        return
    text, calls = reader.flush()
    if text or calls:
        yield Piece(event.choice, text, (), calls)
    yield replace(event, reason="tool_calls") if reader.made and event.reason == "stop" else event


class EventResponse(StreamingResponse):
    """A response that is sent while it is generated, and that cleans up even if not one byte of it could be sent."""

    def __init__(
        self, lines: AsyncIterator[str], *, media_type: str, headers: Mapping[str, str], close: Callable[[], None]
    ) -> None:
        super().__init__(lines, media_type=media_type, headers={**headers, "Cache-Control": "no-store"})
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it all, or as much as the client waits for."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._close()


async def while_connected(request: Request, work: "asyncio.Task[T]") -> T:
    """The result of some work, given up when the client leaves.

    Raises:
        ClientDisconnect: it left.
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    watch = asyncio.create_task(gone())
    try:
        await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return work.result()
    finally:
        watch.cancel()
        work.cancel()
