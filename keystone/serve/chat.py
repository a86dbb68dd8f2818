"""From a conversation to a prompt, and from text to tokens.

The tokenizer's own template is used where it has one. A base without one gets a plain transcript, in which the next
turn's heading is a stop string: such a model would otherwise go on and write the user's next line, too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from keystone.serve.errors import BadRequestError, UnsupportedValueError
from keystone.serve.tools import Tool, Toolbox, takes_tools

_LONG = 1 << 20
_HEADINGS = {"system": "### System:", "user": "### User:", "assistant": "### Assistant:"}


@dataclass(frozen=True)
class EarlierCall:
    """A call that the assistant made in an earlier turn."""

    key: str
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Message:
    """One turn: who speaks and what.

    Attributes:
        calls: of tools, in a turn of the assistant.
        answers: the key of the call that a tool's turn answers.
        name: of that tool.
    """

    role: str
    content: str
    calls: tuple[EarlierCall, ...] = ()
    answers: str = ""
    name: str = ""

    def turn(self) -> dict[str, Any]:
        """The message as templates read it."""
        made: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.calls:
            made["tool_calls"] = [
                {"id": call.key, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in self.calls
            ]
        if self.role == "tool":
            made |= {"tool_call_id": self.answers, "name": self.name}
        return made


@dataclass(frozen=True)
class Conversation:
    """What a chat request says.

    Attributes:
        messages: the turns so far.
        tools: what the model may call.
        several: whether more than once.
        must: whether it has to; `only` names the one it has to call.
    """

    messages: Sequence[Message]
    tools: tuple[Tool, ...] = ()
    several: bool = True
    must: bool = False
    only: str | None = None

    @property
    def size(self) -> int:
        """Characters of all turns; with tools, too many to count."""
        return sum(len(message.content) for message in self.messages) + (_LONG if self.tools else 0)


@dataclass(frozen=True)
class ChatPrompt:
    """A prompt in tokens.

    Attributes:
        ids: the tokens.
        stops: strings that end an answer, since the template implies it.
        box: the tools that the answer may call.
    """

    ids: tuple[int, ...]
    stops: tuple[str, ...] = ()
    box: Toolbox | None = field(default=None, repr=False)


def chat_prompt(tokenizer: PreTrainedTokenizerFast, conversation: Conversation) -> ChatPrompt:
    """Render a conversation up to where the assistant's answer begins.

    Raises:
        BadRequestError: the template refuses this conversation; its own words are in the message.
        UnsupportedValueError: it has tools, and the template has none.
    """
    box = _box(tokenizer, conversation)
    if not takes_tools(tokenizer):
        _refuse_tool_turns(conversation.messages)
    if not tokenizer.chat_template:
        text = "".join(f"{_HEADINGS[message.role]}\n{message.content}\n\n" for message in conversation.messages)
        return ChatPrompt(text_ids(tokenizer, f"{text}{_HEADINGS['assistant']}\n"), (f"\n{_HEADINGS['user']}",))
    turns = [message.turn() for message in conversation.messages]
    tools: Any = [tool.described for tool in conversation.tools] or None
    try:
        text = str(tokenizer.apply_chat_template(turns, tools=tools, tokenize=False, add_generation_prompt=True))
    except TemplateError as error:
        raise BadRequestError(f"the model's chat template refuses this: {error}", parameter="messages") from error
    return ChatPrompt(tuple(tokenizer(text, add_special_tokens=False)["input_ids"]), (), box)


def _box(tokenizer: PreTrainedTokenizerFast, conversation: Conversation) -> Toolbox | None:
    if not conversation.tools:
        return None
    callable_ = [tool for tool in conversation.tools if conversation.only in (None, tool.name)]
    return Toolbox.of(tokenizer, callable_, several=conversation.several, must=conversation.must)


def _refuse_tool_turns(messages: Sequence[Message]) -> None:
    for number, message in enumerate(messages):
        field_ = "role" if message.role == "tool" else "tool_calls"
        if message.role == "tool" or message.calls:
            where = f"messages.{number}.{field_}"
            raise UnsupportedValueError(f"{where}: this model's chat template has no tools", parameter=where)


def text_ids(tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[int, ...]:
    """The tokens of a text, with the special ones that the tokenizer puts around it by itself."""
    return tuple(tokenizer(text)["input_ids"])
