"""The official `openai` client against a server on nano: it must find nothing it does not know."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import httpx
import jsonschema
import openai
import pydantic
import pytest
from serving_clients import Server, server_on

import keystone
from keystone.serve.limits import Limits

CODE = "def add(a, b):\n"
ASK = [{"role": "user", "content": "Write a function that adds two numbers."}]


@pytest.fixture(scope="module")
def server(nano_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("openai")
    limits = Limits(body_bytes=64 << 10, output_tokens=200)
    with server_on(nano_archive, folder, "nano", "tuned", aliases={"default": "nano"}, limits=limits) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as made:
        yield made


def test_models_carry_manifest_base_and_parent(client: openai.OpenAI, server: Server) -> None:
    listed = {model.id: model.model_dump() for model in client.models.list()}
    assert set(listed) == {"nano", "tuned", "default"}
    assert listed["tuned"]["manifest"] == str(server.tuned)
    assert listed["tuned"]["parent"] == str(server.nano)
    assert listed["tuned"]["root"] == listed["nano"]["root"]
    assert client.models.retrieve("default").model_dump()["manifest"] == str(server.nano)


def test_a_completion_is_what_the_loader_would_say(client: openai.OpenAI, server: Server) -> None:
    answer = client.completions.create(model="nano", prompt=CODE, temperature=0, max_tokens=20)
    loaded = keystone.load("nano", archive=server.archive, quantization="none", device="cpu")
    assert answer.choices[0].text == loaded.complete([CODE], max_new_tokens=20)[0]
    assert answer.system_fingerprint == str(server.nano)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(loaded.tokenizer(CODE)["input_ids"])
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_every_response_names_its_manifest(client: openai.OpenAI, server: Server) -> None:
    for model, digest in (("nano", server.nano), ("tuned", server.tuned), (str(server.tuned), server.tuned)):
        raw = client.completions.with_raw_response.create(model=model, prompt=CODE, max_tokens=1)
        assert raw.headers["X-Keystone-Manifest"] == str(digest)
        assert raw.parse().system_fingerprint == str(digest)


def test_an_adapter_answers_differently_beside_its_base(client: openai.OpenAI, server: Server) -> None:
    texts = {
        model: client.completions.create(model=model, prompt=CODE, temperature=0, max_tokens=20).choices[0].text
        for model in ("nano", "tuned", "default")
    }
    assert texts["nano"] == texts["default"] != texts["tuned"]
    loaded = keystone.load("tuned", archive=server.archive, quantization="none", device="cpu")
    assert texts["tuned"] == loaded.complete([CODE], max_new_tokens=20)[0]
    assert len(server.host.bases()) == 1


def test_chat_whole_and_streamed_say_the_same(client: openai.OpenAI) -> None:
    options = {"model": "nano", "messages": ASK, "seed": 7, "max_tokens": 24, "temperature": 0.7, "top_p": 0.9}
    whole = client.chat.completions.create(**options)
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage is not None and whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


def test_a_stream_without_usage_has_none(client: openai.OpenAI) -> None:
    chunks = list(client.completions.create(model="nano", prompt=CODE, max_tokens=4, stream=True))
    assert all(chunk.usage is None for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "length"


def test_a_seed_repeats_and_another_does_not(client: openai.OpenAI) -> None:
    first, again, other = (
        client.completions.create(model="nano", prompt=CODE, seed=seed, max_tokens=24).choices[0].text
        for seed in (1, 1, 2)
    )
    assert first == again != other


def test_several_answers_to_several_prompts_keep_their_numbers(client: openai.OpenAI) -> None:
    prompts = [CODE, "import os\n"]
    answer = client.completions.create(model="nano", prompt=prompts, n=2, seed=4, max_tokens=8, echo=True)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text.startswith(prompts[n // 2]) for n, choice in enumerate(answer.choices)] == [True] * 4
    chat = client.chat.completions.create(model="nano", messages=ASK, n=3, seed=1, max_tokens=8)
    assert len({choice.message.content for choice in chat.choices}) > 1


def test_stop_strings_are_cut_off_and_streamed_so(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="nano", prompt=CODE, temperature=0, max_tokens=40).choices[0].text
    stop = whole[6:10]
    answer = client.completions.create(model="nano", prompt=CODE, temperature=0, max_tokens=40, stop=[stop, "zzz"])
    assert answer.choices[0].text == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    stream = client.completions.create(model="nano", prompt=CODE, temperature=0, max_tokens=40, stop=stop, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == answer.choices[0].text


def test_logprobs_in_both_shapes(client: openai.OpenAI) -> None:
    chat = client.chat.completions.create(
        model="nano", messages=ASK, temperature=0, max_tokens=5, logprobs=True, top_logprobs=3
    )
    scores = chat.choices[0].logprobs
    assert scores is not None and scores.content
    for line in scores.content:
        assert len(line.top_logprobs) == 3
        assert line.logprob == line.top_logprobs[0].logprob <= 0
    text = client.completions.create(model="nano", prompt=CODE, temperature=0, max_tokens=5, logprobs=2)
    held = text.choices[0].logprobs
    assert held is not None and held.tokens and held.text_offset
    assert "".join(held.tokens) == text.choices[0].text
    assert held.text_offset[0] == 0


def test_tokens_may_be_given_as_numbers(client: openai.OpenAI, server: Server) -> None:
    ids = httpx.post(f"{server.url}/tokenize", json={"model": "nano", "prompt": CODE}).json()["tokens"]
    by_number = client.completions.create(model="nano", prompt=ids, temperature=0, max_tokens=8)
    by_text = client.completions.create(model="nano", prompt=CODE, temperature=0, max_tokens=8)
    assert by_number.choices[0].text == by_text.choices[0].text


def test_a_bias_forces_and_forbids(client: openai.OpenAI, server: Server) -> None:
    ids = httpx.post(f"{server.url}/tokenize", json={"model": "nano", "prompt": "return"}).json()["tokens"]
    forced = client.completions.create(
        model="nano", prompt=CODE, temperature=0, max_tokens=3, logit_bias={str(ids[-1]): 100}
    )
    assert forced.choices[0].text == "return" * 3


NEUTRAL = (
    {"user": "me"},
    {"metadata": {"a": "b"}},
    {"store": True},
    {"tools": []},
    {"tool_choice": "none"},
    {"response_format": {"type": "text"}},
    {"logit_bias": {}},
    {"frequency_penalty": 0},
    {"presence_penalty": 0.0},
    {"logprobs": False},
    {"modalities": ["text"]},
    {"service_tier": "auto"},
    {"stop": None},
    {"seed": None},
    {"max_completion_tokens": None},
    {"parallel_tool_calls": True},
    {"top_p": 1},
    {"n": 1},
)


def test_null_default_and_neutral_values_are_accepted(client: openai.OpenAI) -> None:
    options = {"model": "nano", "messages": ASK, "temperature": 0, "max_tokens": 2}
    plain = client.chat.completions.create(**options).choices[0].message.content
    for more in NEUTRAL:
        given = client.chat.completions.create(**options, extra_body=more)
        assert given.choices[0].message.content == plain, more


REFUSED = (
    ("tools", [{"type": "function", "function": {"name": "f"}}]),
    ("tools", [{"type": "function"}]),
    ("tool_choice", "required"),
    ("response_format", {"type": "json_schema"}),
    ("response_format", {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}),
    ("response_format", {"type": "grammar"}),
    ("response_format", {"type": "json_object", "strength": 2}),
    ("functions", [{"name": "f"}]),
    ("reasoning_effort", "high"),
    ("modalities", ["audio"]),
    ("web_search_options", {}),
    ("temperatur", 1),
    ("temperature", 3),
    ("temperature", "hot"),
    ("top_p", -1),
    ("n", 0),
    ("n", 17),
    ("max_tokens", 201),
    ("top_logprobs", 2),
    ("logit_bias", {"99999": 1}),
    ("seed", 2**64),
    ("stop", [1]),
    ("stream_options", {"include_usage": True}),
)


@pytest.mark.parametrize(("name", "value"), REFUSED, ids=lambda value: str(value)[:24])
def test_what_cannot_be_honoured_is_a_400_that_names_it(client: openai.OpenAI, name: str, value: object) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="nano", messages=ASK, extra_body={name: value})
    assert refused.value.param is not None and refused.value.param.startswith(name)
    assert name in refused.value.message


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


def test_json_by_schema_whole_and_streamed(client: openai.OpenAI) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": PERSON}}
    options = {"model": "nano", "messages": ASK, "seed": 3, "temperature": 1.5, "max_tokens": 90}
    whole = client.chat.completions.create(**options, response_format=form, n=3)
    assert [choice.finish_reason for choice in whole.choices] == ["stop"] * 3
    for choice in whole.choices:
        jsonschema.validate(json.loads(choice.message.content or ""), PERSON)
    stream = client.chat.completions.create(**options, response_format=form, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == whole.choices[0].message.content


def test_any_json_object_is_one_or_is_cut(client: openai.OpenAI) -> None:
    for seed in range(3):
        answer = client.chat.completions.create(
            model="tuned", messages=ASK, seed=seed, max_tokens=60, response_format={"type": "json_object"}
        )
        text = answer.choices[0].message.content or ""
        assert text.startswith("{")
        assert answer.choices[0].finish_reason == "length" or isinstance(json.loads(text), dict)


class Verdict(pydantic.BaseModel):
    right: bool
    grade: Literal["good", "bad"]
    notes: list[Annotated[str, pydantic.Field(max_length=5)]] = pydantic.Field(max_length=2)


def test_the_clients_own_parsing_gives_typed_answers(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(model="nano", messages=ASK, seed=1, max_tokens=150, response_format=Verdict)
    assert isinstance(answer.choices[0].message.parsed, Verdict)


def test_pictures_and_names_in_messages_are_refused_by_name(client: openai.OpenAI) -> None:
    picture = [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]
    with pytest.raises(openai.BadRequestError, match=r"messages\.0\.content"):
        client.chat.completions.create(model="nano", messages=[{"role": "user", "content": picture}])
    with pytest.raises(openai.BadRequestError, match=r"messages\.1\.name"):
        client.chat.completions.create(model="nano", messages=[*ASK, {"role": "user", "content": "4", "name": "Bob"}])
    parts = [{"type": "text", "text": "Write "}, {"type": "text", "text": "code."}]
    joined = client.chat.completions.create(
        model="nano", messages=[{"role": "user", "content": parts}], temperature=0, max_tokens=4
    )
    plain = client.chat.completions.create(
        model="nano", messages=[{"role": "user", "content": "Write code."}], temperature=0, max_tokens=4
    )
    assert joined.choices[0].message.content == plain.choices[0].message.content


def test_errors_have_the_apis_own_shape(client: openai.OpenAI, server: Server) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.completions.create(model="../../etc/passwd", prompt="x")
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="nano", prompt="x = 1\n" * 2000, max_tokens=1)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.APIStatusError) as large:
        client.completions.create(model="nano", prompt="x" * (70 << 10))
    assert large.value.status_code == 413
    for body in (b"", b"{", b"[]", b'{"model": "nano"}', b"\xff", b"[" * 50_000):
        answer = httpx.post(f"{server.url}/v1/chat/completions", content=body)
        assert answer.status_code == 400, body[:20]
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert httpx.get(f"{server.url}/v1/nothing").json()["error"]["code"] == "unknown_url"
    assert httpx.get(f"{server.url}/v1/completions").status_code == 405


def greedy(number: int) -> dict[str, object]:
    """Six tokens, greedily: a batch rounds differently from a row alone, and a draw on an edge would show it."""
    model, code = ("nano", "tuned")[number % 2], ("import os\n", CODE, "class A:\n")[number // 2 % 3]
    return {"model": model, "prompt": code, "temperature": 0, "max_tokens": 6}


async def _many(url: str, count: int) -> list[str]:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
        answers = await asyncio.gather(*(client.completions.create(**greedy(number)) for number in range(count)))
        return [answer.choices[0].text for answer in answers]


def test_many_at_once_on_two_models_get_what_they_would_get_alone(client: openai.OpenAI, server: Server) -> None:
    together = asyncio.run(_many(server.url, 12))
    alone = [client.completions.create(**greedy(number)).choices[0].text for number in range(6)]
    assert together == alone * 2
    assert len(set(alone)) >= 3
