"""Tools: what a client offers, and in which form a model calls them.

Models write calls in the form that their template taught them. Four forms are known, each told by the template's own
words: Hermes and Qwen put JSON between `<tool_call>` and `</tool_call>`, Mistral a JSON list after `[TOOL_CALLS]`,
newer Mistrals `[TOOL_CALLS]`, a name, `[ARGS]` and the arguments, Llama 3 nothing but JSON, maybe after
`<|python_tag|>`.

Where a call must hold (it is required, a tool is strict, or there may be only one), the answer follows a grammar, so
that names and arguments are what the tools say. Else the model is free, and `call_reader` finds what it called.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerFast

from keystone.serve.errors import UnsupportedValueError
from keystone.serve.grammar import Grammar, Grammars, JsonForm, check_schema, with_few_blanks

Json = dict[str, Any]


@dataclass(frozen=True)
class Tool:
    """A function that the client can run.

    Attributes:
        name: of the function.
        parameters: JSON Schema of its arguments.
        strict: whether its arguments must follow the schema, also when the model is free to call or not.
        described: what the template is given of it.
    """

    name: str
    parameters: Json
    strict: bool
    described: Json


@dataclass(frozen=True)
class ToolForm:
    """How a template's models write calls.

    Attributes:
        opening: before calls.
        closing: after each one; None when calls go on to the end of the answer.
        listed: whether the calls are a JSON list.
        joint: between a call's name and its arguments, where a call is not one JSON object.
        label: between the name and a key for the call, which may come before `joint`.
        arguments: the key that holds the arguments.
        bare: whether JSON at the very beginning is a call, opened or not.
    """

    opening: str
    closing: str | None = None
    listed: bool = False
    joint: str | None = None
    label: str | None = None
    arguments: str = "arguments"
    bare: bool = False


HERMES = ToolForm("<tool_call>", "</tool_call>")
MISTRAL = ToolForm("[TOOL_CALLS]", listed=True)
MISTRAL_NAMED = ToolForm("[TOOL_CALLS]", joint="[ARGS]", label="[CALL_ID]")
LLAMA = ToolForm("<|python_tag|>", arguments="parameters", bare=True)


def template_text(tokenizer: PreTrainedTokenizerFast) -> str:
    """A tokenizer's chat template; where it has several, the one for tools."""
    template: Any = tokenizer.chat_template or ""
    if isinstance(template, Mapping):
        template = template.get("tool_use") or template.get("default") or ""
    return str(template)


def takes_tools(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether a model's template shows it the tools at all."""
    return "tools" in template_text(tokenizer)


def form_of(tokenizer: PreTrainedTokenizerFast) -> ToolForm:
    """The form that a model's template teaches.

    Raises:
        UnsupportedValueError: the template has no tools, or writes calls in a form that is not known.
    """
    template = template_text(tokenizer)
    if not takes_tools(tokenizer):
        raise UnsupportedValueError(
            "tools: this model's chat template has no tools, so it would never see them; leave them out",
            parameter="tools",
        )
    if "<tool_call>" in template and "<function=" not in template:
        return HERMES
    if "[TOOL_CALLS]" in template:
        return MISTRAL_NAMED if "[ARGS]" in template else MISTRAL
    if '"parameters"' in template and any(word in template for word in ("<|python_tag|>", "<|eom_id|>", "ipython")):
        return LLAMA
    raise UnsupportedValueError(
        "tools: this model's chat template writes calls in a form that this server does not read", parameter="tools"
    )


@dataclass(frozen=True)
class Toolbox:
    """The tools of one request, in the form of the model that answers it.

    Attributes:
        tools: those that may be called.
        form: how calls are written.
        marks: the tokens that the form writes calls with, where those are special tokens of the model: they belong to a
            call, and their text would otherwise be left out of an answer.
        several: whether an answer may make more than one call.
        must: whether it has to make one.
    """

    tools: tuple[Tool, ...]
    form: ToolForm
    marks: Mapping[str, int]
    several: bool
    must: bool

    @classmethod
    def of(
        cls, tokenizer: PreTrainedTokenizerFast, tools: Sequence[Tool], *, several: bool = True, must: bool = False
    ) -> "Toolbox":
        """The tools for one model.

        Raises:
            UnsupportedValueError: it cannot be given tools.
        """
        form = form_of(tokenizer)
        marks = {
            token.content: number
            for number, token in tokenizer.added_tokens_decoder.items()
            if token.special and token.content in (form.opening, form.closing, form.joint, form.label)
        }
        return cls(tuple(tools), form, marks, several, must)

    def grammar(self, grammars: Grammars, form: JsonForm | None = None) -> Grammar | None:
        """What an answer may say; None where the model is free.

        Args:
            grammars: of the model.
            form: what an answer has to be where it calls nothing; None for any text.

        Raises:
            UnsupportedValueError: a schema, of a tool or of the form, has what an answer cannot be held to.
        """
        if form is None and not self.must and self.several and not any(tool.strict for tool in self.tools):
            return None
        for number, tool in enumerate(self.tools):
            check_schema(tool.parameters, where=f"tools.{number}.function.parameters")
        answer = []
        if form is not None and not self.must:
            check_schema(form.schema, where=form.parameter)
            answer = [f"answer: %json {json.dumps(with_few_blanks(form.schema))}"]
        start = self._start(formed=bool(answer))
        return grammars.lark("\n".join([start, *answer, *self._calls()]), parameter="tools")

    def _start(self, *, formed: bool) -> str:
        """The rules for a whole answer, in llguidance's Lark notation."""
        form, opening = self.form, self._mark(self.form.opening)
        answer = " | answer" if formed else ""
        if form.bare:
            # One object and no opening: the form that functions of the client are taught in.
            free = not (self.must or formed)
            return "start: call | TEXT\nTEXT: /([^{\\s](.|\\n)*)?/" if free else f"start: call{answer}"
        between = ""
        if form.listed:
            more = '(", " call)*' if self.several else ""
            body = f'"[" call {more} "]"'
        elif form.closing is None:
            body = "call"
        else:
            body, between = f'"\\n" call "\\n" {self._mark(form.closing)}', r'"\n"'
        again = self.several and not form.listed
        if self.must or formed:
            more = f" ({between} tagged)*" if again else ""
            return f"start: tagged{more}{answer}\ntagged: {opening} {body}"
        # The text before a call ends where the opening is complete, which only a lazy rule can say of plain text.
        lazy = "" if form.opening in self.marks else "[lazy]"
        start = "tagged* TEXT" if again else "tagged | TEXT"
        return f"start: {start}\ntagged: head {body}\nhead{lazy}: TEXT {opening}\nTEXT: /(.|\\n)*/"

    def _calls(self) -> list[str]:
        rules = ["call: " + " | ".join(f"call_{number}" for number in range(len(self.tools)))]
        for number, tool in enumerate(self.tools):
            if self.form.joint is not None:
                rules.append(f"call_{number}: {json.dumps(tool.name)} {self._mark(self.form.joint)} arguments_{number}")
            else:
                before = json.dumps(f'{{"name": {json.dumps(tool.name)}, "{self.form.arguments}": ')
                rules.append(f'call_{number}: {before} arguments_{number} "}}"')
            rules.append(f"arguments_{number}: %json {json.dumps(with_few_blanks(tool.parameters))}")
        return rules

    def _mark(self, text: str) -> str:
        token = self.marks.get(text)
        return json.dumps(text) if token is None else f"<[{token}]>"
