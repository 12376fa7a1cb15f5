"""The prompt cache in the runner, on real MLX: what is reused, and that no text depends on it."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm.generate import generate_step
from support.architectures import ARCHITECTURES
from support.following import Followed, FollowedRunner
from support.tiny_models import BABBLE, write_chain, write_random

from mlxk2.runner.mlx.loader import LoadedModel, load
from mlxk2.runner.request import GenerationRequest, Sampling

pytestmark = pytest.mark.e2e

_PLENTY = 1 << 30
# Those that are generated in batches; the cache serves no others.
_BATCHED = [name for name in ARCHITECTURES if name != "chunked attention"]
_WHOLE_ONLY = ("sliding window", "recurrent", "hybrid")


@pytest.fixture(scope="module", params=_BATCHED)
def named(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, LoadedModel]:
    """Each architecture's name and a model."""
    folder = tmp_path_factory.mktemp("models") / "m"
    return request.param, load(write_random(folder, ARCHITECTURES[request.param]))


@pytest.fixture
def model(named: tuple[str, LoadedModel]) -> LoadedModel:
    """A model of each architecture."""
    return named[1]


@pytest.fixture(scope="module")
def babble(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A model that says random letters for ever."""
    return load(write_chain(tmp_path_factory.mktemp("models") / "babble", BABBLE, context=4096))


def words(seed: int, count: int) -> tuple[int, ...]:
    """As many random tokens, always the same for a seed."""
    return tuple(random.Random(seed).choices(range(250), k=count))


def asked(prompt: Iterable[int], max_tokens: int = 12, temperature: float = 0.8) -> GenerationRequest:
    """A seeded request."""
    return GenerationRequest(tuple(prompt), max_tokens, Sampling(temperature=temperature, seed=11))


def run(runner: FollowedRunner, request: GenerationRequest) -> tuple[list[int], Followed]:
    """The tokens of an answer, and its session."""
    session = runner.submit(request)
    runner.finish([session])
    assert session.error is None
    return session.completion, session


def without(model: LoadedModel, request: GenerationRequest) -> list[int]:
    """The tokens of an answer that nothing was kept for."""
    return run(FollowedRunner(model), request)[0]


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_the_next_turn_of_a_conversation_computes_only_what_is_new(model: LoadedModel, temperature: float) -> None:
    runner = FollowedRunner(model, prompt_cache_bytes=_PLENTY)
    prompt = words(1, 90)
    for turn in range(4):
        request = asked(prompt, temperature=temperature)
        answer, session = run(runner, request)
        assert answer == without(model, request)
        assert session.cached_tokens == (len(prompt) - 20 if turn else 0)
        prompt = (*prompt, *answer, *words(turn + 2, 20))


def test_another_answer_to_the_same_prompt_computes_its_last_token_alone(model: LoadedModel) -> None:
    runner = FollowedRunner(model, prompt_cache_bytes=_PLENTY)
    prompt = words(1, 90)
    assert [run(runner, asked(prompt))[1].cached_tokens for _ in range(3)] == [0, 89, 89]
    assert run(runner, asked(prompt))[0] == without(model, asked(prompt))


def test_a_shared_beginning_is_computed_once_or_twice(named: tuple[str, LoadedModel]) -> None:
    name, model = named
    runner = FollowedRunner(model, prompt_cache_bytes=_PLENTY)
    cached = []
    for seed in range(1, 5):
        request = asked((*words(0, 150), seed, *words(seed, 80)))
        answer, session = run(runner, request)
        assert answer == without(model, request)
        cached.append(session.cached_tokens)
    # Where a state can't be cut, the second prompt is the first to tell where they part.
    assert cached == ([0, 0, 150, 150] if name in _WHOLE_ONLY else [0, 150, 150, 150])


def test_prompts_share_with_answers_that_are_still_going_on(model: LoadedModel) -> None:
    runner = FollowedRunner(model, prompt_cache_bytes=_PLENTY)
    first = runner.submit(asked(words(1, 90), max_tokens=200))
    while not first.tokens:
        runner.step()
    request = asked((*words(1, 90), *words(2, 30)))
    answer, second = run(runner, request)
    assert not first.ended
    assert second.cached_tokens == 89
    assert answer == without(model, request)


def test_eight_that_come_and_go_say_what_each_says_alone(model: LoadedModel) -> None:
    requests = [
        GenerationRequest(
            (*words(number % 3, 70 + number), number),
            10 + 3 * number,
            Sampling(temperature=0 if number == 5 else 0.8, seed=number),
        )
        for number in range(12)
    ]
    alone = [without(model, request) for request in requests]
    for bytes_kept in (0, _PLENTY):
        runner = FollowedRunner(model, prompt_cache_bytes=bytes_kept, max_sequences=8)
        assert [session.completion for session in _coming_and_going(runner, requests)] == alone


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_long_prompts_read_together_in_pieces_are_answered_as_mlx_lm_does(name: str, tmp_path: Path) -> None:
    model = load(write_random(tmp_path / "m", {**ARCHITECTURES[name], "max_position_embeddings": 4096}))
    model = dataclasses.replace(model, context_length=4096)
    prompts = [words(number, length) for number, length in enumerate((700, 30, 1030, 513, 1))]
    runner = FollowedRunner(model)
    requests = [GenerationRequest(prompt, 6, Sampling(temperature=0), logprobs=0) for prompt in prompts]
    sessions = [runner.submit(request) for request in requests]
    runner.finish(sessions)
    for prompt, session in zip(prompts, sessions, strict=True):
        theirs = _reference(model, prompt)
        assert session.completion == [token for token, _ in theirs]
        # The text alone may hide what a row has taken from its neighbours. Only tokens that show are told of.
        for entry in session.logprobs:
            close = pytest.approx(entry.logprob, abs=1e-3)
            assert any(entry.token == token and close == logprob for token, logprob in theirs)
    assert sum(len(session.logprobs) for session in sessions) > 10


def _reference(model: LoadedModel, prompt: tuple[int, ...]) -> list[tuple[int, float]]:
    """The tokens that mlx-lm generates from a prompt alone, and their logprobs."""
    steps = generate_step(mx.array(prompt), model.model, max_tokens=6)
    return [(token, logprobs[token].item()) for token, logprobs in steps]


def _coming_and_going(runner: FollowedRunner, requests: Iterable[GenerationRequest]) -> list[Followed]:
    """The sessions of these requests, which came one every three steps; others came too and were cancelled."""
    sessions, cancelled = [], []
    for number, request in enumerate(requests):
        sessions.append(runner.submit(request))
        cancelled.append(runner.submit(asked(words(number, 40), max_tokens=100)))
        for _ in range(3):
            runner.step()
        if number % 2:
            runner.cancel(cancelled[number - 1])
    for session in cancelled:
        runner.cancel(session)
    runner.finish(sessions)
    return sessions


@pytest.mark.parametrize("stop", [("a",), ()])
def test_what_was_computed_for_a_stopped_or_cancelled_answer_is_kept(
    babble: LoadedModel, stop: tuple[str, ...]
) -> None:
    runner = FollowedRunner(babble, prompt_cache_bytes=_PLENTY)
    session = runner.submit(GenerationRequest(words(1, 30), 900, Sampling(seed=1), stop=stop))
    while not session.ended and session.tokens < 200:
        runner.step()
    runner.cancel(session)
    again = runner.submit(asked((*words(1, 30), *session.completion, 5)))
    runner.step()
    assert again.cached_tokens == 30 + session.tokens


def test_a_cancelled_prompt_is_kept_as_far_as_it_was_read(babble: LoadedModel) -> None:
    runner = FollowedRunner(babble, prompt_cache_bytes=_PLENTY)
    session = runner.submit(asked(words(1, 3000)))
    runner.step()
    runner.cancel(session)
    again = runner.submit(session.request)
    runner.step()
    assert 0 < again.cached_tokens < 2999


def test_without_bytes_nothing_is_kept(babble: LoadedModel) -> None:
    runner = FollowedRunner(babble)
    assert [run(runner, asked(words(1, 90)))[1].cached_tokens for _ in range(2)] == [0, 0]


def test_close_forgets_what_was_kept(babble: LoadedModel) -> None:
    runner = FollowedRunner(babble, prompt_cache_bytes=_PLENTY)
    run(runner, asked(words(1, 90)))
    assert run(runner, asked(words(1, 90)))[1].cached_tokens == 89
    runner.close()
    assert run(runner, asked(words(1, 90)))[1].cached_tokens == 0


@pytest.mark.parametrize("bytes_kept", [0, 1 << 20])
def test_memory_stays_flat_over_many_requests(babble: LoadedModel, bytes_kept: int) -> None:
    runner = FollowedRunner(babble, prompt_cache_bytes=bytes_kept)
    used = list(_memory_after(runner, rounds=12, requests=25))
    # The runner holds its prompts, and the batch what its last rows needed.
    assert max(used[6:]) <= max(used[:6]) + (1 << 14)
    assert max(used) - min(used) <= bytes_kept + (1 << 18)


def _memory_after(runner: FollowedRunner, rounds: int, requests: int) -> Iterator[int]:
    """The bytes in use after each round of requests."""
    for number in range(rounds):
        for request in range(requests):
            run(runner, asked(words(number * requests + request, 20 + request * 3), max_tokens=3))
        yield mx.get_active_memory()
