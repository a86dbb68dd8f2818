"""Who is next: clients take turns, and each client's requests keep their order."""

from collections import OrderedDict, deque

from keystone.serve.generation import Generation


class FairQueue:
    """Waiting requests. A client that sends many delays its own, not those of others."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, deque[Generation]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def put(self, generation: Generation) -> None:
        """Add at the end of its client's line."""
        self._waiting.setdefault(generation.request.client, deque()).append(generation)

    def peek(self) -> Generation | None:
        """Who would be next."""
        return next(iter(self._waiting.values()))[0] if self._waiting else None

    def pop(self) -> Generation:
        """Take who is next; the client goes to the end of the round."""
        client, line = next(iter(self._waiting.items()))
        generation = line.popleft()
        del self._waiting[client]
        if line:
            self._waiting[client] = line
        return generation

    def remove(self, gone: list[Generation]) -> None:
        """Take out requests that nobody waits for, or that waited too long."""
        for client, line in list(self._waiting.items()):
            kept = deque(each for each in line if each not in gone)
            if kept:
                self._waiting[client] = kept
            else:
                del self._waiting[client]

    def all(self) -> list[Generation]:
        """Everything that waits."""
        return [each for line in self._waiting.values() for each in line]
