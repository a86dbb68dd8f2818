"""Tools and calls as both APIs write them in a request."""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from keystone.serve.chat import Conversation, EarlierCall, Message
from keystone.serve.errors import BadRequestError, UnsupportedValueError
from keystone.serve.fields import RequestFields, refuse_unknown
from keystone.serve.tools import Tool

MOST_TOOLS = 128
_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


class FunctionField(RequestFields):
    """`tools.N.function`."""

    name: Annotated[str, Field(min_length=1, max_length=128)]
    description: str = ""
    parameters: dict[str, Any] = Field(default_factory=lambda: dict(_NO_PARAMETERS))
    strict: bool = False


class ToolField(RequestFields):
    """`tools.N`."""

    type: str = "function"
    function: FunctionField | None = None

    def tool(self, number: int) -> Tool:
        """The tool.

        Raises:
            BadRequestError, UnsupportedValueError: it is no function, or has a field that is not known.
        """
        where = f"tools.{number}."
        if self.type != "function":
            raise UnsupportedValueError(
                f"{where}type: {self.type[:40]!r} is not supported; only functions are", parameter=f"{where}type"
            )
        if self.function is None:
            raise BadRequestError(f"{where}function is missing", parameter=f"{where}function")
        refuse_unknown(self, neutral=("items",), defaults={}, prefix=where)
        refuse_unknown(self.function, neutral=(), defaults={}, prefix=f"{where}function.")
        made = self.function
        described = {"name": made.name, "description": made.description, "parameters": made.parameters}
        return Tool(made.name, made.parameters, made.strict, {"type": "function", "function": described})


Tools = Annotated[list[ToolField], Field(max_length=MOST_TOOLS)]


def tools_of(fields: Sequence[ToolField]) -> tuple[Tool, ...]:
    """All tools of a request.

    Raises:
        BadRequestError: as `ToolField.tool`, or two have one name.
    """
    tools = tuple(each.tool(number) for number, each in enumerate(fields))
    names = [tool.name for tool in tools]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise BadRequestError(f"tools: {twice!r} is there twice", parameter="tools")
    return tools


class NamedFunction(RequestFields):
    """`tool_choice.function`."""

    name: str


class NamedChoice(RequestFields):
    """`tool_choice`, where it names a function."""

    type: Literal["function"]
    function: NamedFunction


ToolChoice = Literal["none", "auto", "required"] | NamedChoice


def offering(
    messages: Sequence[Message], fields: Sequence[ToolField], choice: ToolChoice, *, several: bool = True
) -> Conversation:
    """A conversation with tools to choose from.

    Args:
        messages: the turns so far.
        fields: the tools.
        choice: whether the model may, must or must not call, or the one that it must.
        several: whether an answer may call more than once.

    Raises:
        BadRequestError, UnsupportedValueError: a tool is none, or the choice needs tools that are not there.
    """
    tools = tools_of(fields)
    if choice == "none":
        return Conversation(messages)
    if choice != "auto" and not tools:
        raise BadRequestError("tool_choice needs tools to choose from", parameter="tool_choice")
    if not isinstance(choice, NamedChoice):
        return Conversation(messages, tools, several=several, must=choice == "required")
    only = choice.function.name
    if all(tool.name != only for tool in tools):
        raise BadRequestError(f"tool_choice: {only[:60]!r} is none of the tools", parameter="tool_choice")
    return Conversation(messages, tools, several=False, must=True, only=only)


class CalledFunction(RequestFields):
    """`function` of a call in an earlier turn; OpenAI writes the arguments as a string, Ollama as an object."""

    name: str
    arguments: str | dict[str, Any] = "{}"


class CallField(RequestFields):
    """A call in an earlier turn."""

    id: str = ""
    type: str = "function"
    function: CalledFunction

    def earlier(self, where: str, key: str) -> EarlierCall:
        """The call.

        Args:
            where: it stands, for messages.
            key: what to call it where it says nothing itself.

        Raises:
            BadRequestError: the arguments are no JSON object.
        """
        arguments = read_arguments(self.function.arguments, f"{where}function.arguments")
        return EarlierCall(self.id or key, self.function.name, arguments)


def read_arguments(given: str | dict[str, Any], field: str) -> dict[str, Any]:
    """Arguments of a call, as an object or as its JSON.

    Args:
        given: the arguments; an empty string is no arguments.
        field: where they stand, for messages.

    Raises:
        BadRequestError: they are no JSON object.
    """
    arguments: Any = given
    if isinstance(given, str):
        try:
            arguments = json.loads(given or "{}")
        except (ValueError, RecursionError):
            arguments = None
    if not isinstance(arguments, dict):
        raise BadRequestError(f"{field}: no JSON object", parameter=field)
    return arguments
