"""Search a text that comes in parts for stop strings."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence


class StopStrings(tuple[str, ...]):
    """Texts that end a completion, prepared once for all completions of a request.

    `borders` is the failure function of Knuth, Morris and Pratt (https://doi.org/10.1137/0206024): for each prefix of a
    text, the length of its longest proper suffix that is also a prefix of the text. It takes four bytes per character;
    mlx-lm's state machine has a dictionary for each.
    """

    borders: list[array[int]]

    def __new__(cls, texts: Iterable[str] = ()) -> StopStrings:
        """Prepare the texts; return texts that were already prepared unchanged."""
        if isinstance(texts, StopStrings):
            return texts
        made = super().__new__(cls, texts)
        made.borders = []
        for text in made:
            borders = array("I", [0])
            for character in text[1:]:
                borders.append(_extend_match(text, borders, borders[-1], character))
            made.borders.append(borders)
        return made


def _extend_match(text: str, borders: Sequence[int], matched: int, character: str) -> int:
    """Return the length of the match of a text after the next character; before it, `matched` characters matched."""
    while matched and text[matched] != character:
        matched = borders[matched - 1]
    return matched + (text[matched] == character)


class StopScan:
    """The search in one completion: `held` can be the beginning of a stop string; `found` is true after one came."""

    __slots__ = ("_matched", "_stops", "found", "held")

    def __init__(self, stops: StopStrings) -> None:
        self._stops = stops
        self._matched = [0] * len(stops)
        self.held = ""
        self.found = False

    def add(self, text: str) -> str:
        """Add the next text; return the text that can't begin a stop string, up to the stop string that ends first."""
        ends = [end for number in range(len(self._stops)) if (end := self._find_end(number, text))]
        text, before = self.held + text, len(self.held)
        if ends:
            last, length = min(ends, key=lambda found: (found[0], -found[1]))
            self.held, self.found = "", True
            return text[: before + last - length]
        certain = len(text) - max(self._matched, default=0)
        self.held = text[certain:]
        return text[:certain]

    def _find_end(self, number: int, text: str) -> tuple[int, int] | None:
        """Return the first end of a stop string in the next text, and the stop string's length; None without an end."""
        stop, borders, matched = self._stops[number], self._stops.borders[number], self._matched[number]
        if not matched and stop[0] not in text:
            return None
        for index, character in enumerate(text):
            matched = _extend_match(stop, borders, matched, character)
            if matched == len(stop):
                return index + 1, matched
        self._matched[number] = matched
        return None

    def flush(self) -> str:
        """Return the held text and start a new search, because nothing follows."""
        held, self.held = self.held, ""
        self._matched = [0] * len(self._stops)
        return held
