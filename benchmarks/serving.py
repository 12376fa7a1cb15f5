"""Measure the speed of `mlxk2 serve` with one and many clients, compared with `mlx_lm.server`."""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import load
import rounds
import servers
from completions import DEMO
from load import Body, Completion, Request
from servers import NAMES, Server

ROUNDS = 5
LATE_ROUNDS = 15  # More rounds, because a wait of milliseconds varies more than a speed.
MANY = 8
CROWD = 64
CROWD_TOKENS = 32
LONG = 400
WARM_REQUESTS, STEADY_REQUESTS, AT_ONCE = 200, 2_000, 20
NOTICED = 1.0  # Seconds after which the server has freed the requests of clients that hung up.
NEVER = "<tool_response>"  # The demo never chooses this token.
GREEDY: Body = {"temperature": 0.0}
SAMPLED: Body = {"temperature": 0.8}
SEEDED: Body = {"temperature": 0.8, "seed": 1}


class Load(NamedTuple):
    """A number of streams with the same options, and the least ratio of our speed to theirs."""

    name: str
    streams: int
    options: Body
    at_least: float


class Subject(NamedTuple):
    """A model, the number of tokens of its completions, its loads, and the numbers of rounds.

    `words` is the number of words of a prompt of 2,000 tokens.
    """

    name: str
    folder: Path
    tokens: int
    loads: Sequence[Load]
    rounds: int
    words: int
    long_rounds: int


def subjects(folder: Path) -> list[Subject]:
    """Return the demo and a model of 98 million parameters; with the larger one, equal speed is enough."""
    large = rounds.make_once(folder / "models", "small_models.py") / "float32"
    return [
        Subject("demo", endless(folder / "endless"), 256, _loads(1.1, 1.1, 2.0), rounds=5, words=1_950, long_rounds=5),
        # One long round, because reading 2,000 tokens takes this model more than a minute.
        Subject("float32", large, 16, _loads(0.97, 0.97, 0.97), rounds=3, words=700, long_rounds=1),
    ]


def _loads(greedy: float, sampled: float, seeded: float) -> list[Load]:
    return [
        Load("one stream", 1, GREEDY, 0.97),
        Load("eight greedy streams", MANY, GREEDY, greedy),
        Load("eight sampled streams", MANY, SAMPLED, sampled),
        Load("eight seeded streams", MANY, SEEDED, seeded),
    ]


def endless(folder: Path) -> Path:
    """Make the demo with an end token that it never chooses, so that each completion has all requested tokens."""
    shutil.copytree(DEMO, folder, dirs_exist_ok=True)
    tokens = _read(folder / "tokenizer.json")["added_tokens"]
    number = next(token["id"] for token in tokens if token["content"] == NEVER)
    _change(folder / "config.json", {"eos_token_id": number})
    _change(folder / "generation_config.json", {"eos_token_id": number})
    _change(folder / "tokenizer_config.json", {"eos_token": NEVER})
    return folder


def _change(path: Path, values: Body) -> None:
    path.write_text(json.dumps(_read(path) | values))


def _read(path: Path) -> Body:
    content: Body = json.loads(path.read_text())
    return content


def _question(text: str, tokens: int, **options: object) -> Body:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": tokens, **options}


def speeds(subject: Subject, us: Server, them: Server) -> list[rounds.Figure]:
    """Measure the tokens per second of each load, on both servers alternately."""
    return [_measure_speed(subject, kind, us, them) for kind in subject.loads]


def _measure_speed(subject: Subject, kind: Load, us: Server, them: Server) -> rounds.Figure:
    requests = [
        # Each request has its own prompt, and its own seed if it has one.
        Request(_question(f"Count from {number} to 100.", subject.tokens, **_with_seed(kind.options, number)))
        for number in range(1, kind.streams + 1)
    ]
    pairs = rounds.alternate(
        lambda: _tokens_per_second(us, requests), lambda: _tokens_per_second(them, requests), subject.rounds
    )
    return rounds.compare(f"{kind.name}, {subject.name}", pairs, "tokens/s", NAMES, at_least=kind.at_least)


def _with_seed(options: Body, seed: int) -> Body:
    return {**options, "seed": seed} if "seed" in options else options


def _tokens_per_second(server: Server, requests: Sequence[Request]) -> float:
    """Return the number of all tokens, divided by the time from the first request to the last token."""
    completions = [load.whole(completion) for completion in load.together(server.port, requests)]
    return sum(completion.tokens for completion in completions) / max(completion.last for completion in completions)


def crowd(us: Server, them: Server) -> list[rounds.Figure]:
    """Measure 64 connections at once: the number of refused ones, and the longest wait for a first token."""
    requests = [Request(_question(f"Count from {number} to 100.", CROWD_TOKENS, **GREEDY)) for number in range(CROWD)]
    refused = {us: 0, them: 0}

    def longest_wait(server: Server) -> float:
        completions = load.together(server.port, requests)
        served = [completion for completion in completions if isinstance(completion, Completion)]
        refused[server] += len(completions) - len(served)
        return max(completion.first for completion in served)

    pairs = rounds.alternate(lambda: longest_wait(us), lambda: longest_wait(them), ROUNDS)
    what = f"{CROWD} connections at once, longest wait for a first token"
    print(f"refused or reset, of {CROWD * (ROUNDS + 1)}: {refused[us]} by ours, {refused[them]} by theirs")
    return [
        rounds.Figure(f"{CROWD} connections at once, refused or reset", refused[us], at_most=0, unit="of them"),
        rounds.compare(what, pairs, "s", NAMES, at_most=0.5),
    ]


def late_comer(us: Server) -> rounds.Figure:
    """Measure the additional wait of a short request beside long streams, in decode steps."""
    waits = [_waited_steps(us) for _ in range(LATE_ROUNDS + 1)][1:]
    print(f"a short request among {MANY - 1} long ones: {min(waits):.2f} to {max(waits):.2f} steps more than alone")
    return rounds.Figure("a short request among long ones waits", statistics.median(waits), at_most=5, unit="steps")


def _waited_steps(us: Server) -> float:
    short = _question("Hello", 2, **GREEDY)
    alone = load.ask(us.port, short).first
    long = [Request(_question(f"Count from {number} to 100.", LONG, **GREEDY)) for number in range(1, MANY)]
    completions = [load.whole(completion) for completion in load.together(us.port, [Request(short, delay=0.3), *long])]
    late, *streams = completions
    step = statistics.median((stream.last - stream.first) / stream.tokens for stream in streams)
    return (late.first - alone) / step


def second_turn(subject: Subject, us: Server) -> rounds.Figure:
    """Measure the wait for the first token in the second turn of a long conversation, divided by that in the first."""
    ratios = [_second_by_first(us, subject.words, number) for number in range(subject.long_rounds)]
    print(f"second turn, {subject.name}: waits {min(ratios):.3f} to {max(ratios):.3f} of the first turn's wait")
    return rounds.Figure(f"first token of a second turn, {subject.name}", statistics.median(ratios), at_most=0.2)


def _second_by_first(us: Server, count: int, number: int) -> float:
    # A new conversation, so that the whole first turn is computed.
    words = random.Random(number).choices(("one", "two", "three", "four", "five", "six"), k=count)
    body = _question(" ".join(words), 16, **GREEDY)
    first = load.ask(us.port, body)
    turns = [*body["messages"], {"role": "assistant", "content": first.text}, {"role": "user", "content": "And then?"}]
    return load.ask(us.port, {**body, "messages": turns}).first / first.first


def steady(us: Server) -> rounds.Figure:
    """Measure the memory after 2,000 requests, some of which hang up, divided by the memory after the first 200."""
    chance = random.Random(0)
    before = _memory_after(us, WARM_REQUESTS, chance)
    after = _memory_after(us, STEADY_REQUESTS - WARM_REQUESTS, chance)
    print(f"memory: {before / 1e6:.0f} MB after {WARM_REQUESTS} requests, {after / 1e6:.0f} MB after {STEADY_REQUESTS}")
    return rounds.Figure(f"memory after {STEADY_REQUESTS} requests", after / before, at_most=1.05)


def _memory_after(us: Server, count: int, chance: random.Random) -> int:
    for _ in range(count // AT_ONCE):
        load.together(us.port, [_any_request(chance) for _ in range(AT_ONCE)])
    time.sleep(NOTICED)
    return us.resident_bytes()


def _any_request(chance: random.Random) -> Request:
    text = " ".join(chance.choices(("one", "two", "three", "four"), k=chance.choice((2, 20, 200))))
    body = _question(text, chance.choice((1, 8, 64)), temperature=chance.choice((0.0, 0.8)))
    return Request(body, hang_up_after=chance.choice((None, None, None, 3)))


def measure(subject: Subject) -> list[rounds.Figure]:
    """Start both servers with a model and make all measurements of it."""
    with ExitStack() as running:
        us, them = (running.enter_context(start(subject.folder)) for start in (servers.ours, servers.theirs))
        figures = [*speeds(subject, us, them), second_turn(subject, us)]
        if subject.name == "demo":
            figures += [*crowd(us, them), late_comer(us)]
    return figures


def measure_memory(subject: Subject) -> rounds.Figure:
    """Measure the memory of a server with a small prompt cache, which 200 requests fill."""
    with servers.ours(subject.folder, "--prompt-cache-bytes", "20MB") as us:
        return steady(us)


def main() -> int:
    """Make the models, measure, print, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", metavar="DIR", help="make the models here, or use those that are here")
    args = parser.parse_args()
    with rounds.workspace(args.keep) as folder:
        demo, large = subjects(folder)
        return rounds.verdict([*measure(demo), measure_memory(demo), *measure(large)])


if __name__ == "__main__":
    sys.exit(main())
