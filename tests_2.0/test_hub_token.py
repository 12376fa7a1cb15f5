"""The user's token goes only to the hub; a token that can't be sent gives a clear error."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from support.hub import HubServer
from support.hub.fixtures import Client
from support.hub.hostile import (
    DATA,
    ENTRY,
    FILE_ROUTE,
    INFO_ROUTE,
    REPO,
    TREE_ROUTE,
    Handler,
    HostileHub,
    Responder,
    hostile_hub,
)
from support.pushing import Pusher

from mlxk2.hub.errors import as_push_error

TOKEN = "hf_secret"


@pytest.fixture
def other() -> Iterator[HostileHub]:
    """Yield another origin that responds like a hub."""
    ok: dict[str, Responder] = {part: lambda request: request.send({}) for part in ("/upload", "/verify")}
    # Xet repeats its request for minutes after a malformed response.
    with hostile_hub(ok | {"/xet-read-token/": lambda request: request.send({}, 404)}) as hub:
        yield hub


def assert_no_credentials(other: HostileHub) -> None:
    """Fail unless requests came and none of them had the user's token or cookies."""
    assert other.seen
    assert {(seen.authorization, seen.cookie) for seen in other.seen} == {(None, None)}


def redirect_to(other: HostileHub, status: int) -> Callable[[Handler], None]:
    """Return a response that sends the client to the same path on the other origin."""

    def answer(request: Handler) -> None:
        link = f'<{other.url}{request.path}>; rel="next"'
        headers = {"set_cookie": "session=1", "link": link, "location": other.url + request.path}
        request.send([] if TREE_ROUTE in request.path else {}, status, **headers)

    return answer


@pytest.mark.parametrize(
    ("route", "status"), [(TREE_ROUTE, 200), (TREE_ROUTE, 307), (INFO_ROUTE, 302), (FILE_ROUTE, 302)]
)
@pytest.mark.parametrize("command", ["pull", "clone"])
def test_pull_and_clone_send_the_token_to_no_other_origin(
    hub_client: Client, tmp_path: Path, other: HostileHub, command: str, route: str, status: int
) -> None:
    target = [str(tmp_path / "folder"), "--no-health-check"] if command == "clone" else []
    with hostile_hub({route: redirect_to(other, status)}) as hub:
        outcome = hub_client.run(command, f"{REPO}@main", *target, HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN)
    assert outcome.code == 0, outcome
    assert {seen.authorization for seen in hub.seen} == {f"Bearer {TOKEN}"}
    assert_no_credentials(other)


def test_credentials_in_the_hub_address_go_to_no_other_origin(hub_client: Client, other: HostileHub) -> None:
    with hostile_hub({TREE_ROUTE: redirect_to(other, 200)}) as hub:
        address = hub.url.replace("//", "//user:pass@")
        outcome = hub_client.run("pull", REPO, HF_ENDPOINT=address)
    assert outcome.code == 0, outcome
    assert all((seen.authorization or "").startswith("Basic ") for seen in hub.seen)
    assert_no_credentials(other)


@pytest.mark.parametrize(("route", "status"), [(TREE_ROUTE, 200), (INFO_ROUTE, 307)])
def test_push_sends_the_token_to_no_other_origin(pusher: Pusher, other: HostileHub, route: str, status: int) -> None:
    pusher.write({"config.json": DATA})
    with hostile_hub({route: redirect_to(other, status)}) as hub:
        pusher.data("--dry-run", HF_ENDPOINT=hub.url)
    assert_no_credentials(other)


def test_uploads_send_the_token_to_no_other_origin(pusher: Pusher, other: HostileHub) -> None:
    """The hub names two addresses of the other origin for a large file: one to upload to, one to report to."""
    pusher.write({"config.json": DATA, "model.safetensors": b"weights"})

    def batch(request: Handler) -> None:
        [asked] = json.loads(request.body)["objects"]
        actions = {"upload": {"href": f"{other.url}/upload"}, "verify": {"href": f"{other.url}/verify"}}
        request.send({"transfer": "basic", "objects": [asked | {"actions": actions}]})

    def preupload(request: Handler) -> None:
        modes = {"config.json": "regular", "model.safetensors": "lfs"}
        paths = [file["path"] for file in json.loads(request.body)["files"]]
        request.send({"files": [{"path": p, "uploadMode": modes[p], "shouldIgnore": False} for p in paths]})

    def commit(request: Handler) -> None:
        url = f"http://{request.headers['host']}/{REPO}/commit/{'b' * 40}"
        request.send({"commitOid": "b" * 40, "commitUrl": url})

    routes: dict[str, Responder] = {
        TREE_ROUTE: lambda request: request.send([]),
        "/xet-write-token/": lambda request: request.send({}, 404),
        "/preupload/": preupload,
        "/info/lfs/objects/batch": batch,
        "/commit/": commit,
    }
    with hostile_hub(routes) as hub:
        outcome = pusher.run("--private", HF_ENDPOINT=hub.url)
    assert outcome.code == 0, (outcome, hub.seen, other.seen)
    assert other.count("/upload") and other.count("/verify")
    assert_no_credentials(other)


def xet_token(store: str, seconds: int) -> dict[str, Any]:
    return {"x_xet_cas_url": store, "x_xet_access_token": "xet", "x_xet_token_expiration": str(seconds)}


def test_xet_sends_the_token_to_no_other_origin(hub_client: Client, other: HostileHub) -> None:
    """The hub names the other origin as the store, with an expired token, and redirects requests for a new token there.

    The library asks first, then the client of Xet, which has an HTTP client of its own.
    """
    answers = iter([lambda request: request.send({}, **xet_token(other.url, 1))])
    elsewhere = redirect_to(other, 302)
    lfs = {"lfs": {"oid": "b" * 64, "size": 9, "pointerSize": 130}, "xetHash": "c" * 64}
    routes: dict[str, Responder] = {
        TREE_ROUTE: lambda request: request.send([ENTRY | lfs]),
        "/xet-read-token/": lambda request: next(answers, elsewhere)(request),
    }
    with hostile_hub(routes) as hub:
        outcome = hub_client.run("pull", REPO, HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN)
    assert outcome.code == 1
    assert hub.count("/xet-read-token/") > 1
    assert_no_credentials(other)


def test_a_hub_cannot_choose_a_local_folder_as_xet_store(hub_client: Client, tmp_path: Path) -> None:
    """The Xet client creates a folder for a store with a local address."""
    chosen = tmp_path / "chosen"
    lfs = {"lfs": {"oid": "b" * 64, "size": 9, "pointerSize": 130}, "xetHash": "c" * 64}
    routes: dict[str, Responder] = {
        TREE_ROUTE: lambda request: request.send([ENTRY | lfs]),
        "/xet-read-token/": lambda request: request.send({}, **xet_token(f"local://{chosen}", 1 << 40)),
    }
    with hostile_hub(routes) as hub:
        # A local address in an unusual form.
        outcome = hub_client.run("pull", REPO, HF_ENDPOINT=hub.url.replace("127.0.0.1", "0.0.0.0"))
    assert outcome.code == 1 and hub.count("/xet-read-token/")
    assert not chosen.exists()


# -------------------------------------------------------------------------------------------------- invalid tokens

LOOK_ALIKE, QUOTED = "hf_\N{CYRILLIC SMALL LETTER A}bc", '"hf_abc"'
UNSENDABLE = [
    ("hf_\N{LATIN SMALL LETTER E WITH ACUTE}", "not ASCII"),
    (LOOK_ALIKE, "not ASCII"),
    ("\ufeffhf_abc", "not ASCII"),
    ("hf_abc\u200b", "not ASCII"),
    (QUOTED, "quotation mark"),
    ("'hf_abc'", "quotation mark"),
    ("hf_a\nX: y", "line end"),
    ("hf_a\r\nhf_b", "line end"),
    ("hf_a\x1b[1m", "control character"),
    ("hf_a\tb", "control character"),
    ("Bearer hf_abc", "white space"),
]
SENT = ["hf_abc\n", "hf_abc\r\n", "  hf_abc ", "\thf_abc\t\n"]


@pytest.mark.parametrize("variable", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN"])
def test_an_invalid_token_is_an_error_that_names_its_variable(pusher: Pusher, variable: str) -> None:
    pusher.write({"config.json": DATA})
    for token, why in UNSENDABLE:
        error = pusher.error("--dry-run", **{"HF_TOKEN": "", variable: token})
        assert error["type"] == "auth_error"
        assert error["message"].startswith(f"{variable} holds a token that can't be sent: it contains "), ascii(token)
        assert why in error["message"], ascii(token)
        assert "hf_" not in error["message"]
    assert pusher.server.log.requests == []


def test_pull_reports_an_invalid_token(hub_server: HubServer, hub_client: Client) -> None:
    outcome = hub_client.run("pull", REPO, "--json", HF_TOKEN=LOOK_ALIKE)
    assert (outcome.code, outcome.json["error"]["type"]) == (1, "auth_error")
    assert "HF_TOKEN" in outcome.json["error"]["message"] and LOOK_ALIKE not in outcome.out + outcome.err
    assert (hub_server.log.requests, hub_client.cache_dir.exists()) == ([], False)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"hf_\xc3\xa9", "not ASCII"),
        (b"hf_\xff", "is not text"),
        (b"hf_a\nhf_b\n", "line end"),
        (QUOTED.encode(), "quotation"),
    ],
)
def test_a_token_file_without_a_valid_token_is_reported(
    hub_server: HubServer, hub_client: Client, data: bytes, why: str
) -> None:
    hub_client.home.mkdir()
    (hub_client.home / "token").write_bytes(data)
    outcome = hub_client.run("pull", REPO, "--json", PYTHONUTF8="1")
    message = outcome.json["error"]["message"]
    assert (outcome.json["error"]["type"], message.startswith("The token file of `hf auth login`")) == (
        "auth_error",
        True,
    )
    assert why in message and "hf_" not in message
    assert hub_server.log.requests == []


def test_a_token_file_that_is_a_folder_is_reported(hub_client: Client) -> None:
    (hub_client.home / "token").mkdir(parents=True)
    error = hub_client.run("pull", REPO, "--json").json["error"]
    assert (error["type"], "can't be read (Is a directory)" in error["message"]) == ("auth_error", True)


@pytest.mark.parametrize("token", SENT, ids=ascii)
@pytest.mark.parametrize("variable", ["HF_TOKEN", "HUGGINGFACE_HUB_TOKEN"])
def test_white_space_around_a_token_is_removed(hub_client: Client, variable: str, token: str) -> None:
    with hostile_hub({}) as hub:
        assert hub_client.run("pull", REPO, **{"HF_ENDPOINT": hub.url, variable: token}).code == 0
    assert {seen.authorization for seen in hub.seen} == {"Bearer hf_abc"}


@pytest.mark.parametrize("token", ["", "\n", "  "], ids=ascii)
def test_white_space_alone_counts_as_no_token(hub_client: Client, token: str) -> None:
    with hostile_hub({}) as hub:
        assert hub_client.run("pull", REPO, HF_ENDPOINT=hub.url, HF_TOKEN=token, HUGGINGFACE_HUB_TOKEN=token).code == 0
    assert {seen.authorization for seen in hub.seen} == {None}


@pytest.mark.parametrize("before", [0, 280, 400])
def test_the_token_is_removed_before_a_long_message_is_cut(before: int) -> None:
    fault = httpx2.ReadError("y" * before + "hf_" + "x" * 40 + "z" * 400)
    message = as_push_error(fault, REPO, ["hf_" + "x" * 40]).message
    assert ("hf_" in message, message.endswith("…")) == (False, True)
