"""Stop strings, looked for in a text that comes in parts."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence


class StopStrings(tuple[str, ...]):
    """Texts that end an answer, made ready once for all the answers of a request.

    That takes four bytes for each character; mlx-lm's machine has a dictionary for each. (Knuth, Morris, Pratt:
    https://doi.org/10.1137/0206024.)
    """

    borders: list[array[int]]

    def __new__(cls, texts: Iterable[str] = ()) -> StopStrings:
        """Make texts ready; those that are so already are taken as they are."""
        if isinstance(texts, StopStrings):
            return texts
        made = super().__new__(cls, texts)
        made.borders = [_borders(text) for text in made]
        return made


def _borders(text: str) -> array[int]:
    """Return for each beginning of a text how long an end of it, shorter than itself, also begins the text."""
    borders = array("I", [0])
    for character in text[1:]:
        borders.append(_longer(text, borders, borders[-1], character))
    return borders


def _longer(text: str, borders: Sequence[int], matched: int, character: str) -> int:
    """Return how many of the last characters begin a text, given how many did before this character."""
    while matched and text[matched] != character:
        matched = borders[matched - 1]
    return matched + (text[matched] == character)


class StopScan:
    """The search in one answer: of `held` a stop string may still come, `found` says that one came."""

    __slots__ = ("_matched", "_stops", "found", "held")

    def __init__(self, stops: StopStrings) -> None:
        self._stops = stops
        self._matched = [0] * len(stops)
        self.held = ""
        self.found = False

    def add(self, text: str) -> str:
        """Take the next text; return what is certain of it, up to the stop string that ends first, if one does."""
        ends = [end for number in range(len(self._stops)) if (end := self._follow(number, text))]
        text, before = self.held + text, len(self.held)
        if ends:
            last, length = min(ends, key=lambda found: (found[0], -found[1]))
            self.held, self.found = "", True
            return text[: before + last - length]
        certain = len(text) - max(self._matched, default=0)
        self.held = text[certain:]
        return text[:certain]

    def _follow(self, number: int, text: str) -> tuple[int, int] | None:
        """Return where in a text a stop string ends first, and its length."""
        stop, borders, matched = self._stops[number], self._stops.borders[number], self._matched[number]
        if not matched and stop[0] not in text:
            return None
        for index, character in enumerate(text):
            matched = _longer(stop, borders, matched, character)
            if matched == len(stop):
                return index + 1, matched
        self._matched[number] = matched
        return None

    def flush(self) -> str:
        """Return what is held, of which nothing comes any more, and begin anew."""
        held, self.held = self.held, ""
        self._matched = [0] * len(self._stops)
        return held
