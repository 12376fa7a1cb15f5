"""Stop strings, searched in a text that comes in steps."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence


class StopStrings(tuple[str, ...]):
    """Texts that end a completion, prepared once for all completions of a request.

    The preparation takes four bytes for each character, where mlx-lm's state machine has a dictionary for each.
    `borders` has for each text, and for each beginning of it, the length of the longest end of that beginning, shorter
    than itself, that also begins the text. (Knuth, Morris, Pratt: https://doi.org/10.1137/0206024.)
    """

    borders: list[array[int]]

    def __new__(cls, texts: Iterable[str] = ()) -> StopStrings:
        """Prepare texts; return texts that are prepared already as they are."""
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
    """Return how many of the last characters begin a text, given how many did before this character."""
    while matched and text[matched] != character:
        matched = borders[matched - 1]
    return matched + (text[matched] == character)


class StopScan:
    """The search in one completion: `held` may begin a stop string, `found` says that one has come."""

    __slots__ = ("_matched", "_stops", "found", "held")

    def __init__(self, stops: StopStrings) -> None:
        self._stops = stops
        self._matched = [0] * len(stops)
        self.held = ""
        self.found = False

    def add(self, text: str) -> str:
        """Add the next text; return what is certain of it, up to the stop string that ends first, if one does."""
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
        """Return where in the next text a stop string ends first, and the length of the stop string."""
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
        """Return the text that is held, because nothing follows it, and begin anew."""
        held, self.held = self.held, ""
        self._matched = [0] * len(self._stops)
        return held
