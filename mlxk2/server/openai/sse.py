"""Render the response to a request for completions: one JSON object, or server-sent events during the generation.

Both are made from the same events, so the text is the same.
Protocol: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar, Literal

from pydantic import BaseModel

from mlxk2.errors import MlxkError
from mlxk2.runner.events import Channel, Event, Finished, TextDelta
from mlxk2.runner.output.logprobs import TokenLogprob
from mlxk2.runner.output.text import Vocabulary
from mlxk2.server.generation import Generation
from mlxk2.server.openai.errors import error_body
from mlxk2.server.openai.fields import GenerationBody

JSON = dict[str, Any]
DONE = b"data: [DONE]\n\n"
MIN_LOGPROB = -9999.0  # OpenAI's value for minus infinity, which JSON does not have.
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\u0085\u2028\u2029"}
_EVENTS_AT_ONCE = 64  # Rendering so many events with twenty logprobs each takes a few milliseconds.
_PIECES_AT_ONCE = 4096  # Pieces of JSON text to join at once.

FinishReason = Literal["stop", "length"]


class PromptTokensDetails(BaseModel):
    """The number of tokens of the prompt that came from the prompt cache."""

    cached_tokens: int


class Usage(BaseModel):
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class Timings(BaseModel):
    """The times of one completion, with the names of llama.cpp's server.

    `prompt_n` is the number of computed tokens of the prompt; `predicted_n` is the number of generated tokens after the
    first one.
    """

    prompt_n: int
    prompt_ms: float
    prompt_per_second: float | None
    predicted_n: int
    predicted_ms: float
    predicted_per_second: float | None
    time_to_first_token_ms: float | None


@dataclass
class SequenceOutput:
    """The output of one sequence so far."""

    texts: dict[Channel, str] = field(default_factory=lambda: {"content": "", "reasoning": ""})
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None


class LazyList(list[JSON]):
    """A list that renders its items one by one while the JSON encoder iterates, and does not keep them."""

    def __init__(self, render: Callable[[TokenLogprob], JSON], entries: Sequence[TokenLogprob]) -> None:
        super().__init__()
        self._render = render
        self._entries = entries

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[JSON]:
        return map(self._render, self._entries)


class Renderer(ABC):
    """Renders the events of one request; all objects of the response have the same id, time and model."""

    id_prefix: ClassVar[str]
    object: ClassVar[str]
    chunk_object: ClassVar[str]
    prompt_field: str
    count_field = "n"

    def __init__(self, body: GenerationBody) -> None:
        # The vocabulary of the model, set when it is known.
        self.vocabulary: Vocabulary | None = None
        self.has_logprobs = body.likeliest_count is not None
        self._includes_usage = body.includes_usage
        self._opened: set[int] = set()
        self._head: JSON = {}

    @abstractmethod
    def choice(self, number: int, output: SequenceOutput) -> JSON:
        """Return a choice of a whole response."""

    @abstractmethod
    def opening(self, number: int) -> JSON | None:
        """Return the choice of a stream before the text, or None."""

    @abstractmethod
    def delta(self, number: int, channel: Channel, text: str, logprobs: Sequence[TokenLogprob]) -> JSON:
        """Return the choice of a stream for the next text."""

    @abstractmethod
    def ending(self, number: int, finish_reason: str) -> JSON:
        """Return the last choice of a stream."""

    @abstractmethod
    def heartbeat(self, number: int) -> JSON:
        """Return a choice of a stream without text, which shows that the server is still working."""

    def bytes_of(self, token: int) -> bytes:
        """Return the bytes of a token."""
        assert self.vocabulary is not None
        return self.vocabulary.bytes_of(token)

    async def whole(self, generation: Generation) -> bytes:
        """Wait until all sequences end, and return the response as JSON; raise the error of a sequence that failed."""
        outputs = [SequenceOutput() for _ in range(generation.count)]
        async for events in generation:
            for number, event in events:
                if isinstance(event, TextDelta):
                    outputs[number].texts[event.channel] += event.text
                    outputs[number].logprobs += event.logprobs
                elif isinstance(event, Finished):
                    outputs[number].finish_reason = event.reason
        if any(output.logprobs for output in outputs):
            # There can be millions of logprobs, which would block the event loop.
            return await asyncio.to_thread(self._encode_whole, generation, outputs)
        return self._encode_whole(generation, outputs)

    def _encode_whole(self, generation: Generation, outputs: Sequence[SequenceOutput]) -> bytes:
        self._begin(generation.name)
        choices = [self.choice(number, output) for number, output in enumerate(outputs)]
        return encode({**self._head, "object": self.object, "choices": choices, **totals(generation)})

    async def frames(self, begun: asyncio.Future[Generation], model: str, heartbeat: float) -> AsyncIterator[bytes]:
        """Yield the server-sent events of a generation; an error becomes an event before the end.

        Yield an event at least every `heartbeat` seconds, because clients give up on a silent stream, and some of them
        ignore comments.
        """
        self._begin(model)
        clock = asyncio.get_running_loop().time
        try:
            while not (await asyncio.wait({begun}, timeout=heartbeat))[0]:
                yield self._frame(self._alive())
            generation = begun.result()
            deadline = clock() + heartbeat
            while True:
                events: list[tuple[int, Event]]
                try:
                    async with asyncio.timeout_at(deadline):
                        events = await anext(generation, [])
                except TimeoutError:
                    yield self._frame(self._alive())
                    deadline = clock() + heartbeat
                    continue
                if not events:
                    break
                for begin in range(0, len(events), _EVENTS_AT_ONCE):
                    if begin:
                        # For a slow client many events wait; let other requests continue in between.
                        await asyncio.sleep(0)
                    choices = self._choices(events[begin : begin + _EVENTS_AT_ONCE])
                    # Progress of a prompt gives no choices.
                    if sent := b"".join(self._frame(choice) for choice in choices):
                        yield sent
                        deadline = clock() + heartbeat
            if self._includes_usage:
                yield self._frame(**totals(generation), **timings(generation))
        except MlxkError as error:
            yield _frame(error_body(error))
        yield DONE

    def _begin(self, model: str) -> None:
        self._head = {"id": self.id_prefix + uuid.uuid4().hex, "created": int(time.time()), "model": model}

    def _frame(self, *choices: JSON, **more: Any) -> bytes:
        """Return a server-sent event with an object of the stream."""
        data = {**self._head, "object": self.chunk_object, "choices": choices}
        if self._includes_usage:
            data["usage"] = None
        return _frame(data | more)

    def _alive(self) -> JSON:
        """Return a choice without text; the first time, open the first sequence."""
        opening = None if 0 in self._opened else self.opening(0)
        self._opened.add(0)
        return opening or self.heartbeat(0)

    def _choices(self, events: Sequence[tuple[int, Event]]) -> Iterator[JSON]:
        """Yield the choices for some events; join consecutive texts, so that a slow client gets fewer choices."""
        joined: list[tuple[int, TextDelta | Finished]] = []
        for number, event in events:
            if isinstance(event, TextDelta):
                last, before = joined[-1] if joined else (None, None)
                if last == number and isinstance(before, TextDelta) and before.channel == event.channel:
                    joined.pop()
                    event = TextDelta(event.channel, before.text + event.text, before.logprobs + event.logprobs)
                joined.append((number, event))
            elif isinstance(event, Finished):
                joined.append((number, event))
        for number, event in joined:
            if number not in self._opened:
                self._opened.add(number)
                if opening := self.opening(number):
                    yield opening
            if isinstance(event, TextDelta):
                yield self.delta(number, event.channel, event.text, event.logprobs)
            else:
                yield self.ending(number, event.reason)


def totals(generation: Generation) -> JSON:
    """Return the usage of a response; `cached_tokens` of the prompt came from the prompt cache."""
    usage = generation.usage
    return {
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        }
    }


def timings(generation: Generation) -> JSON:
    """Return the times and speeds of a stream with one sequence; empty for several sequences."""
    times = generation.timings
    if times is None:
        return {}
    first = times.first_token_seconds
    values = {
        "prompt_n": times.read_tokens,
        "prompt_ms": times.reading_seconds * 1000,
        "prompt_per_second": times.prompt_tokens_per_second,
        "predicted_n": times.later_tokens,
        "predicted_ms": times.later_seconds * 1000,
        "predicted_per_second": times.generated_tokens_per_second,
        "time_to_first_token_ms": None if first is None else first * 1000,
    }
    return {"timings": {name: None if value is None else round(value, 3) for name, value in values.items()}}


def name_of(raw: bytes) -> str:
    """Return the text of a token; write incomplete characters as escaped bytes, as OpenAI does."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "".join(f"\\x{byte:02x}" for byte in raw)


def encode(response: JSON) -> bytes:
    """Return a response object as JSON."""
    # Encode in pieces, because encoding at once would block all other threads; join the pieces in groups.
    pieces = _ENCODER.iterencode(response)
    return b"".join(iter(lambda: "".join(islice(pieces, _PIECES_AT_ONCE)).encode(), b""))


def _frame(data: JSON) -> bytes:
    text = _ENCODER.encode(data)
    if not text.isascii():
        # JSON allows these characters in a text, but some clients treat them as line ends.
        text = text.translate(_LINE_ENDS)
    return b"data: %s\n\n" % text.encode()
