"""The log-probabilities of tokens, and the attribution of a completion's content to its tokens."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar, overload

T = TypeVar("T")
Span = tuple[int, int]


class TopTokens(Sequence[tuple[int, float]]):
    """The most likely tokens with their logprobs, in compact arrays, because a response can have a million of these."""

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
    """A chosen token with the natural logarithm of its probability, and those of the most likely tokens, sorted."""

    token: int
    logprob: float
    top: Sequence[tuple[int, float]]


class Attribution(Generic[T]):
    """Finds the tokens that became content, at least in part; stop strings and marks are not content."""

    def __init__(self) -> None:
        # Each token with its position in the text. A token that completes a character has the character's position.
        self._waiting: list[tuple[T, int]] = []
        self._text = ""

    def begin(self, token: T) -> None:
        """Add the next token; its text comes now or later."""
        self._waiting.append((token, len(self._text)))

    def take(self, text: str, content: str, held: int) -> list[T]:
        """Add the next text and its content; return the tokens of that content.

        The last `held` characters of the text can become content later.
        """
        self._text += text
        certain = len(self._text) - held
        # The span of each waiting token in the text. A token without text has the span of the next one.
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
    """Return the spans of the content in a text: one span, or one per token if marks are in between.

    Marks, and line ends after them, are not content.
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
