"""What can come of a request, told apart: an answer, a refusal in OpenAI's form, or a connection that was lost."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

JSON = dict[str, Any]
DONE = "[DONE]"


@dataclass
class Answer:
    """The texts of an answer, by number; `usage` and `logprobs` as they were told, if they were."""

    texts: dict[int, str] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    logprobs: dict[int, int] = field(default_factory=dict)
    usage: JSON | None = None

    @property
    def outcome(self) -> list[tuple[str, str]]:
        """Text and reason of the end of each, which is what must be the same whenever it is asked for."""
        return [(self.texts[number], self.reasons[number]) for number in sorted(self.texts)]


@dataclass
class Page:
    """The answer to a GET."""

    status: int
    document: Any


@dataclass
class Refusal:
    """An error in OpenAI's form; `in_stream` if it came as an event, with the mark of the end after it."""

    status: int
    code: str | None
    message: str
    retry_after: str | None = None
    in_stream: bool = False


@dataclass
class Lost:
    """No whole answer: `how` is `refused`, `closed` before a byte of it, `cut` in the middle, or `late`."""

    how: str
    detail: str


@dataclass
class Odd:
    """An answer that is none of the documented kinds."""

    detail: str


Outcome = Answer | Page | Refusal | Lost | Odd


def of_whole(document: JSON) -> Answer:
    """The answer in a response that came in one piece."""
    answer = Answer(usage=document["usage"])
    for choice in document["choices"]:
        number = choice["index"]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        answer.texts[number], answer.reasons[number] = text, choice["finish_reason"]
        answer.logprobs[number] = _tokens_in(choice)
    return answer


def of_chunks(chunks: Iterable[JSON]) -> Answer:
    """The answer in the chunks of a stream."""
    answer = Answer()
    for chunk in chunks:
        answer.usage = chunk.get("usage") or answer.usage
        for choice in chunk["choices"]:
            _add(answer, choice)
    return answer


def _add(answer: Answer, choice: JSON) -> None:
    number = choice["index"]
    part = (choice["delta"].get("content") if "delta" in choice else choice["text"]) or ""
    answer.texts[number] = answer.texts.get(number, "") + part
    answer.logprobs[number] = answer.logprobs.get(number, 0) + _tokens_in(choice)
    if choice["finish_reason"] is not None:
        answer.reasons[number] = choice["finish_reason"]


def _tokens_in(choice: JSON) -> int:
    told = choice.get("logprobs") or {}
    return len(told.get("content") or told.get("tokens") or [])


def of_events(text: str) -> Outcome:
    """What a stream of server-sent events says, whole or not."""
    events = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    if not events or events.pop() != DONE:
        return Lost("cut", f"after {text[-300:]!r}")
    documents = [json.loads(event) for event in events]
    if documents and "error" in documents[-1]:
        return of_error(200, documents[-1], in_stream=True)
    answer = of_chunks(documents)
    return answer if answer.texts.keys() == answer.reasons.keys() else Odd(f"a stream without an end: {text[-300:]!r}")


def of_error(status: int, document: Any, *, retry_after: str | None = None, in_stream: bool = False) -> Outcome:
    """The refusal in an error's body, if it is one as documented."""
    error = document.get("error") if isinstance(document, dict) else None
    if not isinstance(error, dict) or set(error) != {"message", "type", "param", "code"} or not error["message"]:
        return Odd(f"status {status} with {str(document)[:500]}")
    return Refusal(status, error["code"], error["message"], retry_after, in_stream)
