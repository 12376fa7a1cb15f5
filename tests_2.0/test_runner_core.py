"""MLXRunner on a scripted backend: text, stops, reasoning, many sequences, faults."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
from conftest_runner import BROKEN, ScriptedBackend, ScriptedBatch, generate, request, saying, tokens_of
from hypothesis import given
from hypothesis import strategies as st
from support.following import Followed, FollowedRunner, finished, text

from mlxk2.errors import ModelError, ValidationError
from mlxk2.runner.events import Event, Failed, Finished, PromptProgress, TextDelta, Timings, Usage
from mlxk2.runner.request import GenerationRequest, Sampling
from mlxk2.runner.runner import MLXRunner
from mlxk2.runner.sequences import Reading, Step

HARMONY = ("<end>", "<|start|>", "<|channel|>", "<|message|>", "<|end|>")


def run_all(runner: FollowedRunner, sequences: list[Followed]) -> dict[int, list[Event]]:
    """Step until all sequences have ended; return their further events by position."""
    events: dict[int, list[Event]] = {number: [] for number in range(len(sequences))}
    while not all(sequence.ended for sequence in sequences):
        for sequence, event in runner.step():
            events[sequences.index(sequence)].append(event)
    return events


def test_an_answer_streams_and_ends_at_the_end_token() -> None:
    *deltas, last = generate(saying("Hello."))
    assert deltas == [TextDelta("content", letter) for letter in "Hello."]
    assert isinstance(last, Finished) and last.reason == "stop"


def test_the_end_token_is_counted_and_never_printed() -> None:
    events = generate(saying("Hi"))
    assert finished(events).usage.completion_tokens == 3
    assert text(events) == "Hi"


def test_special_tokens_are_never_printed() -> None:
    assert text(generate(saying("a", "<pad>", "b"))) == "ab"


def test_the_token_limit_ends_the_answer_with_reason_length() -> None:
    events = generate(saying("Hello."), max_tokens=3)
    assert (text(events), finished(events).usage.completion_tokens, finished(events).reason) == ("Hel", 3, "length")


def test_an_end_token_at_the_limit_gives_reason_stop() -> None:
    assert finished(generate(saying("Hi"), max_tokens=3)).reason == "stop"


def test_characters_are_never_split() -> None:
    events = generate(saying("é😀ß"))
    assert [event.text for event in events if isinstance(event, TextDelta)] == ["é", "😀", "ß"]


def test_a_character_cut_by_the_limit_is_omitted() -> None:
    events = generate(saying("a😀"), max_tokens=3)
    assert text(events) == "a"


@pytest.mark.parametrize("stop", ["lo w", "o", "Hello"])
def test_stop_strings_end_the_answer_and_are_not_shown(stop: str) -> None:
    events = generate(saying("Hello world"), stop=(stop,))
    assert text(events) == "Hello world".partition(stop)[0]
    assert finished(events).reason == "stop"
    assert finished(events).usage.completion_tokens == "Hello world".index(stop) + len(stop)


def test_the_earliest_of_several_stop_strings_counts() -> None:
    assert text(generate(saying("one two three"), stop=("three", "two"))) == "one "


def test_an_incomplete_stop_string_is_text() -> None:
    assert text(generate(saying("ab STO"), stop=("STOP",))) == "ab STO"
    assert text(generate(saying("ab STOP"), stop=("STOP",), max_tokens=6)) == "ab STO"
    assert text(generate(saying("ab STO..."), stop=("STOP",))) == "ab STO..."


@given(st.text(alphabet="abé", max_size=12), st.lists(st.text(alphabet="abé", min_size=1, max_size=4), max_size=3))
def test_stop_strings_cut_where_text_search_finds_them(said: str, stops: list[str]) -> None:
    ends = [said.find(stop) + len(stop) for stop in stops if stop in said]
    first = min(ends, default=None)
    cut = [said[: first - len(stop)] for stop in stops if first and said[:first].endswith(stop)]
    answer = text(generate(saying(said), stop=tuple(stops)))
    assert answer == said if first is None else answer in cut


@pytest.mark.parametrize(("said", "stop"), [("a" * 50, ("aab",)), ("<" * 50, ())], ids=["stop string", "mark"])
def test_only_the_possible_beginning_of_a_mark_is_held_back(said: str, stop: tuple[str, ...]) -> None:
    events = generate(saying(said), stop=stop)
    assert text(events) == said
    longest = max(map(len, (*stop, "</think>")))
    assert max(len(event.text) for event in events if isinstance(event, TextDelta)) <= longest < len(events)


def test_a_response_state_without_an_end_is_accepted() -> None:
    calls = {"normal": [("<call>", "tool")]}
    assert text(generate(saying("a<call>f()", response_transitions=calls))) == "a"


def test_an_answer_keeps_its_leading_line_ends() -> None:
    assert text(generate(saying("\n\nParis."))) == "\n\nParis."


def test_stop_strings_apply_only_to_the_answer() -> None:
    events = generate(saying("<think>", "a\n\nb", "</think>", "\n\nc\n\nd"), stop=("\n\n",))
    assert (text(events, "reasoning"), text(events)) == ("a\n\nb", "c")


def test_harmony_channels_become_reasoning_and_answer() -> None:
    said = saying(
        "<|channel|>",
        "analysis",
        "<|message|>",
        "Hm.",
        "<|end|>",
        "<|start|>",
        "assistant",
        "<|channel|>",
        "final",
        "<|message|>",
        "Paris.",
        marks=HARMONY,
    )
    events = generate(said)
    assert (text(events, "reasoning"), text(events)) == ("Hm.", "Paris.")


def test_harmony_tool_calls_are_not_part_of_the_answer() -> None:
    said = saying("<|channel|>", "commentary to=functions.f ", "<|message|>", "{}", "<|end|>", marks=HARMONY)
    events = generate(said)
    assert (text(events, "reasoning"), text(events)) == ("{}", "")


def test_sequences_join_and_leave_without_affecting_each_other() -> None:
    backend = ScriptedBackend(lambda asked: tokens_of(bytes(asked.prompt).decode().upper()))
    runner = FollowedRunner(backend)
    first = [runner.submit(request("a long prompt")), runner.submit(request("short"))]
    early = runner.step()
    late = runner.submit(request("late", stop=("T",)))
    events = run_all(runner, [*first, late])
    assert text(event for sequence, event in early if sequence is first[0]) + text(events[0]) == "A LONG PROMPT"
    assert text(events[1]) == "HORT"
    assert text(events[2]) == "LA"
    assert len(backend.batches) == 1


def test_cancel_returns_the_held_text_and_removes_the_sequence() -> None:
    backend = saying("abcdef")
    runner = FollowedRunner(backend)
    sequence = runner.submit(request(stop=("bcx",)))
    for _ in range(3):
        runner.step()
    last = runner.cancel(sequence)
    assert (text(last), finished(last).reason, finished(last).usage.completion_tokens) == ("bc", "interrupted", 3)
    assert len(backend.batches[0]) == 0
    assert runner.cancel(sequence) == []
    assert runner.step() == []


def test_closing_a_stream_cancels_it() -> None:
    backend = saying("abcdef")
    stream = MLXRunner(backend).stream(request())
    next(stream)
    assert isinstance(stream, Generator)
    stream.close()
    assert len(backend.batches[0]) == 0


def failing(asked: GenerationRequest) -> list[int | Exception]:
    """Return the script of a prompt: its letters in capitals, with a fault at each x."""
    said: list[int | Exception] = list(tokens_of(bytes(asked.prompt).decode().upper()))
    return [ValueError("shape mismatch") if token == ord("X") else token for token in said]


def test_a_fault_ends_only_its_own_sequence() -> None:
    runner = FollowedRunner(ScriptedBackend(failing))
    sequences = [runner.submit(request(prompt)) for prompt in ("one", "tax", "three", "x")]
    events = run_all(runner, sequences)
    assert [text(events[number]) for number in range(4)] == ["ONE", "TA", "THREE", ""]
    assert [sequence.error is not None for sequence in sequences] == [False, True, False, True]
    assert str(sequences[1].error) == "Generation failed: shape mismatch"
    assert [isinstance(events[number][-1], Failed) for number in range(4)] == [False, True, False, True]
    assert text(list(runner.stream(request("fine")))) == "FINE"


def test_a_fault_that_no_sequence_repeats_alone_ends_the_newest() -> None:
    class Crowded(ScriptedBatch):
        """A batch that fails with three sequences."""

        def next(self) -> list[Step | Reading]:
            if len(self) > 2:
                raise MemoryError
            return super().next()

    runner = FollowedRunner(ScriptedBackend(lambda _: tokens_of("fine"), batch=Crowded))
    sequences = [runner.submit(request()) for _ in range(4)]
    events = run_all(runner, sequences)
    assert [text(events[number]) for number in range(2)] == ["fine", "fine"]
    assert [str(sequence.error) for sequence in sequences[2:]] == ["Generation failed: MemoryError"] * 2


class Unwilling(ScriptedBatch):
    """Fail to remove a sequence before its end."""

    _is_stepping = False

    def next(self) -> list[Step | Reading]:
        """Return the next token of every sequence."""
        self._is_stepping = True
        steps = super().next()
        self._is_stepping = False
        return steps

    def remove(self, sequence_id: int) -> None:
        """Drop a sequence that has ended; raise RuntimeError for another one."""
        if not self._is_stepping:
            raise RuntimeError("no memory")
        super().remove(sequence_id)


def test_a_sequence_that_cannot_be_removed_does_not_affect_others() -> None:
    backend = ScriptedBackend(failing, batch=Unwilling)
    runner = FollowedRunner(backend)
    stopped = runner.submit(request("one stop two", stop=("STOP",)))
    others = [runner.submit(request("a long prompt")), runner.submit(request("short"))]
    cancelled = runner.submit(request("more"))
    for _ in range(2):
        runner.step()
    assert text(runner.cancel(cancelled)) == ""
    events = run_all(runner, [stopped, *others])
    assert [text(events[number]) for number in range(3)] == ["E ", "LONG PROMPT", "ORT"]
    assert [sequence.error for sequence in (stopped, *others)] == [None] * 3
    assert len(backend.batches) == 3


def test_a_sequence_added_during_fault_isolation_is_not_blamed() -> None:
    runner = FollowedRunner(ScriptedBackend(failing))
    sequences = [runner.submit(request("xa")), runner.submit(request("good"))]
    early = runner.step()
    sequences.append(runner.submit(request("late")))
    events = run_all(runner, sequences)
    assert early == []
    assert [text(events[number]) for number in range(3)] == ["", "GOOD", "LATE"]
    assert [sequence.error is None for sequence in sequences] == [False, True, True]


@pytest.mark.parametrize("which", range(4))
def test_sequences_can_be_cancelled_during_fault_isolation(which: int) -> None:
    runner = FollowedRunner(ScriptedBackend(failing))
    sequences = [runner.submit(request(prompt)) for prompt in ("good", "fine", "x")]
    assert runner.step() == []
    sequences.append(runner.submit(request("late")))
    assert finished(runner.cancel(sequences[which])).reason == "interrupted"
    events = run_all(runner, sequences)
    expected = ["GOOD", "FINE", "", "LATE"]
    assert [text(events[number]) for number in range(4) if number != which] == [
        said for number, said in enumerate(expected) if number != which
    ]
    assert sequences[which].ended and sequences[which].error is None
    assert runner.step() == []


def test_close_ends_sequences_during_fault_isolation() -> None:
    runner = FollowedRunner(ScriptedBackend(failing))
    sequences = [runner.submit(request("good")), runner.submit(request("x"))]
    runner.step()
    runner.close()
    assert all(sequence.ended for sequence in sequences)
    assert runner.step() == []
    assert text(list(runner.stream(request("good")))) == "GOOD"


@given(
    st.lists(st.text(alphabet="abx", min_size=1, max_size=5), min_size=1, max_size=8),
    st.lists(st.tuples(st.integers(0, 7), st.booleans()), max_size=12),
)
def test_each_sequence_ends_as_it_would_alone(prompts: list[str], events: list[tuple[int, bool]]) -> None:
    runner = FollowedRunner(ScriptedBackend(failing))
    waiting = [request(prompt) for prompt in prompts]
    sequences: list[Followed] = []
    for number, comes in [*events, *[(0, True)] * len(prompts), *[(8, False)] * 150]:
        if comes and waiting:
            sequences.append(runner.submit(waiting.pop()))
        elif not comes and number < len(sequences):
            runner.cancel(sequences[number])
        runner.step()
    assert all(sequence.ended for sequence in sequences)
    for sequence in sequences:
        before, fault, _ = bytes(sequence.request.prompt).decode().upper().partition("X")
        said = text(sequence.events)
        assert said == before if sequence.error else before.startswith(said)
        assert [isinstance(event, Finished | Failed) for event in sequence.events].count(True) == 1
        assert fault or not sequence.error


def test_a_request_that_fails_in_submit_does_not_affect_others() -> None:
    def script(asked: GenerationRequest) -> list[int]:
        if asked.max_tokens == 1:
            raise TypeError("no such sampler")
        return tokens_of("fine")

    runner = FollowedRunner(ScriptedBackend(script))
    good = runner.submit(request())
    with pytest.raises(ModelError, match="no such sampler"):
        runner.submit(request(max_tokens=1))
    assert text(run_all(runner, [good])[0]) == "fine"


def test_a_stream_raises_the_fault() -> None:
    runner = FollowedRunner(ScriptedBackend(lambda _: [97, RuntimeError("out of memory")]))
    with pytest.raises(ModelError, match="out of memory"):
        list(runner.stream(request()))


def test_an_undecodable_token_ends_only_its_own_sequence() -> None:
    backend = ScriptedBackend(lambda asked: tokens_of("a", BROKEN, "b") if asked.max_tokens else tokens_of("fine"))
    runner = FollowedRunner(backend)
    bad, good = runner.submit(request(max_tokens=9)), runner.submit(request())
    events = run_all(runner, [bad, good])
    assert (text(events[0]), len(events[0])) == ("a", 2)
    assert isinstance(bad.error, ModelError)
    assert text(events[1]) == "fine"


def test_padding_tokens_give_no_text() -> None:
    assert text(generate(saying("a", 295, "b"))) == "ab"


@pytest.mark.parametrize("asked", [{"prompt": (-1,)}, {"prompt": (300,)}])
def test_unknown_tokens_are_refused(asked: dict[str, tuple[int]]) -> None:
    with pytest.raises(ValidationError, match="token"):
        MLXRunner(saying("a")).submit(GenerationRequest(prompt=asked["prompt"]))


def test_a_bias_on_an_unknown_token_is_refused() -> None:
    with pytest.raises(ValidationError, match="logit_bias"):
        MLXRunner(saying("a")).submit(request(sampling=Sampling(logit_bias=((300, 1.0),))))


def test_the_runner_can_be_used_again_after_close() -> None:
    runner = FollowedRunner(saying("ab"))
    runner.submit(request())
    runner.close()
    assert runner.step() == []
    assert text(list(runner.stream(request()))) == "ab"


class Ticking:
    """A clock that a test advances."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Return the seconds."""
        return self.now


class Reading3(ScriptedBatch):
    """A batch that reads three tokens of the prompts in each of two steps of half a second; one token is cached."""

    def __init__(self, script: Any) -> None:
        super().__init__(script)
        self._read = 1

    def next(self) -> list[Step | Reading]:
        """Return readings of all sequences, or tokens."""
        if self._read >= 7:
            return super().next()
        self._read += 3
        return [Reading(sequence_id, self._read, 1, 3, 0.5) for sequence_id in self._sequences]


def test_the_last_event_has_usage_and_timings() -> None:
    clock = Ticking()
    runner = MLXRunner(ScriptedBackend(lambda _: tokens_of("abc"), batch=Reading3), clock=clock)
    sequence_id = runner.submit(request("prompt7"))
    outputs = []
    for seconds in (2.0, 0.5, 1.0, 0.25, 0.25, 0.5):
        clock.now += seconds
        outputs.append(runner.step())
    assert [event for output in outputs for _, event in output] == [
        PromptProgress(4, 7),
        PromptProgress(7, 7),
        TextDelta("content", "a"),
        TextDelta("content", "b"),
        TextDelta("content", "c"),
        Finished("stop", Usage(7, 1, 4), Timings(4.5, 3.5, 6, 1.0, 3, 1.0)),
    ]
    assert {owner for output in outputs for owner, _ in output} == {sequence_id}


def test_speeds_are_tokens_per_second_of_their_phase() -> None:
    timings = Timings(4.5, 3.5, 6, 2.0, 3, 1.5)
    assert (timings.prompt_tokens_per_second, timings.generated_tokens_per_second) == (3.0, 2.0)
    nothing = Timings(1.0, None, 0, 0.0, 0, 0.0)
    assert (nothing.prompt_tokens_per_second, nothing.generated_tokens_per_second) == (None, None)


def test_a_cancelled_sequence_reports_usage_and_timings_so_far() -> None:
    clock = Ticking()
    runner = MLXRunner(ScriptedBackend(lambda _: tokens_of("abc"), batch=Reading3), clock=clock)
    early, late = runner.submit(request("prompt7")), runner.submit(request("prompt7"))
    clock.now += 1
    runner.step()
    clock.now += 1
    assert runner.cancel(early) == [Finished("interrupted", Usage(7, 1, 0), Timings(2.0, None, 3, 0.5, 0, 0.0))]
    for _ in range(3):
        clock.now += 1
        runner.step()
    clock.now += 9
    assert runner.cancel(late) == [Finished("interrupted", Usage(7, 1, 2), Timings(14.0, 4.0, 6, 1.0, 1, 1.0))]
    assert (runner.cancel(early), runner.cancel(late), runner.step()) == ([], [], [])


def test_progress_of_a_prompt_that_is_read_again_is_not_repeated() -> None:
    class Again(Reading3):
        """A batch that starts to read again for each sequence."""

        def insert(self, sequence_id: int, request: GenerationRequest, max_tokens: int, completion: Any = ()) -> None:
            self._read = 1
            super().insert(sequence_id, request, max_tokens, completion)

    runner = FollowedRunner(ScriptedBackend(failing, batch=Again))
    good = runner.submit(request("good"))
    for _ in range(4):
        runner.step()
    bad = runner.submit(request("x"))
    runner.finish([good, bad])
    assert text(good.events) == "GOOD"
    assert sum(isinstance(event, PromptProgress) for event in good.events) == 2
    assert finished(good.events).usage == Usage(4, 1, 5)
