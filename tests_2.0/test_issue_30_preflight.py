"""A model that the user may not download is refused before anything is written to the cache."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.conformance import assert_envelope
from support.hub import Fault, HubServer
from support.hub.fixtures import Client, Outcome
from support.layouts import chat_model

MODEL = "org/model"


def assert_denied(outcome: Outcome, cache: Path) -> None:
    """Fail unless the error is `access_denied` with a hint to set HF_TOKEN, and the cache is untouched."""
    assert outcome.code == 1
    assert_envelope(outcome.json, "pull", "error")
    error, data = outcome.json["error"], outcome.json["data"]
    assert (error["type"], data["download_status"]) == ("access_denied", "access_denied")
    assert "HF_TOKEN" in error["hint"]
    assert data["message"] == error["message"]
    assert not cache.exists()


def test_preflight_private_model_without_token(hub_server: HubServer, hub_client: Client) -> None:
    hub_server.add(MODEL, chat_model(), private=True)
    assert_denied(hub_client.run("pull", MODEL, "--json"), hub_client.cache_dir)
    assert [request.path for request in hub_server.log.requests] == [f"/api/models/{MODEL}"]


def test_preflight_nonexistent_model(hub_server: HubServer, hub_client: Client) -> None:
    outcome = hub_client.run("pull", "model", "--json")
    assert_denied(outcome, hub_client.cache_dir)
    # A name without an org is tried with mlx-community, then as it is, and never as a substring.
    assert [request.path for request in hub_server.log.requests] == [
        "/api/models/mlx-community/model",
        "/api/models/model",
    ]
    assert "mlx-community/model" in outcome.json["error"]["message"]


@pytest.mark.parametrize("user", [None, "stranger"])
def test_preflight_gated_model(hub_server: HubServer, hub_client: Client, user: str | None) -> None:
    hub_server.add(MODEL, chat_model(), gated=True)
    token = {"HF_TOKEN": hub_server.token(user)} if user else {}
    outcome = hub_client.run("pull", MODEL, "--json", **token)
    assert_denied(outcome, hub_client.cache_dir)
    assert "gated" in outcome.json["error"]["message"]
    assert hub_server.log.count("GET", "/resolve/") == 0


@pytest.mark.parametrize("kind", ["private", "gated"])
def test_preflight_integration_in_pull(hub_server: HubServer, hub_client: Client, kind: str) -> None:
    commit = hub_server.add(MODEL, chat_model(), readers=["reader"], private=kind == "private", gated=kind == "gated")
    outcome = hub_client.run("pull", MODEL, "--json", HF_TOKEN=hub_server.token("reader"))
    assert outcome.code == 0
    assert_envelope(outcome.json, "pull")
    assert outcome.json["data"]["commit_hash"] == commit
    assert (hub_client.cache_dir / "models--org--model" / "snapshots" / commit / "config.json").is_file()


def test_preflight_prevents_cache_pollution(hub_server: HubServer, hub_client: Client) -> None:
    hub_server.add(MODEL, chat_model(), private=True)
    hub_server.add("org/other", chat_model())
    assert hub_client.run("pull", "org/other").code == 0
    before = sorted(hub_client.home.rglob("*"))
    outcome = hub_client.run("pull", MODEL, HF_TOKEN="hf_nobodys")
    assert outcome.code == 1
    assert "HF_TOKEN" in outcome.err
    assert sorted(hub_client.home.rglob("*")) == before


def test_the_token_may_come_from_a_login_or_an_older_variable(hub_server: HubServer, hub_client: Client) -> None:
    hub_server.add(MODEL, chat_model(), private=True, readers=["reader"])
    good, bad = hub_server.token("reader"), hub_server.token("stranger")
    assert hub_client.run("pull", MODEL, HUGGINGFACE_HUB_TOKEN=good).code == 0
    hub_client.home.joinpath("token").write_text(good)
    hub_server.log.clear()
    assert hub_client.run("pull", MODEL, HUGGINGFACE_HUB_TOKEN=bad).code == 0
    assert {request.token for request in hub_server.log.requests} == {good}
    # HF_TOKEN takes precedence over the login.
    assert hub_client.run("pull", MODEL, HF_TOKEN=bad).code == 1


def test_the_token_reaches_no_other_host_and_no_output(hub_server: HubServer, hub_client: Client) -> None:
    hub_server.add(MODEL, chat_model(), private=True, readers=["reader"])
    token = hub_server.token("reader")
    hub_server.faults.add(Fault("/objects/", status=500))
    outcome = hub_client.run("pull", MODEL, "--json", HF_TOKEN=token)
    assert outcome.code == 0
    assert hub_server.log.count("GET", origin="cdn") >= 2
    assert {request.token for request in hub_server.log.find(origin="cdn")} == {None}
    assert {request.token for request in hub_server.log.find(origin="hub")} == {token}
    assert token not in outcome.out + outcome.err


@pytest.mark.parametrize("status", [500, 503, 429, 418])
def test_an_unclear_preflight_is_a_warning_and_the_pull_continues(
    hub_server: HubServer, hub_client: Client, status: int
) -> None:
    hub_server.add(MODEL, chat_model())
    hub_server.faults.add(Fault("/api/models/", status=status))
    outcome = hub_client.run("pull", MODEL, "--json")
    assert (outcome.code, outcome.json["data"]["download_status"]) == (0, "success")
    assert outcome.err.startswith("Warning: ") and str(status) in outcome.err


def test_a_slow_preflight_is_a_warning_and_the_pull_continues(hub_server: HubServer, hub_client: Client) -> None:
    hub_server.add(MODEL, chat_model())
    hub_server.faults.add(Fault("/api/models/", after=2))
    outcome = hub_client.run("pull", MODEL, "--json", HF_HUB_ETAG_TIMEOUT="1")
    assert (outcome.code, outcome.json["data"]["download_status"]) == (0, "success")
    assert "could not be reached" in outcome.err


def test_pull_sends_only_the_requests_it_needs(hub_server: HubServer, hub_client: Client) -> None:
    hub_server.add(MODEL, chat_model())
    assert hub_client.run("pull", MODEL, AI_AGENT="something").code == 0
    known = (f"/api/models/{MODEL}", f"/{MODEL}/resolve/")
    assert all(request.path.startswith(known) for request in hub_server.log.find(origin="hub"))
    assert all("agent/" not in request.headers["user-agent"] for request in hub_server.log.requests)
