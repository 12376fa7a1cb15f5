"""What the tests of `pull` under fire share: large models, and what must be true of a cache after it."""

from __future__ import annotations

import json
import os
import random
import subprocess
import time
from pathlib import Path
from typing import Any

from support.hub import HubServer
from support.hub.fixtures import Client
from support.layouts import chat_model, raw_safetensors, shard_names, tensor
from support.shapes import assert_envelope

MODEL = "org/model"
FOLDER = "models--org--model"
MIB = 1 << 20
ALWAYS = float("inf")
WEIGHTS = "model.safetensors"


def big_model(*sizes: int) -> dict[str, bytes]:
    """A sound chat model whose files of weights have about these sizes, in bytes; no two bytes repeat each other."""
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


def listed(client: Client) -> list[dict[str, Any]]:
    """The models that `list` shows."""
    models: list[dict[str, Any]] = client.run("list", "--json").json["data"]["models"]
    return models


def assert_healthy(client: Client, commit: str) -> None:
    """The model is in the cache at this commit, every byte of it right, and nothing else is left."""
    data = client.run("health", MODEL, "--deep", "--json").json["data"]
    assert data["unhealthy"] == [] and len(data["healthy"]) == 1
    assert (client.hub / FOLDER / "refs" / "main").read_text() == commit
    assert sorted(path.name for path in client.hub.iterdir() if "incomplete" in path.name) == []
    assert not list(client.hub.rglob("*.partial"))


def wait_until_sent(server: HubServer, process: subprocess.Popen[str], count: int) -> None:
    """Wait until so many bytes of large files were sent, or the program has ended."""
    while process.poll() is None and server.log.sent("/objects/") < count:
        time.sleep(0.005)


def pulled(client: Client, *words: str, **settings: str) -> dict[str, Any]:
    """The data of a pull that succeeds."""
    outcome = client.run("pull", *(words or (MODEL,)), "--json", **settings)
    assert outcome.code == 0, outcome
    assert_envelope(outcome.json, "pull")
    data: dict[str, Any] = outcome.json["data"]
    return data


def failed(client: Client, *words: str, **settings: str) -> dict[str, Any]:
    """The error of a pull that fails."""
    outcome = client.run("pull", *words, "--json", **settings)
    assert outcome.code == 1, outcome
    assert_envelope(outcome.json, "pull", "error")
    assert str(client.home) not in outcome.out
    error: dict[str, Any] = outcome.json["error"]
    return error


def health(client: Client, name: str = MODEL) -> str:
    """The verdict of `health` on a model, every byte read."""
    data = client.run("health", name, "--deep", "--json").json["data"]
    return str((data["healthy"] + data["unhealthy"])[0]["reason"])


def fetched(server: HubServer) -> set[str]:
    """The files whose bytes were asked for."""
    return {request.path.rpartition("/")[2] for request in server.log.of("GET", "/resolve/")}


def tree(folder: Path) -> dict[str, str]:
    """Everything in a folder: where links lead, what files hold."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes().hex()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }
