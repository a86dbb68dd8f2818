"""What OpenAI's API takes, as far as it is honoured here; everything else is refused by name."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from keystone.serve.chat import Conversation, Message
from keystone.serve.errors import BadRequestError, UnsupportedValueError
from keystone.serve.fields import RequestFields, refuse_unknown
from keystone.serve.grammar import ANY_OBJECT, JsonForm
from keystone.serve.sampling import Sampling
from keystone.serve.tool_fields import CallField, ToolChoice, Tools, offering

MAX_SEED = 2**63 - 1
MOST_ALTERNATIVES = 20

NEUTRAL_FIELDS = frozenset(
    {
        "metadata",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)
_USUAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "verbosity": ("medium",),
}


def _limit(given: object) -> object:
    return None if given == -1 and not isinstance(given, bool) else given


MostTokens = Annotated[Annotated[int, Field(ge=1)] | None, BeforeValidator(_limit)]
"""A limit; clients of other servers write -1 for none."""
Stops = str | Annotated[list[str], Field(max_length=16)]


class StreamOptions(RequestFields):
    """`stream_options`."""

    include_usage: bool = False


class CommonFields(RequestFields):
    """What both kinds of completion take. `top_k`, `min_p` and `repetition_penalty` are a common extension."""

    model: str
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(ge=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = 1.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = Field(default_factory=dict)
    n: Annotated[int, Field(ge=1, le=128)] = 1
    max_tokens: MostTokens = None
    stop: Stops = Field(default_factory=list)
    seed: Annotated[int, Field(ge=-MAX_SEED - 1, le=MAX_SEED)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, however they were given."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with its counts."""
        return self.stream_options is not None and self.stream_options.include_usage

    def check(self) -> None:
        """Account for every field.

        Raises:
            UnsupportedValueError, BadRequestError: naming the field.
        """
        usual = {**_USUAL, "best_of": (self.n,)}
        refuse_unknown(self, neutral=NEUTRAL_FIELDS, defaults=usual)
        if self.stream_options is not None:
            refuse_unknown(
                self.stream_options,
                neutral=("include_obfuscation",),
                defaults={},
                prefix="stream_options.",
            )
            if not self.stream:
                raise BadRequestError("stream_options is for streams; set stream to true", parameter="stream_options")

    def sampling(self, *, vocabulary: int, scores: bool, alternatives: int) -> Sampling:
        """How to draw.

        Raises:
            BadRequestError: `logit_bias` names no token of this model.
        """
        bias: dict[int, float] = {}
        for name, value in self.logit_bias.items():
            if not (name.isascii() and name.isdigit()) or int(name[:12]) >= vocabulary:
                raise BadRequestError(f"logit_bias: {name[:20]!r} is no token of this model", parameter="logit_bias")
            bias[int(name)] = value
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=max(0, self.top_k),
            min_p=self.min_p,
            seed=self.seed,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repeat_penalty=self.repetition_penalty,
            bias=bias,
            scores=scores,
            alternatives=alternatives,
        )


class JsonSchemaFormat(RequestFields):
    """`response_format.json_schema`; every schema is held to strictly, whatever `strict` says."""

    name: str = ""
    description: str = ""
    content: dict[str, Any] | bool = Field(default=True, alias="schema")
    strict: bool = True


class ResponseFormat(RequestFields):
    """`response_format`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    def form(self) -> JsonForm | None:
        """What answers have to be; None for anything.

        Raises:
            BadRequestError: a schema is missing, or a field is not known.
        """
        refuse_unknown(self, neutral=(), defaults={}, prefix="response_format.")
        if self.type == "text":
            return None
        if self.type == "json_object":
            return JsonForm(ANY_OBJECT, "response_format")
        if self.json_schema is None or "content" not in self.json_schema.model_fields_set:
            raise BadRequestError(
                "response_format: json_schema.schema is missing", parameter="response_format.json_schema.schema"
            )
        refuse_unknown(self.json_schema, neutral=(), defaults={}, prefix="response_format.json_schema.")
        return JsonForm(self.json_schema.content, "response_format.json_schema.schema")


class ContentPart(RequestFields):
    """A part of a message; only text is understood."""

    type: str
    text: str = ""


class ChatMessage(RequestFields):
    """One message."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] = ""
    tool_calls: list[CallField] = Field(default_factory=list)
    tool_call_id: str = ""
    name: str = ""

    def plain(self, number: int) -> Message:
        """The message as text, with its calls.

        Raises:
            UnsupportedValueError: an image, or another field that cannot be honoured.
        """
        where = f"messages.{number}."
        if self.role == "function":
            raise UnsupportedValueError(
                f"{where}role: functions are the past; use tools and the role tool", parameter=f"{where}role"
            )
        usual: dict[str, tuple[Any, ...]] = {"refusal": ("",), "annotations": ([],), "audio": (), "function_call": ()}
        refuse_unknown(self, neutral=(), defaults=usual, prefix=where)
        if self.name and self.role != "tool":
            raise UnsupportedValueError(
                f"{where}name: this model does not tell speakers apart", parameter=f"{where}name"
            )
        if self.tool_calls and self.role != "assistant":
            raise BadRequestError(f"{where}tool_calls: only the assistant calls", parameter=f"{where}tool_calls")
        calls = tuple(
            call.earlier(f"{where}tool_calls.{place}.", f"call{place:05d}")
            for place, call in enumerate(self.tool_calls)
        )
        role = "system" if self.role == "developer" else self.role
        return Message(role, self._text(where), calls, self.tool_call_id, self.name)

    def _text(self, where: str) -> str:
        if isinstance(self.content, str):
            return self.content
        for part in self.content:
            if part.type != "text":
                raise UnsupportedValueError(
                    f"{where}content: this model reads text, not {part.type[:40]!r}", parameter=f"{where}content"
                )
        return "".join(part.text for part in self.content)


class ChatFields(CommonFields):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: MostTokens = None
    response_format: ResponseFormat | None = None
    tools: Tools = Field(default_factory=list)
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] = 0

    def check(self) -> None:
        """Account for every field, and for those that only make sense together."""
        super().check()
        if self.top_logprobs and not self.logprobs:
            raise BadRequestError("top_logprobs needs logprobs to be true", parameter="top_logprobs")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise BadRequestError("max_tokens and max_completion_tokens differ; give one", parameter="max_tokens")

    def conversation(self) -> Conversation:
        """The turns so far, and the tools.

        Raises:
            BadRequestError, UnsupportedValueError: naming the field.
        """
        messages = [message.plain(number) for number, message in enumerate(self.messages)]
        return offering(messages, self.tools, self.tool_choice, several=self.parallel_tool_calls)

    def form(self) -> JsonForm | None:
        """What answers have to be; None for anything.

        Raises:
            BadRequestError: as `ResponseFormat.form`.
        """
        return None if self.response_format is None else self.response_format.form()

    @property
    def most_tokens(self) -> int | None:
        """The limit of an answer, under either of its names."""
        return self.max_completion_tokens or self.max_tokens


class CompletionFields(CommonFields):
    """`POST /v1/completions`."""

    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: MostTokens = 16
    logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] | None = None
    echo: bool = False

    def check(self) -> None:
        """Account for every field, and for those that do not go together."""
        super().check()
        if self.echo and self.logprobs is not None:
            raise UnsupportedValueError("echo with logprobs would need scores of the prompt", parameter="echo")

    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts, as texts or as tokens.

        Raises:
            BadRequestError: there is none.
        """
        given: Any = self.prompt
        if isinstance(given, str) or (given and isinstance(given[0], int)):
            given = [given]
        if not given:
            raise BadRequestError("prompt is empty", parameter="prompt")
        return given  # type: ignore[no-any-return]
