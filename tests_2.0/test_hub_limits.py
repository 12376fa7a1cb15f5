"""A hub that sends endless, slow or huge responses: each request ends in one clear error, within limits."""

from __future__ import annotations

import gzip
import json
import os
import re
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from support.hub.fixtures import Client
from support.hub.hostile import COMMIT, ENTRY, FILE_ROUTE, INFO_ROUTE, REPO, TREE_ROUTE, Handler, Responder, hostile_hub
from support.pushing import Pusher

from mlxk2.cache.staging import RemoteFile
from mlxk2.errors import MlxkError
from mlxk2.hub import repos
from mlxk2.hub.client import Connection, connect
from mlxk2.hub.errors import translate_download
from mlxk2.hub.limits import Limits
from mlxk2.hub.push import Branch
from mlxk2.hub.transfer import fetch_file

SHORT = Limits(
    response_bytes=100_000,
    error_bytes=1_000,
    response_seconds=2,
    silence_seconds=1,
    slow_seconds=0.5,
    slow_file_seconds=0.5,
    call_requests=30,
    call_bytes=1_000_000,
    pause_seconds=5,
    files=5_000,
)
# Compressed before a request waits for them.
GZIP_BOMB = gzip.compress(bytes(10_000_000))
DEFLATE_BOMB = zlib.compress(bytes(10_000_000))
NESTED_BOMB = gzip.compress(GZIP_BOMB)
Question = Callable[[Connection, Path], object]


Ask = Callable[[Question, Responder, str], str]


def _asker(limits: Limits, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Ask:
    """Return a function that asks a hub with one bad route and returns the message of the resulting error."""

    def asked(question: Question, answer: Responder, route: str) -> str:
        with hostile_hub({route: answer}) as hub:
            monkeypatch.setenv("HF_ENDPOINT", hub.url)
            monkeypatch.setenv("HF_TOKEN", "hf_secret")
            monkeypatch.setenv("NO_PROXY", "*")
            with pytest.raises(MlxkError) as caught:
                question(connect(os.environ, limits), folder)
        assert REPO in caught.value.message or "config.json" in caught.value.message
        return caught.value.message

    return asked


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Ask:
    """Return a function that asks with limits short enough for a test."""
    return _asker(SHORT, monkeypatch, tmp_path)


@pytest.fixture
def ask_patiently(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Ask:
    """Return a function that asks with the limits of the program."""
    return _asker(Limits(), monkeypatch, tmp_path)


def find(connection: Connection, _: Path) -> object:
    """Request the commit of the main branch."""
    return repos.find(connection, REPO, "main")


def listing(connection: Connection, _: Path) -> object:
    """Request the list of files."""
    return repos.list_files(connection, repos.Revision(REPO, COMMIT, "main"))


def file(connection: Connection, folder: Path) -> object:
    """Request the bytes of a file."""
    revision = repos.Revision(REPO, COMMIT, "main")
    [wanted] = repos.list_files(connection, revision)
    with translate_download(REPO):
        return fetch_file(repos.Source(connection, revision), wanted, folder / "partial", lambda _: None, Event())


def branch_state(connection: Connection, _: Path) -> object:
    """Request the state of a branch, as a push does."""
    return Branch(connection, REPO, "main", ["hf_secret"]).read()


def next_page(request: Handler, body: object, where: str) -> None:
    request.send(body, link=f'<{where}>; rel="next"')


def address(request: Handler) -> str:
    return f"http://{request.headers['host']}{request.path}"


def pages(request: Handler) -> None:
    next_page(request, [ENTRY], f"{address(request)}&x=1")


def same_page(request: Handler) -> None:
    next_page(request, [], address(request))


def drip(request: Handler) -> None:
    request.send_head(content_length="100000")
    request.send_slowly(b"[" + b" " * 99_999, 2, 0.05)


def drip_of_chunks(request: Handler) -> None:
    request.send_head(transfer_encoding="chunked")
    request.send_slowly(b"1\r\n \r\n" * 10_000, 6, 0.05)


def drip_of_a_chunk_size(request: Handler) -> None:
    request.send_head(transfer_encoding="chunked")
    request.send_slowly(b"1;" + b"x" * 10_000, 2, 0.05)


def drip_of_headers(request: Handler) -> None:
    request.wfile.write(b"HTTP/1.1 200 OK\r\n")
    request.send_slowly(b"x: y\r\n" * 10_000, 2, 0.05)


def notices_without_end(request: Handler) -> None:
    while True:
        request.wfile.write(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100)


def silence(_: Handler) -> None:
    time.sleep(3)


def silence_inside(request: Handler) -> None:
    request.send_head(content_length="1000")
    time.sleep(3)


def steady_but_endless(request: Handler) -> None:
    request.send_head(transfer_encoding="chunked")
    while True:
        request.wfile.write(b"400\r\n" + b" " * 1024 + b"\r\n")
        time.sleep(0.05)


def gzip_bomb(request: Handler) -> None:
    request.send(GZIP_BOMB, content_encoding="gzip")


def deflate_bomb(request: Handler) -> None:
    request.send(DEFLATE_BOMB, content_encoding="deflate")


def nested_bomb(request: Handler) -> None:
    request.send(NESTED_BOMB, content_encoding="gzip, gzip")


def empty_members(request: Handler) -> None:
    request.send_head(transfer_encoding="chunked", content_encoding="gzip")
    press = zlib.compressobj(0, zlib.DEFLATED, 31)
    while True:
        data = b"".join(press.flush(zlib.Z_FULL_FLUSH) or b"\0\0\0\xff\xff" for _ in range(1000))
        request.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))


def broken_gzip(request: Handler) -> None:
    request.send(b"no gzip at all", content_encoding="gzip")


def huge(request: Handler) -> None:
    request.send(b'["' + b"x" * 1_000_000 + b'"]')


def deep(request: Handler) -> None:
    request.send(b"[" * 40_000 + b"]" * 40_000)


def endless_body(request: Handler) -> None:
    request.send_head(connection="close")
    while True:
        request.wfile.write(b" " * 65536)


def huge_headers(request: Handler) -> None:
    request.send([], x="y" * 200_000)


def redirects(request: Handler) -> None:
    request.send(b"", 302, location=f"{address(request)}x")


def redirects_with_endless_bodies(request: Handler) -> None:
    request.send_head(302, location=f"{address(request)}x", connection="close")
    while True:
        request.wfile.write(b" " * 65536)


def long_pause(request: Handler) -> None:
    request.send({"error": "slow down"}, 429, retry_after="99999999")


def long_pause_of_a_rate(request: Handler) -> None:
    request.send({"error": "slow down"}, 429, ratelimit='"api";r=0;t=99999999')


LARGE, NONSENSE, SLOW, TIME = "is larger than", "is not that of a hub", "came too slowly", "took longer than"
TOO_LONG = f"sends more than|{LARGE}"
ANY_ANSWER = [
    (drip, SLOW),
    (drip_of_chunks, SLOW),
    (drip_of_a_chunk_size, SLOW),
    (drip_of_headers, SLOW),
    (notices_without_end, LARGE),
    (silence, "did not begin"),
    (silence_inside, SLOW),
    (steady_but_endless, TIME),
    (gzip_bomb, LARGE),
    (deflate_bomb, LARGE),
    (nested_bomb, LARGE),
    (empty_members, LARGE),
    (broken_gzip, NONSENSE),
    (huge, LARGE),
    (deep, NONSENSE),
    (endless_body, LARGE),
    (huge_headers, LARGE),
    (redirects, "redirects"),
    (redirects_with_endless_bodies, "redirects"),
    (long_pause, "asks to wait"),
    (long_pause_of_a_rate, "asks to wait"),
]


@pytest.mark.parametrize(("answer", "said"), ANY_ANSWER, ids=lambda value: getattr(value, "__name__", ""))
def test_an_endless_or_slow_response_is_an_error(ask: Ask, answer: Responder, said: str) -> None:
    began = time.monotonic()
    for question, route in ((find, INFO_ROUTE), (branch_state, TREE_ROUTE)):
        assert re.search(said, ask(question, answer, route)), question
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("answer", [pages, same_page])
@pytest.mark.parametrize("question", [listing, branch_state])
def test_a_listing_of_endless_pages_is_an_error(ask: Ask, question: Question, answer: Responder) -> None:
    assert "does not end: it comes in more than 30 parts" in ask(question, answer, TREE_ROUTE)


@pytest.mark.parametrize("question", [listing, branch_state])
def test_a_listing_of_too_many_files_is_an_error(ask: Ask, question: Question) -> None:
    folders = [{"type": "directory", "path": "d", "oid": "0"}] * 1500
    assert "lists more than 5,000 files" in ask(question, lambda r: next_page(r, folders, address(r)), TREE_ROUTE)


def test_the_size_limit_counts_all_pages_of_a_listing(ask: Ask) -> None:
    said = ask(listing, lambda r: next_page(r, b"[]".ljust(90_000), address(r)), TREE_ROUTE)
    assert "is larger than 1.0MB in total" in said


def test_an_endless_list_of_commits_is_an_error(ask: Ask) -> None:
    def by_its_start(connection: Connection, _: Path) -> object:
        return repos.find(connection, REPO, "abc")

    def answer(request: Handler) -> None:
        if INFO_ROUTE in request.path:
            request.send({}, 404, x_error_code="RevisionNotFound")
        else:
            same_page(request)

    assert "does not end" in ask(by_its_start, answer, "/api/models/")


def long_file(request: Handler) -> None:
    request.send(b"x" * 100)


FILE_ANSWERS = [
    (drip, SLOW),
    (drip_of_chunks, SLOW),
    (drip_of_a_chunk_size, SLOW),
    (drip_of_headers, SLOW),
    (notices_without_end, LARGE),
    (gzip_bomb, TOO_LONG),
    (nested_bomb, TOO_LONG),
    (empty_members, LARGE),
    (endless_body, TOO_LONG),
    (long_file, TOO_LONG),
    (redirects, "redirects"),
    (long_pause, "asks to wait"),
]


@pytest.mark.parametrize(("answer", "said"), FILE_ANSWERS, ids=lambda value: getattr(value, "__name__", ""))
def test_an_endless_or_slow_file_is_an_error(ask: Ask, answer: Responder, said: str) -> None:
    assert re.search(said, ask(file, answer, FILE_ROUTE))


def test_a_download_that_keeps_restarting_is_an_error(ask: Ask) -> None:
    def cut(request: Handler) -> None:
        request.send_head(content_length="3000000")
        request.wfile.write(bytes(1_500_000))
        request.close_connection = True

    def large(connection: Connection, folder: Path) -> object:
        wanted = RemoteFile("config.json", "b" * 40, 3_000_000)
        source = repos.Source(connection, repos.Revision(REPO, COMMIT, "main"))
        with translate_download(REPO):
            return fetch_file(source, wanted, folder / "partial", lambda _: None, Event())

    assert "restarts config.json again and again" in ask(large, cut, FILE_ROUTE)


@pytest.mark.parametrize("answer", [endless_body, drip, broken_gzip, gzip_bomb])
def test_the_status_of_an_error_counts_despite_a_bad_body(ask: Ask, answer: Responder) -> None:
    def refuse(request: Handler) -> None:
        begin = request.send_head
        # The response begins as a refusal; its body is that of `answer`.
        request.send_head = lambda _=0, **headers: begin(404, x_error_code="RepoNotFound", **headers)  # type: ignore[method-assign]
        answer(request)

    assert "is not on the hub, or is private" in ask(find, refuse, INFO_ROUTE)


ERROR_TEXTS = {
    "a list": b"[]",
    "a text": b'"x"',
    "null": b"null",
    "errors that are a number": b'{"errors": 5}',
    "errors that are numbers": b'{"errors": [5]}',
    "an error that is an object": b'{"error": {"a": 1}}',
    "a deep list": b"[" * 900,
    "a number without end": b"1" * 900,
    "no UTF-8": b"\xff\xfe\xfd",
    "half a character": b'{"error": "\\ud800"}',
}


@pytest.mark.parametrize("text", ERROR_TEXTS.values(), ids=ERROR_TEXTS.keys())
@pytest.mark.parametrize(("question", "route"), [(find, INFO_ROUTE), (file, FILE_ROUTE), (branch_state, TREE_ROUTE)])
def test_the_status_of_an_error_counts_despite_malformed_json(
    ask_patiently: Ask, question: Question, route: str, text: bytes
) -> None:
    assert "418" in ask_patiently(
        question, lambda request: request.send(text, 418, content_type="application/json"), route
    )


@pytest.mark.parametrize("charset", ["undefined", "idna", "zlib"])
def test_the_status_of_an_error_counts_despite_an_odd_charset(ask_patiently: Ask, charset: str) -> None:
    def refuse(request: Handler) -> None:
        request.send(b"x", 418, content_type=f"text/plain; charset={charset}")

    assert "418" in ask_patiently(file, refuse, FILE_ROUTE)


def test_an_html_error_page_is_not_quoted(ask_patiently: Ask) -> None:
    page = "<html>Out of order</html>"
    assert "html" not in ask_patiently(
        file, lambda request: request.send(page, 418, content_type="text/html"), FILE_ROUTE
    )


HEADERS = {
    "a redirect to no host": (302, {"location": "http://a..b/"}),
    "a redirect to a host without end": (302, {"location": f"http://{'a' * 300}/"}),
    "a redirect to no port": (302, {"location": "http://127.0.0.1:99999/"}),
    "a range of no number": (206, {"content_range": "bytes 0-1/abc"}),
    "a range without end": (206, {"content_range": f"bytes 0-1/{'9' * 5000}"}),
    "a pause without end": (429, {"retry_after": "9" * 5000}),
}


@pytest.mark.parametrize(("status", "headers"), HEADERS.values(), ids=HEADERS.keys())
@pytest.mark.parametrize(("question", "route"), [(find, INFO_ROUTE), (file, FILE_ROUTE), (branch_state, TREE_ROUTE)])
def test_impossible_headers_give_an_error(
    ask_patiently: Ask,
    question: Question,
    route: str,
    status: int,
    headers: dict[str, str],
) -> None:
    if question is not file and status == 206:
        pytest.skip("only a file has a range")
    ask_patiently(question, lambda request: request.send(b"{}", status, **headers), route)


@pytest.mark.parametrize("count", [5_000, 50_000])
@pytest.mark.parametrize("size", [1_000, 50_000])
def test_long_listings_are_read(monkeypatch: pytest.MonkeyPatch, count: int, size: int) -> None:
    names = [f"some-folder/of-files/{number:05}.safetensors" for number in range(count)]
    lfs = {"lfs": {"oid": "b" * 64, "size": 2, "pointerSize": 130}, "xetHash": "c" * 64}
    parts = [
        json.dumps([ENTRY | lfs | {"path": name} for name in names[at : at + size]]) for at in range(0, count, size)
    ]

    def answer(request: Handler) -> None:
        number = int(request.path.partition("&page=")[2] or 0)
        plain = address(request).partition("&page=")[0]
        more: dict[str, Any] = {"link": f'<{plain}&page={number + 1}>; rel="next"'} if number + 1 < len(parts) else {}
        request.send(parts[number], **more)

    with hostile_hub({TREE_ROUTE: answer}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("NO_PROXY", "*")
        found = repos.list_files(connect(os.environ), repos.Revision(REPO, COMMIT, "main"))
    assert [file.name for file in found] == names


def test_a_slow_but_steady_connection_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(request: Handler) -> None:
        data = json.dumps([ENTRY]).encode().ljust(20_000)
        request.send_head(content_length=str(len(data)))
        request.send_slowly(data, 1_000, 0.05)

    with hostile_hub({TREE_ROUTE: answer}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("NO_PROXY", "*")
        connection = connect(os.environ, Limits(slow_seconds=0.5, slow_bytes=1_000))
        assert len(repos.list_files(connection, repos.Revision(REPO, COMMIT, "main"))) == 1


def test_pull_and_push_report_an_endless_listing(hub_client: Client, pusher: Pusher) -> None:
    pusher.write({"config.json": b"{}"})
    with hostile_hub({TREE_ROUTE: same_page}) as hub:
        outcome = hub_client.run("pull", REPO, "--json", HF_ENDPOINT=hub.url)
        error = pusher.error("--dry-run", HF_ENDPOINT=hub.url)
    assert (outcome.code, outcome.json["error"]["type"]) == (1, "download_failed")
    assert error["type"] == "upload_failed"
    assert "more than 1,000 parts" in outcome.json["error"]["message"] + error["message"]
    assert not hub_client.cache_dir.exists()
