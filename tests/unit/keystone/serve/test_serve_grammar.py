"""Constrained answers: whatever a model that knows nothing is asked for, what it finishes is what was asked for."""

import dataclasses
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from serving_parts import Gate, Listener, ask, engine_of

import keystone
from keystone.errors import KeystoneError
from keystone.model import KeystoneConfig, KeystoneForCausalLM
from keystone.serve.engine import Engine
from keystone.serve.errors import ModelFailedError, UnsupportedValueError
from keystone.serve.generation import GenerationRequest
from keystone.serve.grammar import Guide, JsonForm
from keystone.serve.limits import Limits
from keystone.serve.sampling import Sampling

SCHEMAS = 48


@pytest.fixture(scope="module")
def engine(nano_archive: Path) -> Iterator[Engine]:
    """Nano's tokenizer on a model that was never trained: every allowed token is about as likely as any other."""
    loaded = keystone.load("nano", archive=nano_archive, quantization="none", device="cpu")
    torch.manual_seed(0)
    config = KeystoneConfig(
        vocab_size=4096,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        eos_token_id=loaded.tokenizer.eos_token_id,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    loaded = dataclasses.replace(loaded, model=KeystoneForCausalLM(config).eval())
    with engine_of(loaded, Limits(streams=SCHEMAS, choices=8)) as made:
        yield made


def asked(engine: Engine, schema: Any, *, seed: int = 0, tokens: int = 400, **sampling: Any) -> GenerationRequest:
    grammar = engine.grammars.json(JsonForm(schema, "schema"))
    return GenerationRequest((5, 6, 7), tokens, sampling=Sampling(seed=seed, **sampling), grammar=grammar)


def random_schema(chance: random.Random, depth: int = 2) -> dict[str, Any]:
    """A schema of the kinds that clients write; small enough that a blind model gets to its end."""

    def inner() -> dict[str, Any]:
        return random_schema(chance, depth - 1)

    leaves = (
        {"type": "string", "maxLength": chance.randint(1, 20)},
        {"type": "integer", "minimum": -50, "maximum": chance.randint(0, 900)},
        {"type": "number", "minimum": 0, "exclusiveMaximum": 10},
        {"type": "boolean"},
        {"type": "null"},
        {"enum": chance.sample(["a", 'b"', "ü\n", 1, 2.5, None, True, {"x": [1]}], 3)},
        {"const": chance.choice(["only", 7, [1, 2], {"k": "v"}])},
        {"type": ["string", "null"], "maxLength": 3},
        {"type": "string", "pattern": "^[a-c]{2,5}$"},
    )
    if depth == 0 or chance.random() < 0.3:
        return chance.choice(leaves)
    kind = chance.choice(("object", "object", "array", "anyOf", "$ref"))
    if kind == "array":
        least = chance.randint(0, 2)
        return {"type": "array", "items": inner(), "minItems": least, "maxItems": least + chance.randint(0, 2)}
    if kind == "anyOf":
        return {"anyOf": [inner(), inner()]}
    if kind == "$ref":
        return {"$defs": {"part": inner()}, "type": "array", "items": {"$ref": "#/$defs/part"}, "maxItems": 2}
    names = chance.sample(["name", "größe", "x y", "n", "list"], chance.randint(1, 3))
    required = chance.sample(names, chance.randint(0, len(names)))
    fields = {name: inner() for name in names}
    # A $ref is looked up from the root, so definitions stay where they were made: at the top only.
    if any("$defs" in field for field in fields.values()):
        return chance.choice(leaves)
    return {"type": "object", "properties": fields, "required": required, "additionalProperties": False}


def with_definitions_on_top(chance: random.Random) -> dict[str, Any]:
    while True:
        schema = random_schema(chance)
        if "$defs" not in json.dumps({**schema, "$defs": None}).replace('"$defs": null', ""):
            return schema


def test_what_a_blind_model_finishes_parses_and_validates(engine: Engine) -> None:
    chance = random.Random(7)
    schemas = [with_definitions_on_top(chance) for _ in range(SCHEMAS)]
    gate = Gate(engine)
    waiting: list[tuple[dict[str, Any], Listener]] = []
    for seed, schema in enumerate(schemas):
        greedy = {"temperature": 0.0} if seed % 8 == 7 else {"top_p": 0.95}
        waiting.append((schema, ask(engine, asked(engine, schema, seed=seed, **greedy))[1]))
    gate.open()
    finished = 0
    for schema, listener in waiting:
        listener.wait()
        assert listener.error is None
        if listener.endings[0].reason == "stop":
            jsonschema.validate(json.loads(listener.text()), schema, cls=jsonschema.Draft202012Validator)
            finished += 1
    assert finished > SCHEMAS * 0.8


def test_any_object_and_penalties_bias_and_choices_do_not_open_the_grammar(engine: Engine) -> None:
    bias = dict.fromkeys(range(10, 200), 20.0)
    sampling = Sampling(seed=3, bias=bias, repeat_penalty=1.5, presence_penalty=1.0, top_k=40, scores=True)
    word = {"type": "string", "minLength": 2, "maxLength": 20}
    schema = {"type": "object", "properties": {"a": word}, "required": ["a"], "additionalProperties": False}
    grammar = engine.grammars.json(JsonForm(schema, "schema"))
    request = GenerationRequest((5, 6, 7), 300, sampling=sampling, choices=8, grammar=grammar)
    heard = ask(engine, request)[1].wait()
    texts = [heard.text(choice) for choice in range(8) if heard.endings[choice].reason == "stop"]
    assert len({*texts}) > 1
    assert all(len(json.loads(text)["a"]) >= 2 for text in texts)
    cut = ask(engine, asked(engine, {"type": "string", "minLength": 200}, tokens=8))[1].wait()
    assert cut.endings[0].reason == "length"


def test_the_answers_beside_it_are_as_they_would_be_alone(engine: Engine) -> None:
    free = GenerationRequest((5, 6, 7), 40, sampling=Sampling(seed=1))
    alone = ask(engine, free)[1].wait().text()
    gate = Gate(engine)
    held = ask(engine, asked(engine, {"type": "integer"}))[1]
    beside = ask(engine, free)[1]
    gate.open()
    assert beside.wait().text() == alone
    assert isinstance(json.loads(held.wait().text()), int)


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "object", "properties": {"a": {"not": {}}}}, r"properties\.a: the keyword 'not'"),
        ({"type": "array", "items": {"uniqueItems": True}}, r"items: the keyword 'uniqueItems'"),
        ({"type": "string", "contentEncoding": "base64"}, "'contentEncoding'"),
        ({"x-guidance": {"lenient": True}}, "'x-guidance'"),
        ({"anyOf": [{"if": {}}]}, r"anyOf\.0: the keyword 'if'"),
        ({"properties": {"a": 3}}, r"properties\.a: a schema is an object"),
        ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "oneOf"),
        ({"type": "string", "format": "weird"}, "weird"),
        ({"type": "frog"}, "frog"),
        ({"$ref": "http://example.com/x"}, r"http://example\.com/x"),
        ({"$ref": "#/$defs/none"}, "none"),
        ({"minimum": 2, "maximum": 1, "type": "integer"}, "minimum"),
        (False, "false"),
    ],
    ids=str,
)
def test_what_an_answer_cannot_be_held_to_is_named(engine: Engine, schema: Any, named: str) -> None:
    with pytest.raises(UnsupportedValueError, match=named) as refused:
        engine.grammars.json(JsonForm(schema, "schema"))
    assert refused.value.parameter == "schema"


def test_words_that_say_nothing_are_accepted(engine: Engine) -> None:
    draft = "https://json-schema.org/draft/2020-12/schema"
    schema = {"$schema": draft, "title": "T", "description": "d", "type": "boolean", "default": True, "examples": [1]}
    assert ask(engine, asked(engine, schema))[1].wait().text() in ("true", "false")


def test_a_token_that_may_not_follow_is_a_failure_and_not_a_wrong_answer(engine: Engine) -> None:
    guide: Guide = engine.grammars.json(JsonForm({"const": "a"}, "schema")).guide()
    masked = guide.mask(np.zeros(4096, dtype=np.float32))
    forbidden = int(np.flatnonzero(masked == float("-inf"))[0])
    with pytest.raises(ModelFailedError, match="grammar"):
        guide.accept(forbidden)
    assert issubclass(ModelFailedError, KeystoneError)
