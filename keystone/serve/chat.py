"""From a conversation to a prompt, and from text to tokens.

The tokenizer's own template is used where it has one. A base without one gets a plain transcript, in which the next
turn's heading is a stop string: such a model would otherwise go on and write the user's next line, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from keystone.serve.errors import BadRequestError

_HEADINGS = {"system": "### System:", "user": "### User:", "assistant": "### Assistant:"}


@dataclass(frozen=True)
class Message:
    """One turn: who speaks and what."""

    role: str
    content: str


@dataclass(frozen=True)
class ChatPrompt:
    """A prompt in tokens, and the stop strings that its template implies."""

    ids: tuple[int, ...]
    stops: tuple[str, ...] = ()


def chat_prompt(tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message]) -> ChatPrompt:
    """Render a conversation up to where the assistant's answer begins.

    Raises:
        BadRequestError: the template refuses this conversation; its own words are in the message.
    """
    if not tokenizer.chat_template:
        text = "".join(f"{_HEADINGS[message.role]}\n{message.content}\n\n" for message in messages)
        return ChatPrompt(text_ids(tokenizer, f"{text}{_HEADINGS['assistant']}\n"), (f"\n{_HEADINGS['user']}",))
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    except TemplateError as error:
        raise BadRequestError(f"the model's chat template refuses this: {error}", parameter="messages") from error
    return ChatPrompt(tuple(tokenizer(text, add_special_tokens=False)["input_ids"]))


def text_ids(tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[int, ...]:
    """The tokens of a text, with the special ones that the tokenizer puts around it by itself."""
    return tuple(tokenizer(text)["input_ids"])
