"""The order in which prompts are read, each only once, on real MLX: counted in tokens that the model gets."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from support.architectures import ARCHITECTURES
from support.following import Followed, FollowedRunner
from support.tiny_models import BABBLE, write_chain, write_random

from mlxk2.runner.mlx.loader import LoadedModel, load
from mlxk2.runner.mlx.prefill import prefill_budget
from mlxk2.runner.request import GenerationRequest, Sampling

pytestmark = pytest.mark.e2e

_PLENTY = 1 << 30
_PIECE = prefill_budget(others_decode=True, longest=0)


class Counting:
    """A model that counts the tokens of prompts: those in calls with more than one token."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.read = 0

    def __call__(self, inputs: mx.array, cache: Any = None) -> mx.array:
        """Read tokens [sequences, length]."""
        if inputs.shape[1] > 1:
            self.read += inputs.size
        answer: mx.array = self._model(inputs, cache=cache)
        return answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def add_counter(model: LoadedModel) -> tuple[LoadedModel, Counting]:
    """Return the same model and the counter of its prompt tokens."""
    counting = Counting(model.model)
    return dataclasses.replace(model, model=counting), counting


@pytest.fixture(scope="module")
def babble(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """Return a model that writes random letters without end."""
    return load(write_chain(tmp_path_factory.mktemp("models") / "babble", BABBLE, context=4096))


def random_tokens(seed: int, count: int) -> tuple[int, ...]:
    """Return `count` random tokens, the same for the same seed."""
    return tuple(random.Random(seed).choices(range(250), k=count))


def make_request(seed: int, count: int, max_tokens: int = 1, client: Hashable = None) -> GenerationRequest:
    """Return a request with its own prompt of `count` tokens."""
    return GenerationRequest(random_tokens(seed, count), max_tokens, Sampling(seed=seed), client=client)


def until(runner: FollowedRunner, *sessions: Followed) -> None:
    """Step the runner until each of these sequences has a token."""
    while not all(session.tokens for session in sessions):
        runner.step()


@pytest.mark.parametrize("kept", [0, _PLENTY])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_several_answers_to_one_prompt_read_it_once(name: str, kept: int, tmp_path: Path) -> None:
    model, counting = add_counter(load(write_random(tmp_path / "m", ARCHITECTURES[name])))
    prompt = random_tokens(1, 150)
    requests = [GenerationRequest(prompt, 8, Sampling(seed=seed), likeliest_count=2) for seed in range(5)]
    runner = FollowedRunner(model, prompt_cache_bytes=kept, max_sequences=4)
    sessions = [runner.submit(request) for request in requests[:4]]
    runner.step()
    # The same request comes a little later, when the batch is full.
    sessions.append(runner.submit(requests[4]))
    until(runner, *sessions[:4])
    assert counting.read == len(prompt) - 1
    assert [session.cached_tokens for session in sessions[:4]] == [0, *[len(prompt) - 1] * 3]
    runner.finish(sessions)
    if kept and name != "chunked attention":
        assert counting.read == len(prompt) - 1
    for request, session in zip(requests, sessions, strict=True):
        runner = FollowedRunner(model)
        alone = runner.submit(request)
        runner.finish([alone])
        assert session.completion == alone.completion


def test_a_cancelled_answer_leaves_the_shared_prompt_to_the_others(babble: LoadedModel) -> None:
    model, counting = add_counter(babble)
    runner = FollowedRunner(model)
    first, second = (runner.submit(make_request(1, 600)) for _ in range(2))
    runner.step()
    runner.cancel(first)
    until(runner, second)
    assert counting.read == 599


def test_concurrent_prompts_share_their_common_prefix(babble: LoadedModel) -> None:
    model, counting = add_counter(babble)
    runner = FollowedRunner(model, prompt_cache_bytes=_PLENTY)
    common = random_tokens(0, 1000)
    requests = [GenerationRequest((*common, *random_tokens(number, 40)), 1) for number in range(1, 5)]
    sessions = [runner.submit(request) for request in requests]
    until(runner, *sessions)
    assert counting.read < 1000 + 4 * 40
    assert [session.cached_tokens for session in sessions].count(0) == 1


def test_a_short_prompt_is_read_before_long_ones(babble: LoadedModel) -> None:
    model, counting = add_counter(babble)
    runner = FollowedRunner(model)
    long = [runner.submit(make_request(seed, 2000)) for seed in range(8)]
    runner.step()
    before = counting.read
    until(runner, runner.submit(make_request(9, 30)))
    # One piece of the oldest prompt may be read first.
    assert counting.read - before <= 2 * _PIECE
    for session in long:
        runner.cancel(session)


def test_one_long_prompt_is_finished_before_the_next_begins(babble: LoadedModel) -> None:
    runner = FollowedRunner(babble)
    long = [runner.submit(make_request(seed, 1500)) for seed in range(4)]
    until(runner, long[0])
    assert not any(session.tokens for session in long[1:])
    until(runner, *long)


def test_a_long_prompt_is_read_despite_many_short_ones(babble: LoadedModel) -> None:
    runner = FollowedRunner(babble)
    long = runner.submit(make_request(0, 2000))
    steps = 0
    while not long.tokens:
        steps += 1
        runner.submit(make_request(steps, _PIECE))
        runner.step()
    assert steps <= 4 * (2000 // _PIECE + 2)
    runner.close()


def test_many_prompts_of_one_client_do_not_delay_another_client(babble: LoadedModel) -> None:
    model, counting = add_counter(babble)
    runner = FollowedRunner(model)
    for seed in range(40):
        runner.submit(make_request(seed, 200, client="many"))
    runner.step()
    before = counting.read
    until(runner, runner.submit(make_request(99, 250, client="one")))
    assert counting.read - before <= 4 * _PIECE
    runner.close()


def test_a_running_answer_gets_a_token_after_each_piece_of_a_prompt(babble: LoadedModel) -> None:
    model, counting = add_counter(babble)
    runner = FollowedRunner(model)
    never_ends = Sampling(seed=1, logit_bias=tuple((token, -100) for token in babble.vocabulary.end_tokens))
    stream = runner.submit(GenerationRequest(random_tokens(0, 10), 4000, never_ends))
    until(runner, stream)
    long = [runner.submit(make_request(seed, 1200)) for seed in range(1, 9)]
    while not all(session.tokens for session in long):
        tokens, read = stream.tokens, counting.read
        runner.step()
        assert stream.tokens == tokens + 1
        assert counting.read - read <= _PIECE
    runner.close()


def test_short_prompts_are_read_together(babble: LoadedModel) -> None:
    runner = FollowedRunner(babble)
    sessions = [runner.submit(make_request(seed, 20 + seed)) for seed in range(6)]
    runner.step()
    assert all(session.tokens for session in sessions)
