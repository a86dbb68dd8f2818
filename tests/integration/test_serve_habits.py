"""What popular clients send without being asked to, as their documentation and requests show it.

Each test is one client's way in: what it calls to see who is there, and the fields that it always sets. All of it has
to work, or to fail by name.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import ollama
import openai
import pytest
from serving_clients import Server, server_on

ASK = [{"role": "user", "content": "Add two numbers."}]


@pytest.fixture(scope="module")
def server(nano_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server_on(nano_archive, tmp_path_factory.mktemp("habits")) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as made:
        yield made


SENT: dict[str, dict[str, Any]] = {
    "ChatOpenAI": {"temperature": 0.7, "n": 1, "stream": False, "logprobs": None, "stop": None, "tools": None},
    "litellm": {"user": "u", "metadata": {}, "drop": None, "max_tokens": 4, "parallel_tool_calls": None},
    "llm": {"stream": True, "stream_options": {"include_usage": True}},
    "aider": {"temperature": 0, "stream": True, "max_tokens": None},
    "continue": {"max_tokens": -1, "stop": ["<|end|>", "\n\n"], "prediction": None, "top_p": 1, "stream": True},
    "open-webui": {"stream": True, "stream_options": {"include_usage": True}, "logit_bias": {}, "seed": None},
    "agents": {"store": False, "service_tier": "auto", "reasoning_effort": None, "verbosity": "medium", "tools": []},
    "lists": {"messages": [{"role": "developer", "content": [{"type": "text", "text": "Hi"}]}, *ASK], "n": None},
    "history": {"messages": [*ASK, {"role": "assistant", "content": None, "tool_calls": None, "refusal": None}, *ASK]},
    "forms": {"response_format": {"type": "text"}, "tool_choice": "auto", "top_logprobs": None, "top_k": -1},
}


@pytest.mark.parametrize("name", list(SENT))
def test_what_clients_always_send_just_works(server: Server, name: str) -> None:
    body = {"model": "nano", "messages": ASK, "max_tokens": 4, **SENT[name]}
    if body["max_tokens"] in (None, -1):
        body["stop"] = [*"aeiou "]  # these ask for no limit; any letter ends it
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    assert ("[DONE]" in answer.text) is bool(body.get("stream"))


@pytest.mark.parametrize("method", ["HEAD", "GET"])
@pytest.mark.parametrize("path", ["/", "/api/tags", "/api/version"])
def test_who_looks_whether_somebody_is_there_is_told(server: Server, method: str, path: str) -> None:
    answer = httpx.request(method, f"{server.url}{path}")
    assert answer.status_code == 200
    assert bool(answer.content) is (method == "GET")


def test_editors_find_version_context_and_capabilities(server: Server) -> None:
    version = httpx.get(f"{server.url}/api/version").json()["version"]
    assert tuple(map(int, version.partition("+")[0].split("."))) >= (0, 6, 4)
    for field in ("model", "name"):
        shown = httpx.post(f"{server.url}/api/show", json={field: "nano", "verbose": False}).json()
        family = shown["model_info"]["general.architecture"]
        assert shown["model_info"][f"{family}.context_length"] == 1024
        assert shown["model_info"]["general.basename"] == "nano"
        assert shown["capabilities"] == ["completion"]


def test_embeddings_are_an_honest_no_in_both_shapes(client: openai.OpenAI, server: Server) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        client.embeddings.create(model="nano", input="x")
    assert (refused.value.status_code, refused.value.code) == (501, "not_offered")
    with ollama.Client(host=server.url) as other:
        for ask in (lambda: other.embed(model="nano", input="x"), lambda: other.embeddings(model="nano", prompt="x")):
            with pytest.raises(ollama.ResponseError, match="embeddings are not offered"):
                ask()


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        ("/api/generate", {"prompt": "x", "suffix": "y"}, "suffix"),
        ("/api/generate", {"prompt": "x", "template": "{{ .Prompt }}"}, "template"),
        ("/api/generate", {"prompt": "x", "raw": True, "system": "s"}, "system"),
        ("/api/chat", {"messages": ASK, "think": "high"}, "think"),
        ("/v1/completions", {"prompt": "x", "suffix": "y"}, "suffix"),
        ("/v1/completions", {"prompt": "x", "response_format": {"type": "json_object"}}, "response_format"),
        ("/v1/chat/completions", {"messages": ASK, "reasoning_effort": "high"}, "reasoning_effort"),
        ("/v1/chat/completions", {"messages": ASK, "max_tokens": 0}, "max_tokens"),
        ("/v1/chat/completions", {"messages": ASK, "chat_template_kwargs": {"x": 1}}, "chat_template_kwargs"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x", "name": "Bo"}]}, "messages.0.name"),
    ],
    ids=str,
)
def test_what_would_change_the_answer_is_a_400_by_name(
    server: Server, path: str, body: dict[str, Any], named: str
) -> None:
    answer = httpx.post(f"{server.url}{path}", json={"model": "nano", **body})
    assert answer.status_code == 400
    assert named in answer.text
