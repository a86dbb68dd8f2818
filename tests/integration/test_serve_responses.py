"""The Responses API with the official client, beside chats that ask the same: the same answers under other names."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import httpx
import jsonschema
import openai
import pydantic
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from serving_clients import Server, server_on
from test_serve_tool_calls import PLACE, TOOLS, WEATHER, with_template

from keystone.serve.answers import Answer

ASK = "Write a function that adds two numbers."
EVENTS: pydantic.TypeAdapter[ResponseStreamEvent] = pydantic.TypeAdapter(ResponseStreamEvent)
FLAT: list[Any] = [{"type": "function", **tool["function"]} for tool in TOOLS]


@pytest.fixture(scope="module")
def server(nano_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("responses")
    with server_on(nano_archive, folder) as running:
        target = with_template(running.archive, running.nano, folder / "tokenizer")
        running.refs.set("caller", target, expected=None)
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as made:
        yield made


def events_of(server: Server, **asked: Any) -> list[dict[str, Any]]:
    """A stream's events, each held to the client's own types."""
    answer = httpx.post(f"{server.url}/v1/responses", json={"model": "nano", **asked, "stream": True}, timeout=60)
    assert answer.status_code == 200, answer.text
    made = []
    for part in answer.text.strip().split("\n\n"):
        kind, data = part.split("\n")
        made.append(json.loads(data.removeprefix("data: ")))
        assert kind == f"event: {made[-1]['type']}"
        EVENTS.validate_python(made[-1])
    assert [each["sequence_number"] for each in made] == list(range(len(made)))
    return made


def test_a_response_is_what_a_chat_would_say(client: openai.OpenAI, server: Server) -> None:
    chat = client.chat.completions.create(
        model="tuned", messages=[{"role": "user", "content": ASK}], seed=4, max_tokens=24, top_p=0.9
    )
    raw = client.responses.with_raw_response.create(
        model="tuned", input=ASK, max_output_tokens=24, top_p=0.9, extra_body={"seed": 4}
    )
    said = raw.parse()
    Response.model_validate(json.loads(raw.text))
    assert said.output_text == chat.choices[0].message.content
    assert raw.headers["X-Keystone-Manifest"] == json.loads(raw.text)["system_fingerprint"] == str(server.tuned)
    assert said.usage is not None and chat.usage is not None
    assert said.usage.input_tokens == chat.usage.prompt_tokens
    assert said.usage.output_tokens == chat.usage.completion_tokens
    assert (said.status, said.incomplete_details) in (("completed", None), ("incomplete", said.incomplete_details))
    assert said.store is False


def test_streamed_events_add_up_to_the_whole(server: Server) -> None:
    asked = {"model": "nano", "input": ASK, "seed": 3, "max_output_tokens": 12}
    whole = httpx.post(f"{server.url}/v1/responses", json=asked, timeout=60).json()
    assert (whole["status"], whole["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    made = events_of(server, **asked)
    assert [each["type"].removeprefix("response.") for each in made if "delta" not in each] == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *("output_text.done", "content_part.done", "output_item.done", "incomplete"),
    ]
    assert "".join(each.get("delta", "") for each in made) == whole["output"][0]["content"][0]["text"]

    def plain(response: dict[str, Any]) -> dict[str, Any]:
        items = [{**item, "id": ""} for item in response["output"]]
        usage = {**response["usage"], "input_tokens_details": {}}
        return {**response, "id": "", "created_at": 0, "output": items, "usage": usage}

    assert plain(made[-1]["response"]) == plain(whole)


def test_the_clients_own_helpers_understand_streams_and_types(client: openai.OpenAI) -> None:
    class Place(pydantic.BaseModel):
        city: Literal["Bonn", "Rome"]

    parsed = client.responses.parse(model="nano", input=ASK, text_format=Place, max_output_tokens=60)
    assert isinstance(parsed.output_parsed, Place)
    with client.responses.stream(model="nano", input=ASK, text_format=Place) as stream:
        heard = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert final.output_text == heard
    assert isinstance(final.output_parsed, Place)


def test_a_conversation_of_items_is_the_same_prompt_as_that_of_messages(client: openai.OpenAI) -> None:
    call = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bonn"}'}}
    chat = client.chat.completions.create(
        model="caller",
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": "Let me see.", "tool_calls": [call]},  # type: ignore[list-item]
            {"role": "tool", "tool_call_id": "abcdefghi", "content": "Rain"},
        ],
        tools=TOOLS,
        temperature=0,
        max_tokens=10,
    )
    items: list[Any] = [
        {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        {
            "type": "message",
            "id": "msg_1",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Let me see.", "annotations": []}],
        },
        {
            "type": "function_call",
            "id": "fc_1",
            "call_id": "abcdefghi",
            "name": "weather",
            "arguments": '{"city":"Bonn"}',
        },
        {"type": "function_call_output", "call_id": "abcdefghi", "output": "Rain"},
    ]
    said = client.responses.create(
        model="caller", instructions="Be brief.", input=items, tools=FLAT, temperature=0, max_output_tokens=10
    )
    assert said.usage is not None and chat.usage is not None
    assert said.usage.input_tokens == chat.usage.prompt_tokens
    assert said.output_text == chat.choices[0].message.content


def test_calls_are_items_whole_and_streamed(server: Server) -> None:
    asked = {"model": "caller", "input": ASK, "tools": FLAT, "seed": 2, "temperature": 1.5, "max_output_tokens": 150}
    only = {"type": "function", "name": "weather"}
    made = events_of(server, **asked, tool_choice=only)
    final = made[-1]["response"]
    (item,) = final["output"]
    jsonschema.validate(json.loads(item["arguments"]), WEATHER)
    assert (item["type"], item["name"], final["status"]) == ("function_call", "weather", "completed")
    assert final["tool_choice"] == only
    assert final["tools"][0]["parameters"] == WEATHER
    assert "".join(each.get("delta", "") for each in made) == item["arguments"]
    again = httpx.post(f"{server.url}/v1/responses", json={**asked, "tool_choice": only}, timeout=60).json()
    assert [each["arguments"] for each in again["output"]] == [item["arguments"]]


def test_with_a_form_an_answer_is_calls_or_json_of_it(client: openai.OpenAI) -> None:
    form: Any = {"format": {"type": "json_schema", "name": "place", "schema": PLACE}}
    kinds = set()
    for seed in range(6):
        said = client.responses.create(
            model="caller",
            input=ASK,
            tools=FLAT,
            text=form,
            parallel_tool_calls=False,
            temperature=1.5,
            extra_body={"seed": seed},
        )
        assert said.status == "completed"
        kinds |= {item.type for item in said.output}
        if said.output_text:
            jsonschema.validate(json.loads(said.output_text), PLACE)
    assert kinds == {"message", "function_call"}


def test_scores_come_when_asked_for(server: Server) -> None:
    for asked in ({"top_logprobs": 2}, {"include": ["message.output_text.logprobs"]}, {}):
        made = events_of(server, input=ASK, max_output_tokens=3, temperature=0, **asked)
        scores = made[-1]["response"]["output"][0]["content"][0]["logprobs"]
        assert len(scores) == (3 if asked else 0)
        assert all(len(each["top_logprobs"]) == asked.get("top_logprobs", 0) for each in scores)


def test_neutral_and_default_values_are_accepted(client: openai.OpenAI) -> None:
    said = client.responses.create(
        model="nano",
        input=ASK,
        max_output_tokens=2,
        metadata={"a": "b"},
        store=True,
        user="u",
        truncation="disabled",
        background=False,
        include=["reasoning.encrypted_content"],
        reasoning={"effort": None, "summary": "auto"},
        service_tier="auto",
        previous_response_id=None,
        text={"format": {"type": "text"}, "verbosity": "medium"},
        tool_choice="auto",
        tools=[],
    )
    assert said.metadata == {"a": "b"}
    assert said.tool_choice == "auto"


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id: nothing is kept"),
        ({"conversation": "conv_1"}, "conversation: nothing is kept"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"reasoning": {"effort": "high"}}, r"reasoning\.effort"),
        ({"include": ["more.please"]}, "include"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, r"input\.0\.type: 'item_reference'; nothing is kept"),
        ({"input": [{"type": "reasoning", "id": "rs_1", "summary": []}]}, r"input\.0\.type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, r"input\.0\.content"),
        ({"input": [{"content": "x"}]}, r"input\.0\.role"),
        ({"input": [{"type": "function_call", "name": "x"}]}, r"input\.0\.call_id"),
        ({"input": [{"type": "function_call", "call_id": "a", "name": "x", "arguments": "["}]}, r"input\.0\.arguments"),
        ({"input": [{"role": "user", "content": "x", "weight": 2}]}, r"input\.0\.weight"),
        ({"tools": [{"type": "web_search"}]}, r"tools\.0\.type: 'web_search'"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, r"text\.format\.schema"),
        ({"text": {"format": {"type": "json_schema", "schema": {"not": {}}}}}, r"text\.format\.schema"),
        ({"text": {"verbosity": "low"}}, r"text\.verbosity"),
        ({"top_k": 3}, "top_k"),
    ],
    ids=str,
)
def test_what_cannot_be_honoured_is_named(client: openai.OpenAI, more: dict[str, Any], named: str) -> None:
    with pytest.raises(openai.BadRequestError, match=named):
        client.responses.create(model="nano", input=ASK, max_output_tokens=1, extra_body=more)


def test_an_answer_that_breaks_ends_its_stream_by_saying_so(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise FloatingPointError("not a number")

    monkeypatch.setattr(Answer, "take", broken)
    *_, last = events_of(server, input=ASK)
    assert last["type"] == "response.failed"
    assert "FloatingPointError" in last["response"]["error"]["message"]
    answer = httpx.post(f"{server.url}/v1/responses", json={"model": "nano", "input": ASK}, timeout=60)
    assert (answer.status_code, set(answer.json())) == (500, {"error"})


def test_no_response_can_be_asked_for_again(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError, match="nothing is kept") as refused:
        client.responses.retrieve("resp_1")
    assert refused.value.status_code == 501
