"""Pulls with faults: kills, lost connections, wrong data, two at once; the real client over real HTTP and Xet."""

from __future__ import annotations

import hashlib
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from support.conformance import assert_envelope
from support.filesystems import copy_tree
from support.hub import Fault, HubServer
from support.hub.fixtures import Client, outcome_of
from support.killing import killable
from support.layouts import gguf, gguf_model
from support.pulling import ALWAYS, FOLDER, MIB, MODEL, WEIGHTS, assert_healthy, big_model, list_models, wait_until_sent

from mlxk2.formatting import human_size

pytestmark = pytest.mark.e2e

LOST_BYTES = 10 * MIB  # a kill may lose this much of each file


# ------------------------------------------------------------------------------------------------------------- kills


def test_a_killed_pull_resumes_near_where_it_stopped(hub_server: HubServer, hub_client: Client) -> None:
    files = big_model(48 * MIB, 24 * MIB)
    commit = hub_server.add(MODEL, files)
    hub_server.faults.add(Fault("/objects/", times=ALWAYS, rate=40 * MIB))
    rolls = random.Random()
    total = sum(map(len, files.values()))
    reached: dict[str, int] = {}
    for _ in range(10):
        hub_server.log.clear()
        process = hub_client.start("pull", MODEL, "--json")
        wait_until_sent(hub_server, process, rolls.randrange(total // 6))
        process.send_signal(signal.SIGKILL)
        outcome_of(process)
        _assert_continued(hub_server, reached)
        if process.returncode != -signal.SIGKILL:
            break
        assert list_models(hub_client) == []
    hub_server.log.clear()
    outcome = hub_client.run("pull", MODEL, "--json")
    assert outcome.code == 0
    _assert_continued(hub_server, reached)
    assert_healthy(hub_client, commit)


def _assert_continued(server: HubServer, reached: dict[str, int]) -> None:
    """Fail unless each file resumed where the last attempt stopped; update these positions in `reached`."""
    for request in server.log.find("GET", "/objects/"):
        assert request.start >= reached.get(request.path, 0) - LOST_BYTES
        reached[request.path] = request.start + request.sent


@pytest.mark.sampled
@pytest.mark.parametrize("is_update", [False, True], ids=["first", "update"])
def test_a_pull_killed_at_any_step_succeeds_when_repeated(
    hub_server: HubServer, hub_client: Client, is_update: bool
) -> None:
    allowed: list[list[tuple[str, str]]] = [[]]
    cache_dir, template = hub_client.cache_dir, hub_client.home.with_name("template")
    template.mkdir()
    if is_update:
        allowed = [[(hub_server.add(MODEL, gguf_model("model.gguf"), is_xet=True), "healthy")]]
        assert hub_client.run("pull", MODEL).code == 0
        copy_tree(cache_dir, template)
    new = hub_server.add(MODEL, {"model.gguf": gguf(version=2), "sub/notes.txt": b"new"}, is_xet=True)
    allowed.append([(new, "healthy")])
    copy_tree(template, cache_dir)
    with killable(hub_client.environment) as program:
        assert program.run("pull", MODEL).code == 0
        after = _files(cache_dir / FOLDER)
        for _ in program.kills("pull", MODEL, prepare=lambda: copy_tree(template, cache_dir)):
            models = program.run("list", "--json").json["data"]["models"]
            assert [(model["hash"], model["health"]) for model in models] in allowed
            assert program.run("pull", MODEL).code == 0
            assert _files(cache_dir / FOLDER) == after
            assert program.run("rm", MODEL).code == 0
            # The library leaves its lock files and, if killed, a half-written list of a few bytes.
            left = [name for name in _files(cache_dir) if not name.endswith((".lock", ".tmp"))]
            assert left in ([], ["blobs/.huggingface-shared-blobs"])


def _files(folder: Path) -> dict[str, bytes]:
    """Return all files below a folder, also behind links."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_killed_update_keeps_the_old_revision(hub_server: HubServer, hub_client: Client) -> None:
    old = hub_server.add(MODEL, big_model(2 * MIB))
    assert hub_client.run("pull", MODEL).code == 0
    new = hub_server.add(MODEL, big_model(20 * MIB))
    hub_server.faults.add(Fault("/objects/", times=1, rate=20 * MIB))
    hub_server.log.clear()
    process = hub_client.start("pull", MODEL)
    wait_until_sent(hub_server, process, 12 * MIB)
    process.kill()
    outcome_of(process)
    assert [(model["hash"], model["health"]) for model in list_models(hub_client)] == [(old, "healthy")]
    outcome = hub_client.run("pull", MODEL)
    assert (outcome.code, outcome.out.startswith(f"Updated org/model from {old[:7]} to {new[:7]}")) == (0, True)
    assert "from an earlier attempt" in outcome.out
    assert_healthy(hub_client, new)


def test_ctrl_c_ends_at_once_and_keeps_downloaded_bytes(hub_server: HubServer, hub_client: Client) -> None:
    commit = hub_server.add(MODEL, big_model(8 * MIB))
    hub_server.faults.add(Fault("/objects/", times=ALWAYS, rate=2 * MIB))
    process = hub_client.start("pull", MODEL, "--json")
    wait_until_sent(hub_server, process, 3 * MIB)
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    outcome = outcome_of(process)
    assert time.monotonic() - start < 5
    assert (outcome.code, outcome.json["error"]["type"]) == (130, "interrupted")
    assert list_models(hub_client) == []
    hub_server.log.clear()
    assert hub_client.run("pull", MODEL).code == 0
    assert hub_server.log.find("GET", "/objects/")[0].start >= MIB
    assert_healthy(hub_client, commit)


def test_a_killed_xet_download_resumes(hub_server: HubServer, hub_client: Client) -> None:
    files = big_model(150 * MIB)
    commit = hub_server.add(MODEL, files, is_xet=True)
    partial = _partial(hub_client, files[WEIGHTS])
    process = hub_client.start("pull", MODEL)
    while process.poll() is None and not (partial.exists() and partial.stat().st_size):
        time.sleep(0.001)
    process.kill()
    outcome_of(process)
    assert list_models(hub_client) == []
    kept = partial.stat().st_size
    outcome = hub_client.run("pull", MODEL)
    assert (outcome.code, f"{human_size(kept)} came from an earlier attempt" in outcome.out) == (0, True)
    assert_healthy(hub_client, commit)
    assert (hub_client.cache_dir / "blobs").is_dir()


def _partial(client: Client, data: bytes) -> Path:
    return client.cache_dir / f".{FOLDER}.incomplete" / "blobs" / f"{hashlib.sha256(data).hexdigest()}.partial"


REMAINS: dict[str, tuple[Callable[[bytes], bytes], int | None]] = {
    "first part": (lambda data: data[:MIB], MIB),
    "whole file": (lambda data: data, None),
    "empty file": (lambda data: data[:0], 0),
    "wrong first half": (lambda data: b"x" * (len(data) // 2), 0),
    "wrong whole file": (lambda data: b"x" * len(data), 0),
    "one byte too many": (lambda data: data + b"x", 0),
}


@pytest.mark.parametrize("is_xet", [False, True], ids=["http", "xet"])
@pytest.mark.parametrize("remains", REMAINS)
def test_a_pull_succeeds_whatever_an_earlier_attempt_left(
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
        asked = [request.start for request in hub_server.log.find("GET", f"/objects/{partial.stem}")]
        assert asked[-1:] == ([] if start is None else [start])


# ------------------------------------------------------------------------------------------------------------ faults


class Case(NamedTuple):
    """A fault and the type of the resulting error, None if the download succeeds in spite of it."""

    fault: Fault
    error: str | None
    words: str = ""


CASES = {
    "cut once": Case(Fault("/objects/", cut_after=5 * MIB), None),
    "cut again and again": Case(Fault("/objects/", times=ALWAYS, cut_after=100_000), "NetworkError", "connection"),
    "dies half-way": Case(Fault("/objects/", times=ALWAYS, cut_after=3 * MIB, dies=True), "NetworkError", "connection"),
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
def test_transfer_faults_are_survived_or_reported(hub_server: HubServer, hub_client: Client, case: Case) -> None:
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
    assert not list(hub_client.cache_dir.glob("models--*"))


@pytest.mark.parametrize("name", ["dies half-way", "a byte too many", "wrong bytes"])
def test_the_next_pull_after_a_fault_succeeds(hub_server: HubServer, hub_client: Client, name: str) -> None:
    commit = hub_server.add(MODEL, big_model(8 * MIB))
    fault = CASES[name].fault
    hub_server.faults.add(Fault(**{**vars(fault), "times": ALWAYS}))
    assert hub_client.run("pull", MODEL).code == 1
    hub_server.stop()
    hub_server.faults.clear()
    hub_server.start()
    assert hub_client.run("pull", MODEL).code == 0
    assert_healthy(hub_client, commit)


@pytest.mark.parametrize("fault", ["no token", "no content"])
def test_missing_xet_content_is_downloaded_over_http(
    hub_server: HubServer, hub_client: Client, tmp_path: Path, fault: str
) -> None:
    commit = hub_server.add(MODEL, big_model(2 * MIB), is_xet=True)
    if fault == "no token":
        hub_server.faults.add(Fault("xet-read-token", times=ALWAYS, status=404))
    else:
        shutil.rmtree(tmp_path / "server" / "xet")
    assert hub_client.run("pull", MODEL).code == 0
    assert_healthy(hub_client, commit)


# ------------------------------------------------------------------------------------------------------- two at once


def test_two_pulls_of_one_model_both_succeed(hub_server: HubServer, hub_client: Client) -> None:
    commit = hub_server.add(MODEL, big_model(24 * MIB))
    hub_server.faults.add(Fault("/objects/", times=ALWAYS, rate=8 * MIB))
    first = hub_client.start("pull", MODEL, "--json")
    wait_until_sent(hub_server, first, MIB)
    second = hub_client.start("pull", MODEL, "--json")
    outcomes = outcome_of(first), outcome_of(second)
    assert [outcome.code for outcome in outcomes] == [0, 0]
    statuses = [outcome.json["data"]["download_status"] for outcome in outcomes]
    assert statuses == ["success", "already_exists"]
    assert "waiting" in outcomes[1].err
    assert hub_server.log.count("GET", "/objects/") == 2  # the weights and the tokenizer, each once
    assert_healthy(hub_client, commit)


def test_list_shows_a_model_only_after_its_pull_is_complete(hub_server: HubServer, hub_client: Client) -> None:
    hub_server.add(MODEL, big_model(16 * MIB))
    hub_server.faults.add(Fault("/objects/", times=ALWAYS, rate=6 * MIB))
    process = hub_client.start("pull", MODEL, "--json")
    seen = []
    while process.poll() is None:
        seen.append([(model["name"], model["health"]) for model in list_models(hub_client)])
    assert outcome_of(process).code == 0
    assert seen[0] == []
    assert all(models in ([], [(MODEL, "healthy")]) for models in seen)
