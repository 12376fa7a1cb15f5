"""The headers of safetensors and GGUF files: whole files pass, damaged ones do not."""

from __future__ import annotations

import json
import math
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest
import safetensors
from support import layouts
from support.layouts import GGUF_ARRAY, GGUF_STRING, GGUF_UINT32, Content, raw_safetensors, tensor

from mlxk2.checkpoint import gguf
from mlxk2.checkpoint.files import BrokenFile, File, Tree
from mlxk2.checkpoint.safetensors import read_metadata

DTYPES = sorted(layouts.BITS)


class Write(Protocol):
    """Write bytes to a file and return it as the cache sees it."""

    def __call__(self, content: Content, name: str = "file") -> File: ...


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes bytes to a file and returns it as the cache sees it."""

    def put(content: Content, name: str = "file") -> File:
        layouts.write(tmp_path / name, content)
        file = Tree(None).file(name, str(tmp_path / name))
        assert file is not None
        return file

    return put


def is_whole(check: Callable[[File], object], file: File) -> bool:
    try:
        check(file)
    except BrokenFile as error:
        assert str(error).startswith(file.name)
        return False
    return True


def library_accepts(content: bytes) -> bool:
    """Return whether the format's own library reads these bytes."""
    try:
        safetensors.deserialize(content)
    except safetensors.SafetensorError:
        return False
    return True


# -------------------------------------------------------------------------------------------------------- safetensors


SHAPES = [(4, 8), (0,), (3, 0, 2), (), (1,) * 8]
# An element of the smallest types is less than a byte, so only shapes that fill whole bytes are possible.
WHOLE_BYTES = [(d, s) for d in DTYPES for s in SHAPES if math.prod(s) * layouts.BITS[d] % 8 == 0]


@pytest.mark.parametrize(("dtype", "shape"), WHOLE_BYTES)
def test_every_type_and_shape_is_accepted(write: Write, dtype: str, shape: tuple[int, ...]) -> None:
    content = layouts.weights(dtype, shape)
    assert library_accepts(content)
    assert is_whole(read_metadata, write(content))


def test_the_metadata_of_the_file_is_returned(write: Write) -> None:
    assert read_metadata(write(layouts.weights(mlx=True))) == {"format": "mlx"}
    assert read_metadata(write(layouts.weights(mlx=False))) == {"format": "pt"}
    assert read_metadata(write(raw_safetensors({}))) == {}


@pytest.mark.parametrize("pad", [1, 7, 8, 4096, 100_000])
def test_a_header_padded_with_spaces_is_accepted(write: Write, pad: int) -> None:
    content = raw_safetensors({"a": tensor("U8", [4], 0, 4)}, bytes(4), pad)
    assert library_accepts(content)
    assert is_whole(read_metadata, write(content))


def test_the_order_of_the_tensors_does_not_matter(write: Write) -> None:
    header = {"b": tensor("U8", [4], 4, 8), "empty": tensor("U8", [0], 4, 4), "a": tensor("U8", [4], 0, 4)}
    content = raw_safetensors(header, bytes(8))
    assert library_accepts(content)
    assert is_whole(read_metadata, write(content))


def test_an_unknown_tensor_type_is_accepted(write: Write) -> None:
    assert is_whole(read_metadata, write(raw_safetensors({"a": tensor("F2_E1", [9, 9], 0, 4)}, bytes(4))))


@pytest.mark.parametrize("cut", range(0, len(layouts.weights())))
def test_every_truncation_is_found(write: Write, cut: int) -> None:
    assert not is_whole(read_metadata, write(layouts.weights()[:cut]))


def test_bytes_after_the_end_are_found(write: Write) -> None:
    assert not is_whole(read_metadata, write(layouts.weights() + b"\0"))


def test_a_truncated_large_file_is_found_by_its_header_alone(write: Write) -> None:
    whole = layouts.sparse_safetensors(300, 40_000_000_000)
    began = time.process_time()
    assert is_whole(read_metadata, write(whole))
    assert not is_whole(read_metadata, write(whole._replace(size=whole.size - 1)))
    assert time.process_time() - began < 1


BIG = 10**4000
DAMAGED = {
    "no object": raw_safetensors([1, 2]),
    "no JSON": raw_safetensors(b"{"),
    "no UTF-8": raw_safetensors(b'{"\xff": 1}'),
    "nested deeply": raw_safetensors(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "5000 digits": raw_safetensors(b'{"a":' + b"9" * 5000 + b"}"),
    "a gap": raw_safetensors({"a": tensor("U8", [4], 0, 4), "b": tensor("U8", [4], 6, 10)}, bytes(10)),
    "an overlap": raw_safetensors({"a": tensor("U8", [4], 0, 4), "b": tensor("U8", [4], 2, 6)}, bytes(6)),
    "an overlap that hides a gap": raw_safetensors(
        {"a": tensor("U8", [4], 0, 4), "b": tensor("U8", [4], 0, 4), "c": tensor("U8", [4], 8, 12)}, bytes(12)
    ),
    "a gap before": raw_safetensors({"a": tensor("U8", [4], 2, 6)}, bytes(6)),
    "a negative begin": raw_safetensors({"a": tensor("U8", [4], -4, 0), "b": tensor("U8", [4], 0, 4)}, bytes(4)),
    "backwards": raw_safetensors({"a": tensor("U8", [4], 4, 0)}, bytes(4)),
    "a wrong shape": raw_safetensors({"a": tensor("F16", [4], 0, 4)}, bytes(4)),
    "a shape of no numbers": raw_safetensors({"a": tensor("U8", ["4"], 0, 4)}, bytes(4)),
    "a negative shape": raw_safetensors({"a": tensor("U8", [-2, -2], 0, 4)}, bytes(4)),
    "a fraction of a byte": raw_safetensors({"a": tensor("F4", [3], 0, 1)}, bytes(1)),
    "fractions": raw_safetensors({"a": tensor("U8", [4.0], 0.0, 4.0)}, bytes(4)),
    "truth values": raw_safetensors({"a": tensor("U8", [True], False, True)}, bytes(1)),
    "infinite": raw_safetensors({"a": tensor("U8", [4], 0, float("inf"))}, bytes(4)),
    "not a number": raw_safetensors({"a": tensor("U8", [4], float("nan"), float("nan"))}, bytes(4)),
    "huge": raw_safetensors({"a": tensor("U8", [BIG, BIG, 0], 0, BIG)}, bytes(4)),
    "no offsets": raw_safetensors({"a": {"dtype": "U8", "shape": [4]}}, bytes(4)),
    "one offset": raw_safetensors({"a": {"dtype": "U8", "shape": [4], "data_offsets": [4]}}, bytes(4)),
    "no type": raw_safetensors({"a": {"shape": [4], "data_offsets": [0, 4]}}, bytes(4)),
    "a type that is a number": raw_safetensors({"a": {"dtype": 0.5, "shape": [4], "data_offsets": [0, 4]}}, bytes(4)),
    "a type that is a list": raw_safetensors({"a": {"dtype": [], "shape": [4], "data_offsets": [0, 4]}}, bytes(4)),
    "a shape that is a text": raw_safetensors({"a": {"dtype": "U8", "shape": "", "data_offsets": [0, 1]}}, bytes(1)),
    "no shape": raw_safetensors({"a": {"dtype": "U8", "data_offsets": [0, 4]}}, bytes(4)),
    "a tensor that is a number": raw_safetensors({"a": 4}, bytes(4)),
    "metadata that is no text": raw_safetensors({"__metadata__": {"format": 1}}),
    "metadata that is a list": raw_safetensors({"__metadata__": ["mlx"]}),
    "no tensors for the data": raw_safetensors({}, bytes(4)),
    "too long a header": (100_000_001).to_bytes(8, "little") + b"{}",
    "the longest header": b"\xff" * 8 + b"{}",
    "a page of HTML": b"<!DOCTYPE html><html><head><title>503</title></head></html>" * 9,
    "zeros": bytes(4096),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_every_kind_of_damage_is_found(write: Write, content: bytes) -> None:
    assert not library_accepts(content), "the library accepts this file"
    assert not is_whole(read_metadata, write(content))


def test_a_shape_of_huge_numbers_is_checked_quickly(write: Write) -> None:
    digits = b"9" * 4000
    header = b'{"a":{"dtype":"U8","data_offsets":[0,4],"shape":[' + b",".join([digits] * 2000) + b"]}}"
    began = time.process_time()
    assert not is_whole(read_metadata, write(raw_safetensors(header, bytes(4))))
    assert time.process_time() - began < 2


def test_a_flipped_bit_in_the_header_is_judged_like_the_library_does(write: Write) -> None:
    content = layouts.weights("U8", (4,))
    length = 8 + int.from_bytes(content[:8], "little")
    for position in range(length):
        for bit in (1, 2, 4, 16, 128):
            flipped = bytearray(content)
            flipped[position] ^= bit
            if is_whole(read_metadata, write(bytes(flipped), "flipped")):
                assert library_accepts(bytes(flipped)) or _has_unknown_type(flipped[8:length]), (position, bit)


def _has_unknown_type(header: bytes | bytearray) -> bool:
    tensors = json.loads(bytes(header))
    return bool({entry["dtype"] for name, entry in tensors.items() if name != "__metadata__"} - set(DTYPES))


# --------------------------------------------------------------------------------------------------------------- GGUF


NESTED = layouts.gguf_pair(
    "nested", GGUF_ARRAY, struct.pack("<IQ", GGUF_ARRAY, 2) + 2 * (struct.pack("<IQ", GGUF_UINT32, 1) + bytes(4))
)
ALIGNED = (*layouts.DEFAULT_PAIRS, layouts.gguf_pair("general.alignment", GGUF_UINT32, struct.pack("<I", 64)))
MANY_STRINGS = layouts.gguf_pair("tokens", GGUF_ARRAY, layouts.gguf_strings([f"token{i}" for i in range(50_000)]))
SOUND_GGUF = {
    "version 3": layouts.gguf(),
    "version 2": layouts.gguf(version=2),
    "no pairs": layouts.gguf(pairs=()),
    "alignment 64": layouts.gguf(pairs=ALIGNED, alignment=64),
    "nested arrays": layouts.gguf(pairs=(NESTED,)),
    "a vocabulary": layouts.gguf(pairs=(*layouts.DEFAULT_PAIRS, MANY_STRINGS)),
    "padded at the end": layouts.gguf() + bytes(28),
    "header alone": b"GGUF" + struct.pack("<IQQ", 3, 0, 0),
}


@pytest.mark.parametrize("content", SOUND_GGUF.values(), ids=SOUND_GGUF)
def test_a_sound_gguf_is_accepted(write: Write, content: bytes) -> None:
    assert is_whole(gguf.check, write(content))


@pytest.mark.parametrize("cut", range(0, len(layouts.gguf())))
def test_every_truncation_of_a_gguf_is_found(write: Write, cut: int) -> None:
    assert not is_whole(gguf.check, write(layouts.gguf()[:cut]))


def _with_tensor_count(count: int) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, count, 0) + bytes(4096)


def _with_pair(kind: int, value: bytes) -> bytes:
    return layouts.gguf(pairs=(layouts.gguf_pair("key", kind, value),))


DAMAGED_GGUF = {
    "wrong magic": b"GGML" + layouts.gguf()[4:],
    "version 1": layouts.gguf(version=1),
    "version 4": layouts.gguf(version=4),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "countless tensors": _with_tensor_count(2**63),
    "more tensors than bytes": _with_tensor_count(100_000),
    "an unknown kind of value": _with_pair(99, b""),
    "an array of an unknown kind": _with_pair(GGUF_ARRAY, struct.pack("<IQ", 77, 3)),
    "a string without an end": _with_pair(GGUF_STRING, struct.pack("<Q", 2**62)),
    "an array without an end": _with_pair(GGUF_ARRAY, struct.pack("<IQ", GGUF_UINT32, 2**62)),
    "strings without an end": _with_pair(GGUF_ARRAY, struct.pack("<IQ", GGUF_STRING, 2**63)),
    "arrays without an end": _with_pair(GGUF_ARRAY, struct.pack("<IQ", GGUF_ARRAY, 2**63)),
    "nested without an end": _with_pair(GGUF_ARRAY, struct.pack("<IQ", GGUF_ARRAY, 1) * 500),
    "alignment 0": layouts.gguf(
        pairs=(layouts.gguf_pair("general.alignment", GGUF_UINT32, struct.pack("<I", 0)),), alignment=32
    ),
    "zeros": bytes(4096),
    "empty": b"",
}


@pytest.mark.parametrize("content", DAMAGED_GGUF.values(), ids=DAMAGED_GGUF)
def test_a_damaged_gguf_is_found(write: Write, content: bytes) -> None:
    assert not is_whole(gguf.check, write(content))


def test_millions_of_empty_arrays_are_checked_quickly(write: Write) -> None:
    inner = struct.pack("<IQ", GGUF_ARRAY, 100_000) + bytes(12 * 100_000)
    nested = struct.pack("<IQ", GGUF_ARRAY, 40) + inner * 40
    content = layouts.gguf(pairs=(layouts.gguf_pair("nested", GGUF_ARRAY, nested),))
    began = time.process_time()
    assert not is_whole(gguf.check, write(content))
    assert time.process_time() - began < 2
