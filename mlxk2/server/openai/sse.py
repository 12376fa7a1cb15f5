"""The chunks of a reply, folded into one response or sent as server-sent events while they come.

Both read the same chunks, so an answer is the same either way.
Protocol: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import islice

from mlxk2.errors import MlxkError
from mlxk2.runner.output.reasoning import Kind
from mlxk2.runner.sequences import TokenLogprob
from mlxk2.server.generation import Part, Reply
from mlxk2.server.openai import errors
from mlxk2.server.openai.rendering import JSON, Answer, Envelope, Shape, usage

DONE = b"data: [DONE]\n\n"
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\u0085\u2028\u2029"}
# Chunks with twenty logprobs each, of which so many are events in some milliseconds.
_AT_ONCE = 64
_PIECES = 4096


async def fold(reply: Reply, shape: Shape) -> bytes:
    """Wait for all answers; return the response object as JSON. Raises what made one fail."""
    answers = [Answer() for _ in range(reply.count)]
    async for parts in reply:
        for number, chunk in parts:
            answer = answers[number]
            answer.texts[chunk.kind] += chunk.text
            answer.logprobs += chunk.logprobs
            answer.finish_reason = chunk.finish_reason
    if any(answer.logprobs for answer in answers):
        # There may be millions, and the loop has others to serve.
        return await asyncio.to_thread(_whole, reply, shape, answers)
    return _whole(reply, shape, answers)


def _whole(reply: Reply, shape: Shape, answers: Sequence[Answer]) -> bytes:
    choices = [shape.choice(number, answer) for number, answer in enumerate(answers)]
    return written(Envelope(shape, reply.name).whole(choices, reply))


def written(whole: JSON) -> bytes:
    """Return a response object as JSON."""
    # Piece by piece: at once, all other threads would wait for it. The pieces are joined before they are too many.
    pieces = _ENCODER.iterencode(whole)
    return b"".join(iter(lambda: "".join(islice(pieces, _PIECES)).encode(), b""))


async def frames(
    begun: asyncio.Future[Reply], shape: Shape, model: str, *, includes_usage: bool, pulse: float
) -> AsyncIterator[bytes]:
    """Yield the events of a stream; an error on the way becomes an event of its own before the end.

    `begun` gives the reply, `model` is its model's name. An event comes every `pulse` seconds at least: clients give up
    on a stream that stands still, and comments do not keep all of them waiting.
    """
    envelope = Envelope(shape, model)
    extra: JSON = {"usage": None} if includes_usage else {}
    opened: set[int] = set()
    try:
        while not (await asyncio.wait({begun}, timeout=pulse))[0]:
            yield _event(envelope.chunk(_sign_of_life(shape, opened)) | extra)
        reply = begun.result()
        while (parts := await _next_parts(reply, pulse)) != []:
            if parts is None:
                yield _event(envelope.chunk(_sign_of_life(shape, opened)) | extra)
                continue
            for begin in range(0, len(parts), _AT_ONCE):
                if begin:
                    # Who lags has many waiting, and is not alone.
                    await asyncio.sleep(0)
                choices = _choices(shape, parts[begin : begin + _AT_ONCE], opened)
                yield b"".join(_event(envelope.chunk(choice) | extra) for choice in choices)
        if includes_usage:
            yield _event(envelope.chunk() | {"usage": usage(reply)})
    except MlxkError as error:
        yield _event(errors.of_error(error))
    yield DONE


async def _next_parts(reply: Reply, pulse: float) -> list[Part] | None:
    """Return what came next: nothing at the end, None if nothing came in time."""
    try:
        async with asyncio.timeout(pulse):
            return await anext(reply, [])
    except TimeoutError:
        return None


def _sign_of_life(shape: Shape, opened: set[int]) -> JSON:
    """Return a part without text; the first one opens the first answer."""
    opening = None if 0 in opened else shape.opening(0)
    opened.add(0)
    return opening or shape.nothing(0)


def _choices(shape: Shape, parts: Sequence[Part], opened: set[int]) -> Iterator[JSON]:
    for number, kind, text, logprobs, reason in _joined(parts):
        if number not in opened:
            opened.add(number)
            if opening := shape.opening(number):
                yield opening
        if text or logprobs:
            yield shape.delta(number, kind, text, logprobs)
        if reason is not None:
            yield shape.ending(number, reason)


_Joined = tuple[int, Kind, str, tuple[TokenLogprob, ...], str | None]


def _joined(parts: Sequence[Part]) -> list[_Joined]:
    """Join the parts that follow each other in the same text, so that a client that lags gets fewer events."""
    found: list[_Joined] = []
    for number, chunk in parts:
        text, logprobs = chunk.text, chunk.logprobs
        if found and found[-1][:2] == (number, chunk.kind):
            _, _, before, logprobs_before, _ = found.pop()
            text, logprobs = before + text, logprobs_before + logprobs
        found.append((number, chunk.kind, text, logprobs, chunk.finish_reason))
    return found


def _event(data: JSON) -> bytes:
    text = _ENCODER.encode(data)
    if not text.isascii():
        # JSON lets these stand in a text, but some clients take them for the end of the line.
        text = text.translate(_LINE_ENDS)
    return b"data: %s\n\n" % text.encode()
