"""Tools with the official clients, on nano under a chat template that has them."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import httpx
import jsonschema
import ollama
import openai
import pydantic
import pytest
from serving_clients import Server, server_on

from csf_store import Archive, Digest
from keystone.nano.embedded import DATA
from manifests import Repository

TEMPLATE = (
    "{% if tools %}{% for tool in tools %}{{ tool | tojson }}{% endfor %}<tool_call>{% endif %}"
    "{% for m in messages %}{{ '<|' + m.role + '|>' }}{% if m.tool_calls %}{% for c in m.tool_calls %}"
    "{{ c.id + c.function.name + c.function.arguments.city }}{% endfor %}{% endif %}"
    "{% if m.role == 'tool' %}{{ m.tool_call_id }}{% endif %}{{ m.content }}<|end|>{% endfor %}<|assistant|>"
)
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "unit": {"enum": ["c", "f"]}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "weather", "description": "Now", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "stop_all"}},
]
ASK = [{"role": "user", "content": "What is the weather in Bonn?"}]
NAMED = {"type": "function", "function": {"name": "weather"}}


@pytest.fixture(scope="module")
def server(nano_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("tools")
    with server_on(nano_archive, folder) as running:
        target = with_template(running.archive, running.nano, folder / "tokenizer")
        running.refs.set("caller", target, expected=None)
        yield running


def with_template(archive: Archive, manifest: Digest, folder: Path) -> Digest:
    shutil.copytree(DATA / "tokenizer", folder)
    fields = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**fields, "chat_template": TEMPLATE}))
    repository = Repository(archive)
    held = repository.load(manifest)
    assembly = held.assembly.revised(tokenizer=archive.put_tree(folder).digest)
    return repository.put(held.revised(assembly=assembly, parent=manifest))


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def other(server: Server) -> Iterator[ollama.Client]:
    with ollama.Client(host=server.url) as made:
        yield made


def options(**more: Any) -> dict[str, Any]:
    return {
        "model": "caller",
        "messages": ASK,
        "tools": TOOLS,
        "seed": 2,
        "temperature": 1.5,
        "max_tokens": 150,
        **more,
    }


def test_a_named_call_follows_its_schema(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**options(tool_choice=NAMED, n=3))
    assert [choice.finish_reason for choice in answer.choices] == ["tool_calls"] * 3
    for choice in answer.choices:
        assert choice.message.content is None
        (call,) = choice.message.tool_calls or ()
        assert (call.type, call.function.name, len(call.id)) == ("function", "weather", 9)
        jsonschema.validate(json.loads(call.function.arguments), WEATHER)


def test_required_calls_streamed_say_the_same(client: openai.OpenAI) -> None:
    asked = options(tool_choice="required", parallel_tool_calls=False)
    whole = client.chat.completions.create(**asked).choices[0]
    chunks = list(client.chat.completions.create(**asked, stream=True))
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert [(c.function.name, c.function.arguments) for c in calls if c.function] == [
        (call.function.name, call.function.arguments) for call in whole.message.tool_calls or ()
    ]
    assert [call.index for call in calls] == [0]
    assert chunks[-1].choices[0].finish_reason == whole.finish_reason == "tool_calls"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ""


class Weather(pydantic.BaseModel):
    city: Literal["Bonn", "Rome"]


def test_the_clients_own_helpers_understand_calls(client: openai.OpenAI) -> None:
    tool = openai.pydantic_function_tool(Weather)
    asked = options(tools=[tool], tool_choice="required", parallel_tool_calls=False)
    parsed = client.chat.completions.parse(**asked).choices[0].message.tool_calls
    assert parsed and isinstance(parsed[0].function.parsed_arguments, Weather)
    with client.chat.completions.stream(**asked) as stream:
        final = stream.get_final_completion().choices[0]
    assert final.finish_reason == "tool_calls"
    assert (final.message.tool_calls or [])[0].function.arguments == parsed[0].function.arguments


def test_who_may_call_need_not(client: openai.OpenAI) -> None:
    for choice in ("auto", "none"):
        answer = client.chat.completions.create(**options(tool_choice=choice, max_tokens=12)).choices[0]
        assert answer.message.content and not answer.message.tool_calls
        assert answer.finish_reason in ("stop", "length")


PLACE = {
    "type": "object",
    "properties": {"city": {"enum": ["Bonn", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}


def test_with_a_form_an_answer_is_calls_or_json_of_it(client: openai.OpenAI, other: ollama.Client) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": PLACE}}
    answer = client.chat.completions.create(**options(response_format=form, parallel_tool_calls=False, n=8))
    for choice in answer.choices:
        for call in choice.message.tool_calls or ():
            jsonschema.validate(json.loads(call.function.arguments), WEATHER if call.function.name == "weather" else {})
        if choice.finish_reason == "stop":
            jsonschema.validate(json.loads(choice.message.content or ""), PLACE)
        assert choice.finish_reason != "length"
    said = other.chat(model="caller", messages=ASK, tools=TOOLS, format=PLACE, options={"seed": 2, "temperature": 1.5})
    assert said.message.tool_calls or json.loads(said.message.content or "")["city"] in ("Bonn", "Rome")


def test_calls_and_their_results_come_back_in_the_conversation(client: openai.OpenAI, server: Server) -> None:
    call = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bonn"}'}}
    turns = [
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "abcdefghi", "content": [{"type": "text", "text": "Rain"}]},
    ]
    answer = client.chat.completions.create(**options(messages=turns, max_tokens=4))
    wanted = "<|assistant|>abcdefghiweatherBonn<|end|><|tool|>abcdefghiRain<|end|><|assistant|>"
    plain = client.chat.completions.create(**options(max_tokens=4))
    with server.host.lease("caller") as lease:
        tokenizer = lease.engine.tokenizer
    more = len(tokenizer(wanted.removeprefix("<|assistant|>"), add_special_tokens=False)["input_ids"])
    assert answer.usage is not None and plain.usage is not None
    assert answer.usage.prompt_tokens - plain.usage.prompt_tokens == more


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"model": "nano"}, "tools"),
        ({"model": "nano", "tools": [], "messages": [{"role": "tool", "content": "x"}]}, r"messages\.0\.role"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "nothing"}}}, "nothing"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "twice"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, r"tools\.0\.type"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}}, "response_format"),
        (
            {"tools": [{"type": "function", "function": {"name": "x", "parameters": {"if": {}}, "strict": True}}]},
            r"tools\.0\.function\.parameters: the keyword 'if'",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_called_is_named(client: openai.OpenAI, more: dict[str, Any], named: str) -> None:
    with pytest.raises(openai.BadRequestError, match=named):
        client.chat.completions.create(**options(**more))


def add_two(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: one
        b: another
    """
    return a + b


def test_ollamas_tools(other: ollama.Client) -> None:
    said = other.chat(model="caller", messages=ASK, tools=[add_two], options={"num_predict": 8, "seed": 1})
    assert said.message.content and not said.message.tool_calls
    turns = [
        *ASK,
        {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Bonn"}}}]},
        {"role": "tool", "tool_name": "weather", "content": "Rain"},
    ]
    again = other.chat(model="caller", messages=turns, tools=TOOLS[:1], options={"num_predict": 8, "seed": 1})
    assert (again.prompt_eval_count or 0) > (said.prompt_eval_count or 0) - 60
    assert "tools" in (other.show("caller").capabilities or [])
    with pytest.raises(ollama.ResponseError, match="no tools"):
        other.chat(model="nano", messages=ASK, tools=[add_two])


def test_a_choice_of_tools_is_honoured_beside_ollamas_fields(server: Server) -> None:
    asked = {"model": "caller", "messages": ASK, "tools": TOOLS, "stream": False, "options": {"seed": 2}}
    answer = httpx.post(f"{server.url}/api/chat", json={**asked, "tool_choice": NAMED}, timeout=60).json()
    (call,) = answer["message"]["tool_calls"]
    assert call["function"]["name"] == "weather"
    jsonschema.validate(call["function"]["arguments"], WEATHER)


def test_a_call_that_the_model_writes_by_itself_is_read(other: ollama.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    # Nano was taught no calls, so the answer's text is put in its mouth where the server takes it from the engine.
    from keystone.serve import streams  # noqa: PLC0415
    from keystone.serve.generation import Finished, Piece  # noqa: PLC0415

    real = streams.with_calls

    def spoken(reader: Any, event: Any) -> Any:
        if isinstance(event, Finished):
            yield from real(reader, Piece(0, 'Hm. <tool_call>{"name": "weather", "arguments": {"city": "Rome"}}'))
            yield from real(reader, event)

    monkeypatch.setattr(streams, "with_calls", spoken)
    for stream in (False, True):
        asked = {"model": "caller", "messages": ASK, "tools": TOOLS, "options": {"num_predict": 1, "stop": ["\0"]}}
        parts = list(other.chat(**asked, stream=True)) if stream else [other.chat(**asked)]
        calls = [call for part in parts for call in part.message.tool_calls or ()]
        assert [(call.function.name, call.function.arguments) for call in calls] == [("weather", {"city": "Rome"})]
        assert "".join(part.message.content or "" for part in parts) == "Hm. "
