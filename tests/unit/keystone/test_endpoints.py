"""Engines of others: asked in whichever API they have, and bounded whatever they do."""

import asyncio
import gzip
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from scripted_endpoint import Reply, answered, completing, endpoint, scripted_client, scripted_model

from keystone.endpoints import ClientLimits, EndpointClient, EndpointModel, Question, describe, parse_address, token_for
from keystone.errors import EndpointError, EndpointRefusedError, InvalidInputError

ASKED = Question("def one():\n", "Write one().", max_tokens=9, temperature=0.5, top_p=0.9, seed=2**40 + 7)


def test_an_address_is_a_url_and_a_model() -> None:
    found = parse_address("http://LOCALHOST:11434/v1/#qwen2.5-coder:7b")
    assert (found.url, found.model, str(found)) == (
        "http://localhost:11434",
        "qwen2.5-coder:7b",
        "http://localhost:11434#qwen2.5-coder:7b",
    )
    assert parse_address("https://api.example.org/coder", model="m") == parse_address("https://api.example.org/coder#m")
    assert parse_address("http://[::1]:1#m").is_local
    assert parse_address("http://127.8.9.1#m").is_local
    assert parse_address("http://[::ffff:127.0.0.1]#m").is_local
    assert not parse_address("http://api.example.org#m").is_local


@pytest.mark.parametrize(
    "text",
    [
        "ftp://host#m",
        "http://#m",
        "http://host",
        "http://host#",
        "http://host# m",
        "http://host?key=1#m",
        "http://host:0#m",
        "http://host:99999#m",
        "http://ho st#m",
        "http://host\n#m",
        "http://h\u00f6st#m",
        "http://host#m\x1b[31m",
        "file:///etc/passwd#m",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError):
        parse_address(text)


def test_a_password_never_gets_into_an_address_nor_into_the_message() -> None:
    with pytest.raises(InvalidInputError, match="KEYSTONE_ENDPOINT_TOKENS") as found:
        parse_address("https://alice:sesame@host#m")
    assert "sesame" not in str(found.value)


def test_a_token_goes_to_its_own_origin_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tokens.json"
    monkeypatch.setenv("KEYSTONE_ENDPOINT_TOKENS", str(path))
    assert token_for(parse_address("https://a.example#m")) is None
    path.write_text(json.dumps({"https://a.example": "secret"}))
    assert token_for(parse_address("https://a.example/x#m")) == "secret"
    assert token_for(parse_address("http://a.example#m")) is None
    assert token_for(parse_address("https://b.example#m")) is None
    path.write_text('["secret"]')
    with pytest.raises(InvalidInputError, match="no JSON object"):
        token_for(parse_address("https://a.example#m"))


@pytest.mark.parametrize("present", ["/v1/completions", "/v1/chat/completions", "/api/generate"])
def test_the_first_api_that_is_there_is_used_and_kept(present: str) -> None:
    seen: list[tuple[str, dict[str, object]]] = []

    def script(path: str, body: dict[str, object]) -> Reply:
        seen.append((path, body))
        if path != present:
            return answered({"error": "no"}, 404)
        message = {"text": "1", "message": {"content": "2"}}
        return answered({"choices": [message], "response": "3"})

    model = scripted_model(script)
    texts = [model.ask(ASKED).text, *(each.text for each in model.ask_all([ASKED] * 6))]
    assert texts == [{"/v1/completions": "1", "/v1/chat/completions": "2", "/api/generate": "3"}[present]] * 7
    assert [path for path, _ in seen].count(present) == 7
    assert len(seen) == 7 + ["/v1/completions", "/v1/chat/completions", "/api/generate"].index(present)
    body = seen[-1][1]
    options = body.get("options", body)
    assert isinstance(options, dict)
    assert (options["temperature"], options["top_p"], options["seed"]) == (0.5, 0.9, 7)
    assert body["stream"] is False
    said = {"/v1/chat/completions": [{"role": "user", "content": "Write one()."}]}.get(present, "def one():\n")
    assert body.get("messages", body.get("prompt")) == said


def test_answers_keep_the_order_of_the_questions() -> None:
    model = scripted_model(completing(lambda prompt: prompt[::-1]))
    asked = [Question(f"{n:02}", "") for n in range(20)]
    assert [each.text for each in model.ask_all(asked)] == [each.prompt[::-1] for each in asked]


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ((200, {}, b"<html>"), "not answer with JSON"),
        ((200, {}, b"[" * 4000), "not answer with JSON"),
        ((200, {}, b"[1]"), "JSON list"),
        ((200, {}, b"{}"), "without a text in choices.0.text"),
        ((200, {}, b'{"choices": []}'), "without a text"),
        ((200, {}, b'{"choices": [{"text": 7}]}'), "without a text"),
        ((200, {}, b'{"choices": [{"text": null}]}'), "without a text"),
        ((200, {}, b" " * 5000), "more than 4096 bytes"),
        ((200, {"content-encoding": "gzip"}, gzip.compress(b" " * 10**6)), "compressed form"),
        ((301, {"location": "http://elsewhere.example/"}, b""), "answers 301"),
        ((401, {}, b'{"error": "who\x1b[2J?"}'), "answers 401"),
        ((404, {}, b'{"error": "no model rival"}'), "no model rival"),
    ],
)
def test_an_answer_that_is_none_is_a_clear_error(reply: Reply, said: str) -> None:
    asked: list[str] = []

    def script(path: str, _: dict[str, object]) -> Reply:
        asked.append(path)
        return reply

    with pytest.raises(EndpointError, match=said) as found:
        scripted_model(script, answer_bytes=4096).ask(ASKED)
    assert "\x1b" not in str(found.value)
    assert len(asked) == (3 if reply[0] == 404 else 1), "what will not pass by itself is not tried again"


def test_half_a_character_is_no_text_that_could_be_stored() -> None:
    script = lambda path, body: (200, {}, b'{"choices": [{"text": "a\\ud800b"}]}')  # noqa: E731
    assert scripted_model(script).ask(ASKED).text == "a?b"


def test_what_may_pass_is_tried_again_with_pauses_that_double() -> None:
    replies = iter([answered({}, 500), answered({}, 429), answered({}, 429, **{"retry-after": "7"}), answered({}, 503)])
    waits: list[float] = []

    async def pause(seconds: float) -> None:
        waits.append(seconds)

    last = answered({"choices": [{"text": "at last"}]})
    client = scripted_client(lambda path, body: next(replies, last))
    client._pause = pause
    assert EndpointModel(client).ask(ASKED).text == "at last"
    assert waits == [0.5, 1.0, 7.0, 4.0]
    busy = scripted_client(lambda path, body: answered({}, 429, **{"retry-after": "99999999"}), tries=3)
    busy._pause = pause
    del waits[:]
    with pytest.raises(EndpointError, match="answers 429"):
        EndpointModel(busy).ask(ASKED)
    assert waits == [30.0, 30.0], "a server does not decide for how long we wait"


@contextmanager
def dripping(first: bytes, drip: bytes) -> Iterator[str]:
    """A server that comes to no end: a byte at a time, until it hangs up long after anybody should have left."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(first)
                for _ in range(100):
                    if over.wait(0.02):
                        return
                    try:
                        connection.sendall(drip)
                    except OSError:
                        return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            over.set()
            thread.join()


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n", id="body"),
        pytest.param(b"HTTP/1.1 200 OK\r\nx: ", id="header"),
    ],
)
def test_an_endless_answer_ends_at_the_deadline(first: bytes) -> None:
    """Each read succeeds, so a timeout of reads alone would never come."""
    with dripping(first, b" ") as url:
        client = EndpointClient(parse_address(url, model="m"), limits=ClientLimits(seconds=0.3))
        with pytest.raises(EndpointError, match=r"did not answer within 0\.3 seconds"):
            EndpointModel(client).ask(ASKED)


def test_nobody_there_is_said_after_all_tries() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    waits: list[float] = []

    async def pause(seconds: float) -> None:
        waits.append(seconds)

    client = EndpointClient(parse_address(f"http://127.0.0.1:{port}#m"), limits=ClientLimits(tries=3), pause=pause)
    with pytest.raises(EndpointError, match="cannot be reached"):
        asyncio.run(client.exchange("GET", "/v1/models", None))
    assert waits == [0.5, 1.0]


def test_facts_are_taken_from_what_the_engine_counts() -> None:
    def ollama(path: str, body: dict[str, object]) -> Reply:
        pages = {
            "/api/tags": {"models": [{"name": "rival:latest"}, 7, {"name": ["rival"]}]},
            "/api/show": {"model_info": {"x.context_length": 4096}, "capabilities": ["tools"]},
            "/api/ps": {"models": [{"name": "rival:latest", "size_vram": 5_000_000_000}]},
        }
        return answered(pages[path]) if path in pages else answered({}, 404)

    found = describe(scripted_client(ollama))
    assert (found.listed, found.vram_bytes, found.ctx_tokens, found.tool_calling) == (True, 5_000_000_000, 4096, True)

    def lying(path: str, body: dict[str, object]) -> Reply:
        pages = {
            "/v1/models": {"data": "rival"},
            "/api/tags": {"models": [{"name": "rival"}]},
            "/api/show": {"model_info": {"x.context_length": True}, "capabilities": "tools"},
            "/api/ps": {"models": [{"name": "rival", "size_vram": -1}, {"name": "rival", "size_vram": "8GB"}]},
        }
        return answered(pages[path])

    found = describe(scripted_client(lying))
    assert (found.listed, found.vram_bytes, found.ctx_tokens, found.tool_calling) == (True, None, None, None)
    with pytest.raises(EndpointError, match="neither at /v1/models nor at /api/tags"):
        describe(scripted_client(lambda path, body: answered({}, 404)))
    with pytest.raises(EndpointRefusedError, match="401"):
        describe(scripted_client(lambda path, body: answered({}, 401)))


def test_a_real_socket_and_a_bearer_token() -> None:
    with endpoint(completing(lambda prompt: "real")) as url:
        client = EndpointClient(parse_address(url, model="rival"), token="secret")
        assert EndpointModel(client).ask(ASKED).text == "real"
