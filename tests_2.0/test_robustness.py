"""Pulls in bad conditions: no space, no response, no hub, other processes; test_robustness_rm.py covers `rm`."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import replace

import pytest
from support.conformance import assert_envelope
from support.hub import Fault, HubServer
from support.hub.fixtures import Client, outcome_of
from support.layouts import chat_model

MODEL = "org/model"
PETABYTE = 10**15


def test_a_model_larger_than_the_disk_is_refused(hub_server: HubServer, hub_client: Client) -> None:
    commit = hub_server.add(MODEL, chat_model())
    files = hub_server.hub.repos[MODEL].commits[commit].files
    assert isinstance(files, dict)
    files["model.safetensors"] = replace(files["model.safetensors"], claimed_size=PETABYTE)
    outcome = hub_client.run("pull", MODEL, "--json")
    assert outcome.code == 1
    assert_envelope(outcome.json, "pull", "error")
    error = outcome.json["error"]
    assert (error["type"], outcome.json["data"]["download_status"]) == ("OperationError", "error")
    assert "1000.0TB needed" in error["message"] and "available" in error["message"]
    assert hub_server.log.count("GET", "/resolve/") == 0
    assert not list(hub_client.cache_dir.glob("*models--org--model*"))


def test_a_hub_that_never_responds_is_a_network_error(hub_client: Client) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        outcome = hub_client.run("pull", MODEL, "--json", HF_ENDPOINT=address, HF_HUB_ETAG_TIMEOUT="1")
    assert (outcome.code, outcome.json["error"]["type"]) == (1, "NetworkError")
    assert "HF_ENDPOINT" in outcome.json["error"]["hint"]
    assert not hub_client.cache_dir.exists()


def test_an_address_that_is_no_hub_is_an_error(hub_server: HubServer, hub_client: Client) -> None:
    outcome = hub_client.run("pull", MODEL, "--json", HF_ENDPOINT=hub_server.cdn_url)
    assert outcome.code == 1
    assert_envelope(outcome.json, "pull", "error")
    assert outcome.json["error"]["type"] in ("download_failed", "access_denied")


def test_pulls_of_different_models_run_at_the_same_time(hub_server: HubServer, hub_client: Client) -> None:
    names = [f"org/model-{number}" for number in range(3)]
    for name in names:
        hub_server.add(name, chat_model(), is_xet=True)
    outcomes = [outcome_of(process) for process in [hub_client.start("pull", name, "--json") for name in names]]
    assert [outcome.code for outcome in outcomes] == [0, 0, 0]
    assert all("waiting" not in outcome.err for outcome in outcomes)
    data = hub_client.run("health", "--deep", "--json").json["data"]
    assert data["summary"] == {"total": 3, "healthy_count": 3, "unhealthy_count": 0}


def test_a_pull_succeeds_beside_rm_of_another_model(hub_server: HubServer, hub_client: Client) -> None:
    hub_server.add(MODEL, chat_model())
    hub_server.add("org/other", chat_model())
    assert hub_client.run("pull", "org/other").code == 0
    hub_server.faults.add(Fault("/objects/", after=1))
    pull = hub_client.start("pull", MODEL, "--json")
    removal = hub_client.run("rm", "org/other", "--json")
    assert (removal.code, outcome_of(pull).code) == (0, 0)
    assert [model["name"] for model in hub_client.run("list", "--json").json["data"]["models"]] == [MODEL]


def test_rm_refuses_a_model_during_its_pull(hub_server: HubServer, hub_client: Client) -> None:
    hub_server.add(MODEL, chat_model())
    assert hub_client.run("pull", MODEL).code == 0
    hub_server.add(MODEL, {"model.gguf": b"x" * 100_000})
    hub_server.faults.add(Fault("/objects/", after=4))
    hub_server.log.clear()
    pull = hub_client.start("pull", MODEL, "--json")
    while not hub_server.log.count("GET", "/objects/") and pull.poll() is None:
        time.sleep(0.01)
    removal = hub_client.run("rm", MODEL, "--json")
    assert (removal.code, removal.json["error"]["type"]) == (1, "locks_present")
    assert outcome_of(pull).code == 0


@pytest.mark.skipif(os.name != "posix", reason="links are what this is about")
def test_a_model_folder_linked_to_another_place_can_be_pulled(hub_server: HubServer, hub_client: Client) -> None:
    hub_server.add(MODEL, chat_model())
    elsewhere = hub_client.home.with_name("elsewhere")
    elsewhere.mkdir()
    hub_client.cache_dir.mkdir(parents=True)
    (hub_client.cache_dir / "models--org--model").symlink_to(elsewhere)
    assert hub_client.run("pull", MODEL).code == 0
    assert hub_client.run("health", MODEL, "--json").json["data"]["summary"]["healthy_count"] == 1
    assert (elsewhere / "snapshots").is_dir()
