"""The quick check of a usual safetensors header accepts nothing that the parser refuses."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from support.fuzz import EFFORT

from mlxk2.checkpoint.files import BrokenFile, File
from mlxk2.checkpoint.safetensors import judge_usual_header, read_metadata

CASES = 40 * EFFORT
MUTATIONS = 6


def _header(rng: random.Random, of_mlx: bool) -> tuple[bytes, int]:
    """Return a header with the key order of MLX or of the format's own library, and the size of its data."""
    tensors, end = {}, 0
    for number in range(rng.randint(1, 12)):
        shape = [rng.randint(1, 9) for _ in range(rng.randint(0, 3))]
        dtype, width = rng.choice([("F32", 4), ("BF16", 2), ("U8", 1), ("I64", 8)])
        size = width
        for length in shape:
            size *= length
        tensor = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        tensors[f"layers.{number}.weight"] = dict(sorted(tensor.items())) if of_mlx else tensor
        end += size
    items = list(tensors.items())
    if rng.random() < 0.3:
        rng.shuffle(items)
    metadata = {"__metadata__": {"format": "mlx", "a": 'b"\\'}} if rng.random() < 0.5 else {}
    text = json.dumps({**metadata, **dict(items)}, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8), end


def _mutated(rng: random.Random, text: bytes) -> bytes:
    changed = bytearray(text)
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(changed))
        kind = rng.random()
        if kind < 0.5:
            changed[place] = rng.choice(b'0123456789,:"{}[]\\ x\x00\xff')
        elif kind < 0.75:
            del changed[place]
        else:
            changed.insert(place, rng.choice(b'019,"}] '))
    return bytes(changed)


def _parsed(tmp_path: Path, text: bytes, size: int) -> dict[str, str] | None:
    """Return the result of the parser; a leading space keeps the quick check from accepting the header."""
    path = tmp_path / "x.safetensors"
    path.write_bytes((len(text) + 1).to_bytes(8, "little") + b" " + text + b"\0" * size)
    try:
        return read_metadata(File("x.safetensors", str(path), 9 + len(text) + size, (0, 0)))
    except BrokenFile:
        return None


@pytest.mark.sampled
@pytest.mark.parametrize("of_mlx", [False, True])
def test_usual_headers_are_checked_without_the_parser(of_mlx: bool) -> None:
    rng = random.Random(1)
    for _ in range(CASES):
        text, size = _header(rng, of_mlx)
        assert judge_usual_header(text, size) == json.loads(text).get("__metadata__", {})
        assert judge_usual_header(text, size + 1) is None
        assert judge_usual_header(text, size - 1) is None


@pytest.mark.sampled
@pytest.mark.parametrize("of_mlx", [False, True])
def test_the_parser_agrees_with_the_quick_check(tmp_path: Path, of_mlx: bool) -> None:
    rng = random.Random(2)
    agreed = 0
    for _ in range(CASES):
        text, size = _header(rng, of_mlx)
        for _ in range(MUTATIONS):
            changed = _mutated(rng, text)
            found = judge_usual_header(changed, size)
            if found is not None:
                agreed += 1
                assert found == _parsed(tmp_path, changed, size), changed
    assert agreed > 8  # otherwise no mutation leaves a header valid, and nothing is compared


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},}',
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}x',
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,01]}}',
        b'{"a":{"dtype":"U8","shape":[01],"data_offsets":[0,1]}}',
        b'{"a":{"dtype":"Q8","shape":[1],"data_offsets":[0,1]}}',
        b'{"b":5,"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b'{"__metadata__":{"format":5},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b'{"__metadata__":{},"b":1,"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b'[{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
    ],
)
def test_unusual_headers_are_left_to_the_parser(text: bytes) -> None:
    assert judge_usual_header(text, 1) is None
