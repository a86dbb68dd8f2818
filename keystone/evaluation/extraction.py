"""From what a model wrote to the program that is executed.

Two styles, chosen by whoever evaluates and recorded with the score, never guessed from the text:

- `completion`, for base models: the model continues the prompt. What counts ends at the first line that leaves the
  function (column 0, not blank, not closing a bracket), or at an end token. That covers the usual list of stop
  sequences (a new `def`, `class`, `if`, `print`, comment or fence) and does not depend on it.
- `chat`: the model is asked for the whole function and answers in prose. What counts is the first fenced block that
  defines the function; else the first fenced block; else the text itself. A block that is a bare body is put under
  the prompt.
"""

from __future__ import annotations

import re
import textwrap
from typing import Final, Literal, TypeAlias

from keystone.evaluation.scoring import extract_completion
from keystone.evaluation.suite_format import CodeItem

Style: TypeAlias = Literal["completion", "chat"]
STYLES: Final = ("completion", "chat")

_END_TOKENS: Final = ("<|end|>", "<|endoftext|>", "<|im_end|>", "<|eot_id|>", "</s>", "<|file_separator|>")
_FENCE: Final = re.compile(r"^[ \t]*```[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
_CODE_LINE: Final = re.compile(r"^(?:async def|def|class|import|from|@)\b|^@", re.MULTILINE)
_ASK: Final = (
    "Complete this Python function. Answer with the whole function in one fenced block of code and nothing else."
)


def program_source(item: CodeItem, answer: str, style: Style) -> str:
    """The program to execute for a model's answer.

    Args:
        item: what was asked.
        answer: what the model wrote, uncut.
        style: how it was asked.
    """
    for token in _END_TOKENS:
        answer = answer.split(token, 1)[0]
    if style == "completion":
        return item.prompt + extract_completion(answer)
    block = _block(item, answer)
    if _defines(item, block):
        return f"{item.setup or _imports(item.prompt)}\n\n{block}"
    first = next((line for line in block.splitlines() if line.strip()), "")
    return item.prompt + (block if first[:1].isspace() else textwrap.indent(block, "    "))


def chat_request(item: CodeItem) -> str:
    """What a chat model is asked."""
    return f"{_ASK}\n\n```python\n{item.prompt.rstrip()}\n```\n"


def _block(item: CodeItem, answer: str) -> str:
    blocks = [found[1] for found in _FENCE.finditer(answer)]
    for block in blocks:
        if _defines(item, textwrap.dedent(block)):
            return textwrap.dedent(block)
    if blocks:
        return blocks[0]
    code = _CODE_LINE.search(answer)
    return answer[code.start() :] if code is not None else answer


def _defines(item: CodeItem, block: str) -> bool:
    return re.search(rf"^(?:async )?def {re.escape(item.entry_point)}\b", block, re.MULTILINE) is not None


def _imports(prompt: str) -> str:
    return "\n".join(line for line in prompt.splitlines() if line.startswith(("import ", "from ")))
