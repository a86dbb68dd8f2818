"""How OpenAI's API writes answers down: chats and plain completions differ in names and nesting."""

import json
import secrets
import time
from collections.abc import Sequence
from typing import Any

from keystone.serve.call_reader import ToolCall
from keystone.serve.generation import Piece
from keystone.serve.openai_fields import ChatFields, CommonFields, CompletionFields
from keystone.serve.sampling import TokenScore
from keystone.serve.streams import AnswerStream, Choice
from keystone.serve.text import REPLACEMENT, Decoder, decode

Json = dict[str, Any]


class Shape:
    """How one kind of completion is written down; the two differ in names and nesting."""

    def __init__(self, stream: AnswerStream, fields: CommonFields, kind: str, prefix: str) -> None:
        self.stream = stream
        self.fields = fields
        self.kind = kind
        self.tokenizer: Decoder = stream.lease.engine.tokenizer
        self.head: Json = {
            "id": f"{prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": fields.model,
            "system_fingerprint": stream.lease.fingerprint,
        }

    def whole(self, number: int, choice: Choice) -> Json:
        """A complete answer."""
        raise NotImplementedError

    def opening(self, number: int) -> Json | None:
        """What a streamed answer begins with; None for nothing."""
        raise NotImplementedError

    def piece(self, number: int, piece: Piece) -> Json:
        """More of a streamed answer."""
        raise NotImplementedError

    def ending(self, number: int, reason: str) -> Json:
        """The end of a streamed answer."""
        raise NotImplementedError

    def usage(self, completion_tokens: int) -> Json:
        """Counts of tokens."""
        prompt = self.stream.prompt_tokens
        reused = sum(generation.timing.reused for generation in self.stream.generations)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": reused},
        }


class ChatShape(Shape):
    """Chats: messages, and deltas of messages."""

    def __init__(self, stream: AnswerStream, fields: ChatFields) -> None:
        super().__init__(stream, fields, "chat.completion", "chatcmpl")
        self._scored = fields.logprobs

    def whole(self, number: int, choice: Choice) -> Json:
        """A complete answer."""
        message: Json = {"role": "assistant", "content": choice.text, "refusal": None}
        if choice.calls:
            message |= {"content": choice.text or None, "tool_calls": [_call(call) for call in choice.calls]}
        scores = self._scores(choice.scores)
        return {"index": number, "message": message, "logprobs": scores, "finish_reason": choice.reason}

    def opening(self, number: int) -> Json | None:
        """What a streamed answer begins with; None for nothing."""
        return self._delta(number, {"role": "assistant", "content": "", "refusal": None}, None, None)

    def piece(self, number: int, piece: Piece) -> Json:
        """More of a streamed answer."""
        delta: Json = {"content": piece.text} if piece.text or not piece.calls else {}
        if piece.calls:
            delta["tool_calls"] = [{"index": call.number, **_call(call)} for call in piece.calls]
        return self._delta(number, delta, self._scores(piece.scores), None)

    def ending(self, number: int, reason: str) -> Json:
        """The end of a streamed answer."""
        return self._delta(number, {}, None, reason)

    @staticmethod
    def _delta(number: int, delta: Json, scores: Json | None, reason: str | None) -> Json:
        return {"index": number, "delta": delta, "logprobs": scores, "finish_reason": reason}

    def _scores(self, scores: Sequence[TokenScore]) -> Json | None:
        if not self._scored:
            return None
        return {"content": token_scores(self.tokenizer, scores), "refusal": None}


def token_scores(tokenizer: Decoder, scores: Sequence[TokenScore]) -> list[Json]:
    """Tokens with their scores and alternatives, as chats have them."""

    def line(token: int, logprob: float) -> Json:
        text = decode(tokenizer, [token], special=True)
        # A token that is part of a character has no text of its own, and its bytes are not known here.
        known = None if REPLACEMENT in text else list(text.encode())
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": known}

    return [
        {**line(each.token, each.logprob), "top_logprobs": [line(*other) for other in each.alternatives]}
        for each in scores
    ]


def _call(call: ToolCall) -> Json:
    function = {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)}
    return {"id": call.key, "type": "function", "function": function}


class TextShape(Shape):
    """Plain completions: text."""

    def __init__(self, stream: AnswerStream, fields: CompletionFields, prompts: Sequence[str | list[int]]) -> None:
        super().__init__(stream, fields, "text_completion", "cmpl")
        self._scored = fields.logprobs is not None
        self._echo = fields.echo
        self._prompts = prompts
        self._choices = fields.n
        self._written: dict[int, int] = {}

    def whole(self, number: int, choice: Choice) -> Json:
        """A complete answer."""
        line = self._line(number, self._before(number) + choice.text, choice.scores)
        line["finish_reason"] = choice.reason
        return line

    def opening(self, number: int) -> Json | None:
        """What a streamed answer begins with; None for nothing."""
        return self._line(number, self._before(number), ()) if self._echo else None

    def piece(self, number: int, piece: Piece) -> Json:
        """More of a streamed answer."""
        return self._line(number, piece.text, piece.scores)

    def _line(self, number: int, text: str, scores: Sequence[TokenScore]) -> Json:
        return {"index": number, "text": text, "logprobs": self._scores(number, scores), "finish_reason": None}

    def ending(self, number: int, reason: str) -> Json:
        """The end of a streamed answer."""
        return {"index": number, "text": "", "logprobs": None, "finish_reason": reason}

    def _before(self, number: int) -> str:
        if not self._echo:
            return ""
        prompt = self._prompts[number // self._choices]
        return prompt if isinstance(prompt, str) else decode(self.tokenizer, prompt)

    def _scores(self, number: int, scores: Sequence[TokenScore]) -> Json | None:
        if not self._scored:
            return None
        texts = [decode(self.tokenizer, [each.token], special=True) for each in scores]
        offsets = []
        for text in texts:
            offsets.append(self._written.get(number, 0))
            self._written[number] = offsets[-1] + len(text)
        tops = [
            {decode(self.tokenizer, [token], special=True): logprob for token, logprob in each.alternatives}
            for each in scores
        ]
        return {
            "tokens": texts,
            "token_logprobs": [max(each.logprob, -9999.0) for each in scores],
            "top_logprobs": tops,
            "text_offset": offsets,
        }
