"""What Ollama's API takes, as far as it is honoured here; everything else is refused by name.

Defaults are output-neutral ones (no repeat penalty, the whole distribution), not those of Ollama's own model files.
Options that a client writes beside `options` are meant as such, and count as if they stood in it.
"""

import math
import re
from collections import deque
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from keystone.serve.chat import Conversation, Message
from keystone.serve.errors import BadRequestError, UnsupportedValueError
from keystone.serve.fields import RequestFields, refuse_unknown
from keystone.serve.grammar import ANY_OBJECT, JsonForm
from keystone.serve.openai_fields import MAX_SEED, MOST_ALTERNATIVES
from keystone.serve.sampling import Sampling
from keystone.serve.tool_fields import MOST_TOOLS, CallField, ToolChoice, Tools, offering

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
# Where and how fast numbers are computed, not which.
_NEUTRAL_OPTIONS = frozenset(
    {"num_batch", "num_gpu", "main_gpu", "num_thread", "use_mmap", "use_mlock", "low_vram", "numa"}
)
_USUAL_OPTIONS: dict[str, tuple[Any, ...]] = {
    "mirostat": (0,),
    "tfs_z": (1, 1.0),
    "typical_p": (1, 1.0),
    "penalize_newline": (True,),
    "num_keep": (0,),
}
_USUAL: dict[str, tuple[Any, ...]] = {
    "images": ([],),
    "suffix": ("",),
    "think": (False,),
    "context": ([],),
    "template": ("",),
}


def keep_seconds(text: str | float) -> float:
    """`keep_alive` in seconds: a number, or a Go duration such as `5m`; negative is for ever.

    Raises:
        BadRequestError: it is neither.
    """
    if isinstance(text, str):
        bare = text.strip().removeprefix("-")
        parts = _PART.findall(bare)
        if bare.isascii() and bare.isdigit() and len(bare) < 12:
            value = float(bare)
        elif parts and "".join(map("".join, parts)) == bare and len(bare) < 40:
            value = sum(float(number) * _UNITS[unit] for number, unit in parts)
        else:
            raise BadRequestError(f"keep_alive: {text[:40]!r} is no duration; say 5m, 0 or -1", parameter="keep_alive")
        text = -value if text.strip().startswith("-") else value
    return math.inf if text < 0 else float(text)


class Options(RequestFields):
    """`options`: how to draw, and how much."""

    temperature: Annotated[float, Field(ge=0, le=10)] = 0.8
    top_p: Annotated[float, Field(ge=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repeat_penalty: Annotated[float, Field(gt=0, le=10)] = 1.0
    repeat_last_n: int | None = None
    presence_penalty: Annotated[float, Field(ge=-10, le=10)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-10, le=10)] = 0.0
    seed: Annotated[int, Field(ge=-MAX_SEED - 1, le=MAX_SEED)] | None = None
    num_predict: Annotated[int, Field(ge=-2)] = -1
    num_ctx: Annotated[int, Field(ge=1)] | None = None
    stop: str | Annotated[list[str], Field(max_length=64)] = Field(default_factory=list)

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, however they were given."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def most_tokens(self) -> int | None:
        """The limit of an answer; None is up to the context."""
        return self.num_predict if self.num_predict > 0 else None

    def check(self, context: int) -> None:
        """Account for every option.

        Raises:
            UnsupportedValueError: naming the option.
        """
        refuse_unknown(self, neutral=_NEUTRAL_OPTIONS, defaults=_USUAL_OPTIONS, prefix="options.")
        if self.num_ctx is not None and self.num_ctx > context:
            raise UnsupportedValueError(
                f"options.num_ctx: {self.num_ctx}, but this model's context is {context}", parameter="options.num_ctx"
            )
        if self.repeat_penalty != 1.0 and self.repeat_last_n not in (None, -1):
            raise UnsupportedValueError(
                "options.repeat_last_n: the penalty looks at the whole context here; say -1",
                parameter="options.repeat_last_n",
            )

    def sampling(self, *, scores: bool, alternatives: int) -> Sampling:
        """How to draw; Ollama's seed -1 means none."""
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=max(0, self.top_k),
            min_p=self.min_p,
            seed=None if self.seed == -1 else self.seed,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repeat_penalty=self.repeat_penalty,
            scores=scores,
            alternatives=alternatives,
        )


# What clients write beside `options`, and what it is called there.
_BESIDE = {
    **{name: name for name in Options.model_fields},
    "max_output_tokens": "num_predict",
    "max_tokens": "num_predict",
}


class OllamaMessage(RequestFields):
    """One message."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    tool_calls: list[CallField] = Field(default_factory=list)
    tool_name: str = ""
    tool_call_id: str = ""

    def check(self, where: str) -> None:
        """Account for every field; images are refused by name."""
        refuse_unknown(self, neutral=(), defaults={"images": ([],), "thinking": ("",)}, prefix=where)


def turns(messages: Sequence[OllamaMessage]) -> list[Message]:
    """The turns so far. Calls have no names in this API: results answer them in their order.

    Raises:
        BadRequestError, UnsupportedValueError: naming the field.
    """
    made: list[Message] = []
    open_calls: deque[str] = deque()
    for number, message in enumerate(messages):
        where = f"messages.{number}."
        message.check(where)
        calls = tuple(
            call.earlier(f"{where}tool_calls.{place}.", f"call{len(made) * MOST_TOOLS + place:05d}")
            for place, call in enumerate(message.tool_calls)
        )
        open_calls += [call.key for call in calls]
        answers = message.tool_call_id
        if message.role == "tool" and not answers:
            answers = open_calls.popleft() if open_calls else ""
        made.append(Message(message.role, message.content, calls, answers, message.tool_name))
    return made


class OllamaFields(RequestFields):
    """What generating and chatting have in common."""

    model: str
    stream: bool = True
    options: Options = Field(default_factory=Options)
    keep_alive: str | float | None = None
    format: str | dict[str, Any] = ""
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] = 0

    @model_validator(mode="before")
    @classmethod
    def _with_options_beside(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not isinstance(given.get("options", {}), dict | None):
            return given
        beside = {name: value for name, value in given.items() if name in _BESIDE and value is not None}
        options = dict(given.get("options") or {})
        for name, value in beside.items():
            inside = options.get(_BESIDE[name])
            if inside is not None and inside != value:
                raise ValueError(f"{name} is {value!r} here and {inside!r} in options; say it once")
            options[_BESIDE[name]] = value
        return {**{name: value for name, value in given.items() if name not in beside}, "options": options}

    def check(self, context: int) -> None:
        """Account for every field.

        Raises:
            UnsupportedValueError: naming the field.
        """
        refuse_unknown(self, neutral=(), defaults=_USUAL)
        self.options.check(context)

    def form(self) -> JsonForm | None:
        """What the answer has to be; None for anything.

        Raises:
            UnsupportedValueError: it is neither "json" nor a schema.
        """
        if isinstance(self.format, dict):
            return JsonForm(self.format, "format")
        if self.format == "json":
            return JsonForm(ANY_OBJECT, "format")
        if self.format:
            raise UnsupportedValueError(
                f'format: {self.format[:40]!r} is not known; say "json" or give a JSON schema', parameter="format"
            )
        return None


class ChatFields(OllamaFields):
    """`POST /api/chat`; without messages it only loads or unloads. `tool_choice` is an extension, as OpenAI has it."""

    messages: list[OllamaMessage] = Field(default_factory=list)
    tools: Tools = Field(default_factory=list)
    tool_choice: ToolChoice = "auto"

    def conversation(self) -> Conversation:
        """The turns so far, and the tools.

        Raises:
            BadRequestError, UnsupportedValueError: naming the field.
        """
        return offering(turns(self.messages), self.tools, self.tool_choice)


class GenerateFields(OllamaFields):
    """`POST /api/generate`; without a prompt it only loads or unloads."""

    prompt: str = ""
    system: str = ""
    raw: bool = False


class ModelFields(RequestFields):
    """Requests that name a model and nothing else; older clients call it `name`."""

    model: str = ""
    name: str = ""
    verbose: bool = False

    @property
    def wanted(self) -> str:
        """The model, under either name of the field.

        Raises:
            BadRequestError: there is none.
        """
        if not (self.model or self.name):
            raise BadRequestError("model is required", parameter="model")
        return self.model or self.name
