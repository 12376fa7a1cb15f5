"""A model that computes NaN gives an error, and only the affected requests fail."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest
from support.following import FollowedRunner
from support.tiny_models import NEWLINE, say, write_chain

from mlxk2.errors import ModelError
from mlxk2.runner.mlx import loader
from mlxk2.runner.mlx.loader import LoadedModel
from mlxk2.runner.request import GenerationRequest, Sampling
from mlxk2.runner.runner import MLXRunner

pytestmark = pytest.mark.e2e

WAYS = {
    "greedy": Sampling(temperature=0),
    "drawn": Sampling(temperature=1, seed=1),
    "cut": Sampling(temperature=0.7, top_p=0.5, min_p=0.1, repetition_penalty=1.1, seed=1),
}


def load(folder: Path, *damaged: str) -> LoadedModel:
    """Return a model that writes "abc", and computes NaN after one of the damaged tokens."""
    write_chain(folder, say("a", "b", "c"))
    file = folder / "model.safetensors"
    weights = mx.load(str(file))
    assert isinstance(weights, dict)
    model = loader.load(folder)
    for token in damaged:
        weights["model.embed_tokens.weight"][model.tokenizer.get_vocab()[token]] = mx.nan
    mx.save_safetensors(str(file), weights, metadata={"format": "mlx"})
    model.tokenizer.close()
    return loader.load(folder)


def request(model: LoadedModel, text: str, sampling: Sampling) -> GenerationRequest:
    return GenerationRequest(tuple(model.tokenizer.encode(text)), 8, sampling, likeliest_count=2)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_model_that_computes_nan_is_an_error(tmp_path: Path, way: Sampling) -> None:
    model = load(tmp_path / "model", NEWLINE)
    with pytest.raises(ModelError, match="computes NaN"):
        list(MLXRunner(model).stream(request(model, "x\n", way)))
    model.tokenizer.close()


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_only_the_requests_with_nan_fail(tmp_path: Path, way: Sampling) -> None:
    model = load(tmp_path / "model", "q")
    runner = FollowedRunner(model, prompt_cache_bytes=1 << 20)
    sessions = [runner.submit(request(model, text, way)) for text in ("x\n", "q\n", "y\n")]
    runner.finish(sessions)
    assert [session.error is None for session in sessions] == [True, False, True]
    assert [session.text for session in sessions] == ["abc", "", "abc"]
    model.tokenizer.close()


def test_nan_in_the_middle_ends_the_answer_with_an_error(tmp_path: Path) -> None:
    model = load(tmp_path / "model", "b")
    with pytest.raises(ModelError, match="computes NaN"):
        list(MLXRunner(model).stream(request(model, "x\n", WAYS["greedy"])))
    model.tokenizer.close()
