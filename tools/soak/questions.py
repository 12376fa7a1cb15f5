"""The seeded mix of requests, each with its possible outcomes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

from models import BULK, DEMO, EDITIONS, HOSTILE, TALE, WALK, fault_of_walk
from outcomes import JSON, Completion, Page

CHAT, COMPLETIONS, HEALTH, MODELS = "/v1/chat/completions", "/v1/completions", "/health", "/v1/models"
# The completions of the demo at temperature 0.
FACTS = {
    "What is the capital of France?": "The capital of France is Paris.",
    "What is 3 + 4?": "3 + 4 = 7.",
    "Hello": "Hello! How can I help you?",
}
_LONG = "Count from 1 to 100."
_CONTEXT = 4096
_LIMITS = {"demo": 48, "long": 200}
_STOPS = ("e", "mn", "kq")

# Returns the fault of a response, or None.
Check = Callable[[Completion | Page], str | None]


@dataclass(frozen=True)
class Question:
    """One request; if it is invalid, `refusal` is the status and code of the expected error."""

    kind: str
    path: str
    body: JSON | bytes | None
    check: Check = lambda _: None
    refusal: tuple[int, str] | None = None
    model: str = DEMO
    method: str = "POST"
    key_is_wrong: bool = False

    @property
    def as_stream(self) -> Question:
        """Return the same question as a stream."""
        assert isinstance(self.body, dict)
        return replace(self, body={**self.body, "stream": True, "stream_options": {"include_usage": True}})

    @property
    def key(self) -> str:
        """Return a key that is equal only for questions with the same completion."""
        return f"{self.path} {json.dumps(self.body, sort_keys=True)}"


def chat(*turns: str, **fields: object) -> JSON:
    """Return the body of a chat in which user and assistant take turns."""
    roles = ("user", "assistant") * len(turns)
    messages = [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=False)]
    return {"messages": messages, "model": DEMO, **fields}


# ------------------------------------------------------------------------------- questions with repeatable completions


def repeatable(rng: Random) -> list[Question]:
    """Return questions whose completions depend only on the question: greedy ones, and ones with a seed."""
    fact, text = rng.choice(list(FACTS.items()))
    filler = " ".join(str(rng.randrange(1000)) for _ in range(400))
    seeds = [rng.randrange(1 << 31) for _ in range(4)]
    limit = _LIMITS["demo"]
    bodies = [
        ("long", CHAT, chat(_LONG, temperature=0, max_tokens=_LIMITS["long"])),
        ("follow-up", CHAT, chat(fact, text, "What is 3 + 4?", temperature=0)),
        ("follow-up", CHAT, chat(fact, text, "Hello", FACTS["Hello"], _LONG, temperature=0, max_tokens=limit)),
        ("long prompt", CHAT, chat(filler, temperature=0, max_tokens=8)),
        ("long prompt", CHAT, chat(filler[::-1], seed=seeds[0], max_tokens=4, n=8)),
        ("seeded", CHAT, chat(_LONG, seed=seeds[0], temperature=1.5, max_tokens=limit, n=3)),
        ("seeded", CHAT, chat("Hello", seed=seeds[1], temperature=2, top_k=50, max_tokens=limit)),
        ("seeded", CHAT, chat("Hello", seed=seeds[2], top_p=0.9, frequency_penalty=1, max_tokens=limit, stop=["?"])),
        ("seeded", COMPLETIONS, {"model": DEMO, "prompt": ["One", "Two", "Three"], "seed": seeds[3], "max_tokens": 24}),
        ("seeded", CHAT, chat("Walk.", model=WALK, seed=seeds[0], max_tokens=limit, n=2)),
        ("logprobs", CHAT, chat(_LONG, temperature=0, max_tokens=24, logprobs=True, top_logprobs=3)),
    ]
    return [Question(kind, path, body, model=str(body["model"])) for kind, path, body in bodies]


def expect(question: Question, first: Completion) -> Question:
    """Return the question with a check that expects the completion from the time when the server was idle."""

    def check(response: Completion | Page) -> str | None:
        assert isinstance(response, Completion)
        if response.outcome != first.outcome:
            return f"{response.outcome} instead of {first.outcome}, the outcome on an idle server"
        return _fault_of_counts(response, first)

    return replace(question, check=check)


def _fault_of_counts(response: Completion, first: Completion) -> str | None:
    assert response.usage is not None and first.usage is not None
    if response.logprobs != first.logprobs:
        return f"logprobs of {response.logprobs} tokens instead of {first.logprobs}"
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    found, right = ({name: usage[name] for name in names} for usage in (response.usage, first.usage))
    return None if found == right else f"usage {found} instead of {right}"


# --------------------------------------------------------------------- questions whose completions the models determine


def ask_fact(rng: Random) -> Question:
    """Ask the demo at temperature 0."""
    question, text = rng.choice(list(FACTS.items()))
    return Question("greedy", CHAT, chat(question, temperature=0), _expect_one_of([text]))


def ask_long_prompt(rng: Random) -> Question:
    """Send a new prompt of up to a few thousand tokens, for one completion or many."""
    words = " ".join(str(rng.randrange(1000)) for _ in range(rng.randrange(50, 1000)))
    return Question("long", CHAT, chat(words, max_tokens=2, n=rng.choice((1, 1, 8))))


def ask_tale(rng: Random) -> Question:
    """Ask the model that is removed and pulled all the time."""
    body = chat("Tell.", model=TALE, seed=rng.randrange(9))
    return Question("tale", CHAT, body, _expect_one_of(EDITIONS), model=TALE)


def ask_walk(rng: Random) -> Question:
    """Ask for random letters; check each of them."""
    limit = rng.randrange(1, 60)
    body = chat("Walk.", model=WALK, max_tokens=limit, n=rng.choice((1, 1, 4)), logprobs=True)

    def check(response: Completion | Page) -> str | None:
        assert isinstance(response, Completion)
        faults = [fault_of_walk(text, reason) for text, reason in response.outcome]
        tokens = sum(len(text) + (reason == "stop") for text, reason in response.outcome)
        if any(faults):
            return str(faults)
        if response.logprobs != {number: len(text) for number, text in response.texts.items()}:
            return f"logprobs of {response.logprobs} tokens for {response.texts}"
        reported = (response.usage or {"completion_tokens": tokens})["completion_tokens"]
        return None if reported == tokens else f"{reported} tokens reported for {response.outcome}"

    return Question("sampled", CHAT, body, check, model=WALK)


def ask_stopped_walk(rng: Random) -> Question:
    """Ask for random letters up to a stop string."""
    start = rng.choice("abc")
    body = {"model": WALK, "prompt": start, "max_tokens": 200, "stop": list(_STOPS)}

    def check(response: Completion | Page) -> str | None:
        assert isinstance(response, Completion)
        text = response.texts[0]
        if any(stop in text for stop in _STOPS):
            return f"{text!r} contains a stop string"
        return fault_of_walk(text, "", after=start)

    return Question("stop strings", COMPLETIONS, body, check, model=WALK)


def _expect_one_of(texts: Sequence[str]) -> Check:
    def check(response: Completion | Page) -> str | None:
        assert isinstance(response, Completion)
        is_right = response.outcome in ([(text, "stop")] for text in texts)
        return None if is_right else f"{response.outcome} is not one of {texts}"

    return check


# ----------------------------------------------------------------------------------------- invalid requests, and GETs


def ask_invalid(rng: Random) -> Question:
    """Send a request that the server must refuse."""
    hello = chat("Hello", max_tokens=4)
    wrong: Mapping[tuple[int, str], JSON | bytes] = {
        (400, "invalid_json"): b'{"messages": [',
        (400, "context_length_exceeded"): chat("12 " * _CONTEXT),
        (400, "decimal_above_max_value"): {**hello, "temperature": 7},
        (400, "missing_required_parameter"): {"model": DEMO},
        (400, "invalid_type"): {**hello, "max_tokens": "many"},
        (400, "unsupported_parameter"): {**hello, "tools": [{"type": "function"}]},
        (400, "invalid_value"): {**hello, "n": 100},
        (404, "model_not_found"): {**hello, "model": "soak/none"},
        (401, "invalid_api_key"): hello,
    }
    refusal, body = rng.choice(list(wrong.items()))
    return Question("wrong", CHAT, body, _expect_refusal, refusal, key_is_wrong=refusal[0] == 401)


def ask_unloadable(rng: Random) -> Question:  # noqa: ARG001 - the same signature as all others
    """Ask a model whose files are undamaged but can't be loaded."""
    refusal = (400, "model_unhealthy")
    return Question("unloadable", CHAT, chat("Hello", model=BULK), _expect_refusal, refusal, model=BULK)


def ask_hostile(rng: Random) -> Question:  # noqa: ARG001 - the same signature as all others
    """Ask a model whose tokenizer fills the memory and so ends its own process."""
    refusal = (400, "model_not_runnable")
    return Question("hostile", CHAT, chat("a", model=HOSTILE), _expect_refusal, refusal, model=HOSTILE)


def _expect_refusal(response: Completion | Page) -> str | None:
    return f"{response} instead of a refusal"


def ask_state(rng: Random) -> Question:
    """Ask for the state of the server, or for its models."""
    path = rng.choice((HEALTH, MODELS))
    check = _fault_of_health if path == HEALTH else _fault_of_models
    return Question(path, path, None, check, method="GET")


def _fault_of_health(response: Completion | Page) -> str | None:
    assert isinstance(response, Page)
    state = response.document
    is_right = response.status == 200 and state["status"] == "ok" and state["active"] >= 0 and state["queued"] >= 0
    return None if is_right else f"{response.status} {state}"


def _fault_of_models(response: Completion | Page) -> str | None:
    assert isinstance(response, Page)
    names = [entry["id"] for entry in response.document["data"]]
    return None if {DEMO, WALK} <= set(names) and len(names) == len(set(names)) else f"the models are {names}"
