"""A hub with impossible listings gives one clear error before anything is written; so does an unreachable hub."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from support.hub.fixtures import Client
from support.hub.hostile import ENTRY, INFO, REPO, TREE_ROUTE, Responder, hostile_hub
from support.pushing import Pusher

from mlxk2.errors import MlxkError
from mlxk2.hub import repos
from mlxk2.hub.client import Connection, connect
from mlxk2.hub.push import Branch

Ask = Callable[[Connection], object]

COMMITS_ROUTE, API = "/commits/", "/api/models/"
SIZES: list[object] = [None, "2", "", -1, 10**30, True, 2.0, [], {}]
HASHES: list[object] = [None, 5, "", "a" * 39, "A" * 40, "../" + "a" * 37, "a" * 41, [], {}, "\ud800" * 40]
PATHS: list[object] = [
    None,
    5,
    True,
    [],
    {},
    "",
    "/etc/passwd",
    "../up",
    "a/../b",
    "a//b",
    ".",
    "a/",
    "nul\0",
    "x" * 256,
    "x/" * 600 + "x",
    "lone\ud800",
    "bell\a",
]
LFS = {"oid": "b" * 64, "size": 2, "pointerSize": 130}
LFS_FAULTS = [
    5,
    "text",
    [1],
    {"size": 2},
    {"oid": "b" * 64},
    LFS | {"oid": 5},
    LFS | {"oid": "b"},
    LFS | {"size": None},
    LFS | {"size": "2"},
    LFS | {"size": -2},
    LFS | {"size": 10**30},
]
XET_FAULTS = [5, "c", "../" + "c" * 61, ["c"], "C" * 64]
ENTRIES: list[object] = [None, 5, "text", [], {}, {"type": "file"}, {"path": "a"}]
TREES: list[object] = [
    *([ENTRY | {"size": size}] for size in SIZES),
    *([ENTRY | {"oid": oid}] for oid in HASHES),
    *([ENTRY | {"path": path}] for path in PATHS),
    *([ENTRY | {"lfs": lfs}] for lfs in LFS_FAULTS),
    *([ENTRY | {"lfs": LFS, "xetHash": xet}] for xet in XET_FAULTS),
    *([entry] for entry in ENTRIES),
    [ENTRY, ENTRY],
    [ENTRY | {"path": "a"}, ENTRY | {"path": "a/b"}],
    5,
    "text",
    {"error": "no"},
    None,
    True,
]
SHAS: list[object] = [None, 5, "", "main", "a" * 39, "A" * 40, "a" * 64, "../" + "a" * 37, [], {}, True]
SIBLINGS: list[object] = [5, "text", [5], [None], [{}], [[]]]
FLAGS: list[object] = [5, "no", [], {}]
INFOS: list[object] = [
    *(INFO | {"sha": sha} for sha in SHAS),
    *(INFO | {"siblings": siblings} for siblings in SIBLINGS),
    *(INFO | {"gated": gated} for gated in (5, [], {}, [1], {"a": 1})),
    *(INFO | {"private": private} for private in FLAGS),
    *(INFO | {"disabled": disabled} for disabled in FLAGS),
    *(INFO | {"lastModified": date} for date in (5, "never")),
    {},
    [],
    5,
    "text",
    None,
]


@contextmanager
def connect_to_hub(monkeypatch: pytest.MonkeyPatch, routes: dict[str, Responder]) -> Iterator[Connection]:
    """Yield a connection to a hub whose responses on some routes come from the test."""
    with hostile_hub(routes) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        monkeypatch.setenv("NO_PROXY", "*")
        yield connect(os.environ)


def refusals(
    monkeypatch: pytest.MonkeyPatch, route: str, bodies: list[object], ask: Ask
) -> Iterator[tuple[object, str]]:
    """Yield each response body with the message of the resulting error, or an empty text without an error."""
    body: object = None
    with connect_to_hub(monkeypatch, {route: lambda request: request.send(body)}) as connection:
        for body in bodies:
            try:
                ask(connection)
            except MlxkError as error:
                assert REPO in error.message and len(error.message) < 600, ascii(body)
                error.message.encode()
                yield body, error.message
            else:
                yield body, ""


def files(connection: Connection) -> object:
    return repos.list_files(connection, repos.Revision(REPO, "a" * 40, "main"))


def find(connection: Connection) -> object:
    return repos.find(connection, REPO, None)


def branch_state(connection: Connection) -> object:
    found = Branch(connection, REPO, "main", []).read().files
    assert all(isinstance(path, str) and isinstance(file.size, int) for path, file in found.items())
    return found


@pytest.mark.parametrize(
    ("route", "bodies", "ask"),
    [(TREE_ROUTE, TREES, files), (API, INFOS, find), (API, INFOS, branch_state)],
    ids=["tree for pull", "repo for pull", "repo for push"],
)
def test_impossible_listings_are_refused(
    monkeypatch: pytest.MonkeyPatch, route: str, bodies: list[object], ask: Ask
) -> None:
    taken = [ascii(body) for body, message in refusals(monkeypatch, route, bodies, ask) if not message]
    assert taken == []


def test_push_accepts_odd_file_names_but_no_other_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = [body for body, message in refusals(monkeypatch, TREE_ROUTE, TREES, branch_state) if not message]
    names = [entry["path"] for tree in taken if isinstance(tree, list) for entry in tree]
    assert all(isinstance(name, str) for name in names)
    assert [tree for tree in TREES if not isinstance(tree, list) and tree in taken] == []


@pytest.mark.parametrize("commit", ["abc", "abc/../../x" + "a" * 29, 5, None, "abc" + "A" * 37])
def test_pull_refuses_an_impossible_commit(monkeypatch: pytest.MonkeyPatch, commit: object) -> None:
    item = {"id": commit, "title": "", "message": "", "date": "2026-01-01T00:00:00.000Z", "authors": []}
    routes: dict[str, Responder] = {
        COMMITS_ROUTE: lambda request: request.send([item]),
        API: lambda request: request.send({}, 404, x_error_code="RevisionNotFound"),
    }
    with connect_to_hub(monkeypatch, routes) as connection, pytest.raises(MlxkError, match="is not that of a hub"):
        repos.find(connection, REPO, "abc")


def test_an_impossible_listing_leaves_the_cache_untouched(hub_client: Client) -> None:
    with hostile_hub({TREE_ROUTE: lambda request: request.send([ENTRY, ENTRY | {"path": "b", "size": None}])}) as hub:
        outcome = hub_client.run("pull", REPO, "--json", HF_ENDPOINT=hub.url)
    assert outcome.json["error"]["type"] == "download_failed"
    assert "'b' has an invalid size: None" in outcome.json["error"]["message"]
    assert not hub_client.cache_dir.exists()


# ----------------------------------------------------------------------------------------------------- unreachable hubs


def closed_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("http://user:secret@127.0.0.1:{port}", "Connection refused"),
        ("http://no-such-host.invalid", "not known|resolution|No address"),
        ("https://127.0.0.1:{open}", "SSL"),
    ],
)
def test_an_error_says_why_the_hub_cannot_be_reached(pusher: Pusher, address: str, why: str) -> None:
    pusher.write({"config.json": b"{}"})
    with hostile_hub({}) as hub:
        address = address.format(port=closed_port(), open=hub.url.rpartition(":")[2])
        outcome = pusher.client.run("pull", REPO, "--json", HF_ENDPOINT=address)
        error = pusher.error("--dry-run", HF_ENDPOINT=address)
    pulled = outcome.json["error"]
    assert (pulled["type"], error["type"]) == ("NetworkError", "upload_failed")
    for said in (pulled["message"], error["message"]):
        assert re.search(why, said) and "secret" not in said, said


def test_an_error_quotes_the_message_of_the_hub(hub_client: Client) -> None:
    with hostile_hub({API: lambda request: request.send({"error": "closed for today"}, 418)}) as hub:
        outcome = hub_client.run("pull", REPO, "--json", HF_ENDPOINT=hub.url)
    assert "The hub failed with 418 for org/model: closed for today." in outcome.json["error"]["message"]
