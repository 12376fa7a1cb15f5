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
# The architectures that run in batches; the cache serves only these.
_BATCHED = [name for name in ARCHITECTURES if name != "chunked attention"]
_WHOLE_ONLY = ("sliding window", "recurrent", "hybrid")


@pytest.fixture(scope="module", params=_BATCHED)
def named(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, LoadedModel]:
    """Return each architecture's name and a model."""
    folder = tmp_path_factory.mktemp("models") / "m"
    return request.param, load(write_random(folder, ARCHITECTURES[request.param]))


@pytest.fixture
def model(named: tuple[str, LoadedModel]) -> LoadedModel:
    """Return a model of each architecture."""
    return named[1]


@pytest.fixture(scope="module")
def babble(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """Return a model that writes random letters without end."""
    return load(write_chain(tmp_path_factory.mktemp("models") / "babble", BABBLE, context=4096))


def random_tokens(seed: int, count: int) -> tuple[int, ...]:
    """Return `count` random tokens, the same for the same seed."""
    return tuple(random.Random(seed).choices(range(250), k=count))


def make_request(prompt: Iterable[int], max_tokens: int = 12, temperature: float = 0.8) -> GenerationRequest:
    """Return a seeded request."""
    return GenerationRequest(tuple(prompt), max_tokens, Sampling(temperature=temperature, seed=11))


def run(runner: FollowedRunner, request: GenerationRequest) -> tuple[list[int], Followed]:
    """Return the tokens of an answer and its sequence."""
    session = runner.submit(request)
    runner.finish([session])
    assert session.error is None
    return session.completion, session


def generate_without_cache(model: LoadedModel, request: GenerationRequest) -> list[int]:
    """Return the tokens of an answer that is generated without a prompt cache."""
    return run(FollowedRunner(model), request)[0]


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_the_next_turn_computes_only_new_tokens(model: LoadedModel, temperature: float) -> None:
    runner = FollowedRunner(model, prompt_cache_bytes=_PLENTY)
    prompt = random_tokens(1, 90)
    for turn in range(4):
        request = make_request(prompt, temperature=temperature)
        answer, session = run(runner, request)
        assert answer == generate_without_cache(model, request)
        assert session.cached_tokens == (len(prompt) - 20 if turn else 0)
        prompt = (*prompt, *answer, *random_tokens(turn + 2, 20))


def test_a_repeated_prompt_computes_only_its_last_token(model: LoadedModel) -> None:
    runner = FollowedRunner(model, prompt_cache_bytes=_PLENTY)
    prompt = random_tokens(1, 90)
    assert [run(runner, make_request(prompt))[1].cached_tokens for _ in range(3)] == [0, 89, 89]
    assert run(runner, make_request(prompt))[0] == generate_without_cache(model, make_request(prompt))


def test_a_shared_prefix_is_computed_at_most_twice(named: tuple[str, LoadedModel]) -> None:
    name, model = named
    runner = FollowedRunner(model, prompt_cache_bytes=_PLENTY)
    cached = []
    for seed in range(1, 5):
        request = make_request((*random_tokens(0, 150), seed, *random_tokens(seed, 80)))
        answer, session = run(runner, request)
        assert answer == generate_without_cache(model, request)
        cached.append(session.cached_tokens)
    # A state that can't be trimmed is saved where the second prompt leaves the first.
    assert cached == ([0, 0, 150, 150] if name in _WHOLE_ONLY else [0, 150, 150, 150])


def test_a_prompt_reuses_the_state_of_a_running_answer(model: LoadedModel) -> None:
    runner = FollowedRunner(model, prompt_cache_bytes=_PLENTY)
    first = runner.submit(make_request(random_tokens(1, 90), max_tokens=200))
    while not first.tokens:
        runner.step()
    request = make_request((*random_tokens(1, 90), *random_tokens(2, 30)))
    answer, second = run(runner, request)
    assert not first.ended
    assert second.cached_tokens == 89
    assert answer == generate_without_cache(model, request)


def test_sequences_that_join_and_leave_write_the_same_text_as_alone(model: LoadedModel) -> None:
    requests = [
        GenerationRequest(
            (*random_tokens(number % 3, 70 + number), number),
            10 + 3 * number,
            Sampling(temperature=0 if number == 5 else 0.8, seed=number),
        )
        for number in range(12)
    ]
    alone = [generate_without_cache(model, request) for request in requests]
    for bytes_kept in (0, _PLENTY):
        runner = FollowedRunner(model, prompt_cache_bytes=bytes_kept, max_sequences=8)
        assert [session.completion for session in _run_beside_cancelled(runner, requests)] == alone


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_long_prompts_read_in_pieces_give_the_tokens_of_mlx_lm(name: str, tmp_path: Path) -> None:
    model = load(write_random(tmp_path / "m", {**ARCHITECTURES[name], "max_position_embeddings": 4096}))
    model = dataclasses.replace(model, context_length=4096)
    prompts = [random_tokens(number, length) for number, length in enumerate((700, 30, 1030, 513, 1))]
    runner = FollowedRunner(model)
    requests = [GenerationRequest(prompt, 6, Sampling(temperature=0), likeliest_count=0) for prompt in prompts]
    sessions = [runner.submit(request) for request in requests]
    runner.finish(sessions)
    for prompt, session in zip(prompts, sessions, strict=True):
        theirs = _reference(model, prompt)
        assert session.completion == [token for token, _ in theirs]
        # Logprobs show an influence of other sequences that the text may hide. Only visible tokens have logprobs.
        for entry in session.logprobs:
            close = pytest.approx(entry.logprob, abs=1e-3)
            assert any(entry.token == token and close == logprob for token, logprob in theirs)
    assert sum(len(session.logprobs) for session in sessions) > 10


def _reference(model: LoadedModel, prompt: tuple[int, ...]) -> list[tuple[int, float]]:
    """Return the tokens that mlx-lm generates from a prompt alone, and their logprobs."""
    steps = generate_step(mx.array(prompt), model.model, max_tokens=6)
    return [(token, logprobs[token].item()) for token, logprobs in steps]


def _run_beside_cancelled(runner: FollowedRunner, requests: Iterable[GenerationRequest]) -> list[Followed]:
    """Submit one request every three steps, beside others that are cancelled; return the sequences of the requests."""
    sessions, cancelled = [], []
    for number, request in enumerate(requests):
        sessions.append(runner.submit(request))
        cancelled.append(runner.submit(make_request(random_tokens(number, 40), max_tokens=100)))
        for _ in range(3):
            runner.step()
        if number % 2:
            runner.cancel(cancelled[number - 1])
    for session in cancelled:
        runner.cancel(session)
    runner.finish(sessions)
    return sessions


@pytest.mark.parametrize("stop", [("a",), ()])
def test_stopped_and_cancelled_answers_stay_in_the_prompt_cache(babble: LoadedModel, stop: tuple[str, ...]) -> None:
    runner = FollowedRunner(babble, prompt_cache_bytes=_PLENTY)
    session = runner.submit(GenerationRequest(random_tokens(1, 30), 900, Sampling(seed=1), stop=stop))
    while not session.ended and session.tokens < 200:
        runner.step()
    runner.cancel(session)
    again = runner.submit(make_request((*random_tokens(1, 30), *session.completion, 5)))
    runner.step()
    assert again.cached_tokens == 30 + session.tokens


def test_a_cancelled_prompt_is_cached_as_far_as_it_was_read(babble: LoadedModel) -> None:
    runner = FollowedRunner(babble, prompt_cache_bytes=_PLENTY)
    session = runner.submit(make_request(random_tokens(1, 3000)))
    runner.step()
    runner.cancel(session)
    again = runner.submit(session.request)
    runner.step()
    assert 0 < again.cached_tokens < 2999


def test_a_prompt_cache_of_zero_bytes_stays_empty(babble: LoadedModel) -> None:
    runner = FollowedRunner(babble)
    assert [run(runner, make_request(random_tokens(1, 90)))[1].cached_tokens for _ in range(2)] == [0, 0]


def test_close_empties_the_prompt_cache(babble: LoadedModel) -> None:
    runner = FollowedRunner(babble, prompt_cache_bytes=_PLENTY)
    run(runner, make_request(random_tokens(1, 90)))
    assert run(runner, make_request(random_tokens(1, 90)))[1].cached_tokens == 89
    runner.close()
    assert run(runner, make_request(random_tokens(1, 90)))[1].cached_tokens == 0


@pytest.mark.parametrize("bytes_kept", [0, 1 << 20])
def test_memory_stays_flat_over_many_requests(babble: LoadedModel, bytes_kept: int) -> None:
    runner = FollowedRunner(babble, prompt_cache_bytes=bytes_kept)
    used = list(_memory_after(runner, rounds=12, requests=25))
    # The runner holds its prompts, and the batch the memory of its last sequences.
    assert max(used[6:]) <= max(used[:6]) + (1 << 14)
    assert max(used) - min(used) <= bytes_kept + (1 << 18)


def _memory_after(runner: FollowedRunner, rounds: int, requests: int) -> Iterator[int]:
    """Yield the bytes in use after each round of requests."""
    for number in range(rounds):
        for request in range(requests):
            run(runner, make_request(random_tokens(number * requests + request, 20 + request * 3), max_tokens=3))
        yield mx.get_active_memory()
