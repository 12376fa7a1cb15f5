"""OpenAI's response objects: what chunks become on their way out, whole or as a stream."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from mlxk2.runner.runner import TokenLogprob
from mlxk2.runner.text import Kind, Vocabulary
from mlxk2.runner.token_bytes import token_bytes
from mlxk2.server.reply import Reply

JSON = dict[str, Any]


@dataclass
class Answer:
    """One answer as far as it is known."""

    texts: dict[Kind, str] = field(default_factory=lambda: {"answer": "", "reasoning": ""})
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None


class Shape(Protocol):
    """How one endpoint says what was generated."""

    id_prefix: str
    whole: str
    chunk: str

    def choice(self, number: int, answer: Answer) -> JSON:
        """Return a whole answer."""

    def opening(self, number: int) -> JSON | None:
        """Return what a stream says of an answer before its text."""

    def delta(self, number: int, kind: Kind, text: str, logprobs: Sequence[TokenLogprob]) -> JSON:
        """Return the next part of a streamed answer."""

    def ending(self, number: int, finish_reason: str) -> JSON:
        """Return the end of a streamed answer."""


class ChatShape:
    """`/v1/chat/completions`: messages with their reasoning apart."""

    id_prefix = "chatcmpl-"
    whole = "chat.completion"
    chunk = "chat.completion.chunk"

    def __init__(self, vocabulary: Vocabulary, *, logprobs: bool) -> None:
        self._vocabulary = vocabulary
        self._logprobs = logprobs

    def choice(self, number: int, answer: Answer) -> JSON:
        """Return a whole answer as a message."""
        message: JSON = {"role": "assistant", "content": answer.texts["answer"], "refusal": None}
        if answer.texts["reasoning"]:
            message["reasoning_content"] = answer.texts["reasoning"]
        return {
            "index": number,
            "message": message,
            "logprobs": self._told(answer.logprobs),
            "finish_reason": answer.finish_reason,
        }

    def opening(self, number: int) -> JSON:
        """Return the chunk that names the role."""
        return self._chunk(number, {"role": "assistant", "content": ""})

    def delta(self, number: int, kind: Kind, text: str, logprobs: Sequence[TokenLogprob]) -> JSON:
        """Return the next part of a message."""
        name = "content" if kind == "answer" else "reasoning_content"
        return self._chunk(number, {name: text}, self._told(logprobs))

    def ending(self, number: int, finish_reason: str) -> JSON:
        """Return the chunk that ends a message."""
        return self._chunk(number, {}, finish_reason=finish_reason)

    def _chunk(self, number: int, delta: JSON, logprobs: JSON | None = None, finish_reason: str | None = None) -> JSON:
        return {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}

    def _told(self, logprobs: Sequence[TokenLogprob]) -> JSON | None:
        if not self._logprobs:
            return None
        return {"content": [self._token(entry) for entry in logprobs], "refusal": None}

    def _token(self, entry: TokenLogprob) -> JSON:
        top = [self._named(token, logprob) for token, logprob in entry.top]
        return {**self._named(entry.token, entry.logprob), "top_logprobs": top}

    def _named(self, token: int, logprob: float) -> JSON:
        raw = token_bytes(self._vocabulary.tokenizer, token)
        return {"token": raw.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(raw)}


class CompletionShape:
    """`/v1/completions`: plain text, and logprobs in the older form."""

    id_prefix = "cmpl-"
    whole = "text_completion"
    chunk = "text_completion"

    def __init__(self, vocabulary: Vocabulary, *, logprobs: bool) -> None:
        self._vocabulary = vocabulary
        self._logprobs = logprobs
        self._offsets: dict[int, int] = {}

    def choice(self, number: int, answer: Answer) -> JSON:
        """Return a whole continuation; a model that reasons on its own does so in the text."""
        text = answer.texts["reasoning"] + answer.texts["answer"]
        return self._choice(number, text, answer.logprobs, answer.finish_reason)

    def opening(self, number: int) -> None:  # noqa: ARG002 - part of every shape
        """Return nothing: the text comes first."""
        return

    def delta(self, number: int, kind: Kind, text: str, logprobs: Sequence[TokenLogprob]) -> JSON:  # noqa: ARG002
        """Return the next part of a continuation."""
        return self._choice(number, text, logprobs, None)

    def ending(self, number: int, finish_reason: str) -> JSON:
        """Return the end of a continuation."""
        return self._choice(number, "", (), finish_reason)

    def _choice(self, number: int, text: str, logprobs: Sequence[TokenLogprob], finish_reason: str | None) -> JSON:
        told = self._told(number, logprobs) if self._logprobs else None
        return {"index": number, "text": text, "logprobs": told, "finish_reason": finish_reason}

    def _told(self, number: int, logprobs: Sequence[TokenLogprob]) -> JSON:
        texts = [self._text(entry.token) for entry in logprobs]
        offsets: list[int] = []
        for text in texts:
            offsets.append(self._offsets.get(number, 0))
            self._offsets[number] = offsets[-1] + len(text)
        return {
            "tokens": texts,
            "token_logprobs": [entry.logprob for entry in logprobs],
            "top_logprobs": [{self._text(token): value for token, value in entry.top} for entry in logprobs],
            "text_offset": offsets,
        }

    def _text(self, token: int) -> str:
        return token_bytes(self._vocabulary.tokenizer, token).decode("utf-8", "replace")


class Envelope:
    """What stands around the choices of one request, the same in every chunk."""

    def __init__(self, shape: Shape, model: str) -> None:
        self._shape = shape
        self._head = {"id": shape.id_prefix + uuid.uuid4().hex, "created": int(time.time()), "model": model}

    def whole(self, choices: Sequence[JSON], reply: Reply) -> JSON:
        """Return the response object."""
        return {**self._head, "object": self._shape.whole, "choices": choices, "usage": usage(reply)}

    def chunk(self, *choices: JSON) -> JSON:
        """Return an object of the stream."""
        return {**self._head, "object": self._shape.chunk, "choices": choices}


def usage(reply: Reply) -> JSON:
    """Return the token counts of a request; `cached_tokens` are those of the prompt that were not computed again."""
    return {
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
        "total_tokens": reply.prompt_tokens + reply.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": reply.cached_tokens},
    }
