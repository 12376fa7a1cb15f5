"""Which tokens the text of an answer is made of."""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")


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

        The last `held` characters may still become content.
        """
        self._text += text
        through = len(self._text) - held
        begin = max(self._text.rfind(content, 0, through), 0) if content else through
        end = begin + len(content)
        taken, waiting = [], []
        for (token, start), stop in zip(self._waiting, self._stops(), strict=True):
            if start < end and stop > begin:
                taken.append(token)
            elif stop > through:
                waiting.append((token, max(start - through, 0)))
        self._waiting, self._text = waiting, self._text[through:]
        return taken

    def _stops(self) -> list[int]:
        """Return where the text of each waiting token ends; a token without text shares that of the next one."""
        stops: list[int] = []
        following = len(self._text)
        stop = following + 1
        for _, start in reversed(self._waiting):
            stop = following if start < following else stop
            stops.append(stop)
            following = start
        return stops[::-1]
