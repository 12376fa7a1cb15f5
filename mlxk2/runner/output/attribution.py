"""Which tokens the text of an answer is made of."""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")
Span = tuple[int, int]


class Attribution(Generic[T]):
    """Finds the tokens of which at least a part has become content; stop strings and marks are none."""

    def __init__(self) -> None:
        # Each token with where in the text it begins; one that only completes a character begins where that does.
        self._waiting: list[tuple[T, int]] = []
        self._text = ""

    def begin(self, token: T) -> None:
        """Take the next token, whose text comes now or later."""
        self._waiting.append((token, len(self._text)))

    def take(self, text: str, content: str, held: int) -> list[T]:
        """Take the text that was read next and the content that came of it; return the tokens of that content.

        Of the last `held` characters some may still become content.
        """
        self._text += text
        through = len(self._text) - held
        tokens = self._spans()
        contents = _find(content, self._text, through, tokens) if content else []
        taken, waiting = [], []
        for (token, _), (start, stop) in zip(self._waiting, tokens, strict=True):
            if any(start < end and stop > begin for begin, end in contents):
                taken.append(token)
            elif stop > through:
                waiting.append((token, max(start - through, 0)))
        self._waiting, self._text = waiting, self._text[through:]
        return taken

    def _spans(self) -> list[Span]:
        """Return where the text of each waiting token stands; a token without text shares that of the next one."""
        spans: list[Span] = []
        following = len(self._text)
        stop = following + 1
        for _, start in reversed(self._waiting):
            stop = following if start < following else stop
            spans.append((start, stop))
            following = start
        return spans[::-1]


def _find(content: str, text: str, through: int, tokens: list[Span]) -> list[Span]:
    """Return where in a text its content stands: as a whole, or else token by token, with marks between them.

    What was no content, a mark or the line end after one, stands before it or after it.
    """
    begin = 0 if text.startswith(content) else text.rfind(content, 0, through)
    if begin >= 0:
        return [(begin, begin + len(content))]
    found = []
    for start, stop in dict.fromkeys(tokens):
        if content.startswith(text[start:stop]):
            found.append((start, stop))
            content = content[stop - start :]
    return found
