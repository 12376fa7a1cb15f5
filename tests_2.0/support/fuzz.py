"""Hostile inputs for fuzz tests, the same in every run: bytes, mutations and damaged JSON from a seeded source."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from typing import Any

# Multiplies the number of cases: 1 in `make test`, ALL_CASES in `make test-long`.
EFFORT = int(os.environ.get("MLXK2_FUZZ", "1"))
ALL_CASES = 4

# JSON texts on which a careless reader fails.
HOSTILE_JSON = (
    b"null",
    b"true",
    b"[]",
    b"{}",
    b"0",
    b"-1",
    b"1.5",
    b"NaN",
    b"Infinity",
    b"-Infinity",
    b"1e999",
    b"-0",
    b'""',
    b"9" * 20,
    b"9" * 4299,
    b"9" * 5000,
    b"0." + b"9" * 5000,
    b"1e-5000",
    b'"\\ud800"',
    b'"\\udfff\\ud800"',
    b'"\\u0000"',
    b'"\x1b[31m"',
    b'"' + b"x" * 10_000 + b'"',
    b"[" * 2000 + b"]" * 2000,
    b'{"a":' * 2000 + b"1" + b"}" * 2000,
    b"[1,2,3]",
    b'["a","b"]',
    b'{"a":{"b":[{}]}}',
    b'"../../etc/passwd"',
    b'"/"',
    b'"\xff\xfe"',
    b"nul",
    b"",
)
HOSTILE_BYTES = (
    b"",
    b"\0",
    b"\0" * 4096,
    b"\xff" * 4096,
    b"{" * 5000,
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b"---\n" * 1000,
    b"\xef\xbb\xbf{}",
    '{"model_type": "llama"}'.encode("utf-16"),
    b"\r\n" * 1000,
    b"version https://git-lfs",
)


def mutations(source: random.Random, valid: bytes, count: int) -> Iterator[bytes]:
    """Yield damaged versions of valid bytes: flipped, cut, repeated, overwritten, spliced."""
    ways: tuple[Callable[[random.Random, bytearray], None], ...] = (_flip, _cut, _insert, _overwrite, _remove, _repeat)
    for _ in range(count):
        damaged = bytearray(valid)
        for _ in range(source.choice((1, 1, 2, 8))):
            source.choice(ways)(source, damaged)
        yield bytes(damaged)


def _flip(source: random.Random, data: bytearray) -> None:
    if data:
        data[source.randrange(len(data))] ^= 1 << source.randrange(8)


def _cut(source: random.Random, data: bytearray) -> None:
    del data[source.randrange(len(data) + 1) :]


def _insert(source: random.Random, data: bytearray) -> None:
    position = source.randrange(len(data) + 1)
    data[position:position] = source.choice((source.randbytes(9), *HOSTILE_JSON))


def _overwrite(source: random.Random, data: bytearray) -> None:
    position = source.randrange(len(data) + 1)
    with_what = source.choice((b"\xff" * 8, b"\0" * 8, b"\xff" * 4, b"\x7f" + b"\xff" * 7, source.randbytes(4)))
    data[position : position + len(with_what)] = with_what


def _remove(source: random.Random, data: bytearray) -> None:
    position = source.randrange(len(data) + 1)
    del data[position : position + source.randrange(1, 16)]


def _repeat(source: random.Random, data: bytearray) -> None:
    position = source.randrange(len(data) + 1)
    data[position:position] = data[position : position + source.randrange(1, 200)] * source.randrange(1, 20)


def json_mutations(source: random.Random, value: Any, count: int) -> Iterator[bytes]:
    """Yield versions of a JSON document, each with hostile values in one to three places."""
    text = json.dumps(value)
    places = sorted({json.dumps(part) for part in _parts(value)}, key=lambda part: (len(part), part))
    for _ in range(count):
        damaged = text.encode()
        for part in source.sample(places, k=min(len(places), source.choice((1, 1, 2, 3)))):
            damaged = damaged.replace(part.encode(), source.choice(HOSTILE_JSON), 1)
        yield damaged


def _parts(value: Any) -> Iterator[Any]:
    yield value
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for child in children:
        yield from _parts(child)
    if isinstance(value, dict):
        yield from value  # a key that becomes a number, a list, nothing
