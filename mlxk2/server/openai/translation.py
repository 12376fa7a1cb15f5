"""The translation of a valid request body into the requests that the runner understands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mlxk2.errors import ValidationError
from mlxk2.runner.output.stops import StopStrings
from mlxk2.runner.prompt.prompter import Message, Prompt, Prompter
from mlxk2.runner.request import GenerationRequest, Sampling, default_max_tokens, token_budget
from mlxk2.server.openai.requests import ChatBody, CompletionBody
from mlxk2.server.preparing import PromptModel

_SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed",
)  # fmt: skip
_SEEDS = 1 << 64
# The chosen and the likeliest tokens of one request. They take some 200 bytes each, until the response is sent.
MAX_LOGPROBS_HELD = 1 << 21


def chat_requests(body: ChatBody, model: PromptModel, default_limit: int | None) -> Sequence[GenerationRequest]:
    """Return one request for each of the `n` completions of a conversation."""
    messages: list[Message] = []
    for message in body.messages:
        # Chat templates know the older name of the role.
        role = "system" if message.role == "developer" else message.role
        turn: Message = {"role": role, "content": message.text}
        messages.append(turn if message.name is None else {**turn, "name": message.name})
    prompt = _prompter(model).chat(messages, body.template_variables)
    request = replace(_request(body, prompt, model, default_limit), continues=bool(body.continue_final_message))
    return _limit_logprobs(body, _variants(request, body.n or 1), model)


def completion_requests(
    body: CompletionBody, model: PromptModel, default_limit: int | None
) -> Sequence[GenerationRequest]:
    """Return one request for each of the `n` completions of every prompt, prompt by prompt."""
    prompter = _prompter(model)
    requests: list[GenerationRequest] = []
    for given in body.prompts:
        prompt = prompter.completion(given) if isinstance(given, str) else Prompt(tuple(given), thinking=False)
        request = replace(_request(body, prompt, model, default_limit), plain=True, thinking=False)
        requests += _variants(request, body.n or 1)
    return _limit_logprobs(body, requests, model)


def _prompter(model: PromptModel) -> Prompter:
    return Prompter(model.tokenizer, model.vocabulary, context=model.context_length)


def _request(
    body: ChatBody | CompletionBody, prompt: Prompt, model: PromptModel, default_limit: int | None
) -> GenerationRequest:
    if not prompt.tokens:
        raise ValidationError("The prompt is empty, and the model has no token that begins a text.")
    limit = body.limit or default_limit or default_max_tokens(model.context_length)
    given = {name: value for name in _SAMPLING if (value := getattr(body, name)) is not None}
    bias = tuple((int(token), value) for token, value in (body.logit_bias or {}).items())
    sampling = Sampling(**given, logit_bias=bias)
    return GenerationRequest(
        prompt.tokens, limit, sampling, StopStrings(body.stops), prompt.thinking, body.likeliest_count
    )


def _variants(request: GenerationRequest, count: int) -> list[GenerationRequest]:
    """Return one request for each of several completions: with the same seed they would all have the same text."""
    seed = request.sampling.seed
    if seed is None:
        return [request] * count
    seeds = ((seed + number) % _SEEDS if number else seed for number in range(count))
    return [replace(request, sampling=replace(request.sampling, seed=each)) for each in seeds]


def _limit_logprobs(
    body: ChatBody | CompletionBody, requests: Sequence[GenerationRequest], model: PromptModel
) -> Sequence[GenerationRequest]:
    """Return the requests, if the logprobs of all their completions fit into memory until the response is sent.

    If the client sets no limit to the length, limit it so that they fit; else raise ValidationError.
    """
    if body.stream or body.likeliest_count is None:
        return requests
    each = body.likeliest_count + 1
    if body.limit is None:
        max_tokens = max(1, MAX_LOGPROBS_HELD // (each * len(requests)))
        return [replace(request, max_tokens=min(request.max_tokens or max_tokens, max_tokens)) for request in requests]
    tokens = sum(token_budget(request, model.context_length) for request in requests)
    if tokens * each > MAX_LOGPROBS_HELD:
        raise ValidationError(
            f"The response may have {tokens:,} tokens with {each} logprobs each, but the server holds at most "
            f"{MAX_LOGPROBS_HELD:,} for a request. Ask for fewer, or for a stream.",
            param="max_tokens",
        )
    return requests
