"""Measure the time to the first token with the tokenizer in its own process, compared with an older checkout."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import rounds
from completions import DEMO

ROUNDS = 15
NAMES = ("this checkout", "the other one")
# Words of prompts, each of which is two tokens.
PROMPTS = {"20 tokens": 5, "400 tokens": 190, "3,800 tokens": 1_890}
LONG = "Zq9" * 50_000  # Most of these characters are single tokens.


@contextmanager
def server(checkout: Path) -> Iterator[int]:
    """Run `mlxk2 serve` of a checkout with the demo; yield its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlxk2", "serve", "--model", "demo", "--port", str(port)],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health")
                break
            except OSError:
                time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait()


def first_token(port: int, words: int, start: int) -> float:
    """Return the seconds until a stream's first text, for a prompt of so many words that has a beginning of its own."""
    prompt = f"{start} " + " ".join(str(number % 10) for number in range(words))
    message = {"role": "user", "content": prompt}
    body = json.dumps({"messages": [message], "stream": True, "max_tokens": 1, "temperature": 0}).encode()
    began = time.perf_counter()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/chat/completions", body, timeout=60) as response:
        for line in response:
            if line.startswith(b"data: {") and json.loads(line[6:])["choices"][0]["delta"].get("content"):
                return time.perf_counter() - began
    raise RuntimeError("There was no text.")


def trips() -> list[rounds.Pair]:
    """Return pairs of seconds to tokenize a long text: in the tokenizer's process, and in this process."""
    from mlx_lm.tokenizer_utils import load  # noqa: PLC0415

    from mlxk2.runner.prompt.confined import Starter  # noqa: PLC0415 - takes a second; the servers don't need it
    from mlxk2.runner.prompt.tokenizer import load_tokenizer  # noqa: PLC0415

    there, here = load_tokenizer(Path(DEMO), {}, Starter(), "model"), load(Path(DEMO))

    def timed(encode: object) -> float:
        began = time.perf_counter()
        tokens = tuple(encode(LONG, add_special_tokens=False))  # type: ignore[operator]
        assert len(tokens) > 100_000, len(tokens)
        return time.perf_counter() - began

    return rounds.alternate(lambda: timed(there.encode), lambda: timed(here.encode), ROUNDS)


def main() -> int:
    """Measure, print, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("other", type=Path, help="a folder with the other `mlxk2` package in it")
    other = parser.parse_args().other.resolve()
    with tempfile.TemporaryDirectory() as home, ExitStack() as held:
        os.environ["HF_HOME"] = home
        ports = [held.enter_context(server(checkout)) for checkout in (Path(__file__).parent.parent, other)]
        figures = []
        for name, words in PROMPTS.items():
            starts = itertools.count(), itertools.count()
            pairs = rounds.alternate(
                lambda words=words, starts=starts: first_token(ports[0], words, next(starts[0])),
                lambda words=words, starts=starts: first_token(ports[1], words, next(starts[1])),
                ROUNDS,
            )
            figures.append(rounds.compare(f"first token, {name}", pairs, "s", NAMES, at_most=1.05))
    names = ("in the process", "without it")
    return rounds.verdict([*figures, rounds.compare("100,000 tokens", trips(), "s", names, at_most=1.05)])


if __name__ == "__main__":
    sys.exit(main())
