"""The events of a generation, folded into one response, or sent as server-sent events while they come.

Both read the same events, so that the text is the same either way.
Protocol: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import islice

from mlxk2.errors import MlxkError
from mlxk2.runner.output.logprobs import TokenLogprob
from mlxk2.runner.output.reasoning import Kind
from mlxk2.server.generation import Event, Generation
from mlxk2.server.openai.errors import error_body
from mlxk2.server.openai.rendering import JSON, Completion, Renderer, ResponseObjects, usage

DONE = b"data: [DONE]\n\n"
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\u0085\u2028\u2029"}
# Events that are rendered at once: with twenty logprobs each, they take some milliseconds.
_EVENTS_AT_ONCE = 64
# Pieces of JSON text that are joined at once.
_PIECES_AT_ONCE = 4096


async def fold(generation: Generation, renderer: Renderer) -> bytes:
    """Wait for the end of all sequences; return the response as JSON. Raise the error of a sequence that failed."""
    completions = [Completion() for _ in range(generation.count)]
    async for events in generation:
        for number, chunk in events:
            completion = completions[number]
            completion.texts[chunk.kind] += chunk.text
            completion.logprobs += chunk.logprobs
            completion.finish_reason = chunk.finish_reason
    if any(completion.logprobs for completion in completions):
        # There may be millions of logprobs, and the event loop has other requests.
        return await asyncio.to_thread(_render_whole, generation, renderer, completions)
    return _render_whole(generation, renderer, completions)


def _render_whole(generation: Generation, renderer: Renderer, completions: Sequence[Completion]) -> bytes:
    choices = [renderer.choice(number, completion) for number, completion in enumerate(completions)]
    return encode(ResponseObjects(renderer, generation.name).whole(choices, generation))


def encode(response: JSON) -> bytes:
    """Return a response object as JSON."""
    # Encoding all of it at once would stop all other threads. The pieces are joined before they are too many.
    pieces = _ENCODER.iterencode(response)
    return b"".join(iter(lambda: "".join(islice(pieces, _PIECES_AT_ONCE)).encode(), b""))


async def frames(
    begun: asyncio.Future[Generation], renderer: Renderer, model: str, *, includes_usage: bool, heartbeat: float
) -> AsyncIterator[bytes]:
    """Yield the server-sent events of a generation; an error becomes an event of its own before the end.

    `begun` returns the generation, `model` is the name of its model. At least every `heartbeat` seconds there is an
    event: clients give up on a stream that stands still, and for some of them a comment is not enough.
    """
    objects = ResponseObjects(renderer, model)
    extra: JSON = {"usage": None} if includes_usage else {}
    opened: set[int] = set()
    try:
        while not (await asyncio.wait({begun}, timeout=heartbeat))[0]:
            yield _frame(objects.chunk(_heartbeat(renderer, opened)) | extra)
        generation = begun.result()
        while True:
            events: list[Event]
            try:
                async with asyncio.timeout(heartbeat):
                    events = await anext(generation, [])
            except TimeoutError:
                yield _frame(objects.chunk(_heartbeat(renderer, opened)) | extra)
                continue
            if not events:
                break
            for begin in range(0, len(events), _EVENTS_AT_ONCE):
                if begin:
                    # A client that lags behind has many events waiting; other requests go on in between.
                    await asyncio.sleep(0)
                choices = _choices(renderer, events[begin : begin + _EVENTS_AT_ONCE], opened)
                yield b"".join(_frame(objects.chunk(choice) | extra) for choice in choices)
        if includes_usage:
            yield _frame(objects.chunk() | {"usage": usage(generation)})
    except MlxkError as error:
        yield _frame(error_body(error))
    yield DONE


def _heartbeat(renderer: Renderer, opened: set[int]) -> JSON:
    """Return a choice without text; the first one opens the first sequence."""
    opening = None if 0 in opened else renderer.opening(0)
    opened.add(0)
    return opening or renderer.heartbeat(0)


def _choices(renderer: Renderer, events: Sequence[Event], opened: set[int]) -> Iterator[JSON]:
    """Yield the choices for some events; texts that follow each other are joined, so that a slow client gets fewer."""
    joined: list[tuple[int, Kind, str, tuple[TokenLogprob, ...], str | None]] = []
    for number, chunk in events:
        text, logprobs = chunk.text, chunk.logprobs
        if joined and joined[-1][:2] == (number, chunk.kind):
            _, _, text_before, logprobs_before, _ = joined.pop()
            text, logprobs = text_before + text, logprobs_before + logprobs
        joined.append((number, chunk.kind, text, logprobs, chunk.finish_reason))
    for number, kind, text, logprobs, reason in joined:
        if number not in opened:
            opened.add(number)
            if opening := renderer.opening(number):
                yield opening
        if text or logprobs:
            yield renderer.delta(number, kind, text, logprobs)
        if reason is not None:
            yield renderer.ending(number, reason)


def _frame(data: JSON) -> bytes:
    text = _ENCODER.encode(data)
    if not text.isascii():
        # JSON allows these characters in a text, but some clients take them for the end of the line.
        text = text.translate(_LINE_ENDS)
    return b"data: %s\n\n" % text.encode()
