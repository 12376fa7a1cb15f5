"""The response to a request that generates: one object, or the same as server-sent events while it is generated.

Both are made of the same events, so that the text is the same either way.
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
# JSON has no infinity; OpenAI returns this value in its place.
MIN_LOGPROB = -9999.0
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\u0085\u2028\u2029"}
# Events that are rendered at once: with twenty logprobs each, they take some milliseconds.
_EVENTS_AT_ONCE = 64
# Pieces of JSON text that are joined at once.
_PIECES_AT_ONCE = 4096

FinishReason = Literal["stop", "length"]


class PromptTokensDetails(BaseModel):
    """How many tokens of the prompt came from the prompt cache."""

    cached_tokens: int


class Usage(BaseModel):
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class Timings(BaseModel):
    """The times of one answer, with the names of llama.cpp's server: `prompt_n` tokens of the prompt were computed.

    `predicted_n` tokens, all after the first one, were generated.
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
    """The output of one sequence, as far as it has been generated."""

    texts: dict[Channel, str] = field(default_factory=lambda: {"answer": "", "reasoning": ""})
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
        """Return a choice of a response."""

    @abstractmethod
    def opening(self, number: int) -> JSON | None:
        """Return the choice of a stream that comes before the text, if there is one."""

    @abstractmethod
    def delta(self, number: int, channel: Channel, text: str, logprobs: Sequence[TokenLogprob]) -> JSON:
        """Return the choice of a stream for the next text."""

    @abstractmethod
    def ending(self, number: int, finish_reason: str) -> JSON:
        """Return the last choice of a stream."""

    @abstractmethod
    def heartbeat(self, number: int) -> JSON:
        """Return a choice of a stream without text, which shows that the server is still at work."""

    def bytes_of(self, token: int) -> bytes:
        """Return the bytes of a token."""
        assert self.vocabulary is not None
        return self.vocabulary.bytes_of(token)

    async def whole(self, generation: Generation) -> bytes:
        """Wait for the end of all sequences; return the response as JSON. Raise the error of a sequence that failed."""
        outputs = [SequenceOutput() for _ in range(generation.count)]
        async for events in generation:
            for number, event in events:
                if isinstance(event, TextDelta):
                    outputs[number].texts[event.channel] += event.text
                    outputs[number].logprobs += event.logprobs
                elif isinstance(event, Finished):
                    outputs[number].finish_reason = event.reason
        if any(output.logprobs for output in outputs):
            # There may be millions of logprobs, and the event loop has other requests.
            return await asyncio.to_thread(self._encode_whole, generation, outputs)
        return self._encode_whole(generation, outputs)

    def _encode_whole(self, generation: Generation, outputs: Sequence[SequenceOutput]) -> bytes:
        self._begin(generation.name)
        choices = [self.choice(number, output) for number, output in enumerate(outputs)]
        return encode({**self._head, "object": self.object, "choices": choices, **totals(generation)})

    async def frames(self, begun: asyncio.Future[Generation], model: str, heartbeat: float) -> AsyncIterator[bytes]:
        """Yield the server-sent events of a generation; an error becomes an event of its own before the end.

        At least every `heartbeat` seconds there is an event: clients give up on a stream that stands still, and for
        some of them a comment is not enough.
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
                        # A client that lags behind has many events waiting; other requests go on in between.
                        await asyncio.sleep(0)
                    choices = self._choices(events[begin : begin + _EVENTS_AT_ONCE])
                    # The progress of a prompt has none.
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
        """Return a frame with an object of the stream."""
        data = {**self._head, "object": self.chunk_object, "choices": choices}
        if self._includes_usage:
            data["usage"] = None
        return _frame(data | more)

    def _alive(self) -> JSON:
        """Return a choice without text; the first one opens the first sequence."""
        opening = None if 0 in self._opened else self.opening(0)
        self._opened.add(0)
        return opening or self.heartbeat(0)

    def _choices(self, events: Sequence[tuple[int, Event]]) -> Iterator[JSON]:
        """Yield the choices for some events; texts in a row are joined, so that a slow client gets fewer."""
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
    """Return what a response ends with: the token counts; `cached_tokens` of the prompt came from the prompt cache."""
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
    """Return what a stream has beside its token counts, if it has one sequence: its times and speeds."""
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
    """Return the text of a token; write bytes that are not characters by themselves as OpenAI does."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "".join(f"\\x{byte:02x}" for byte in raw)


def encode(response: JSON) -> bytes:
    """Return a response object as JSON."""
    # Encoding all of it at once would stop all other threads. The pieces are joined before they are too many.
    pieces = _ENCODER.iterencode(response)
    return b"".join(iter(lambda: "".join(islice(pieces, _PIECES_AT_ONCE)).encode(), b""))


def _frame(data: JSON) -> bytes:
    text = _ENCODER.encode(data)
    if not text.isascii():
        # JSON allows these characters in a text, but some clients take them for the end of the line.
        text = text.translate(_LINE_ENDS)
    return b"data: %s\n\n" % text.encode()
