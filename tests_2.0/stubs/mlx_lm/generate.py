"""Generation: every answer says its prompt, then the end; a bell is a panic. Text is passed on as it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

END = 256
BELL = 7


class PanicException(BaseException):
    """What Rust libraries raise where they panic: no Exception."""


class BatchGenerator:
    """Not made: the rows of the echo come one after another."""


generation_stream = None
GenerationBatch = PromptProcessingBatch = StopSequences = BatchGenerator


def generate_step(prompt: list[int], model: Any, prompt_cache: Any, **options: Any) -> Iterator[tuple[int, None]]:
    """The tokens so far, those of the prompt, then the end."""
    for token in [*prompt_cache[0].state, *prompt, END]:
        if token == BELL:
            raise PanicException("index out of bounds at https://me:secret@hub, hf_abcdef")
        yield token, None


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
