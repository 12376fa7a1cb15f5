"""HF_ENDPOINT is not the address of a hub: pull and push say so, and nothing is written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from support.conformance import assert_envelope
from support.hub.fixtures import Client
from support.pulling import MODEL
from support.pushing import Pusher

QUESTION = "is HF_ENDPOINT the address of a hub?"
ANSWERS = ["<html><body>Welcome</body></html>", "[]", "{}", "null", '"text"', ""]
NO_URLS = ["http://[::1", "http://localhost:port"]  # with these addresses the import of the library fails
NO_ADDRESSES = ["huggingface.co", "ftp://127.0.0.1", "http://", *NO_URLS]

# Settings without a reachable hub, each with its reason in the error. A name below .invalid never exists.
WITHOUT_HUB = {
    "nothing listens": ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "Connection refused"),
    "no such name": ({"HF_ENDPOINT": "http://hub.invalid"}, "The hub could not be reached for org/model: "),
    "offline": ({"HF_HUB_OFFLINE": "1"}, "Offline mode is on"),
}


@contextmanager
def web_server(answer: str) -> Iterator[str]:
    """Yield the address of a server that gives the same response to every request."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer.encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("answer", ANSWERS)
def test_pull_says_that_the_address_may_be_no_hub(hub_client: Client, answer: str) -> None:
    with web_server(answer) as address:
        outcome = hub_client.run("pull", MODEL, "--json", HF_ENDPOINT=address)
    assert outcome.code == 1
    assert_envelope(outcome.json, "pull", "error")
    assert outcome.json["error"]["type"] == "download_failed"
    assert QUESTION in outcome.json["error"]["message"]
    assert outcome.json["data"]["download_status"] == "failed"
    assert not hub_client.cache_dir.exists()


@pytest.mark.parametrize("answer", ANSWERS)
def test_push_says_that_the_address_may_be_no_hub(pusher: Pusher, answer: str) -> None:
    pusher.write({"config.json": b"{}"})
    with web_server(answer) as address:
        error = pusher.error("--dry-run", HF_ENDPOINT=address)
    assert error["type"] in ("push_operation_failed", "upload_failed")
    assert QUESTION in error["message"]


@pytest.mark.parametrize("address", NO_ADDRESSES)
def test_pull_refuses_an_invalid_hub_address(hub_client: Client, address: str) -> None:
    outcome = hub_client.run("pull", MODEL, "--json", HF_ENDPOINT=address)
    assert (outcome.code, outcome.json["error"]["type"]) == (1, "ValidationError")
    assert "HF_ENDPOINT" in outcome.json["error"]["message"]
    assert outcome.json["data"]["download_status"] == "error"


@pytest.mark.e2e
@pytest.mark.parametrize("address", NO_URLS)
def test_run_works_with_an_invalid_hub_address(hub_client: Client, address: str) -> None:
    outcome = hub_client.run("run", "demo", "Hi", "--max-tokens", "1", "--json", HF_ENDPOINT=address)
    assert (outcome.code, outcome.json["data"]["tokens_generated"]) == (0, 1), outcome


@pytest.mark.parametrize("address", NO_ADDRESSES)
def test_push_refuses_an_invalid_hub_address(pusher: Pusher, address: str) -> None:
    pusher.write({"config.json": b"{}"})
    error = pusher.error("--dry-run", HF_ENDPOINT=address)
    assert (error["type"], "HF_ENDPOINT" in error["message"]) == ("ValidationError", True)


@pytest.mark.parametrize(("variables", "reason"), WITHOUT_HUB.values(), ids=WITHOUT_HUB)
def test_pull_without_a_hub_gives_the_reason_once(hub_client: Client, variables: dict[str, str], reason: str) -> None:
    outcome = hub_client.run("pull", MODEL, **variables)
    message, _hint = outcome.err.splitlines()
    assert (outcome.code, message.startswith("Error: "), reason in message) == (1, True, True)
    assert "Errno" not in message and not message.endswith("..")


def test_clone_and_push_without_a_hub_give_the_reason_once(hub_client: Client, pusher: Pusher) -> None:
    pusher.write({"config.json": b"{}"})
    variables, reason = WITHOUT_HUB["nothing listens"]
    clone = hub_client.run("clone", MODEL, "copy", MLXK2_ENABLE_ALPHA_FEATURES="1", **variables)
    for outcome in (clone, pusher.run("--private", **variables)):
        assert (outcome.code, outcome.err.count(reason), outcome.err.count("Errno")) == (1, 1, 0), outcome
