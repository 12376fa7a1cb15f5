"""Helpers for tests of `pull` under faults: large models, and checks of the cache afterwards."""

from __future__ import annotations

import json
import os
import random
import subprocess
import time
from pathlib import Path
from typing import Any

from support.conformance import assert_envelope
from support.hub import HubServer
from support.hub.fixtures import Client
from support.layouts import chat_model, raw_safetensors, shard_names, tensor

MODEL = "org/model"
FOLDER = "models--org--model"
MIB = 1 << 20
ALWAYS = float("inf")
WEIGHTS = "model.safetensors"


def big_model(*sizes: int) -> dict[str, bytes]:
    """Return a sound chat model whose weight files have about these sizes in bytes; their content is random."""
    rolls = random.Random(1)
    files = chat_model()
    del files[WEIGHTS]
    shards = shard_names(len(sizes)) if sizes[1:] else [WEIGHTS]
    for name, size in zip(shards, sizes, strict=True):
        data = b"".join(rolls.randbytes(MIB) for _ in range(size // MIB)) + rolls.randbytes(size % MIB)
        header = {"__metadata__": {"format": "mlx"}, name: tensor("U8", (len(data),), 0, len(data))}
        files[name] = raw_safetensors(header, data)
    if sizes[1:]:
        files["model.safetensors.index.json"] = json.dumps({"weight_map": {name: name for name in shards}}).encode()
    return {name: data for name, data in files.items() if isinstance(data, bytes)}


def list_models(client: Client) -> list[dict[str, Any]]:
    """Return the models that `list` shows."""
    models: list[dict[str, Any]] = client.run("list", "--json").json["data"]["models"]
    return models


def assert_healthy(client: Client, commit: str) -> None:
    """Fail unless the model is complete in the cache at this commit and no partial file is left."""
    data = client.run("health", MODEL, "--deep", "--json").json["data"]
    assert data["unhealthy"] == [] and len(data["healthy"]) == 1
    assert (client.cache_dir / FOLDER / "refs" / "main").read_text() == commit
    assert sorted(path.name for path in client.cache_dir.iterdir() if "incomplete" in path.name) == []
    assert not list(client.cache_dir.rglob("*.partial"))


def wait_until_sent(server: HubServer, process: subprocess.Popen[str], count: int) -> None:
    """Wait until the hub has sent `count` bytes of large files or the program has ended."""
    while process.poll() is None and server.log.sent("/objects/") < count:
        time.sleep(0.005)


def pull(client: Client, *words: str, **settings: str) -> dict[str, Any]:
    """Pull and return the data; fail unless the pull succeeds."""
    outcome = client.run("pull", *(words or (MODEL,)), "--json", **settings)
    assert outcome.code == 0, outcome
    assert_envelope(outcome.json, "pull")
    data: dict[str, Any] = outcome.json["data"]
    return data


def pull_error(client: Client, *words: str, **settings: str) -> dict[str, Any]:
    """Pull and return the error; fail unless the pull fails."""
    outcome = client.run("pull", *words, "--json", **settings)
    assert outcome.code == 1, outcome
    assert_envelope(outcome.json, "pull", "error")
    assert str(client.home) not in outcome.out
    error: dict[str, Any] = outcome.json["error"]
    return error


def deep_health(client: Client, name: str = MODEL) -> str:
    """Return the verdict of `health --deep` on a model."""
    data = client.run("health", name, "--deep", "--json").json["data"]
    return str((data["healthy"] + data["unhealthy"])[0]["reason"])


def requested_files(server: HubServer) -> set[str]:
    """Return the names of the files that were requested."""
    return {request.path.rpartition("/")[2] for request in server.log.find("GET", "/resolve/")}


def read_files(folder: Path) -> dict[str, str]:
    """Return everything in a folder: the targets of links, the bytes of files in hexadecimal."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes().hex()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }
