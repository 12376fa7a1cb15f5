"""What a person at a terminal has of an answer: its text as it comes, and Ctrl-C. Needs no MLX."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from mlxk2.runner.runner import Chunk
    from mlxk2.runner.text import Kind

INTERRUPTED = "[Generation interrupted by user]"
_HEADINGS: dict[Kind, str] = {"reasoning": "[Reasoning]\n", "answer": "\n[Answer]\n"}
# Control characters, which a model could use to move the cursor or to recolour the terminal.
_HARMLESS = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


class Interrupt:
    """While entered, the first Ctrl-C sets a flag, which ends an answer in good order; a second one raises."""

    def __enter__(self) -> Callable[[], bool]:
        self._flag = False
        self._previous = signal.signal(signal.SIGINT, self._note)
        return lambda: self._flag

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        if self._flag:
            raise KeyboardInterrupt
        self._flag = True


class Printer:
    """Writes an answer to a stream as it comes, or `whole` at its end; reasoning under a heading, apart from it."""

    def __init__(self, stream: IO[str], *, hide_reasoning: bool, whole: bool = False) -> None:
        self._stream = stream
        self._whole = whole
        self._kept: list[Chunk] = []
        self._hidden: Kind | None = "reasoning" if hide_reasoning else None
        self._harmless = _HARMLESS if stream.isatty() else {}
        self._kind: Kind = "answer"
        self._last = "\n"

    def show(self, chunk: Chunk) -> None:
        """Write the chunk's text, if it is to be seen; of a whole answer it is kept until the end."""
        if self._whole:
            self._kept.append(chunk)
        else:
            self._print(chunk)

    def end(self, *, interrupted: bool) -> None:
        """End the last line, and say so if the user ended the answer."""
        for chunk in self._kept:
            self._print(chunk)
        self._end_line()
        if interrupted:
            self._write(f"{INTERRUPTED}\n")
        self._stream.flush()

    def _print(self, chunk: Chunk) -> None:
        if not chunk.text or chunk.kind == self._hidden:
            return
        if chunk.kind != self._kind:
            self._kind = chunk.kind
            self._end_line()
            self._write(_HEADINGS[chunk.kind])
        self._write(chunk.text)
        self._stream.flush()

    def _end_line(self) -> None:
        if self._last != "\n":
            self._write("\n")

    def _write(self, text: str) -> None:
        self._last = text[-1]
        self._stream.write(text.translate(self._harmless))
