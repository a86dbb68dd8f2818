"""Tool calls: found in whatever pieces the text comes, and held to the tools' schemas where they have to be."""

import copy
import json
import random
from collections.abc import Sequence
from pathlib import Path

import jsonschema
import llguidance.hf
import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

import keystone
from keystone.serve.call_reader import CallReader
from keystone.serve.errors import UnsupportedValueError
from keystone.serve.grammar import Grammars, JsonForm
from keystone.serve.text import Detokeniser
from keystone.serve.tools import HERMES, LLAMA, MISTRAL, MISTRAL_NAMED, Tool, Toolbox, ToolForm, form_of

ADD = Tool("add", {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}, False, {})
SAY = Tool(
    "say",
    {"type": "object", "properties": {"w": {"enum": ["x", "y"]}}, "required": ["w"], "additionalProperties": False},
    True,
    {},
)
TEMPLATES = {
    "hermes": "{% if tools %}{{ tools }}<tool_call>{% endif %}",
    "mistral": "{% if tools %}[AVAILABLE_TOOLS]{{ tools }}{% endif %}[TOOL_CALLS]",
    "mistral named": "{% if tools %}[AVAILABLE_TOOLS]{{ tools }}{% endif %}[TOOL_CALLS]n[CALL_ID]i[ARGS]a",
    "llama": '{% if tools %}{"name": n, "parameters": p}{% endif %}ipython',
}
FORMS = {"hermes": HERMES, "mistral": MISTRAL, "mistral named": MISTRAL_NAMED, "llama": LLAMA}


@pytest.fixture(scope="module")
def tokenizer(nano_archive: Path) -> PreTrainedTokenizerFast:
    return keystone.load("nano", archive=nano_archive, quantization="none", device="cpu").tokenizer


def with_template(tokenizer: PreTrainedTokenizerFast, template: str, special: Sequence[str] = ()) -> object:
    made = copy.deepcopy(tokenizer)
    made.chat_template = template
    if special:
        made.add_special_tokens({"additional_special_tokens": list(special)})
    return made


def box_of(form: ToolForm, tools: Sequence[Tool] = (ADD, SAY), **options: bool) -> Toolbox:
    return Toolbox(tuple(tools), form, {}, **{"several": True, "must": False, **options})


def read(form: ToolForm, text: str, sizes: Sequence[int]) -> tuple[str, list[tuple[str, object]]]:
    """The text in pieces of these sizes, over and over."""
    reader, said, calls, place, turn = CallReader(box_of(form)), "", [], 0, 0
    while place < len(text):
        size = sizes[turn % len(sizes)]
        more, made = reader.feed(text[place : place + size])
        said, place, turn = said + more, place + size, turn + 1
        calls += made
    more, made = reader.flush()
    calls += made
    assert [call.number for call in calls] == list(range(len(calls)))
    assert len({call.key for call in calls}) == len(calls)
    return said + more, [(call.name, call.arguments) for call in calls]


ONE = '{"name": "add", "arguments": {"a": 1}}'
TWO = '{"name": "say", "parameters": {"w": "x"}}'
READ = (
    (HERMES, f"Let me see.<tool_call>\n{ONE}\n</tool_call>", "Let me see.", ["add"]),
    (HERMES, f"<tool_call>{ONE}</tool_call>\n<tool_call>{TWO}</tool_call>\n", "", ["add", "say"]),
    (HERMES, f"<tool_call>\n{ONE}", "", ["add"]),
    (HERMES, "a <tool_call> is <b>", "a <tool_call> is <b>", []),
    (HERMES, "<tool_call>{broken}</tool_call> hm", "<tool_call>{broken}</tool_call> hm", []),
    (HERMES, '<tool_call>{"name": "rm"}</tool_call>', '<tool_call>{"name": "rm"}</tool_call>', []),
    (HERMES, '<tool_call>{"name": ["add"]}</tool_call>', '<tool_call>{"name": ["add"]}</tool_call>', []),
    (HERMES, "plain <tool", "plain <tool", []),
    (MISTRAL, f"[TOOL_CALLS] [{ONE}, {TWO}]", "", ["add", "say"]),
    (MISTRAL, f"[TOOL_CALLS] {ONE}", f"[TOOL_CALLS] {ONE}", []),
    (MISTRAL_NAMED, 'Hm.[TOOL_CALLS]add[ARGS]{"a": 1}', "Hm.", ["add"]),
    (
        MISTRAL_NAMED,
        '[TOOL_CALLS]add[CALL_ID]abcdefghi[ARGS]{"a": 1}\n[TOOL_CALLS]say[ARGS] {"w": "x"}',
        "",
        ["add", "say"],
    ),
    (MISTRAL_NAMED, '[TOOL_CALLS]say[ARGS]{"w": "[TOOL_CALLS][ARGS]"}', "", ["say"]),
    (MISTRAL_NAMED, '[TOOL_CALLS]rm[ARGS]{"a": 1}', '[TOOL_CALLS]rm[ARGS]{"a": 1}', []),
    (MISTRAL_NAMED, '[TOOL_CALLS]add[ARGS]{"a": 1} and', '[TOOL_CALLS]add[ARGS]{"a": 1} and', []),
    (MISTRAL_NAMED, "[TOOL_CALLS]add", "[TOOL_CALLS]add", []),
    (LLAMA, f" {TWO}", "", ["say"]),
    (LLAMA, f"<|python_tag|>{ONE}; {TWO}", "", ["add", "say"]),
    (LLAMA, '{"not": "a call"}', '{"not": "a call"}', []),
    (LLAMA, "No call {here}", "No call {here}", []),
)


@pytest.mark.parametrize(("form", "text", "said", "names"), READ, ids=lambda value: str(value)[:30])
def test_calls_are_found_in_whatever_pieces_they_come(form: ToolForm, text: str, said: str, names: list[str]) -> None:
    chance = random.Random(1)
    for sizes in ([1], [1000], [chance.randint(1, 9) for _ in range(7)], [2, 5]):
        heard, calls = read(form, text, sizes)
        assert heard == said, sizes
        assert [name for name, _ in calls] == names, sizes


def test_text_before_a_call_is_not_kept_waiting() -> None:
    reader = CallReader(box_of(HERMES))
    assert reader.feed("Let me")[0] == "Let me"
    assert reader.feed(" see <")[0] == " see "
    assert reader.feed("b>")[0] == "<b>"


def test_the_form_is_the_templates(tokenizer: PreTrainedTokenizerFast) -> None:
    for name, template in TEMPLATES.items():
        assert form_of(with_template(tokenizer, template)) is FORMS[name]
    with pytest.raises(UnsupportedValueError, match="no tools"):
        form_of(tokenizer)
    with pytest.raises(UnsupportedValueError, match="does not read"):
        form_of(with_template(tokenizer, "{{ tools }}<function=x>"))


def spoken(
    tokenizer: PreTrainedTokenizerFast, box: Toolbox, seed: int, form: JsonForm | None = None, most: int = 400
) -> str | None:
    """What a model that knows nothing says under the box's grammar; None if it did not come to an end."""
    made = Grammars(tokenizer, len(tokenizer), [tokenizer.eos_token_id])
    grammar = box.grammar(made, form)
    assert grammar is not None
    guide, chance = grammar.guide(), random.Random(seed)
    reader = Detokeniser(tokenizer, {token: text for text, token in box.marks.items()})
    said = ""
    for _ in range(most):
        allowed = np.flatnonzero(guide.mask(np.zeros(len(tokenizer), dtype=np.float32)) == 0).tolist()
        token = chance.choice(allowed)
        if token == tokenizer.eos_token_id:
            return said + reader.flush()
        said += reader.feed(token)
        if guide.accept(token):
            return said + reader.flush()
    return None


@pytest.mark.parametrize("special", [(), ("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>")])
@pytest.mark.parametrize("name", list(TEMPLATES))
def test_required_calls_are_calls_of_the_tools(
    tokenizer: PreTrainedTokenizerFast, name: str, special: tuple[str, ...]
) -> None:
    made = with_template(tokenizer, TEMPLATES[name], special)
    finished = 0
    for seed in range(6):
        box = Toolbox.of(made, [ADD, SAY], must=True, several=seed % 2 == 0)
        assert bool(box.marks) == bool(special)
        text = spoken(made, box, seed)
        if text is None:
            continue
        finished += 1
        reader = CallReader(box)
        said, calls = reader.feed(text)
        rest, late = reader.flush()
        assert (said + rest).strip() == ""
        assert 1 <= len([*calls, *late]) <= (99 if box.several else 1)
        for call in (*calls, *late):
            jsonschema.validate(call.arguments, {"add": ADD, "say": SAY}[call.name].parameters)
    assert finished >= 3


@pytest.mark.parametrize("special", [(), ("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>")])
@pytest.mark.parametrize("name", list(TEMPLATES))
def test_with_a_form_an_answer_is_calls_or_json_of_it(
    tokenizer: PreTrainedTokenizerFast, name: str, special: tuple[str, ...]
) -> None:
    made = with_template(tokenizer, TEMPLATES[name], special)
    ages = {"type": "object", "properties": {"age": {"enum": [3, 44]}}, "required": ["age"]}
    schema = {**ages, "additionalProperties": False}
    kinds = set()
    for seed in range(24):
        box = Toolbox.of(made, [ADD, SAY], several=seed % 2 == 0)
        text = spoken(made, box, seed, JsonForm(schema, "response_format"))
        if text is None:
            continue
        reader = CallReader(box)
        said, calls = reader.feed(text)
        rest, late = reader.flush()
        for call in (*calls, *late):
            jsonschema.validate(call.arguments, {"add": ADD, "say": SAY}[call.name].parameters)
        if calls or late:
            assert (said + rest).strip() == ""
        else:
            jsonschema.validate(json.loads(said + rest), schema)
        kinds.add(bool(calls or late))
    assert kinds == {True, False}


def test_a_form_that_cannot_be_held_to_is_named_with_tools_too(tokenizer: PreTrainedTokenizerFast) -> None:
    made = with_template(tokenizer, TEMPLATES["hermes"])
    with pytest.raises(UnsupportedValueError, match="format: the keyword 'not'"):
        Toolbox.of(made, [ADD]).grammar(Grammars(made, len(made), [0]), JsonForm({"not": {}}, "format"))


@pytest.mark.parametrize("special", [(), ("<tool_call>", "[TOOL_CALLS]")])
@pytest.mark.parametrize("name", list(TEMPLATES))
def test_strict_tools_leave_text_free_and_hold_calls(
    tokenizer: PreTrainedTokenizerFast, name: str, special: tuple[str, ...]
) -> None:
    made = with_template(tokenizer, TEMPLATES[name], special)
    box = Toolbox.of(made, [ADD, SAY])
    grammar = box.grammar(Grammars(made, len(made), [made.eos_token_id]))
    assert grammar is not None
    plain = made("Hello, I think so.", add_special_tokens=False)["input_ids"]
    guide = grammar.guide()
    for token in [*plain, made.eos_token_id]:
        assert guide.mask(np.zeros(len(made), dtype=np.float32))[token] == 0
        guide.accept(token)
    call = {
        "hermes": '<tool_call>\n{"name": "say", "arguments": {"w": "%s',
        "mistral": '[TOOL_CALLS][{"name": "say", "arguments": {"w": "%s',
        "mistral named": '[TOOL_CALLS]say[ARGS]{"w": "%s',
        "llama": '{"name": "say", "parameters": {"w": "%s',
    }[name]
    for value, allowed in (("x", True), ("z", False)):
        text = call % value
        known = llguidance.hf.from_tokenizer(made, len(made))
        ids = known.tokenize_str(text, parse_special=bool(special))
        guide = grammar.guide()
        fits = True
        for token in ids:
            fits = fits and bool(guide.mask(np.zeros(len(made), dtype=np.float32))[token] == 0)
            if not fits:
                break
            guide.accept(token)
        assert fits is allowed
    assert Toolbox.of(made, [ADD]).grammar(Grammars(made, len(made), [0])) is None


def test_a_tool_that_cannot_be_held_to_is_named(tokenizer: PreTrainedTokenizerFast) -> None:
    made = with_template(tokenizer, TEMPLATES["hermes"])
    bad = Tool("bad", {"type": "object", "not": {}}, True, {})
    with pytest.raises(UnsupportedValueError, match=r"tools\.1\.function\.parameters: the keyword 'not'"):
        Toolbox.of(made, [ADD, bad]).grammar(Grammars(made, len(made), [0]))
