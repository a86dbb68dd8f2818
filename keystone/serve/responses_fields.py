"""What OpenAI's Responses API takes, as far as it is honoured here; everything else is refused by name.

Nothing is kept between requests: every request brings its whole conversation as items. What points at something that
was stored (`previous_response_id`, `conversation`, an item reference) is refused, and so are tools that run at the
vendor's.
"""

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from keystone.serve.chat import Conversation, EarlierCall, Message
from keystone.serve.errors import BadRequestError, UnsupportedValueError
from keystone.serve.fields import RequestFields, refuse_unknown
from keystone.serve.grammar import ANY_OBJECT, JsonForm
from keystone.serve.openai_fields import (
    MAX_SEED,
    MOST_ALTERNATIVES,
    NEUTRAL_FIELDS,
    ContentPart,
    MostTokens,
    StreamOptions,
)
from keystone.serve.sampling import Sampling
from keystone.serve.tool_fields import MOST_TOOLS, NamedChoice, ToolField, offering, read_arguments

_SCORES = "message.output_text.logprobs"
# Of what no answer here has, there is nothing to include.
_EMPTY_INCLUDES = frozenset(
    {
        "code_interpreter_call.outputs",
        "computer_call_output.output.image_url",
        "file_search_call.results",
        "message.input_image.image_url",
        "reasoning.encrypted_content",
        "web_search_call.action.sources",
        "web_search_call.results",
    }
)
_TEXT_PARTS = ("input_text", "output_text", "text")
_USUAL: dict[str, tuple[Any, ...]] = {"background": (False,), "truncation": ("disabled",)}
_NOTHING_KEPT = "nothing is kept between requests here; send the whole conversation as items"


class FlatToolField(ToolField):
    """`tools.N`, where a function's fields stand beside its type."""

    @model_validator(mode="before")
    @classmethod
    def _nested(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("type") != "function":
            return given
        return {"type": "function", "function": {key: value for key, value in given.items() if key != "type"}}


class FlatChoice(NamedChoice):
    """`tool_choice`, where it names a function beside its type."""

    @model_validator(mode="before")
    @classmethod
    def _nested(cls, given: Any) -> Any:
        return {"type": given.get("type"), "function": given} if isinstance(given, dict) else given


class TextFormat(RequestFields):
    """`text.format`; every schema is held to strictly, whatever `strict` says."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str = ""
    description: str = ""
    content: dict[str, Any] | bool = Field(default=True, alias="schema")
    strict: bool = True


class TextFields(RequestFields):
    """`text`."""

    format: TextFormat = Field(default_factory=TextFormat)

    def form(self) -> JsonForm | None:
        """What an answer has to be; None for anything.

        Raises:
            BadRequestError: a schema is missing, or a field is not known.
        """
        refuse_unknown(self, neutral=(), defaults={"verbosity": ("medium",)}, prefix="text.")
        refuse_unknown(self.format, neutral=(), defaults={}, prefix="text.format.")
        if self.format.type == "text":
            return None
        if self.format.type == "json_object":
            return JsonForm(ANY_OBJECT, "text.format")
        if "content" not in self.format.model_fields_set:
            raise BadRequestError("text.format.schema is missing", parameter="text.format.schema")
        return JsonForm(self.format.content, "text.format.schema")


class Reasoning(RequestFields):
    """`reasoning`: none, of which there is no summary either."""


class InputItem(RequestFields):
    """`input.N`: a message, a call, or what a call gave."""

    type: str = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | list[ContentPart] = ""
    call_id: str = ""
    name: str = ""
    arguments: str = "{}"
    output: str | list[ContentPart] = ""


class ResponseFields(RequestFields):
    """`POST /v1/responses`. `seed` is an extension, as in the other APIs."""

    model: str
    input: str | Annotated[list[InputItem], Field(min_length=1)]
    instructions: str = ""
    max_output_tokens: MostTokens = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(ge=0, le=1)] = 1.0
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] = 0
    seed: Annotated[int, Field(ge=-MAX_SEED - 1, le=MAX_SEED)] | None = None
    include: list[str] = Field(default_factory=list)
    text: TextFields = Field(default_factory=TextFields)
    reasoning: Reasoning = Field(default_factory=Reasoning)
    tools: Annotated[list[FlatToolField], Field(max_length=MOST_TOOLS)] = Field(default_factory=list)
    tool_choice: Literal["none", "auto", "required"] | FlatChoice = "auto"
    parallel_tool_calls: bool = True
    stream: bool = False
    stream_options: StreamOptions | None = None

    @property
    def scored(self) -> bool:
        """Whether the answer's tokens come with their scores."""
        return bool(self.top_logprobs) or _SCORES in self.include

    def check(self) -> None:
        """Account for every field.

        Raises:
            UnsupportedValueError: naming the field.
        """
        extra = self.model_extra or {}
        stored = next((name for name in ("previous_response_id", "conversation", "prompt") if extra.get(name)), None)
        if stored is not None:
            raise UnsupportedValueError(f"{stored}: {_NOTHING_KEPT}", parameter=stored)
        refuse_unknown(self, neutral=(*NEUTRAL_FIELDS, "max_tool_calls"), defaults=_USUAL)
        unheard = ("summary", "generate_summary")
        refuse_unknown(self.reasoning, neutral=unheard, defaults={"effort": ("none",)}, prefix="reasoning.")
        strange = next((each for each in self.include if each != _SCORES and each not in _EMPTY_INCLUDES), None)
        if strange is not None:
            raise UnsupportedValueError(f"include: {strange[:60]!r} is not known", parameter="include")
        if self.stream_options is not None:
            refuse_unknown(self.stream_options, neutral=("include_obfuscation",), defaults={}, prefix="stream_options.")

    def sampling(self) -> Sampling:
        """How to draw."""
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
            scores=self.scored,
            alternatives=self.top_logprobs,
        )

    def conversation(self) -> Conversation:
        """The turns so far, and the tools.

        Raises:
            BadRequestError, UnsupportedValueError: naming the field.
        """
        messages = [Message("system", self.instructions)] if self.instructions else []
        if isinstance(self.input, str):
            messages.append(Message("user", self.input))
        else:
            _Turns(messages).read(self.input)
        return offering(messages, self.tools, self.tool_choice, several=self.parallel_tool_calls)


class _Turns:
    """Turns out of items: what the assistant says and calls in a row is one turn.

    Args:
        messages: the turns before; those that are read come after them.
    """

    def __init__(self, messages: list[Message]) -> None:
        self._messages = messages
        self._names: dict[str, str] = {}

    def read(self, items: list[InputItem]) -> None:
        for number, item in enumerate(items):
            where = f"input.{number}."
            if item.type == "message":
                self._said(item, where)
            elif item.type == "function_call":
                self._called(item, where)
            elif item.type == "function_call_output":
                text = _text(item.output, f"{where}output")
                self._messages.append(Message("tool", text, (), item.call_id, self._names.get(item.call_id, "")))
            else:
                why = _NOTHING_KEPT if item.type == "item_reference" else "messages and function calls are understood"
                raise UnsupportedValueError(f"{where}type: {item.type[:40]!r}; {why}", parameter=f"{where}type")
            refuse_unknown(item, neutral=("id", "status"), defaults={}, prefix=where)

    def _said(self, item: InputItem, where: str) -> None:
        if item.role is None:
            raise BadRequestError(f"{where}role is missing", parameter=f"{where}role")
        role = "system" if item.role == "developer" else item.role
        self._messages.append(Message(role, _text(item.content, f"{where}content")))

    def _called(self, item: InputItem, where: str) -> None:
        if not (item.call_id and item.name):
            raise BadRequestError(f"{where}call_id and name are needed", parameter=f"{where}call_id")
        call = EarlierCall(item.call_id, item.name, read_arguments(item.arguments, f"{where}arguments"))
        self._names[call.key] = call.name
        last = self._messages[-1] if self._messages else None
        if last is not None and last.role == "assistant":
            self._messages[-1] = replace(last, calls=(*last.calls, call))
        else:
            self._messages.append(Message("assistant", "", (call,)))


def _text(content: str | list[ContentPart], where: str) -> str:
    if isinstance(content, str):
        return content
    for part in content:
        if part.type not in _TEXT_PARTS:
            raise UnsupportedValueError(f"{where}: this model reads text, not {part.type[:40]!r}", parameter=where)
    return "".join(part.text for part in content)
