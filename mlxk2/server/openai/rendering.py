"""OpenAI's response objects: what the events of a generation become, in one response or in a stream."""

from __future__ import annotations

import codecs
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from mlxk2.runner.output.logprobs import TokenLogprob
from mlxk2.runner.output.reasoning import Kind
from mlxk2.runner.output.text import Vocabulary
from mlxk2.server.catalog import ServedModel
from mlxk2.server.generation import Generation

JSON = dict[str, Any]
# JSON has no infinity; OpenAI returns this value in its place.
_MIN_LOGPROB = -9999.0


@dataclass
class Completion:
    """The text of one sequence, as far as it has been generated."""

    texts: dict[Kind, str] = field(default_factory=lambda: {"answer": "", "reasoning": ""})
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None


class LazyList(list[JSON]):
    """A list whose items are rendered one by one while they are encoded, and not kept; for encoders that iterate."""

    def __init__(self, render: Callable[[TokenLogprob], JSON], entries: Sequence[TokenLogprob]) -> None:
        super().__init__()
        self._render = render
        self._entries = entries

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[JSON]:
        return map(self._render, self._entries)


class Renderer(Protocol):
    """Renders the choices of one endpoint; `prompt_field` is the field of its body that has the prompt."""

    id_prefix: str
    object: str
    chunk_object: str
    prompt_field: str
    # The vocabulary of the model, set when it is known; logprobs need the names of its tokens.
    vocabulary: Vocabulary | None

    def choice(self, number: int, completion: Completion) -> JSON:
        """Return a choice of a response."""

    def opening(self, number: int) -> JSON | None:
        """Return the choice of a stream that comes before the text, if there is one."""

    def delta(self, number: int, kind: Kind, text: str, logprobs: Sequence[TokenLogprob]) -> JSON:
        """Return the choice of a stream for the next text."""

    def ending(self, number: int, finish_reason: str) -> JSON:
        """Return the last choice of a stream."""

    def heartbeat(self, number: int) -> JSON:
        """Return a choice of a stream without text, which shows that the server is still at work."""


class ChatRenderer:
    """`/v1/chat/completions`: messages, with their reasoning in a field of its own."""

    id_prefix = "chatcmpl-"
    object = "chat.completion"
    chunk_object = "chat.completion.chunk"
    prompt_field = "messages"

    def __init__(self, *, logprobs: bool) -> None:
        self.vocabulary: Vocabulary | None = None
        self._logprobs = logprobs

    def choice(self, number: int, completion: Completion) -> JSON:
        """Return a choice with the whole message."""
        message: JSON = {"role": "assistant", "content": completion.texts["answer"], "refusal": None}
        if completion.texts["reasoning"]:
            message["reasoning_content"] = completion.texts["reasoning"]
        return {
            "index": number,
            "message": message,
            "logprobs": self._render_logprobs(completion.logprobs, lazy=True),
            "finish_reason": completion.finish_reason,
        }

    def opening(self, number: int) -> JSON:
        """Return the choice that has the role."""
        return self._choice(number, {"role": "assistant", "content": ""})

    def delta(self, number: int, kind: Kind, text: str, logprobs: Sequence[TokenLogprob]) -> JSON:
        """Return the choice for the next text of a message."""
        name = "content" if kind == "answer" else "reasoning_content"
        return self._choice(number, {name: text}, self._render_logprobs(logprobs))

    def ending(self, number: int, finish_reason: str) -> JSON:
        """Return the choice that ends a message."""
        return self._choice(number, {}, finish_reason=finish_reason)

    def heartbeat(self, number: int) -> JSON:
        """Return a choice with an empty delta."""
        return self._choice(number, {})

    def _choice(self, number: int, delta: JSON, logprobs: JSON | None = None, finish_reason: str | None = None) -> JSON:
        return {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}

    def _render_logprobs(self, entries: Sequence[TokenLogprob], *, lazy: bool = False) -> JSON | None:
        if not self._logprobs:
            return None
        content = LazyList(self._render_entry, entries) if lazy else [self._render_entry(entry) for entry in entries]
        return {"content": content, "refusal": None}

    def _render_entry(self, entry: TokenLogprob) -> JSON:
        top = [self._render_token(token, logprob) for token, logprob in entry.top]
        return {**self._render_token(entry.token, entry.logprob), "top_logprobs": top}

    def _render_token(self, token: int, logprob: float) -> JSON:
        raw = _bytes(self, token)
        return {"token": _name(raw), "logprob": max(_MIN_LOGPROB, logprob), "bytes": list(raw)}


class CompletionRenderer:
    """`/v1/completions`: plain text, and logprobs in the older form."""

    id_prefix = "cmpl-"
    object = "text_completion"
    chunk_object = "text_completion"
    prompt_field = "prompt"

    def __init__(self, *, logprobs: bool) -> None:
        self.vocabulary: Vocabulary | None = None
        self._logprobs = logprobs
        self._offsets: defaultdict[int, _Offsets] = defaultdict(_Offsets)

    def choice(self, number: int, completion: Completion) -> JSON:
        """Return a choice with the whole text."""
        text, logprobs = completion.texts["answer"], completion.logprobs
        return self._choice(number, text, logprobs, completion.finish_reason, lazy=True)

    def opening(self, number: int) -> None:  # noqa: ARG002 - part of every renderer
        """Return nothing: the text comes first."""
        return

    def delta(self, number: int, kind: Kind, text: str, logprobs: Sequence[TokenLogprob]) -> JSON:  # noqa: ARG002
        """Return the choice for the next text."""
        return self._choice(number, text, logprobs)

    def ending(self, number: int, finish_reason: str) -> JSON:
        """Return the choice that ends a text."""
        return self._choice(number, "", finish_reason=finish_reason)

    def heartbeat(self, number: int) -> JSON:
        """Return a choice with an empty text."""
        return self._choice(number, "")

    def _choice(
        self,
        number: int,
        text: str,
        logprobs: Sequence[TokenLogprob] = (),
        finish_reason: str | None = None,
        *,
        lazy: bool = False,
    ) -> JSON:
        rendered = self._render_logprobs(number, logprobs, lazy) if self._logprobs else None
        return {"index": number, "text": text, "logprobs": rendered, "finish_reason": finish_reason}

    def _render_logprobs(self, number: int, entries: Sequence[TokenLogprob], lazy: bool) -> JSON:
        raw = [_bytes(self, entry.token) for entry in entries]
        return {
            "tokens": [_older_name(name) for name in raw],
            "token_logprobs": [max(_MIN_LOGPROB, entry.logprob) for entry in entries],
            "top_logprobs": LazyList(self._render_top, entries) if lazy else [self._render_top(e) for e in entries],
            "text_offset": [self._offsets[number].next(name) for name in raw],
        }

    def _render_top(self, entry: TokenLogprob) -> JSON:
        # The chosen token is always there, even if it is not one of the likeliest.
        pairs = dict([*entry.top, (entry.token, entry.logprob)])
        return {_older_name(_bytes(self, token)): max(_MIN_LOGPROB, logprob) for token, logprob in pairs.items()}


def _bytes(renderer: Renderer, token: int) -> bytes:
    assert renderer.vocabulary is not None
    return renderer.vocabulary.bytes_of(token)


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
    """Return the text of a token; write bytes that are not characters by themselves as OpenAI does."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "".join(f"\\x{byte:02x}" for byte in raw)


def _older_name(raw: bytes) -> str:
    name = _name(raw)
    return f"bytes:{name}" if name.encode() != raw else name


class ResponseObjects:
    """The objects around the choices of one request: all have the same id, time and model."""

    def __init__(self, renderer: Renderer, model: str) -> None:
        self._renderer = renderer
        self._head = {"id": renderer.id_prefix + uuid.uuid4().hex, "created": int(time.time()), "model": model}

    def whole(self, choices: Sequence[JSON], generation: Generation) -> JSON:
        """Return the object of a response."""
        return {**self._head, "object": self._renderer.object, "choices": choices, "usage": usage(generation)}

    def chunk(self, *choices: JSON) -> JSON:
        """Return an object of a stream."""
        return {**self._head, "object": self._renderer.chunk_object, "choices": choices}


def usage(generation: Generation) -> JSON:
    """Return the token counts of a request; `cached_tokens` of the prompt came from the prompt cache."""
    return {
        "prompt_tokens": generation.prompt_tokens,
        "completion_tokens": generation.completion_tokens,
        "total_tokens": generation.prompt_tokens + generation.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": generation.cached_tokens},
    }


def model_object(model: ServedModel) -> JSON:
    """Return the object of a model; its owner is the first part of its name."""
    owner, _, _ = model.name.rpartition("/")
    return {
        "id": model.name,
        "object": "model",
        "created": model.last_modified,
        "owned_by": owner or "mlxk2",
        "context_length": model.context_length,
    }
