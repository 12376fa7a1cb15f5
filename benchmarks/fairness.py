"""Measure how long a short question, a running stream and many completions wait for other requests in `mlxk2 serve`."""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import sys
import threading
import time
from collections.abc import Sequence

import load
import rounds
import servers
from load import Body, Completion, Request
from servers import NAMES, Server
from serving import GREEDY, endless

ROUNDS = 3
LONG_PROMPTS = 8
LONG_WORDS, SHARED_WORDS = 1_950, 725  # About 4,000 and 1,500 tokens of the demo.
COMPLETIONS = 16
STREAM_TOKENS = 3_000
LATER = 0.5  # Seconds after which the server has received all long prompts.
_WORDS = ("one", "two", "three", "four", "five", "six")


def _question(text: str, tokens: int, **options: object) -> Body:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": tokens, **GREEDY, **options}


def _long(words: int, chance: random.Random) -> str:
    """Return a new prompt of so many words."""
    return " ".join(chance.choices(_WORDS, k=words))


def _long_requests(chance: random.Random) -> list[Request]:
    return [Request(_question(_long(LONG_WORDS, chance), 1)) for _ in range(LONG_PROMPTS)]


def short_beside_long(us: Server, chance: random.Random) -> rounds.Figure:
    """Measure the wait for the first token of a short question that comes after eight long prompts."""
    waits = []
    for _ in range(ROUNDS):
        short = Request(_question("What is 3 + 4?", 8), delay=LATER)
        first, *others = load.together(us.port, [short, *_long_requests(chance)])
        for other in others:
            load.whole(other)
        waits.append(load.whole(first).first)
    print(f"a short question beside long prompts: first token after {min(waits):.2f} to {max(waits):.2f} s")
    what = f"first token of a short question beside {LONG_PROMPTS} long prompts"
    return rounds.Figure(what, statistics.median(waits), at_most=1.0, unit="s")


def stream_beside_long(us: Server, chance: random.Random) -> rounds.Figure:
    """Measure the longest pause of a running stream while eight long prompts are read."""
    gaps = [_longest_gap(us, _long_requests(chance)) for _ in range(ROUNDS)]
    print(f"a stream beside long prompts: pauses for {min(gaps):.2f} to {max(gaps):.2f} s")
    what = f"a stream stands still beside {LONG_PROMPTS} long prompts"
    return rounds.Figure(what, statistics.median(gaps), at_most=0.5, unit="s")


def _longest_gap(us: Server, long: Sequence[Request]) -> float:
    times: list[float] = []
    question = _question("Count from 1 to 100.", STREAM_TOKENS)
    streaming = threading.Thread(target=load.watch, args=(us.port, question, lambda: times.append(time.perf_counter())))
    streaming.start()
    while not times:
        time.sleep(0.01)
    for completion in load.together(us.port, long):
        load.whole(completion)
    end, is_streaming = time.perf_counter(), streaming.is_alive()
    streaming.join()
    seen = [moment for moment in times if moment <= end]
    # If the stream ended before the last prompt was read, the time after its end is not a pause.
    return max(later - earlier for earlier, later in itertools.pairwise([*seen, end] if is_streaming else seen))


def long_together(us: Server, them: Server, chance: random.Random) -> rounds.Figure:
    """Measure the time of eight long prompts that come together, on both servers alternately."""
    pairs = rounds.alternate(
        lambda: _seconds(us, _long_requests(chance)), lambda: _seconds(them, _long_requests(chance)), ROUNDS
    )
    what = f"{LONG_PROMPTS} long prompts together"
    return rounds.compare(what, pairs, "s", NAMES, at_most=1.15)


def _seconds(server: Server, requests: Sequence[Request]) -> float:
    completions: list[Completion] = [load.whole(completion) for completion in load.together(server.port, requests)]
    return max(completion.last for completion in completions)


def many_answers(us: Server, chance: random.Random) -> rounds.Figure:
    """Measure the time of sixteen completions of one prompt, divided by the time of one completion."""

    def seconds(count: int) -> float:
        return load.ask(us.port, _question(_long(SHARED_WORDS, chance), 1, n=count)).last

    pairs = rounds.alternate(lambda: seconds(COMPLETIONS), lambda: seconds(1))
    what = f"{COMPLETIONS} completions to one prompt"
    return rounds.compare(what, pairs, "s", (f"{COMPLETIONS} completions", "one completion"), at_most=1.5)


def main() -> int:
    """Measure, print, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", metavar="DIR", help="make the model here, or use the one that is here")
    args = parser.parse_args()
    chance = random.Random(time.time())
    with rounds.workspace(args.keep) as folder:
        model = endless(folder / "endless")
        with servers.ours(model) as us, servers.theirs(model) as them:
            figures = [
                short_beside_long(us, chance),
                stream_beside_long(us, chance),
                long_together(us, them, chance),
                many_answers(us, chance),
            ]
    return rounds.verdict(figures)


if __name__ == "__main__":
    sys.exit(main())
