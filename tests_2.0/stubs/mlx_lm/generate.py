"""Generation: every completion repeats its prompt; a bell character raises a panic. Text is passed on as it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

END = 256
BELL = 7


class PanicException(BaseException):
    """The base exception that Rust libraries raise in a panic."""


class BatchGenerator:
    """Never created: the echo generates one sequence after another."""


generation_stream = None
GenerationBatch = PromptProcessingBatch = StopSequences = BatchGenerator


def generate_step(prompt: list[int], model: Any, prompt_cache: Any, **options: Any) -> Iterator[tuple[int, None]]:
    """Yield the cached tokens, those of the prompt, then the end."""
    for token in [*prompt_cache[0].state, *prompt, END]:
        if token == BELL:
            raise PanicException("index out of bounds, hf_abcdef at https://me:secret@hub")
        yield token, None


State = tuple[str, None, None, str]


class TextStateMachine:
    """Without marks and stop strings, text is in one state from its beginning to its end."""

    def __init__(self, transitions: Any) -> None:
        """Ignore the transitions."""

    def make_state(self, initial: str) -> State:
        """Return a state with a name and no text."""
        return initial, None, None, ""

    @staticmethod
    def split(state: State, text: str) -> tuple[State, list[tuple[str, str]]]:
        """Return all text as that of the state."""
        return state, [(state[0], text)]

    @staticmethod
    def flush(state: State) -> tuple[State, str, str]:
        """Return no text: nothing is held back."""
        return state, "", state[0]
