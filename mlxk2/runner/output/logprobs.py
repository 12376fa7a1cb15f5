"""The log-probabilities of tokens, and which tokens the text of a completion is made of."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar, overload

T = TypeVar("T")
Span = tuple[int, int]


class TopTokens(Sequence[tuple[int, float]]):
    """The most likely tokens with their logprobs, in compact arrays: one completion may have a million of these."""

    __slots__ = ("_logprobs", "_tokens")

    def __init__(self, tokens: Sequence[int], logprobs: Sequence[float]) -> None:
        self._tokens = array("I", tokens)
        self._logprobs = array("f", logprobs)

    def __len__(self) -> int:
        return len(self._tokens)

    @overload
    def __getitem__(self, index: int) -> tuple[int, float]: ...

    @overload
    def __getitem__(self, index: slice) -> TopTokens: ...

    def __getitem__(self, index: int | slice) -> tuple[int, float] | TopTokens:
        if isinstance(index, slice):
            return TopTokens(self._tokens[index], self._logprobs[index])
        return self._tokens[index], self._logprobs[index]


class TokenLogprob(NamedTuple):
    """The natural logarithm of a chosen token's probability, and of those of the most likely tokens, largest first."""

    token: int
    logprob: float
    top: Sequence[tuple[int, float]]


class Attribution(Generic[T]):
    """Find the tokens that became content, at least in part; stop strings and marks are no content."""

    def __init__(self) -> None:
        # Each token with the position in the text where it begins. A token that only completes a character begins where
        # that character does.
        self._waiting: list[tuple[T, int]] = []
        self._text = ""

    def begin(self, token: T) -> None:
        """Add the next token; its text comes now or later."""
        self._waiting.append((token, len(self._text)))

    def take(self, text: str, content: str, held: int) -> list[T]:
        """Add the text that was read next and the content that it became; return the tokens of that content.

        Some of the last `held` characters may still become content.
        """
        self._text += text
        certain = len(self._text) - held
        # Where the text of each waiting token stands. A token without text shares the text of the next one.
        spans: list[Span] = []
        following = len(self._text)
        stop = following + 1
        for _, start in reversed(self._waiting):
            stop = following if start < following else stop
            spans.append((start, stop))
            following = start
        spans.reverse()
        contents = _find(content, self._text, certain, spans) if content else []
        taken, waiting = [], []
        for (token, _), (start, stop) in zip(self._waiting, spans, strict=True):
            if any(start < end and stop > begin for begin, end in contents):
                taken.append(token)
            elif stop > certain:
                waiting.append((token, max(start - certain, 0)))
        self._waiting, self._text = waiting, self._text[certain:]
        return taken


def _find(content: str, text: str, certain: int, tokens: list[Span]) -> list[Span]:
    """Return where in a text its content stands: as a whole, or else token by token, with marks in between.

    What is not content, a mark or the line end after one, stands before it or after it.
    """
    begin = 0 if text.startswith(content) else text.rfind(content, 0, certain)
    if begin >= 0:
        return [(begin, begin + len(content))]
    found = []
    for start, stop in dict.fromkeys(tokens):
        if content.startswith(text[start:stop]):
            found.append((start, stop))
            content = content[stop - start :]
    return found
