"""OpenAI's response objects: what chunks become on their way out, whole or as a stream."""

from __future__ import annotations

import codecs
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from mlxk2.runner.output.reasoning import Kind
from mlxk2.runner.output.text import Vocabulary
from mlxk2.runner.output.token_bytes import token_bytes
from mlxk2.runner.sequences import TokenLogprob
from mlxk2.server.generation import Reply

JSON = dict[str, Any]
_LEAST_LOGPROB = -9999.0


@dataclass
class Answer:
    """One answer as far as it is known."""

    texts: dict[Kind, str] = field(default_factory=lambda: {"answer": "", "reasoning": ""})
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None


class Written(list[JSON]):
    """What is made of each of many things when it is written, and not kept; for an encoder that iterates."""

    def __init__(self, make: Callable[[TokenLogprob], JSON], things: Sequence[TokenLogprob]) -> None:
        super().__init__()
        self._make = make
        self._things = things

    def __len__(self) -> int:
        return len(self._things)

    def __iter__(self) -> Iterator[JSON]:
        return map(self._make, self._things)


def _list(make: Callable[[TokenLogprob], JSON], things: Sequence[TokenLogprob]) -> list[JSON]:
    return list(map(make, things))


Listed = Callable[[Callable[[TokenLogprob], JSON], Sequence[TokenLogprob]], list[JSON]]


class Shape(Protocol):
    """How one endpoint says what was generated."""

    id_prefix: str
    whole: str
    chunk: str
    # Of the model, once it is known; the names of tokens are there.
    vocabulary: Vocabulary | None

    def choice(self, number: int, answer: Answer) -> JSON:
        """Return a whole answer."""

    def opening(self, number: int) -> JSON | None:
        """Return what a stream says of an answer before its text."""

    def delta(self, number: int, kind: Kind, text: str, logprobs: Sequence[TokenLogprob]) -> JSON:
        """Return the next part of a streamed answer."""

    def ending(self, number: int, finish_reason: str) -> JSON:
        """Return the end of a streamed answer."""

    def nothing(self, number: int) -> JSON:
        """Return a part without any text, which shows that the answer is still being worked on."""


class ChatShape:
    """`/v1/chat/completions`: messages with their reasoning apart."""

    id_prefix = "chatcmpl-"
    whole = "chat.completion"
    chunk = "chat.completion.chunk"

    def __init__(self, *, logprobs: bool) -> None:
        self.vocabulary: Vocabulary | None = None
        self._logprobs = logprobs

    def choice(self, number: int, answer: Answer) -> JSON:
        """Return a whole answer as a message."""
        message: JSON = {"role": "assistant", "content": answer.texts["answer"], "refusal": None}
        if answer.texts["reasoning"]:
            message["reasoning_content"] = answer.texts["reasoning"]
        return {
            "index": number,
            "message": message,
            "logprobs": self._render_logprobs(answer.logprobs, Written),
            "finish_reason": answer.finish_reason,
        }

    def opening(self, number: int) -> JSON:
        """Return the chunk that names the role."""
        return self._chunk(number, {"role": "assistant", "content": ""})

    def delta(self, number: int, kind: Kind, text: str, logprobs: Sequence[TokenLogprob]) -> JSON:
        """Return the next part of a message."""
        name = "content" if kind == "answer" else "reasoning_content"
        return self._chunk(number, {name: text}, self._render_logprobs(logprobs))

    def ending(self, number: int, finish_reason: str) -> JSON:
        """Return the chunk that ends a message."""
        return self._chunk(number, {}, finish_reason=finish_reason)

    def nothing(self, number: int) -> JSON:
        """Return an empty part of a message."""
        return self._chunk(number, {})

    def _chunk(self, number: int, delta: JSON, logprobs: JSON | None = None, finish_reason: str | None = None) -> JSON:
        return {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}

    def _render_logprobs(self, logprobs: Sequence[TokenLogprob], listed: Listed = _list) -> JSON | None:
        if not self._logprobs:
            return None
        return {"content": listed(self._token, logprobs), "refusal": None}

    def _token(self, entry: TokenLogprob) -> JSON:
        top = [self._named(token, logprob) for token, logprob in entry.top]
        return {**self._named(entry.token, entry.logprob), "top_logprobs": top}

    def _named(self, token: int, logprob: float) -> JSON:
        raw = _bytes(self, token)
        return {"token": _name(raw), "logprob": _finite(logprob), "bytes": list(raw)}


class CompletionShape:
    """`/v1/completions`: plain text, and logprobs in the older form."""

    id_prefix = "cmpl-"
    whole = "text_completion"
    chunk = "text_completion"

    def __init__(self, *, logprobs: bool) -> None:
        self.vocabulary: Vocabulary | None = None
        self._logprobs = logprobs
        self._offsets: defaultdict[int, _Offsets] = defaultdict(_Offsets)

    def choice(self, number: int, answer: Answer) -> JSON:
        """Return a whole continuation."""
        return self._choice(number, answer.texts["answer"], answer.logprobs, answer.finish_reason, Written)

    def opening(self, number: int) -> None:  # noqa: ARG002 - part of every shape
        """Return nothing: the text comes first."""
        return

    def delta(self, number: int, kind: Kind, text: str, logprobs: Sequence[TokenLogprob]) -> JSON:  # noqa: ARG002
        """Return the next part of a continuation."""
        return self._choice(number, text, logprobs, None)

    def ending(self, number: int, finish_reason: str) -> JSON:
        """Return the end of a continuation."""
        return self._choice(number, "", (), finish_reason)

    def nothing(self, number: int) -> JSON:
        """Return an empty part of a continuation."""
        return self._choice(number, "", (), None)

    def _choice(
        self,
        number: int,
        text: str,
        logprobs: Sequence[TokenLogprob],
        finish_reason: str | None,
        listed: Listed = _list,
    ) -> JSON:
        rendered = self._render_logprobs(number, logprobs, listed) if self._logprobs else None
        return {"index": number, "text": text, "logprobs": rendered, "finish_reason": finish_reason}

    def _render_logprobs(self, number: int, logprobs: Sequence[TokenLogprob], listed: Listed) -> JSON:
        raw = [_bytes(self, entry.token) for entry in logprobs]
        return {
            "tokens": [_older_name(part) for part in raw],
            "token_logprobs": [_finite(entry.logprob) for entry in logprobs],
            "top_logprobs": listed(self._top, logprobs),
            "text_offset": [self._offsets[number].next(part) for part in raw],
        }

    def _top(self, entry: TokenLogprob) -> JSON:
        # The chosen token is always told, also where it is none of the likeliest.
        pairs = dict([*entry.top, (entry.token, entry.logprob)])
        return {
            _older_name(_bytes(self, token)): _finite(logprob)
            for token, logprob in pairs.items()
        }


def _bytes(shape: Shape, token: int) -> bytes:
    assert shape.vocabulary is not None
    return token_bytes(shape.vocabulary, token)


class _Offsets:
    """Where in the text each token begins, in characters."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._length = 0

    def next(self, raw: bytes) -> int:
        """Take the bytes of the next token; return where it begins."""
        begin = self._length
        self._length += len(self._decoder.decode(raw))
        return begin


def _name(raw: bytes) -> str:
    """Return a token's text; bytes that are no characters by themselves are written as OpenAI writes them."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "".join(f"\\x{byte:02x}" for byte in raw)


def _older_name(raw: bytes) -> str:
    name = _name(raw)
    return f"bytes:{name}" if name.encode() != raw else name


def _finite(logprob: float) -> float:
    # JSON has no infinity; OpenAI tells this in its place.
    return max(_LEAST_LOGPROB, logprob)


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
