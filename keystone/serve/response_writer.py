"""How the Responses API writes an answer down: items that grow, and an event for every step of their growth.

A whole response and a streamed one are the same items. What is streamed is told while it grows; what is not is only
looked at when it is complete.
"""

import json
import secrets
import time

from keystone.serve.call_reader import ToolCall
from keystone.serve.chat import Conversation
from keystone.serve.errors import ServeError
from keystone.serve.generation import Finished, Piece
from keystone.serve.openai_shapes import Json, token_scores
from keystone.serve.responses_fields import ResponseFields
from keystone.serve.sampling import TokenScore
from keystone.serve.streams import AnswerStream


class ResponseWriter:
    """One response. Each method that takes something in gives the events it makes, in their order.

    Args:
        stream: whose answer it is; its prompt is queued.
        fields: what was asked for.
        conversation: what that became.
    """

    def __init__(self, stream: AnswerStream, fields: ResponseFields, conversation: Conversation) -> None:
        self._stream = stream
        self._fields = fields
        self._conversation = conversation
        self._tokenizer = stream.lease.engine.tokenizer
        self._head: Json = {"id": f"resp_{secrets.token_hex(12)}", "object": "response", "created_at": int(time.time())}
        self._items: list[Json] = []
        self._message: Json | None = None  # the message that grows; it is the last item
        self._blanks: list[Piece] = []  # held back: blanks around calls are not worth a message
        self._told = 0

    def opening(self) -> list[Json]:
        """What a stream begins with."""
        body = self.body("in_progress")
        return [self._event("response.created", response=body), self._event("response.in_progress", response=body)]

    def take(self, event: Piece | Finished) -> list[Json]:
        """More of the answer, or its end."""
        if isinstance(event, Finished):
            return self._end(event)
        made = self._say(event) if event.text or event.scores else []
        for call in event.calls:
            self._blanks.clear()
            made += self._close("completed") + self._call(call)
        return made

    def failed(self, error: ServeError) -> list[Json]:
        """The answer broke; what there is of it stays."""
        said = {"code": "server_error", "message": str(error)}
        return [self._event("response.failed", response={**self.body("failed"), "error": said})]

    def body(self, status: str, *, reason: str | None = None, tokens: int | None = None) -> Json:
        """The response as it is now.

        Args:
            status: `in_progress`, `completed`, `incomplete` or `failed`.
            reason: why it is incomplete.
            tokens: how many were generated, once that is known.
        """
        fields = self._fields
        choice = fields.tool_choice
        return {
            **self._head,
            "status": status,
            "error": None,
            "incomplete_details": None if reason is None else {"reason": reason},
            "model": fields.model,
            "system_fingerprint": self._stream.lease.fingerprint,
            "output": [dict(item) for item in self._items],
            "usage": None if tokens is None else self._usage(tokens),
            "instructions": fields.instructions or None,
            "max_output_tokens": fields.max_output_tokens,
            "temperature": fields.temperature,
            "top_p": fields.top_p,
            "top_logprobs": fields.top_logprobs,
            "text": {"format": self._format()},
            "tools": [_tool(each.described, strict=each.strict) for each in self._conversation.tools],
            "tool_choice": choice if isinstance(choice, str) else {"type": "function", "name": choice.function.name},
            "parallel_tool_calls": fields.parallel_tool_calls,
            "reasoning": {"effort": None, "summary": None},
            "truncation": "disabled",
            "previous_response_id": None,
            "background": False,
            "store": False,
            "metadata": (fields.model_extra or {}).get("metadata") or {},
        }

    def _usage(self, tokens: int) -> Json:
        prompt = self._stream.prompt_tokens
        reused = sum(generation.timing.reused for generation in self._stream.generations)
        return {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": reused, "cache_write_tokens": 0},
            "output_tokens": tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + tokens,
        }

    def _format(self) -> Json:
        form = self._fields.text.format
        if form.type != "json_schema":
            return {"type": form.type}
        return {"type": form.type, "name": form.name, "schema": form.content, "strict": True}

    def _event(self, kind: str, **more: object) -> Json:
        self._told += 1
        return {"type": kind, "sequence_number": self._told - 1, **more}

    def _of_item(self, kind: str, **more: object) -> Json:
        """An event of the last item."""
        place = len(self._items) - 1
        return self._event(kind, item_id=self._items[place]["id"], output_index=place, **more)

    def _of_text(self, kind: str, **more: object) -> Json:
        return self._of_item(kind, content_index=0, **more)

    def _say(self, piece: Piece) -> list[Json]:
        if self._message is None:
            self._blanks.append(piece)
            if self._stream.box is not None and not piece.text.strip():
                return []
            return self._open()
        scores = self._scores(piece.scores)
        part = self._message["content"][0]
        part["text"] += piece.text
        part["logprobs"] += [{**each, "bytes": each["bytes"] or []} for each in scores]
        return [self._of_text("response.output_text.delta", delta=piece.text, logprobs=scores)]

    def _open(self) -> list[Json]:
        """A message, with what was held back."""
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        item = {"id": f"msg_{secrets.token_hex(12)}", "type": "message", "status": "in_progress", "role": "assistant"}
        self._message = {**item, "content": [part]}
        self._items.append(self._message)
        place = len(self._items) - 1
        made = [
            self._event("response.output_item.added", output_index=place, item={**item, "content": []}),
            self._of_text("response.content_part.added", part={**part, "logprobs": []}),
        ]
        held, self._blanks = self._blanks, []
        for piece in held:
            made += self._say(piece)
        return made

    def _close(self, status: str) -> list[Json]:
        """The message that grows is complete, if there is one."""
        if self._message is None:
            return []
        message, self._message = self._message, None
        message["status"] = status
        part = message["content"][0]
        return [
            self._of_text("response.output_text.done", text=part["text"], logprobs=part["logprobs"]),
            self._of_text("response.content_part.done", part=part),
            self._event("response.output_item.done", output_index=len(self._items) - 1, item=message),
        ]

    def _call(self, call: ToolCall) -> list[Json]:
        arguments = json.dumps(call.arguments, ensure_ascii=False)
        item = {"id": f"fc_{secrets.token_hex(12)}", "type": "function_call", "call_id": call.key, "name": call.name}
        self._items.append({**item, "status": "completed", "arguments": arguments})
        place = len(self._items) - 1
        begun = {**item, "status": "in_progress", "arguments": ""}
        return [
            self._event("response.output_item.added", output_index=place, item=begun),
            self._of_item("response.function_call_arguments.delta", delta=arguments),
            self._of_item("response.function_call_arguments.done", name=call.name, arguments=arguments),
            self._event("response.output_item.done", output_index=place, item=self._items[place]),
        ]

    def _end(self, event: Finished) -> list[Json]:
        cut = event.reason == "length"
        made = [] if self._items else self._open()  # an answer that says nothing is an empty message
        status = "incomplete" if cut else "completed"
        made += self._close(status)
        reason = "max_output_tokens" if cut else None
        return [
            *made,
            self._event(f"response.{status}", response=self.body(status, reason=reason, tokens=event.tokens)),
        ]

    def _scores(self, scores: tuple[TokenScore, ...]) -> list[Json]:
        return token_scores(self._tokenizer, scores) if self._fields.scored else []


def _tool(described: Json, *, strict: bool) -> Json:
    return {"type": "function", **described["function"], "strict": strict}
