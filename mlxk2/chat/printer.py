"""Print a completion on a terminal while it is generated, and handle Ctrl-C. This module does not import MLX."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import IO, TYPE_CHECKING
from unicodedata import category

from mlxk2.runner.events import Channel, Event, PromptProgress, TextDelta

if TYPE_CHECKING:
    from mlxk2.chat.terminal import Terminal

INTERRUPTED = "[Generation interrupted by user]"
_HEADINGS: dict[Channel, str] = {"reasoning": "[Reasoning]\n", "content": "\n[Answer]\n"}
# Unicode categories of control and format characters and line separators. With these, a model could move the cursor,
# change the colours of the terminal, or change the order of the text.
_HARMFUL = ("Cc", "Cf", "Zl", "Zp", "Cs")
# Line ends, tabs, and the joiners and direction marks that emoji, Persian, Hindi, Arabic and Hebrew need.
_HARMLESS = "\n\t\u200c\u200d\u200e\u200f"


def replace_controls(text: str) -> str:
    """Return a text with a replacement character for each character that can control a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c in _HARMLESS or category(c) not in _HARMFUL else "\ufffd" for c in text)


class Interrupt:
    """Inside the context, the first Ctrl-C sets a flag that ends the completion; a second one raises."""

    def __enter__(self) -> Callable[[], bool]:
        self._flag = False
        self._previous = signal.signal(signal.SIGINT, self._handle_signal)
        return lambda: self._flag

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _handle_signal(self, _number: int, _frame: FrameType | None) -> None:
        if self._flag:
            raise KeyboardInterrupt
        self._flag = True


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C end the block with KeyboardInterrupt, even if a library catches it or raises another error."""
    is_pressed = False
    handler, report = signal.getsignal(signal.SIGINT), sys.unraisablehook

    def handle_signal(number: int, frame: FrameType | None) -> None:
        nonlocal is_pressed
        if callable(handler):  # It is not callable if a program in the background ignores Ctrl-C.
            is_pressed = True
            handler(number, frame)

    def report_others(unraisable: sys.UnraisableHookArgs) -> None:
        # Python prints exceptions of destructors and callbacks, and continues.
        if not isinstance(unraisable.exc_value, KeyboardInterrupt):
            report(unraisable)

    previous = signal.signal(signal.SIGINT, handle_signal)
    sys.unraisablehook = report_others
    try:
        yield
    except BaseException as error:
        if is_pressed:
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, previous)
        sys.unraisablehook = report
    if is_pressed:
        raise KeyboardInterrupt


class Printer:
    """Writes a completion to a stream while it is generated, or, if `whole`, at its end.

    Reasoning and answer have headings. Until the first text, `terminal` shows what the program is doing.
    """

    def __init__(
        self, stream: IO[str], *, hide_reasoning: bool, whole: bool = False, terminal: Terminal | None = None
    ) -> None:
        self._stream = stream
        self._terminal = terminal
        self._whole = whole
        self._retained: list[TextDelta] = []
        self._hidden: Channel | None = "reasoning" if hide_reasoning else None
        self._is_terminal = stream.isatty()
        self._channel: Channel = "content"
        self._last = "\n"

    def begin(self) -> None:
        """Show that the prompt is being read."""
        if self._terminal is not None:
            self._terminal.show("Reading the prompt")

    def show(self, event: Event) -> None:
        """Write the text of an event, unless it is hidden; if `whole`, keep it until the end."""
        if isinstance(event, PromptProgress) and self._terminal is not None:
            self._terminal.show(f"Reading the prompt: {event.done:,} of {event.total:,} tokens")
        if not isinstance(event, TextDelta):
            return
        if self._terminal is not None and (self._whole or event.channel == self._hidden):
            self._terminal.show("Generating")
        if self._whole:
            self._retained.append(event)
        else:
            self._print(event)

    def end(self, *, interrupted: bool) -> None:
        """End the last line, and write a note if the user ended the completion."""
        if self._terminal is not None:
            self._terminal.hide()
        for delta in self._retained:
            self._print(delta)
        self._end_line()
        if interrupted:
            self._write(f"{INTERRUPTED}\n")
        self._stream.flush()

    def _print(self, delta: TextDelta) -> None:
        if not delta.text or delta.channel == self._hidden:
            return
        if delta.channel != self._channel:
            self._channel = delta.channel
            self._end_line()
            self._write(_HEADINGS[delta.channel])
        self._write(delta.text)
        self._stream.flush()

    def _end_line(self) -> None:
        if self._last != "\n":
            self._write("\n")

    def _write(self, text: str) -> None:
        if self._terminal is not None:
            self._terminal.hide()
            self._terminal = None
        self._last = text[-1]
        self._stream.write(replace_controls(text) if self._is_terminal else text)
