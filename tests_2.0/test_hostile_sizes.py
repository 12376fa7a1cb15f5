"""Large files in a cache: real ones are read, hostile ones take little memory and time."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from typing import Any

import pytest
from support.layouts import (
    CacheDir,
    Files,
    Sparse,
    as_json,
    chat_model,
    gguf_pair,
    gguf_text,
    raw_safetensors,
    shard_names,
    weights,
)

MIB = 1 << 20
BOUND = 250 * MIB  # the program itself takes 22 MiB
INDEX = "model.safetensors.index.json"

MEASURE = """
import json, resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE)
sys.stdout.buffer.write(done.stdout)
unit = 1 if sys.platform == "darwin" else 1024
sys.stderr.write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit))
"""


def measure(*words: str) -> tuple[Any, int]:
    """Run a command; return its data and its peak memory in bytes."""
    command = [sys.executable, "-c", MEASURE, sys.executable, "-m", "mlxk2", *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ, check=True)
    return json.loads(done.stdout)["data"], int(done.stderr.rpartition("\n")[2])


def lists(size: int) -> bytes:
    """Return JSON that takes thirty times its size in memory once it is parsed."""
    return b'{"a":[' + b"[]," * (size // 3) + b"1]}"


def strings(size: int) -> bytes:
    """Return an index that names a file for every 18 bytes."""
    pairs = b",".join(b'"%06x":"%06x"' % (number, number) for number in range(size // 18))
    return b'{"weight_map":{' + pairs + b"}}"


def wide(size: int) -> bytes:
    """Return a text in which one character makes Python store four bytes for each."""
    return '{"weight_map":{"😀":"'.encode() + b"x" * size + b'"}}'


def header(text: bytes) -> bytes:
    """Return a safetensors file with only this header."""
    return struct.pack("<Q", len(text)) + text


def tensors(count: int) -> bytes:
    """Return a safetensors file of `count` tensors of one byte, in the usual form."""
    entry = b'"%06x":{"dtype":"U8","shape":[1],"data_offsets":[%d,%d]}'
    entries = (entry % (number, number, number + 1) for number in range(count))
    return header(b"{" + b",".join(entries) + b"}") + bytes(count)


def gguf_of(value: bytes) -> bytes:
    """Return a GGUF file with one string."""
    return b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + gguf_pair("k", 8, gguf_text(value))


HOSTILE = {
    "a config": ("config.json", lists(60 * MIB), "62,914,569 bytes, at most 4,194,304 are read"),
    "a config of many values": ("config.json", lists(4 * MIB - 99), "too many values to be read"),
    "an index": (INDEX, lists(60 * MIB), "too many values to be read (41,943,042, at most 700,000)"),
    "an index of many names": (INDEX, strings(10 * MIB), "names too many files (582,542, at most 99,999)"),
    "an index of wide characters": (INDEX, wide(40 * MIB), "bytes that are not all ASCII, at most 16,777,216"),
    "a header": ("model.safetensors", header(lists(60 * MIB)), "too many values to be read (41,943,042, at most"),
    "a header past the limit": ("model.safetensors", header(lists(77 * MIB)), "bytes, at most 67,108,864 are read"),
    "a header of many tensors": (
        "model.safetensors",
        tensors(400_000),
        "tensors to be read (400,000, at most 262,",
    ),
    "a GGUF header": ("x.gguf", gguf_of(b"x" * 60 * MIB), "bytes, at most 33,554,432 are read"),
    "a tokenizer's config": ("tokenizer_config.json", lists(60 * MIB), "62,914,569 bytes, at most 16,777,216 are read"),
}


@pytest.mark.parametrize("command", ["health", "list"])
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_large_file_takes_little_memory_and_is_named(cache_dir: CacheDir, kind: str, command: str) -> None:
    name, content, reason = HOSTILE[kind]
    cache_dir.add("org/model", chat_model() | {name: content})
    data, peak = measure(command)
    (entry,) = data["unhealthy"] if command == "health" else data["models"]
    assert entry["reason"].startswith(f"{name} ") and reason in entry["reason"]
    assert peak < BOUND


def test_a_hostile_model_card_takes_little_memory(cache_dir: CacheDir) -> None:
    cache_dir.add("org/model", chat_model() | {"README.md": b"---\ntags:\n" + b"- mlx\n" * 10 * MIB})
    data, peak = measure("health")
    assert len(data["healthy"]) == 1
    assert peak < BOUND


def many_values() -> bytes:
    return b'{"model_type":"llama","a":[' + b'{"k":1},' * 90_000 + b"1]}"


def many_texts() -> bytes:
    return b'{"a":"' + b"x" * (4 * MIB - 99) + b'"'


@pytest.mark.parametrize("command", ["health", "list"])
@pytest.mark.parametrize("config", [many_values, many_texts])
def test_the_configs_of_many_models_are_not_kept_in_memory(cache_dir: CacheDir, command: str, config: Any) -> None:
    """Broken configs are included because an error can keep what was read alive."""
    content = config()
    for number in range(24):
        cache_dir.add(f"org/model-{number}", chat_model() | {"config.json": content})
    data, peak = measure(command)
    assert len(data["models"] if command == "list" else data["healthy"] + data["unhealthy"]) == 24
    assert peak < 130 * MIB


def test_the_metadata_of_weights_is_not_kept_in_memory(cache_dir: CacheDir) -> None:
    names = shard_names(12)
    files: Files = {name: weights() for name in names}
    for number, name in enumerate(names):
        files[name] = raw_safetensors({"__metadata__": {"format": "mlx", "x": str(number) + "x" * (20 * MIB)}})
    cache_dir.add("org/model", chat_model() | files)
    _, peak = measure("health")
    assert peak < 150 * MIB


def test_a_real_index_of_200000_tensors_is_read(cache_dir: CacheDir) -> None:
    shards = shard_names(61)
    parts = ("weight", "scales", "biases")
    experts = [f"mlp.experts.{number}.{which}_proj" for number in range(384) for which in ("up", "gate", "down")]
    names = [[f"model.layers.{layer}.{expert}.{part}" for expert in experts for part in parts] for layer in range(61)]
    index = {name: shard for layer, shard in zip(names, shards, strict=True) for name in layer}
    assert len(index) > 200_000
    entries = (
        f'"{name}":{{"dtype":"U32","shape":[1],"data_offsets":[{4 * i},{4 * i + 4}]}}' for i, name in enumerate(index)
    )
    all_in_one = header("{{{}}}".format(",".join(entries)).encode())
    files = dict.fromkeys(shards, weights()) | {INDEX: as_json({"weight_map": index})}
    first = {shards[0]: Sparse(all_in_one, len(all_in_one) + 4 * len(index))}
    cache_dir.add("org/model", {**chat_model(), **files, **first})
    data, peak = measure("health")
    assert len(data["healthy"]) == 1, data
    assert peak < 2 * BOUND
