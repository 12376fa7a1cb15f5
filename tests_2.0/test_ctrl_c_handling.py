"""Ctrl-C during generation ends the answer cleanly, and nothing else."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable

import pytest
from conftest_runner import assistant, saying, streams
from support.following import text

from mlxk2.chat.printer import INTERRUPTED, Interrupt, Printer, interruptible
from mlxk2.chat.repl import Chat
from mlxk2.runner.events import Event, TextDelta
from mlxk2.runner.prompt.prompter import Message

HELLO: list[Message] = [{"role": "user", "content": "hello"}]


def ctrl_c() -> None:
    """Send SIGINT to this process, as a terminal does on Ctrl-C."""
    os.kill(os.getpid(), signal.SIGINT)


def ctrl_c_after(characters: int, seen: list[Event]) -> Callable[[Event], None]:
    """Return a reader of events that presses Ctrl-C after this many characters."""

    def show(event: Event) -> None:
        seen.append(event)
        if len(seen) == characters:
            ctrl_c()

    return show


def test_ctrl_c_ends_the_answer_and_keeps_its_text() -> None:
    seen: list[Event] = []
    answer = assistant(saying("Hello, world.", marks=("<end>",))).complete(HELLO, ctrl_c_after(5, seen))
    assert (answer.text, answer.finish_reason, answer.usage.completion_tokens) == ("Hello", "interrupted", 5)
    assert text(seen) == "Hello"


def test_ctrl_c_removes_the_sequence_from_the_batch() -> None:
    backend = saying("Hello, world.")
    assistant(backend).complete(HELLO, ctrl_c_after(5, []))
    assert len(backend.batches[0]) == 0


def test_an_interruption_prints_text_that_was_held_back() -> None:
    answer = assistant(saying("<think>", "Hm", "</think>", "Paris")).complete(HELLO, ctrl_c_after(3, []))
    assert (answer.reasoning, answer.text) == ("Hm", "P")


def test_the_first_ctrl_c_is_recorded_and_the_second_raises() -> None:
    with pytest.raises(KeyboardInterrupt), Interrupt() as interrupted:
        assert not interrupted()
        ctrl_c()
        assert interrupted()
        ctrl_c()


def test_the_handler_of_ctrl_c_is_restored_after_an_answer() -> None:
    before = signal.getsignal(signal.SIGINT)
    assistant(saying("Hello")).complete(HELLO, lambda _: None)
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(KeyboardInterrupt):
        ctrl_c()


def test_the_handler_of_ctrl_c_is_restored_after_an_error() -> None:
    before = signal.getsignal(signal.SIGINT)

    def fail(_: Event) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        assistant(saying("Hello")).complete(HELLO, fail)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_ctrl_c_stays_an_interruption_if_a_library_wraps_it(error: type[BaseException] | None) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interruptible():
        try:
            ctrl_c()
        except KeyboardInterrupt as pressed:
            if error is not None:
                raise error from pressed
    with pytest.raises(RuntimeError), interruptible():
        raise RuntimeError
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interruption_is_reported_on_its_own_line() -> None:
    out = streams().stdout
    printer = Printer(out, hide_reasoning=False)
    printer.show(TextDelta("content", "Hel"))
    printer.end(interrupted=True)
    assert out.getvalue() == f"Hel\n{INTERRUPTED}\n"


def test_ctrl_c_in_a_chat_returns_to_the_input_line() -> None:
    class Pressing(io.StringIO):
        def write(self, written: str, /) -> int:
            if written == "e":
                ctrl_c()
            return super().write(written)

    open_streams = streams()._replace(stdout=Pressing())
    model = assistant(saying("Hello, world.", marks=("<end>",)))
    lines = iter(["hello", "/stats"])
    chat = Chat(model, open_streams, None, hide_reasoning=False)
    chat.run(lambda: next(lines, "exit"))
    assert f"He\n{INTERRUPTED}\n" in open_streams.stdout.getvalue()
    assert "1 turns, 2 tokens" in open_streams.stdout.getvalue()
