"""MLXRunner on a scripted backend: text, stops, reasoning, many sessions, faults."""

from __future__ import annotations

import pytest
from conftest_runner import BROKEN, ScriptedBackend, generate, request, saying, text, tokens_of
from hypothesis import given
from hypothesis import strategies as st

from mlxk2.errors import ModelError, ValidationError
from mlxk2.runner.params import GenerationRequest, Sampling
from mlxk2.runner.runner import Chunk, MLXRunner, Session

HARMONY = ("<end>", "<|start|>", "<|channel|>", "<|message|>", "<|end|>")


def run_all(runner: MLXRunner, sessions: list[Session]) -> dict[int, list[Chunk]]:
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


def test_reasoning_is_apart_and_takes_its_line_ends_along() -> None:
    chunks = generate(saying("<think>", "\nHm.", "</think>", "\n\nParis."))
    assert (text(chunks, "reasoning"), text(chunks)) == ("Hm.", "Paris.")


def test_empty_reasoning_is_none() -> None:
    chunks = generate(saying("<think>", "\n\n", "</think>", "\n\nParis."))
    assert (text(chunks, "reasoning"), text(chunks)) == ("", "Paris.")


def test_reasoning_that_the_prompt_opened() -> None:
    chunks = generate(saying("Hm.", "</think>", "\n\nParis."), thinking=True)
    assert (text(chunks, "reasoning"), text(chunks)) == ("Hm.", "Paris.")


def test_an_answer_keeps_its_own_leading_line_ends() -> None:
    assert text(generate(saying("\n\nParis."))) == "\n\nParis."


def test_marks_spelled_in_plain_tokens_count_too() -> None:
    chunks = generate(saying("<thi", "nk>Hm.</thin", "k>Paris."))
    assert (text(chunks, "reasoning"), text(chunks)) == ("Hm.", "Paris.")


def test_stop_strings_are_looked_for_in_the_answer_alone() -> None:
    chunks = generate(saying("<think>", "a\n\nb", "</think>", "\n\nc\n\nd"), stop=("\n\n",))
    assert (text(chunks, "reasoning"), text(chunks)) == ("a\n\nb", "c")


def test_a_model_without_reasoning_says_think_as_text() -> None:
    assert text(generate(saying("<think>", "x", marks=("<end>",)))) == "<think>x"


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
    stream.close()
    assert len(backend.batches[0]) == 0


def test_a_fault_of_the_batch_ends_every_session_and_the_next_request_works() -> None:
    def script(asked: GenerationRequest) -> list[int | Exception]:
        return [ValueError("shape mismatch")] if asked.prompt[0] == ord("x") else tokens_of("fine")

    runner = MLXRunner(ScriptedBackend(script))
    good, bad = runner.submit(request("good")), runner.submit(request("x"))
    ended = runner.step()
    assert [(session, chunk.finish_reason) for session, chunk in ended] == [(good, "error"), (bad, "error")]
    assert isinstance(good.error, ModelError)
    assert text(list(runner.stream(request("good")))) == "fine"


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
        MLXRunner(saying("a")).submit(GenerationRequest(**asked))


def test_a_bias_on_an_unknown_token_is_refused() -> None:
    with pytest.raises(ValidationError, match="logit_bias"):
        MLXRunner(saying("a")).submit(request(sampling=Sampling(logit_bias=((300, 1.0),))))


def test_close_drops_everything_and_the_runner_can_be_used_again() -> None:
    runner = MLXRunner(saying("ab"))
    runner.submit(request())
    runner.close()
    assert runner.step() == []
    assert text(list(runner.stream(request()))) == "ab"
