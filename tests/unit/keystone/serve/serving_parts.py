"""What tests of the engine share: listeners that wait, and nano in full precision."""

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from keystone.loader import LoadedModel
from keystone.serve.engine import Engine
from keystone.serve.errors import ServeError
from keystone.serve.generation import Event, Failed, Finished, Generation, GenerationRequest, Piece
from keystone.serve.limits import Limits

PATIENCE = 60.0


@dataclass
class Listener:
    """Collects the events of one request."""

    choices: int = 1
    events: "queue.Queue[Event]" = field(default_factory=queue.Queue)
    pieces: list[Piece] = field(default_factory=list)
    endings: dict[int, Finished] = field(default_factory=dict)
    error: ServeError | None = None

    def __call__(self, event: Event) -> None:
        self.events.put(event)

    def next(self) -> Event:
        event = self.events.get(timeout=PATIENCE)
        if isinstance(event, Piece):
            self.pieces.append(event)
        elif isinstance(event, Finished):
            self.endings[event.choice] = event
        else:
            self.error = event.error
        return event

    def wait(self) -> "Listener":
        while self.error is None and len(self.endings) < self.choices:
            self.next()
        return self

    def text(self, choice: int = 0) -> str:
        return "".join(piece.text for piece in self.pieces if piece.choice == choice)


@contextmanager
def engine_of(loaded: LoadedModel, limits: Limits | None = None, **options: object) -> Iterator[Engine]:
    engine = Engine(loaded.model, loaded.tokenizer, loaded.model.config, limits=limits, **options)
    try:
        yield engine
    finally:
        engine.close()


def ask(engine: Engine, request: GenerationRequest) -> tuple[Generation, Listener]:
    listener = Listener(request.choices)
    return engine.submit(request, listener), listener


class Gate:
    """Holds the engine's thread between two steps until it is opened."""

    def __init__(self, engine: Engine) -> None:
        self._open, self._reached = threading.Event(), threading.Event()

        def hold() -> None:
            self._reached.set()
            self._open.wait(PATIENCE)

        engine.run(hold)
        assert self._reached.wait(PATIENCE)

    def open(self) -> None:
        self._open.set()


def failed(listener: Listener) -> Failed | None:
    return None if listener.error is None else Failed(listener.error)
