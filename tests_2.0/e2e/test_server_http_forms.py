"""Plain HTTP in all the forms that clients and proxies send: each gets the right response."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.serving import Server
from support.wire import CHAT, Response, Wire, head, post

pytestmark = pytest.mark.e2e

QUESTION = b'{"messages":[{"role":"user","content":"What is 3 + 4?"}],"temperature":0}'
STREAM = QUESTION[:-1] + b',"stream":true}'
ANSWER = "3 + 4 = 7."


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Yield a server with the demo."""
    with Server("--model", "demo", home=tmp_path_factory.mktemp("server")) as server:
        yield server
        assert "Traceback" not in server.err and "WebSocket" not in server.err, server.err


def text_of(answer: Response) -> str:
    """Return the text of a chat response."""
    assert answer.status == 200, answer
    return str(answer.json["choices"][0]["message"]["content"])


# ----------------------------------------------------------------------------------------------------------- upgrades


UPGRADES = {
    "h2c": ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk"),
    "h2c in small letters": ("connection: upgrade", "upgrade: H2C"),
    "two protocols": ("Connection: keep-alive, Upgrade", "Upgrade: h2c, websocket"),
    "two fields": ("Connection: Upgrade", "Connection: keep-alive", "Upgrade: TLS/1.0", "Upgrade: h2c"),
    "a websocket": ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: eA=="),
    "an unknown one": ("Connection: Upgrade", "Upgrade: nothing/1"),
    "not in Connection": ("Upgrade: h2c",),
}


@pytest.mark.parametrize("apart", [False, True], ids=["at once", "apart"])
@pytest.mark.parametrize("fields", UPGRADES.values(), ids=UPGRADES)
def test_an_offer_to_upgrade_is_ignored(server: Server, fields: tuple[str, ...], apart: bool) -> None:
    chunks = b"".join(b"%x\r\n%c\r\n" % (1, byte) for byte in QUESTION) + b"0\r\n\r\n"
    asked = [
        head("GET /v1/models HTTP/1.1", *fields, port=server.port),
        post(CHAT, QUESTION, *fields, port=server.port),
        head("DELETE /v1/models HTTP/1.1", *fields, "Content-Length: 3", port=server.port) + b"abc",
        head(f"POST {CHAT} HTTP/1.1", *fields, "Transfer-Encoding: chunked", port=server.port) + chunks,
        post(CHAT, STREAM, *fields, port=server.port),
        head("GET /health HTTP/1.1", port=server.port),
    ]
    with Wire(server.port) as wire:
        if apart:
            for request in asked:
                for begin in range(0, len(request), 40):
                    wire.send(request[begin : begin + 40])
        else:
            wire.send(b"".join(asked))
        assert wire.response().json["object"] == "list"
        assert text_of(wire.response()) == ANSWER
        assert wire.response().status == 405
        assert text_of(wire.response()) == ANSWER
        assert wire.response().body.endswith(b"data: [DONE]\n\n")
        assert wire.response().json["status"] == "ok"


def test_an_offer_to_upgrade_with_connection_close_is_answered_and_closed(server: Server) -> None:
    with Wire(server.port) as wire:
        fields = ("Connection: close, Upgrade", "Upgrade: h2c")
        assert text_of(wire.send(post(CHAT, QUESTION, *fields, port=server.port)).response()) == ANSWER
        assert wire.is_over()


# ----------------------------------------------------------------------------------------------------------- HTTP/1.0


@pytest.mark.parametrize("fields", [(), ("Connection: keep-alive",), ("Expect: 100-continue",)], ids=str)
@pytest.mark.parametrize("body", [QUESTION, STREAM, b"{"], ids=["whole", "stream", "error"])
def test_an_http_1_0_response_has_no_chunks_and_closes_the_connection(
    server: Server, body: bytes, fields: tuple[str, ...]
) -> None:
    with Wire(server.port) as wire:
        wire.send(post(CHAT, body, *fields, port=server.port).replace(b"HTTP/1.1", b"HTTP/1.0"))
        answer = wire.response()
        assert answer.status == (400 if body == b"{" else 200)
        assert "transfer-encoding" not in answer.headers and answer.headers["connection"] == "close"
        assert wire.is_over()
    if body == STREAM:
        assert answer.body.endswith(b"data: [DONE]\n\n")


def test_an_http_1_0_request_needs_no_host(server: Server) -> None:
    for version, status in (("1.0", 200), ("1.1", 400)):
        with Wire(server.port) as wire:
            answer = wire.send(f"GET /v1/models HTTP/{version}\r\n\r\n".encode()).response()
            assert answer.status == status, answer
    with Wire(server.port) as wire:
        assert wire.send(b"GET /v1/models HTTP/1.0\r\nHost: evil.example\r\n\r\n").response().status == 403


# -------------------------------------------------------------------------------------------------------------- paths


GETS = ("/", "/health", "/v1/models", "/models", "/v1/models/demo", "/models/demo", "/openapi.json", "/page/style.css")


@pytest.mark.parametrize("path", GETS)
def test_head_responds_like_get_without_the_body(server: Server, path: str) -> None:
    with Wire(server.port) as wire:
        whole = wire.send(head(f"GET {path} HTTP/1.1", port=server.port)).response()
        only = wire.send(head(f"HEAD {path} HTTP/1.1", port=server.port)).response(of_head=True)
        assert (only.status, only.headers.get("content-length")) == (200, whole.headers.get("content-length"))
        assert only.headers["content-type"] == whole.headers["content-type"]
        assert wire.send(head(f"GET {path} HTTP/1.1", port=server.port)).response().status == 200


@pytest.mark.parametrize("form", ["{}/", "{}//", "/{}", "{}?", "{}/?x=1"])
@pytest.mark.parametrize("path", GETS[1:])
def test_extra_slashes_in_a_path_are_ignored(server: Server, path: str, form: str) -> None:
    with Wire(server.port) as wire:
        whole = wire.send(head(f"GET {path} HTTP/1.1", port=server.port)).response()
        other = wire.send(head(f"GET {form.format(path)} HTTP/1.1", port=server.port)).response()
        assert (other.status, other.body) == (whole.status, whole.body) == (200, whole.body)


@pytest.mark.parametrize("path", ["/chat/completions", "/chat/completions/", f"{CHAT}/", "/v1//chat/completions"])
def test_a_chat_works_under_other_forms_of_its_path(server: Server, path: str) -> None:
    with Wire(server.port) as wire:
        assert text_of(wire.send(post(path, QUESTION, port=server.port)).response()) == ANSWER
        short = post("/completions/", b'{"prompt":"x","max_tokens":1}', port=server.port)
        assert wire.send(short).response().status == 200
