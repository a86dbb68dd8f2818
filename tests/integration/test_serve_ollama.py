"""The official `ollama` client against a server on nano that serves its whole archive."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import ollama
import pytest
from serving_clients import Server, server_on

import keystone

CODE = "def add(a, b):\n"
ASK = [{"role": "user", "content": "Write a function that adds two numbers."}]


@pytest.fixture(scope="module")
def server(nano_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server_on(nano_archive, tmp_path_factory.mktemp("ollama")) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[ollama.Client]:
    with ollama.Client(host=server.url) as made:
        yield made


def test_what_is_there_and_what_is_loaded(client: ollama.Client, server: Server) -> None:
    listed = {model.model: model for model in client.list().models}
    assert set(listed) == {"nano", "tuned"}
    assert listed["tuned"].digest == server.tuned.hex
    assert (listed["nano"].size or 0) > 1 << 20
    assert "version" in httpx.get(f"{server.url}/api/version").json()
    client.generate(model="nano", prompt="", keep_alive=-1)
    running = client.ps().models
    assert [model.model for model in running] == ["nano"]
    assert running[0].digest == server.nano.hex
    assert client.generate(model="tuned", keep_alive=0).done_reason == "unload"


def test_show_names_manifest_base_and_template(client: ollama.Client, server: Server) -> None:
    shown = client.show("tuned")
    assert shown.modelinfo is not None and shown.details is not None
    assert shown.modelinfo["keystone.manifest"] == str(server.tuned)
    assert len(shown.modelinfo["keystone.adapters"]) == 1
    assert shown.modelinfo["keystone_plt.context_length"] == 1024
    assert shown.details.parent_model == str(server.nano)
    assert shown.template is not None and "<|" in shown.template
    assert shown.capabilities == ["completion"]


def test_generate_whole_and_streamed_say_the_same(client: ollama.Client, server: Server) -> None:
    options = {"temperature": 0, "num_predict": 16}
    whole = client.generate(model="nano", prompt=CODE, raw=True, options=options)
    loaded = keystone.load("nano", archive=server.archive, quantization="none", device="cpu")
    assert whole.response == loaded.complete([CODE], max_new_tokens=16)[0]
    parts = list(client.generate(model="nano:latest", prompt=CODE, raw=True, options=options, stream=True))
    assert "".join(part.response for part in parts) == whole.response
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    last = parts[-1]
    assert last.done_reason == "length"
    assert last.eval_count == whole.eval_count == 16
    assert last.prompt_eval_count == len(loaded.tokenizer(CODE)["input_ids"])
    for duration in (last.total_duration, last.eval_duration, last.prompt_eval_duration):
        assert duration is not None and duration > 0


def test_chat_whole_and_streamed_say_the_same(client: ollama.Client) -> None:
    options = {"seed": 5, "temperature": 0.9, "top_k": 40, "top_p": 0.9, "num_predict": 16}
    whole = client.chat(model="tuned", messages=ASK, options=options)
    parts = list(client.chat(model="tuned", messages=ASK, options=options, stream=True))
    assert "".join(part.message.content or "" for part in parts) == whole.message.content
    assert parts[-1].done_reason == whole.done_reason in ("stop", "length")


def test_stop_ends_with_its_reason(client: ollama.Client) -> None:
    options = {"temperature": 0, "num_predict": 30}
    whole = client.generate(model="nano", prompt=CODE, raw=True, options=options).response
    stopped = client.generate(model="nano", prompt=CODE, raw=True, options={**options, "stop": [whole[4:8]]})
    assert stopped.response == whole[: whole.index(whole[4:8])]
    assert stopped.done_reason == "stop"


def test_the_template_is_applied_unless_raw(client: ollama.Client) -> None:
    options = {"temperature": 0, "num_predict": 12}
    said = client.chat(model="nano", messages=ASK, options=options).message.content
    assert client.generate(model="nano", prompt=ASK[0]["content"], options=options).response == said
    system = client.generate(model="nano", prompt=ASK[0]["content"], system="Be brief.", options=options)
    chat = client.chat(model="nano", messages=[{"role": "system", "content": "Be brief."}, *ASK], options=options)
    assert system.response == chat.message.content


def test_logprobs(client: ollama.Client) -> None:
    answer = client.generate(
        model="nano", prompt=CODE, raw=True, logprobs=True, top_logprobs=2, options={"temperature": 0, "num_predict": 3}
    )
    assert answer.logprobs is not None and len(answer.logprobs) == 3
    assert all(len(each.top_logprobs or ()) == 2 for each in answer.logprobs)


def test_json_and_a_schema(client: ollama.Client) -> None:
    options = {"temperature": 1, "seed": 2, "num_predict": 60}
    schema = {"type": "object", "properties": {"n": {"type": "integer"}, "ok": {"type": "boolean"}}, "required": ["ok"]}
    whole = client.chat(model="nano", messages=ASK, format={**schema, "additionalProperties": False}, options=options)
    assert isinstance(json.loads(whole.message.content or "")["ok"], bool)
    parts = client.generate(model="nano", prompt=CODE, format="json", options=options, stream=True)
    last = ""
    for part in parts:
        last += part.response
    assert part.done_reason == "length" or isinstance(json.loads(last), dict)


def test_neutral_options_are_accepted(client: ollama.Client) -> None:
    options = {"temperature": 0, "num_predict": 4, "num_thread": 2, "mirostat": 0, "num_ctx": 512, "seed": -1}
    assert client.generate(model="nano", prompt=CODE, raw=True, options=options, keep_alive="5m").eval_count == 4


def test_options_beside_options_count_as_options(server: Server) -> None:
    def said(**more: object) -> str:
        asked = {"model": "nano", "prompt": CODE, "raw": True, "stream": False, **more}
        answer = httpx.post(f"{server.url}/api/generate", json=asked, timeout=60)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["response"])

    options = {"temperature": 0.7, "seed": 3, "top_k": 5, "num_predict": 6}
    wanted = said(options=options)
    assert said(temperature=0.7, max_output_tokens=6, options={"seed": 3, "top_k": 5, "temperature": None}) == wanted
    assert said(**options) == said(**options, options=options) == wanted
    asked = {"model": "nano", "prompt": CODE, "temperature": 0.2, "options": options}
    refused = httpx.post(f"{server.url}/api/generate", json=asked)
    assert refused.status_code == 400
    assert "temperature is 0.2 here and 0.7 in options" in refused.json()["error"]


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"options": {"mirostat": 2}}, "options.mirostat"),
        ({"options": {"num_ctx": 4096}}, "options.num_ctx"),
        ({"options": {"temperature": -1}}, "options.temperature"),
        ({"format": {"uniqueItems": True}}, "uniqueItems"),
        ({"suffix": "x"}, "suffix"),
        ({"think": True}, "think"),
        ({"keep_alive": "soon"}, "keep_alive"),
        ({"context": [1, 2]}, "context"),
    ],
    ids=str,
)
def test_what_cannot_be_honoured_is_named(client: ollama.Client, more: dict[str, object], named: str) -> None:
    with pytest.raises(ollama.ResponseError) as refused:
        client.generate(model="nano", prompt=CODE, **more)
    assert refused.value.status_code == 400
    assert named in refused.value.error


def test_tools_and_pictures_in_chat_are_refused(client: ollama.Client) -> None:
    tool = {"type": "function", "function": {"name": "f", "description": "", "parameters": {"type": "object"}}}
    with pytest.raises(ollama.ResponseError, match="tools"):
        client.chat(model="nano", messages=ASK, tools=[tool])
    with pytest.raises(ollama.ResponseError, match=r"messages\.0\.images"):
        client.chat(model="nano", messages=[{**ASK[0], "images": ["aGk="]}])


def test_errors_have_the_apis_own_shape(client: ollama.Client, server: Server) -> None:
    with pytest.raises(ollama.ResponseError) as unknown:
        client.chat(model="nobody", messages=ASK)
    assert unknown.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="not offered"):
        client.pull("nano")
    answer = httpx.post(f"{server.url}/api/chat", content=b"{")
    assert (answer.status_code, set(answer.json())) == (400, {"error"})
    assert set(httpx.get(f"{server.url}/api/nothing").json()) == {"error"}
