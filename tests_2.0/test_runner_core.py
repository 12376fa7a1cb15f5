"""MLXRunner on a scripted backend: text, stops, reasoning, many sessions, faults."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.scripted import BROKEN, ScriptedBackend, ScriptedBatch, generate, request, saying, text, tokens_of

from mlxk2.errors import ModelError, ValidationError
from mlxk2.runner.request import GenerationRequest, Sampling
from mlxk2.runner.runner import MLXRunner
from mlxk2.runner.sequences import Chunk, Sequence, Step

HARMONY = ("<end>", "<|start|>", "<|channel|>", "<|message|>", "<|end|>")


def run_all(runner: MLXRunner, sessions: list[Sequence]) -> dict[int, list[Chunk]]:
    """Step until all sessions have ended; their chunks by position."""
    chunks: dict[int, list[Chunk]] = {number: [] for number in range(len(sessions))}
    while not all(session.ended for session in sessions):
        for session, chunk in runner.step():
            chunks[sessions.index(session)].append(chunk)
    return chunks


def test_answer_streams_and_ends_at_the_end_token() -> None:
    chunks = generate(saying("Hello."))
    assert [chunk.text for chunk in chunks] == [*"Hello.", ""]
    assert chunks[-1].finish_reason == "stop"
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * 6


def test_the_end_token_is_counted_and_never_printed() -> None:
    chunks = generate(saying("Hi"))
    assert chunks[-1].tokens == 3
    assert text(chunks) == "Hi"


def test_special_tokens_are_never_printed() -> None:
    assert text(generate(saying("a", "<pad>", "b"))) == "ab"


def test_a_limit_ends_the_answer_with_length() -> None:
    chunks = generate(saying("Hello."), max_tokens=3)
    assert (text(chunks), chunks[-1].tokens, chunks[-1].finish_reason) == ("Hel", 3, "length")


def test_the_end_token_at_the_limit_is_a_stop() -> None:
    assert generate(saying("Hi"), max_tokens=3)[-1].finish_reason == "stop"


def test_characters_are_never_split() -> None:
    chunks = generate(saying("é😀ß"))
    assert [chunk.text for chunk in chunks if chunk.text] == ["é", "😀", "ß"]


def test_a_character_cut_by_the_limit_is_left_out() -> None:
    chunks = generate(saying("a😀"), max_tokens=3)
    assert text(chunks) == "a"


@pytest.mark.parametrize("stop", ["lo w", "o", "Hello"])
def test_stop_strings_end_the_answer_and_never_show(stop: str) -> None:
    chunks = generate(saying("Hello world"), stop=(stop,))
    assert text(chunks) == "Hello world".partition(stop)[0]
    assert chunks[-1].finish_reason == "stop"
    assert chunks[-1].tokens == "Hello world".index(stop) + len(stop)


def test_the_earliest_of_several_stop_strings_wins() -> None:
    assert text(generate(saying("one two three"), stop=("three", "two"))) == "one "


def test_the_beginning_of_a_stop_string_is_text_when_the_rest_does_not_follow() -> None:
    assert text(generate(saying("ab STO"), stop=("STOP",))) == "ab STO"
    assert text(generate(saying("ab STOP"), stop=("STOP",), max_tokens=6)) == "ab STO"
    assert text(generate(saying("ab STO..."), stop=("STOP",))) == "ab STO..."


@given(st.text(alphabet="abé", max_size=12), st.lists(st.text(alphabet="abé", min_size=1, max_size=4), max_size=3))
def test_stop_strings_cut_where_text_search_says(said: str, stops: list[str]) -> None:
    ends = [said.find(stop) + len(stop) for stop in stops if stop in said]
    first = min(ends, default=None)
    cut = [said[: first - len(stop)] for stop in stops if first and said[:first].endswith(stop)]
    answer = text(generate(saying(said), stop=tuple(stops)))
    assert answer == said if first is None else answer in cut


@pytest.mark.parametrize(("said", "stop"), [("a" * 50, ("aab",)), ("<" * 50, ())], ids=["stop string", "mark"])
def test_no_more_is_held_back_than_may_begin_what_is_looked_for(said: str, stop: tuple[str, ...]) -> None:
    chunks = generate(saying(said), stop=stop)
    assert text(chunks) == said
    longest = max(map(len, (*stop, "</think>")))
    assert max(len(chunk.text) for chunk in chunks) <= longest < len(chunks)


def test_a_state_that_nothing_ends_is_borne() -> None:
    calls = {"normal": [("<call>", "tool")]}
    assert text(generate(saying("a<call>f()", response_transitions=calls))) == "a"


def test_an_answer_keeps_its_own_leading_line_ends() -> None:
    assert text(generate(saying("\n\nParis."))) == "\n\nParis."


def test_stop_strings_are_looked_for_in_the_answer_alone() -> None:
    chunks = generate(saying("<think>", "a\n\nb", "</think>", "\n\nc\n\nd"), stop=("\n\n",))
    assert (text(chunks, "reasoning"), text(chunks)) == ("a\n\nb", "c")


def test_harmony_channels() -> None:
    said = saying(
        "<|channel|>", "analysis", "<|message|>", "Hm.", "<|end|>", "<|start|>", "assistant",
        "<|channel|>", "final", "<|message|>", "Paris.",
        marks=HARMONY,
    )  # fmt: skip
    chunks = generate(said)
    assert (text(chunks, "reasoning"), text(chunks)) == ("Hm.", "Paris.")


def test_harmony_calls_are_not_addressed_to_the_user() -> None:
    said = saying("<|channel|>", "commentary to=functions.f ", "<|message|>", "{}", "<|end|>", marks=HARMONY)
    chunks = generate(said)
    assert (text(chunks, "reasoning"), text(chunks)) == ("{}", "")


def test_sessions_join_and_leave_without_disturbing_each_other() -> None:
    backend = ScriptedBackend(lambda asked: tokens_of(bytes(asked.prompt).decode().upper()))
    runner = MLXRunner(backend)
    first = [runner.submit(request("a long prompt")), runner.submit(request("short"))]
    early = runner.step()
    late = runner.submit(request("late", stop=("T",)))
    chunks = run_all(runner, [*first, late])
    assert "".join(chunk.text for session, chunk in early if session is first[0]) + text(chunks[0]) == "A LONG PROMPT"
    assert text(chunks[1]) == "HORT"
    assert text(chunks[2]) == "LA"
    assert len(backend.batches) == 1


def test_cancel_gives_the_held_text_and_frees_the_row() -> None:
    backend = saying("abcdef")
    runner = MLXRunner(backend)
    session = runner.submit(request(stop=("bcx",)))
    for _ in range(3):
        runner.step()
    last = runner.cancel(session)
    assert (text(last), last[-1].finish_reason, last[-1].tokens) == ("bc", "interrupted", 3)
    assert len(backend.batches[0]) == 0
    assert runner.cancel(session) == []
    assert runner.step() == []


def test_closing_a_stream_cancels_it() -> None:
    backend = saying("abcdef")
    stream = MLXRunner(backend).stream(request())
    next(stream)
    assert isinstance(stream, Generator)
    stream.close()
    assert len(backend.batches[0]) == 0


def failing(asked: GenerationRequest) -> list[int | Exception]:
    """A script: the prompt in capitals, with a fault where it has an x."""
    said: list[int | Exception] = list(tokens_of(bytes(asked.prompt).decode().upper()))
    return [ValueError("shape mismatch") if token == ord("X") else token for token in said]


def test_a_fault_ends_the_session_it_belongs_to_and_no_other() -> None:
    runner = MLXRunner(ScriptedBackend(failing))
    sessions = [runner.submit(request(prompt)) for prompt in ("one", "tax", "three", "x")]
    chunks = run_all(runner, sessions)
    assert [text(chunks[number]) for number in range(4)] == ["ONE", "TA", "THREE", ""]
    assert [session.error is not None for session in sessions] == [False, True, False, True]
    assert str(sessions[1].error) == "Generation failed: shape mismatch"
    assert [chunks[number][-1].finish_reason for number in range(4)] == ["stop", "error", "stop", "error"]
    assert text(list(runner.stream(request("fine")))) == "FINE"


def test_a_fault_that_nobody_repeats_alone_ends_the_newest() -> None:
    class Crowded(ScriptedBatch):
        """Has no room for three."""

        def next(self) -> list[Step]:
            if len(self) > 2:
                raise MemoryError
            return super().next()

    runner = MLXRunner(ScriptedBackend(lambda _: tokens_of("fine"), batch=Crowded))
    sessions = [runner.submit(request()) for _ in range(4)]
    chunks = run_all(runner, sessions)
    assert [text(chunks[number]) for number in range(2)] == ["fine", "fine"]
    assert [str(session.error) for session in sessions[2:]] == ["Generation failed: MemoryError"] * 2


def test_a_session_that_comes_while_others_are_tried_is_not_blamed() -> None:
    runner = MLXRunner(ScriptedBackend(failing))
    sessions = [runner.submit(request("xa")), runner.submit(request("good"))]
    early = runner.step()
    sessions.append(runner.submit(request("late")))
    chunks = run_all(runner, sessions)
    assert early == []
    assert [text(chunks[number]) for number in range(3)] == ["", "GOOD", "LATE"]
    assert [session.error is None for session in sessions] == [False, True, True]


@pytest.mark.parametrize("which", range(4))
def test_sessions_can_be_cancelled_while_they_are_tried(which: int) -> None:
    runner = MLXRunner(ScriptedBackend(failing))
    sessions = [runner.submit(request(prompt)) for prompt in ("good", "fine", "x")]
    assert runner.step() == []
    sessions.append(runner.submit(request("late")))
    assert runner.cancel(sessions[which])[-1].finish_reason == "interrupted"
    chunks = run_all(runner, sessions)
    expected = ["GOOD", "FINE", "", "LATE"]
    assert [text(chunks[number]) for number in range(4) if number != which] == [
        said for number, said in enumerate(expected) if number != which
    ]
    assert sessions[which].ended and sessions[which].error is None
    assert runner.step() == []


def test_close_ends_sessions_that_are_tried() -> None:
    runner = MLXRunner(ScriptedBackend(failing))
    sessions = [runner.submit(request("good")), runner.submit(request("x"))]
    runner.step()
    runner.close()
    assert all(session.ended for session in sessions)
    assert runner.step() == []
    assert text(list(runner.stream(request("good")))) == "GOOD"


@given(
    st.lists(st.text(alphabet="abx", min_size=1, max_size=5), min_size=1, max_size=8),
    st.lists(st.tuples(st.integers(0, 7), st.booleans()), max_size=12),
)
def test_whatever_comes_goes_and_fails_each_session_ends_as_it_would_alone(
    prompts: list[str], events: list[tuple[int, bool]]
) -> None:
    runner = MLXRunner(ScriptedBackend(failing))
    waiting = [request(prompt) for prompt in prompts]
    sessions: list[Sequence] = []
    said: dict[Sequence, str] = defaultdict(str)
    for number, comes in [*events, *[(0, True)] * len(prompts), *[(8, False)] * 150]:
        if comes and waiting:
            sessions.append(runner.submit(waiting.pop()))
        elif not comes and number < len(sessions):
            runner.cancel(sessions[number])
        for session, chunk in runner.step():
            said[session] += chunk.text
    assert all(session.ended for session in sessions)
    for session in sessions:
        before, fault, _ = bytes(session.request.prompt).decode().upper().partition("X")
        assert said[session] == before if session.error else before.startswith(said[session])
        assert fault or not session.error


def test_a_request_that_can_not_be_queued_raises_and_leaves_the_others() -> None:
    def script(asked: GenerationRequest) -> list[int]:
        if asked.max_tokens == 1:
            raise TypeError("no such sampler")
        return tokens_of("fine")

    runner = MLXRunner(ScriptedBackend(script))
    good = runner.submit(request())
    with pytest.raises(ModelError, match="no such sampler"):
        runner.submit(request(max_tokens=1))
    assert text(run_all(runner, [good])[0]) == "fine"


def test_a_stream_raises_the_fault() -> None:
    runner = MLXRunner(ScriptedBackend(lambda _: [97, RuntimeError("out of memory")]))
    with pytest.raises(ModelError, match="out of memory"):
        list(runner.stream(request()))


def test_a_token_that_can_not_be_decoded_ends_its_own_session_alone() -> None:
    backend = ScriptedBackend(lambda asked: tokens_of("a", BROKEN, "b") if asked.max_tokens else tokens_of("fine"))
    runner = MLXRunner(backend)
    bad, good = runner.submit(request(max_tokens=9)), runner.submit(request())
    chunks = run_all(runner, [bad, good])
    assert (text(chunks[0]), chunks[0][-1].finish_reason) == ("a", "error")
    assert isinstance(bad.error, ModelError)
    assert text(chunks[1]) == "fine"


def test_tokens_that_only_pad_the_output_are_no_text() -> None:
    assert text(generate(saying("a", 295, "b"))) == "ab"


@pytest.mark.parametrize("asked", [{"prompt": (-1,)}, {"prompt": (300,)}])
def test_tokens_that_the_model_does_not_know_are_refused(asked: dict[str, tuple[int]]) -> None:
    with pytest.raises(ValidationError, match="token"):
        MLXRunner(saying("a")).submit(GenerationRequest(prompt=asked["prompt"]))


def test_a_bias_on_an_unknown_token_is_refused() -> None:
    with pytest.raises(ValidationError, match="logit_bias"):
        MLXRunner(saying("a")).submit(request(sampling=Sampling(logit_bias=((300, 1.0),))))


def test_close_drops_everything_and_the_runner_can_be_used_again() -> None:
    runner = MLXRunner(saying("ab"))
    runner.submit(request())
    runner.close()
    assert runner.step() == []
    assert text(list(runner.stream(request()))) == "ab"
