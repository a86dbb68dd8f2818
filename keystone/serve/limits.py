"""How much one client, and all of them together, may ask for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds of a server; each request is checked against them before it costs anything.

    Attributes:
        body_bytes: of one HTTP request.
        prompt_tokens: of one prompt; None leaves it to the model's context.
        output_tokens: of one answer; None likewise.
        choices: answers to one request, over all its prompts.
        seconds: from a request's arrival to its last token.
        queued: requests that wait; the next one is told to come back later.
        streams: answers that are generated at the same time.
        cache_bytes: for keys and values of running answers. Joining a batch copies it, so for a moment it is twice
            as much.
        prefix_bytes: for beginnings of prompts that may come again.
        chunk: tokens of a prompt that run at once; what a running stream waits for at most.
        models: bases in memory at the same time.
    """

    body_bytes: int = 4 << 20
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    choices: int = 16
    seconds: float = 600.0
    queued: int = 128
    streams: int = 32
    cache_bytes: int = 2 << 30
    prefix_bytes: int = 512 << 20
    chunk: int = 128
    models: int = 2
