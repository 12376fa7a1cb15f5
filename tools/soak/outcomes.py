"""The outcomes of a request: a completion, a refusal in OpenAI's form, or a lost connection."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

JSON = dict[str, Any]
DONE = "[DONE]"


@dataclass
class Completion:
    """The texts of a completion, by number, with `usage` and `logprobs` if the response has them."""

    texts: dict[int, str] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    logprobs: dict[int, int] = field(default_factory=dict)
    usage: JSON | None = None

    @property
    def outcome(self) -> list[tuple[str, str]]:
        """Return the text and the finish reason of each choice, which must be the same at every repetition."""
        return [(self.texts[number], self.reasons[number]) for number in sorted(self.texts)]


@dataclass
class Page:
    """The response to a GET."""

    status: int
    document: Any


@dataclass
class Refusal:
    """An error in OpenAI's form; `in_stream` if it came as the last event of a stream."""

    status: int
    code: str | None
    message: str
    retry_after: str | None = None
    in_stream: bool = False


@dataclass
class Lost:
    """An incomplete response: `how` is `refused`, `closed` before the first byte, `cut` in the middle, or `late`."""

    how: str
    detail: str


@dataclass
class Odd:
    """A response of an undocumented kind."""

    detail: str


Outcome = Completion | Page | Refusal | Lost | Odd


def of_whole(document: JSON) -> Completion:
    """Return the completion in a response that is not streamed."""
    completion = Completion(usage=document["usage"])
    for choice in document["choices"]:
        number = choice["index"]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        completion.texts[number], completion.reasons[number] = text, choice["finish_reason"]
        completion.logprobs[number] = _tokens_in(choice)
    return completion


def of_chunks(chunks: Iterable[JSON]) -> Completion:
    """Return the completion in the chunks of a stream."""
    completion = Completion()
    for chunk in chunks:
        completion.usage = chunk.get("usage") or completion.usage
        for choice in chunk["choices"]:
            _add(completion, choice)
    return completion


def _add(completion: Completion, choice: JSON) -> None:
    number = choice["index"]
    part = (choice["delta"].get("content") if "delta" in choice else choice["text"]) or ""
    completion.texts[number] = completion.texts.get(number, "") + part
    completion.logprobs[number] = completion.logprobs.get(number, 0) + _tokens_in(choice)
    if choice["finish_reason"] is not None:
        completion.reasons[number] = choice["finish_reason"]


def _tokens_in(choice: JSON) -> int:
    logprobs = choice.get("logprobs") or {}
    return len(logprobs.get("content") or logprobs.get("tokens") or [])


def of_events(text: str) -> Outcome:
    """Return the outcome of a complete or broken stream of server-sent events."""
    events = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    if not events or events.pop() != DONE:
        return Lost("cut", f"after {text[-300:]!r}")
    documents = [json.loads(event) for event in events]
    if documents and "error" in documents[-1]:
        return of_error(200, documents[-1], in_stream=True)
    completion = of_chunks(documents)
    has_ended = completion.texts.keys() == completion.reasons.keys()
    return completion if has_ended else Odd(f"a stream without an end: {text[-300:]!r}")


def of_error(status: int, document: Any, *, retry_after: str | None = None, in_stream: bool = False) -> Outcome:
    """Return the refusal in the body of an error, or Odd if it is not as documented."""
    error = document.get("error") if isinstance(document, dict) else None
    if not isinstance(error, dict) or set(error) != {"message", "type", "param", "code"} or not error["message"]:
        return Odd(f"status {status} with {str(document)[:500]}")
    return Refusal(status, error["code"], error["message"], retry_after, in_stream)
