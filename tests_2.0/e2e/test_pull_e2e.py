"""Pulling under fire: killed, cut off, lied to, without room, two at once; the real client over real HTTP and Xet."""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pexpect
import pytest
from hub import Fault, HubServer
from hub.fixtures import PROGRAM, Client, ended
from layouts import chat_model, raw_safetensors, shard_names, tensor
from shapes import assert_envelope

from mlxk2.sizes import human_size

pytestmark = pytest.mark.e2e

MODEL = "org/model"
FOLDER = "models--org--model"
MIB = 1 << 20
ALWAYS = float("inf")
LOST_BYTES = 10 * MIB  # what a kill may cost of each file
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


# ------------------------------------------------------------------------------------------------------------- kills


def _wait_until_sent(server: HubServer, process: subprocess.Popen[str], count: int) -> None:
    while process.poll() is None and server.log.sent("/objects/") < count:
        time.sleep(0.005)


def test_ten_kills_cost_little_each(hub_server: HubServer, hub_client: Client) -> None:
    files = big_model(48 * MIB, 24 * MIB)
    commit = hub_server.add(MODEL, files)
    hub_server.faults.add(Fault("/objects/", times=ALWAYS, rate=40 * MIB))
    rolls = random.Random()
    total = sum(map(len, files.values()))
    reached: dict[str, int] = {}
    for _ in range(10):
        hub_server.log.clear()
        process = hub_client.start("pull", MODEL, "--json")
        _wait_until_sent(hub_server, process, rolls.randrange(total // 6))
        process.send_signal(signal.SIGKILL)
        ended(process)
        _assert_continued(hub_server, reached)
        if process.returncode != -signal.SIGKILL:
            break
        assert listed(hub_client) == []
    hub_server.log.clear()
    outcome = hub_client.run("pull", MODEL, "--json")
    assert outcome.code == 0
    _assert_continued(hub_server, reached)
    assert_healthy(hub_client, commit)


def _assert_continued(server: HubServer, reached: dict[str, int]) -> None:
    """Each file went on from where the last attempt stopped; `reached` is where, and is brought up to date."""
    for request in server.log.of("GET", "/objects/"):
        assert request.start >= reached.get(request.path, 0) - LOST_BYTES
        reached[request.path] = request.start + request.sent


def test_a_killed_update_leaves_the_old_revision(hub_server: HubServer, hub_client: Client) -> None:
    old = hub_server.add(MODEL, big_model(2 * MIB))
    assert hub_client.run("pull", MODEL).code == 0
    new = hub_server.add(MODEL, big_model(20 * MIB))
    hub_server.faults.add(Fault("/objects/", times=1, rate=20 * MIB))
    hub_server.log.clear()
    process = hub_client.start("pull", MODEL)
    _wait_until_sent(hub_server, process, 12 * MIB)
    process.kill()
    ended(process)
    assert [(model["hash"], model["health"]) for model in listed(hub_client)] == [(old, "healthy")]
    outcome = hub_client.run("pull", MODEL)
    assert (outcome.code, outcome.out.startswith(f"Updated org/model from {old[:7]} to {new[:7]}")) == (0, True)
    assert "from an earlier attempt" in outcome.out
    assert_healthy(hub_client, new)


def test_ctrl_c_ends_at_once_and_keeps_what_came(hub_server: HubServer, hub_client: Client) -> None:
    commit = hub_server.add(MODEL, big_model(8 * MIB))
    hub_server.faults.add(Fault("/objects/", rate=2 * MIB))
    process = hub_client.start("pull", MODEL, "--json")
    _wait_until_sent(hub_server, process, 3 * MIB)
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    outcome = ended(process)
    assert time.monotonic() - start < 5
    assert (outcome.code, outcome.json["error"]["type"]) == (130, "interrupted")
    assert listed(hub_client) == []
    hub_server.log.clear()
    assert hub_client.run("pull", MODEL).code == 0
    assert hub_server.log.of("GET", "/objects/")[0].start >= MIB
    assert_healthy(hub_client, commit)


def test_a_killed_xet_download_goes_on(hub_server: HubServer, hub_client: Client) -> None:
    files = big_model(150 * MIB)
    commit = hub_server.add(MODEL, files, is_xet=True)
    partial = _partial(hub_client, files[WEIGHTS])
    process = hub_client.start("pull", MODEL)
    while process.poll() is None and not (partial.exists() and partial.stat().st_size):
        time.sleep(0.001)
    process.kill()
    ended(process)
    assert listed(hub_client) == []
    kept = partial.stat().st_size
    outcome = hub_client.run("pull", MODEL)
    assert (outcome.code, f"{human_size(kept)} were there" in outcome.out) == (0, True)
    assert_healthy(hub_client, commit)
    assert (hub_client.hub / "blobs").is_dir()


def _partial(client: Client, data: bytes) -> Path:
    return client.hub / f".{FOLDER}.incomplete" / "blobs" / f"{hashlib.sha256(data).hexdigest()}.partial"


REMAINS = {
    "a beginning": (lambda data: data[:MIB], MIB),
    "all of it": (lambda data: data, None),
    "nothing": (lambda data: data[:0], 0),
    "a wrong beginning": (lambda data: b"x" * (len(data) // 2), 0),
    "wrong, all of it": (lambda data: b"x" * len(data), 0),
    "more than all": (lambda data: data + b"x", 0),
}


@pytest.mark.parametrize("is_xet", [False, True], ids=["http", "xet"])
@pytest.mark.parametrize("remains", REMAINS)
def test_whatever_an_earlier_attempt_left(
    hub_server: HubServer, hub_client: Client, remains: str, is_xet: bool
) -> None:
    files = big_model(2 * MIB)
    commit = hub_server.add(MODEL, files, is_xet=is_xet)
    left, start = REMAINS[remains]
    partial = _partial(hub_client, files[WEIGHTS])
    partial.parent.mkdir(parents=True)
    partial.write_bytes(left(files[WEIGHTS]))
    assert hub_client.run("pull", MODEL).code == 0
    assert_healthy(hub_client, commit)
    if not is_xet:
        asked = [request.start for request in hub_server.log.of("GET", f"/objects/{partial.stem}")]
        assert asked[-1:] == ([] if start is None else [start])


# ------------------------------------------------------------------------------------------------------------ faults


class Case(NamedTuple):
    """A fault, and the type of error that it becomes; none where the download ends well all the same."""

    fault: Fault
    error: str | None
    words: str = ""


CASES = {
    "cut once": Case(Fault("/objects/", cut_after=5 * MIB), None),
    "cut again and again": Case(Fault("/objects/", times=ALWAYS, cut_after=100_000), "NetworkError", "connection"),
    "dies half-way": Case(Fault("/objects/", cut_after=3 * MIB, dies=True), "NetworkError", "connection"),
    "one 429": Case(Fault("/objects/", status=429, headers={"ratelimit": '"api";r=0;t=0'}), None),
    "429 always": Case(
        Fault("/objects/", times=ALWAYS, status=429, headers={"ratelimit": '"api";r=0;t=0'}), "download_failed", "later"
    ),
    "two 500": Case(Fault("/objects/", times=2, status=500), None),
    "500 always": Case(Fault("/objects/", times=ALWAYS, status=500), "download_failed", "500"),
    "503 always": Case(Fault("/resolve/", times=ALWAYS, status=503), "download_failed", "503"),
    "slow bytes": Case(Fault("/objects/", rate=8 * MIB), None),
    "stalled": Case(Fault("/objects/", times=ALWAYS, after=3), "NetworkError", "connection"),
    "a byte too many": Case(Fault("/objects/", times=ALWAYS, extra=1), "download_failed", "more than"),
    "a byte too few": Case(Fault("/objects/", times=ALWAYS, extra=-1), "download_failed", "fewer"),
    "wrong bytes once": Case(Fault("/objects/", flip=True), None),
    "wrong bytes": Case(Fault("/objects/", times=ALWAYS, flip=True), "download_failed", "hash"),
    "no such file": Case(Fault("/resolve/", times=ALWAYS, status=404), "download_failed", "404"),
    "forbidden": Case(Fault("/resolve/", times=ALWAYS, status=403), "access_denied", "HF_TOKEN"),
    "no tree": Case(Fault("/tree/", times=ALWAYS, status=404), "download_failed", "404"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_faults(hub_server: HubServer, hub_client: Client, case: Case) -> None:
    commit = hub_server.add(MODEL, big_model(8 * MIB))
    hub_server.faults.add(case.fault)
    outcome = hub_client.run("pull", MODEL, "--json", HF_HUB_DOWNLOAD_TIMEOUT="1")
    if case.error is None:
        assert outcome.code == 0
        assert_healthy(hub_client, commit)
        return
    assert outcome.code == 1
    assert_envelope(outcome.json, "pull", "error")
    error = outcome.json["error"]
    assert error["type"] == case.error
    assert case.words in f"{error['message']} {error.get('hint')}"
    assert str(hub_client.home) not in outcome.out and "Traceback" not in outcome.err
    assert not list(hub_client.hub.glob("models--*"))


@pytest.mark.parametrize("name", ["dies half-way", "a byte too many", "wrong bytes"])
def test_after_a_fault_the_next_pull_ends_well(hub_server: HubServer, hub_client: Client, name: str) -> None:
    commit = hub_server.add(MODEL, big_model(8 * MIB))
    fault = CASES[name].fault
    hub_server.faults.add(Fault(**{**vars(fault), "times": ALWAYS}))
    assert hub_client.run("pull", MODEL).code == 1
    hub_server.stop()
    hub_server.faults.clear()
    hub_server.start()
    assert hub_client.run("pull", MODEL).code == 0
    assert_healthy(hub_client, commit)


# ------------------------------------------------------------------------------------------------------- two at once


def test_two_pulls_of_one_model_both_succeed(hub_server: HubServer, hub_client: Client) -> None:
    commit = hub_server.add(MODEL, big_model(24 * MIB))
    hub_server.faults.add(Fault("/objects/", times=ALWAYS, rate=8 * MIB))
    first = hub_client.start("pull", MODEL, "--json")
    _wait_until_sent(hub_server, first, MIB)
    second = hub_client.start("pull", MODEL, "--json")
    outcomes = ended(first), ended(second)
    assert [outcome.code for outcome in outcomes] == [0, 0]
    statuses = [outcome.json["data"]["download_status"] for outcome in outcomes]
    assert statuses == ["success", "already_exists"]
    assert "waiting" in outcomes[1].err
    assert hub_server.log.count("GET", "/objects/") == 2  # the weights and the tokenizer, each once
    assert_healthy(hub_client, commit)


def test_list_beside_a_pull_shows_it_whole_or_not_at_all(hub_server: HubServer, hub_client: Client) -> None:
    hub_server.add(MODEL, big_model(16 * MIB))
    hub_server.faults.add(Fault("/objects/", times=ALWAYS, rate=6 * MIB))
    process = hub_client.start("pull", MODEL, "--json")
    seen = []
    while process.poll() is None:
        seen.append([(model["name"], model["health"]) for model in listed(hub_client)])
    assert ended(process).code == 0
    assert seen[0] == []
    assert all(models in ([], [(MODEL, "healthy")]) for models in seen)


# -------------------------------------------------------------------------------------------------------------- room


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with 16 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)], capture_output=True, text=True
    ) if sys.platform == "linux" else None  # fmt: skip
    if mount is None or mount.returncode:
        pytest.skip("a small file system can't be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_room_is_checked_before_a_byte_is_fetched(hub_server: HubServer, hub_client: Client, small_disk: Path) -> None:
    hub_server.add(MODEL, big_model(30 * MIB))
    outcome = hub_client.run("pull", MODEL, "--json", HF_HUB_CACHE=str(small_disk / "hub"))
    assert (outcome.code, outcome.json["error"]["type"]) == (1, "OperationError")
    assert "31.5MB needed" in outcome.json["error"]["message"]
    assert "16.8MB available" in outcome.json["error"]["message"]
    assert hub_server.log.count("GET", "/resolve/") == 0


def test_only_what_is_missing_needs_room(hub_server: HubServer, hub_client: Client, small_disk: Path) -> None:
    cache = {"HF_HUB_CACHE": str(small_disk / "hub")}
    files = big_model(11 * MIB)
    hub_server.add(MODEL, files)
    assert hub_client.run("pull", MODEL, **cache).code == 0
    commit = hub_server.add(MODEL, {"notes.txt": b"new"})
    assert hub_client.run("pull", MODEL, **cache).code == 0
    # A damaged file makes room for the sound one.
    weights = small_disk / "hub" / FOLDER / "snapshots" / commit / WEIGHTS
    weights.resolve().write_bytes(b"x" * len(files[WEIGHTS]))
    outcome = hub_client.run("pull", MODEL, **cache)
    assert (outcome.code, weights.read_bytes() == files[WEIGHTS]) == (0, True)


def test_a_disk_that_fills_up_meanwhile(hub_server: HubServer, hub_client: Client, small_disk: Path) -> None:
    cache = {"HF_HUB_CACHE": str(small_disk / "hub")}
    hub_server.add(MODEL, big_model(12 * MIB))
    hub_server.faults.add(Fault("/objects/", times=ALWAYS, rate=12 * MIB))
    process = hub_client.start("pull", MODEL, "--json", **cache)
    _wait_until_sent(hub_server, process, 2 * MIB)
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * 8 * MIB)
    outcome = ended(process)
    assert (outcome.code, outcome.json["error"]["type"]) == (1, "OperationError")
    assert "disk is full" in outcome.json["error"]["message"]
    assert not list((small_disk / "hub").glob("models--*"))
    filler.unlink()
    hub_server.log.clear()
    assert hub_client.run("pull", MODEL, **cache).code == 0
    assert any(request.start for request in hub_server.log.of("GET", "/objects/"))


def test_a_limit_of_file_sizes(hub_server: HubServer, hub_client: Client) -> None:
    hub_server.add(MODEL, big_model(8 * MIB))
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({4 * MIB}, {resource.RLIM_INFINITY}));"
    code = f"{limit} import sys; from mlxk2.cli import main; sys.exit(main(['pull', '{MODEL}', '--json']))"
    outcome = ended(hub_client.start_command(sys.executable, "-c", code))
    assert (outcome.code, outcome.json["error"]["type"]) == (1, "OperationError")
    assert "ulimit" in outcome.json["error"]["message"]
    assert not list(hub_client.hub.glob("models--*"))


@pytest.mark.skipif(not os.path.isdir("/sys/kernel"), reason="needs a folder that even root can't write to")
def test_a_cache_that_may_not_be_written(hub_server: HubServer, hub_client: Client) -> None:
    hub_server.add(MODEL, chat_model())
    outcome = hub_client.run("pull", MODEL, "--json", HF_HUB_CACHE="/sys/kernel/hub")
    assert (outcome.code, outcome.json["error"]["type"]) == (1, "PermissionError")
    assert "/sys" not in outcome.out


# ----------------------------------------------------------------------------------------------------------- progress


def test_people_see_how_far_it_is(hub_server: HubServer, hub_client: Client) -> None:
    hub_server.add(MODEL, big_model(8 * MIB))
    hub_server.faults.add(Fault("/objects/", times=ALWAYS, rate=4 * MIB))
    environment = hub_client.environment | {"TERM": "xterm", "COLUMNS": "120"}
    command, *words = (*PROGRAM, "pull", MODEL)
    child = pexpect.spawn(command, words, env=environment, encoding="utf-8", timeout=60, dimensions=(20, 120))
    child.expect(r"org/model.*/8\.4 MB.*MB/s")
    child.expect("Downloaded org/model")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
