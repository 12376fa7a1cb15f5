"""An interrupted answer does not affect the next one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence

from conftest_runner import ScriptedBackend, assistant, request, saying, tokens_of
from support.following import FollowedRunner, finished, text

from mlxk2.runner.events import Event, TextDelta
from mlxk2.runner.output.reasoning import MAX_BEGINNING
from mlxk2.runner.prompt.prompter import Message

LONG = "Hello. " + "What can I do for you? " * 4  # longer than the text that is held back while it may be reasoning
HELLO: list[Message] = [{"role": "user", "content": "hello"}]


def interrupt(event: Event) -> None:
    """Press Ctrl-C as soon as there is text."""
    if isinstance(event, TextDelta):
        os.kill(os.getpid(), signal.SIGINT)


def test_the_answer_after_an_interruption_is_whole() -> None:
    model = assistant(saying(LONG))
    assert model.complete(HELLO, interrupt).finish_reason == "interrupted"
    again = model.complete(HELLO, lambda _: None)
    assert (again.text, again.finish_reason) == (LONG, "stop")


def test_several_interruptions_in_a_row_do_no_harm() -> None:
    model = assistant(saying(LONG))
    answers = [model.complete(HELLO, interrupt) for _ in range(5)]
    assert [answer.text for answer in answers] == [LONG[: MAX_BEGINNING + 1]] * 5
    assert model.complete(HELLO, lambda _: None).text == LONG


def test_an_interruption_does_not_affect_the_next_request() -> None:
    runner = FollowedRunner(saying("Hello."))
    first = list(runner.stream(request(), lambda: True))
    assert (text(first), finished(first).reason) == ("", "interrupted")
    assert text(list(runner.stream(request(), lambda: False))) == "Hello."


def test_other_sequences_continue_after_a_cancellation() -> None:
    runner = FollowedRunner(ScriptedBackend(lambda asked: tokens_of(bytes(asked.prompt).decode())))
    kept, cancelled = runner.submit(request("kept")), runner.submit(request("cancelled"))
    runner.step()
    runner.cancel(cancelled)
    runner.finish([kept])
    assert kept.text == "kept"


def test_an_interruption_works_after_an_error() -> None:
    scripts: Iterator[Sequence[int | Exception]] = iter([[ValueError("broken")], tokens_of("Hello.")])
    runner = FollowedRunner(ScriptedBackend(lambda _: next(scripts)))
    session = runner.submit(request())
    runner.step()
    assert session.error is not None
    assert runner.cancel(session) == []
    stopped = iter([False, False, True])
    assert text(list(runner.stream(request(), lambda: next(stopped)))) == "He"
