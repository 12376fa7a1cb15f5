"""Generation: every row says its prompt, then the end; a bell is a panic. Text is passed on as it is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

END = 256
BELL = 7


class PanicException(BaseException):
    """What Rust libraries raise where they panic: no Exception."""


class StopSequences:
    """Only the end token stops."""

    def __init__(self, sequences: Any) -> None:
        self.sequences = sequences


class GenerationBatch:
    """The rows that get tokens; those of the echo are kept elsewhere."""

    @classmethod
    def empty(cls, model: Any, sampler: Any) -> GenerationBatch:
        """A batch without rows."""
        return cls()


class BatchGenerator:
    """Rows side by side, one token of each in every step."""

    sampler = None

    def __init__(self, model: Any, **settings: int) -> None:
        self._rows: dict[int, tuple[list[int], int]] = {}
        self._count = 0

    def insert_segments(self, segments: list[list[list[int]]], max_tokens: list[int], **options: Any) -> list[int]:
        """Add one row."""
        self._count += 1
        self._rows[self._count] = ([*sum(segments[0], []), END], max_tokens[0])
        return [self._count]

    def next(self) -> tuple[list[Any], list[Any]]:
        """The next token of every row."""
        return [], [self._advance(row) for row in list(self._rows)]

    def _advance(self, row: int) -> SimpleNamespace:
        if self._rows[row][0][0] == BELL:
            raise PanicException("index out of bounds")
        (token, *rest), left = self._rows.pop(row)
        reason = "stop" if token == END else "length" if left == 1 else None
        if reason is None:
            self._rows[row] = (rest, left - 1)
        return SimpleNamespace(uid=row, token=token, finish_reason=reason, logprobs=None)

    def remove(self, rows: list[int], return_prompt_caches: bool) -> dict[int, Any]:
        """Drop rows."""
        for row in rows:
            del self._rows[row]
        return {}

    def close(self) -> None:
        """Nothing is reserved."""


def generate_step(*arguments: Any, **options: Any) -> Any:
    """Not called: every row can be batched."""
    raise NotImplementedError


State = tuple[str, None, None, str]


class TextStateMachine:
    """Without marks and stop strings, text is in one state from its beginning to its end."""

    def __init__(self, transitions: Any) -> None:
        """No transitions are followed."""

    def make_state(self, initial: str) -> State:
        """The state has a name, and keeps no text back."""
        return initial, None, None, ""

    @staticmethod
    def split(state: State, text: str) -> tuple[State, list[tuple[str, str]]]:
        """All text belongs to the state."""
        return state, [(state[0], text)]

    @staticmethod
    def flush(state: State) -> tuple[State, str, str]:
        """Nothing is held back."""
        return state, "", state[0]
