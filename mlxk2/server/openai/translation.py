"""From a checked body to the requests that the runner understands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mlxk2.errors import ValidationError
from mlxk2.runner.output.stops import StopStrings
from mlxk2.runner.prompt.prompter import Message, Prompt, Prompter
from mlxk2.runner.request import GenerationRequest, Sampling, default_max_tokens, token_budget
from mlxk2.server.openai import requests
from mlxk2.server.openai.requests import ChatBody, CompletionBody, GenerationBody

_SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed",
)  # fmt: skip
_SEEDS = 1 << 64
# Of one request, the chosen tokens' and the likeliest ones': some 200 bytes each, until they are sent.
MOST_LOGPROBS_HELD = 1 << 21


def chat_requests(body: ChatBody, model: Any, default_limit: int | None) -> Sequence[GenerationRequest]:
    """Return one request for each of the `n` answers to a conversation."""
    prompt = _prompter(model).chat([_turn(message) for message in body.messages], body.template_variables)
    request = _request(body, prompt, body.limit or _limit(model, default_limit))
    request = replace(request, continues=bool(body.continue_final_message))
    return _limit_logprobs(body, _variants(request, body.n or 1), model)


def completion_requests(body: CompletionBody, model: Any, default_limit: int | None) -> Sequence[GenerationRequest]:
    """Return one request for each of the `n` continuations of every prompt, prompt by prompt."""
    limit = body.limit or _limit(model, default_limit)
    prompts = [_completion_prompt(model, prompt) for prompt in body.prompts]
    requests = [replace(_request(body, prompt, limit), plain=True, thinking=False) for prompt in prompts]
    variants = [variant for request in requests for variant in _variants(request, body.n or 1)]
    return _limit_logprobs(body, variants, model)


def _turn(message: requests.Message) -> Message:
    # Chat templates know the older name of the role.
    role = "system" if message.role == "developer" else message.role
    turn: Message = {"role": role, "content": message.text}
    return turn if message.name is None else {**turn, "name": message.name}


def _prompter(model: Any) -> Prompter:
    return Prompter(model.tokenizer, model.vocabulary, context=model.context_length)


def _completion_prompt(model: Any, prompt: str | list[int]) -> Prompt:
    if isinstance(prompt, str):
        return _prompter(model).completion(prompt)
    return Prompt(tuple(prompt), thinking=False)


def _limit(model: Any, default: int | None) -> int:
    """Return how many tokens an answer may have if the client does not say."""
    return default or default_max_tokens(model.context_length)


def _request(body: ChatBody | CompletionBody, prompt: Prompt, limit: int) -> GenerationRequest:
    if not prompt.tokens:
        raise ValidationError("The prompt is empty, and the model has no token that begins a text.")
    stops = StopStrings(body.stops)
    return GenerationRequest(prompt.tokens, limit, _sampling(body), stops, prompt.thinking, body.wanted_logprobs)


def _limit_logprobs(
    body: ChatBody | CompletionBody, requests: Sequence[GenerationRequest], model: Any
) -> Sequence[GenerationRequest]:
    """Return the requests if there is room for the logprobs of all their answers until the last is there.

    Where the client sets no limit to their length, this does.
    """
    if body.stream or body.wanted_logprobs is None:
        return requests
    each = body.wanted_logprobs + 1
    if body.limit is None:
        most = max(1, MOST_LOGPROBS_HELD // (each * len(requests)))
        return [replace(request, max_tokens=min(request.max_tokens or most, most)) for request in requests]
    tokens = sum(token_budget(request, model.context_length) for request in requests)
    if tokens * each > MOST_LOGPROBS_HELD:
        raise ValidationError(
            f"The answers may have {tokens:,} tokens with {each} logprobs each, but the server holds at most "
            f"{MOST_LOGPROBS_HELD:,} for a request. Ask for fewer, or for a stream.",
            param="max_tokens",
        )
    return requests


def _variants(request: GenerationRequest, count: int) -> list[GenerationRequest]:
    return [replace(request, sampling=_variant(request.sampling, number)) for number in range(count)]


def _sampling(body: GenerationBody) -> Sampling:
    given = {name: value for name in _SAMPLING if (value := getattr(body, name)) is not None}
    bias = tuple((int(token), value) for token, value in (body.logit_bias or {}).items())
    return Sampling(**given, logit_bias=bias)


def _variant(sampling: Sampling, number: int) -> Sampling:
    """Return the sampling of the answer with this number: the same seed for all would give the same text."""
    if sampling.seed is None or number == 0:
        return sampling
    return replace(sampling, seed=(sampling.seed + number) % _SEEDS)
