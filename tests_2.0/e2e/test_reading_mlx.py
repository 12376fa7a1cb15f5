"""Whose prompt is read next, and that none is read twice, on real MLX: counted in tokens that the model is given."""

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
    """A model that counts the tokens of prompts that it reads: more than one at a time."""

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


def counted(model: LoadedModel) -> tuple[LoadedModel, Counting]:
    """The same model, and the counter of what it reads."""
    counting = Counting(model.model)
    return dataclasses.replace(model, model=counting), counting


@pytest.fixture(scope="module")
def babble(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A model that says random letters for ever."""
    return load(write_chain(tmp_path_factory.mktemp("models") / "babble", BABBLE, context=4096))


def words(seed: int, count: int) -> tuple[int, ...]:
    """As many random tokens, always the same for a seed."""
    return tuple(random.Random(seed).choices(range(250), k=count))


def asked(seed: int, count: int, max_tokens: int = 1, client: Hashable = None) -> GenerationRequest:
    """A request with a prompt of its own of that many tokens."""
    return GenerationRequest(words(seed, count), max_tokens, Sampling(seed=seed), client=client)


def until(runner: FollowedRunner, *sessions: Followed) -> None:
    """Let the runner work until these have got a token."""
    while not all(session.tokens for session in sessions):
        runner.step()


@pytest.mark.parametrize("kept", [0, _PLENTY])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_many_answers_to_one_prompt_read_it_once(name: str, kept: int, tmp_path: Path) -> None:
    model, counting = counted(load(write_random(tmp_path / "m", ARCHITECTURES[name])))
    prompt = words(1, 150)
    requests = [GenerationRequest(prompt, 8, Sampling(seed=seed), logprobs=2) for seed in range(5)]
    runner = FollowedRunner(model, prompt_cache_bytes=kept, max_sequences=4)
    sessions = [runner.submit(request) for request in requests[:4]]
    runner.step()
    # One that asks the same a little later, and for whom there is no room yet.
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


def test_an_answer_that_is_cancelled_leaves_the_prompt_to_the_others(babble: LoadedModel) -> None:
    model, counting = counted(babble)
    runner = FollowedRunner(model)
    first, second = (runner.submit(asked(1, 600)) for _ in range(2))
    runner.step()
    runner.cancel(first)
    until(runner, second)
    assert counting.read == 599


def test_prompts_that_come_together_share_what_they_begin_with(babble: LoadedModel) -> None:
    model, counting = counted(babble)
    runner = FollowedRunner(model, prompt_cache_bytes=_PLENTY)
    common = words(0, 1000)
    requests = [GenerationRequest((*common, *words(number, 40)), 1) for number in range(1, 5)]
    sessions = [runner.submit(request) for request in requests]
    until(runner, *sessions)
    assert counting.read < 1000 + 4 * 40
    assert [session.cached_tokens for session in sessions].count(0) == 1


def test_a_short_prompt_overtakes_long_ones(babble: LoadedModel) -> None:
    model, counting = counted(babble)
    runner = FollowedRunner(model)
    long = [runner.submit(asked(seed, 2000)) for seed in range(8)]
    runner.step()
    before = counting.read
    until(runner, runner.submit(asked(9, 30)))
    # A prefill_budget of the oldest may come first.
    assert counting.read - before <= 2 * _PIECE
    for session in long:
        runner.cancel(session)


def test_the_shortest_of_long_prompts_is_read_to_its_end_first(babble: LoadedModel) -> None:
    runner = FollowedRunner(babble)
    long = [runner.submit(asked(seed, 1500)) for seed in range(4)]
    until(runner, long[0])
    assert not any(session.tokens for session in long[1:])
    until(runner, *long)


def test_a_long_prompt_is_read_however_many_short_ones_come(babble: LoadedModel) -> None:
    runner = FollowedRunner(babble)
    long = runner.submit(asked(0, 2000))
    steps = 0
    while not long.tokens:
        steps += 1
        runner.submit(asked(steps, _PIECE))
        runner.step()
    assert steps <= 4 * (2000 // _PIECE + 2)
    runner.close()


def test_many_prompts_of_one_client_do_not_stop_another(babble: LoadedModel) -> None:
    model, counting = counted(babble)
    runner = FollowedRunner(model)
    for seed in range(40):
        runner.submit(asked(seed, 200, client="many"))
    runner.step()
    before = counting.read
    until(runner, runner.submit(asked(99, 250, client="one")))
    assert counting.read - before <= 4 * _PIECE
    runner.close()


def test_a_running_answer_gets_a_token_after_each_piece_that_is_read(babble: LoadedModel) -> None:
    model, counting = counted(babble)
    runner = FollowedRunner(model)
    never_ends = Sampling(seed=1, logit_bias=tuple((token, -100) for token in babble.vocabulary.end_tokens))
    stream = runner.submit(GenerationRequest(words(0, 10), 4000, never_ends))
    until(runner, stream)
    long = [runner.submit(asked(seed, 1200)) for seed in range(1, 9)]
    while not all(session.tokens for session in long):
        tokens, read = stream.tokens, counting.read
        runner.step()
        assert stream.tokens == tokens + 1
        assert counting.read - read <= _PIECE
    runner.close()


def test_short_prompts_are_read_together(babble: LoadedModel) -> None:
    runner = FollowedRunner(babble)
    sessions = [runner.submit(asked(seed, 20 + seed)) for seed in range(6)]
    runner.step()
    assert all(session.tokens for session in sessions)
