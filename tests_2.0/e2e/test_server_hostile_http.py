"""Clients that break HTTP, stop half-way or send expensive bodies: other clients are not affected."""

from __future__ import annotations

import gzip
import json
import os
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.layouts import Files
from support.processes import needs_proc
from support.serving import Server
from support.tiny_models import BABBLE, CHATML, write_chain
from support.wire import CHAT, COMPLETIONS, Response, Wire, assert_is_error, head, post

pytestmark = pytest.mark.e2e

MB = 1 << 20
QUESTION = b'{"messages":[{"role":"user","content":"What is 3 + 4?"}],"temperature":0,"max_tokens":40}'
BABBLING = b'{"messages":[{"role":"user","content":"x"}],"max_tokens":100000,"stream":true,"model":"org/babble"}'


def files_of(folder: Path) -> Files:
    """Return the files of a model, to add to a cache."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Yield a server with the demo and with a model that never ends in its cache."""
    home = tmp_path_factory.mktemp("server")
    with Server("--model", "demo", home=home) as server:
        server.cache_dir.add("org/babble", files_of(write_chain(home / "babble", BABBLE, context=1_000_000)))
        yield server


@pytest.fixture
def server(shared: Server) -> Iterator[Server]:
    """Yield the server; fail unless it is the same idle, working process after the test."""
    yield shared
    assert shared.process.poll() is None
    with Wire(shared.port) as wire:
        assert answers_rightly(wire, shared)
    deadline = time.monotonic() + 10
    while (state := health(shared))["active"] or state["queued"]:
        assert time.monotonic() < deadline, state
        time.sleep(0.05)


def health(server: Server) -> dict[str, Any]:
    """Return the body of /health."""
    state: dict[str, Any] = httpx.get(f"{server.url}/health", timeout=30).json()
    return state


def answers_rightly(wire: Wire, server: Server) -> bool:
    """Return whether a request on this connection gets the right response."""
    answer = wire.send(post(CHAT, QUESTION, port=server.port)).response()
    return bool(answer.json["choices"][0]["message"]["content"] == "3 + 4 = 7.")


def memory(server: Server, what: str = "VmRSS") -> int:
    """Return the resident bytes of the server, now or (VmHWM) at their peak."""
    lines = Path(f"/proc/{server.process.pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


@contextmanager
def bounded(server: Server, megabytes: int, seconds: float) -> Iterator[None]:
    """Fail if the server needs more additional memory or processor time than this during the block."""
    with open(f"/proc/{server.process.pid}/clear_refs", "w", encoding="ascii") as file:
        file.write("5")  # forget the peak
    before, began = memory(server), processor_time(server)
    yield
    grown, spent = memory(server, "VmHWM") - before, processor_time(server) - began
    assert grown < megabytes * MB and spent < seconds, f"{grown / MB:.0f} MB, {spent:.2f} s"


def processor_time(server: Server) -> float:
    """Return the seconds of processor time that the server has used."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# --------------------------------------------------------------------------------------------------- expensive bodies


ASK = b'"messages":[{"role":"user","content":"x"}]'


def filled(begin: bytes, unit: bytes, end: bytes, size: int = 31 * MB) -> bytes:
    """Return a body of that size that repeats one unit."""
    return begin + unit * ((size - len(begin) - len(end)) // len(unit)) + end


def numbered(form: bytes, count: int) -> bytes:
    """Return a list of different entries, without its brackets."""
    return b",".join(form % number for number in range(count))


BOMBS: dict[str, tuple[str, Callable[[], bytes], int]] = {
    "a long text": (CHAT, lambda: filled(b'{"messages":[{"role":"user","content":"', b"word ", b'"}]}'), 400),
    "a long text of one letter": (CHAT, lambda: filled(b'{"messages":[{"role":"user","content":"', b"a", b'"}]}'), 400),
    "a long text of escapes": (COMPLETIONS, lambda: filled(b'{"prompt":"', b"\\u00e9", b'"}'), 400),
    "a long name of a model": (CHAT, lambda: filled(b"{" + ASK + b',"model":"', b"x", b'"}'), 400),
    "a long stop string": (CHAT, lambda: filled(b"{" + ASK + b',"stop":"', b"x", b'"}'), 400),
    "a long name of a field": (CHAT, lambda: filled(b"{" + ASK + b',"', b"x", b'":1}'), 200),
    "a long name of a token": (CHAT, lambda: filled(b"{" + ASK + b',"logit_bias":{"', b"9", b'":1}}'), 400),
    "a long integer": (CHAT, lambda: filled(b"{" + ASK + b',"seed":', b"9", b"}"), 400),
    "a long fraction": (CHAT, lambda: filled(b"{" + ASK + b',"temperature":0.', b"9", b"}"), 200),
    "messages": (CHAT, lambda: filled(b'{"messages":[', b'{"role":"user","content":""},', b"0]}"), 413),
    "numbers as messages": (CHAT, lambda: filled(b'{"messages":[', b"0,", b"0]}"), 413),
    "parts": (CHAT, lambda: filled(b'{"messages":[{"role":"user","content":[', b"{},", b"{}]}]}"), 413),
    "token ids": (COMPLETIONS, lambda: filled(b'{"prompt":[', b"0,", b"0]}"), 413),
    "prompts": (COMPLETIONS, lambda: filled(b'{"prompt":[', b'"",', b'""]}'), 413),
    "empty lists": (COMPLETIONS, lambda: filled(b'{"prompt":[', b"[],", b"[]]}"), 413),
    "lists of token ids": (COMPLETIONS, lambda: filled(b'{"prompt":[', b"[0],", b"[0]]}"), 413),
    "stop strings": (CHAT, lambda: filled(b"{" + ASK + b',"stop":[', b'"a",', b'"a"]}'), 413),
    "biases": (CHAT, lambda: b"{" + ASK + b',"logit_bias":{' + numbered(b'"%d":1', 1_500_000) + b"}}", 413),
    "fields": (CHAT, lambda: b"{" + ASK + b"," + numbered(b'"k%d":1', 1_500_000) + b"}", 413),
    "the same field": (CHAT, lambda: filled(b"{", b'"n":1,', ASK + b"}"), 413),
    "an unknown field full of lists": (CHAT, lambda: filled(b"{" + ASK + b',"x":[', b"[],", b"0]}"), 413),
    "a million numbers as messages": (CHAT, lambda: filled(b'{"messages":[', b"0,", b"0]}", 2 * MB), 400),
    "a million token ids": (COMPLETIONS, lambda: filled(b'{"prompt":[', b"0,", b"0]}", 2 * MB), 400),
    "a million stop strings": (CHAT, lambda: filled(b"{" + ASK + b',"stop":[', b'"",', b'""]}', 3 * MB), 400),
    "300,000 biases": (CHAT, lambda: b"{" + ASK + b',"logit_bias":{' + numbered(b'"%d":[]', 300_000) + b"}}", 400),
    "half a million lists": (COMPLETIONS, lambda: filled(b'{"prompt":[', b"[0],", b"[0]]}", 2 * MB), 400),
    "an unknown field of many lists": (CHAT, lambda: filled(b"{" + ASK + b',"x":[', b"[],", b"0]}", MB), 200),
    "100,000 messages": (
        CHAT,
        lambda: filled(
            b'{"messages":[', b'{"role":"user","content":"hi"},', b'{"role":"user","content":"x"}]}', 3 * MB
        ),
        400,
    ),
    "depth": (CHAT, lambda: b"{" + ASK + b',"x":' + b"[" * 500_000 + b"]" * 500_000 + b"}", 400),
    "depth of objects": (CHAT, lambda: b"{" + ASK + b',"x":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}", 400),
    "half a depth": (CHAT, lambda: b"[" * 1_000_000, 400),
}


@needs_proc
@pytest.mark.parametrize(("path", "make", "status"), BOMBS.values(), ids=BOMBS)
def test_a_huge_body_takes_bounded_memory_and_time(
    server: Server, path: str, make: Callable[[], bytes], status: int
) -> None:
    body = make()
    with bounded(server, 1000, 12), Wire(server.port, timeout=100) as wire:
        answer = wire.send(post(path, body.replace(b"{", b'{"max_tokens":2,', 1), port=server.port)).response()
        assert answer.status == status, answer
    if status != 200:
        assert_is_error(answer)


def test_others_are_served_while_a_huge_body_is_read(server: Server) -> None:
    bomb = post(COMPLETIONS, BOMBS["a million token ids"][1](), port=server.port)
    waits = []
    with Wire(server.port, timeout=60) as wire:
        thread = threading.Thread(target=lambda: wire.send(bomb, bomb, bomb))
        thread.start()
        for _ in range(20):
            began = time.monotonic()
            health(server)
            waits.append(time.monotonic() - began)
        thread.join()
        assert [wire.response().status for _ in range(3)] == [400] * 3
    assert sorted(waits)[15] < 2, waits


@needs_proc
def test_bodies_of_many_clients_share_a_limit_and_do_not_block_others(server: Server) -> None:
    part = b"x" * (31 * MB)
    large = post(CHAT, QUESTION + b" " * MB, port=server.port)
    wires = [Wire(server.port) for _ in range(10)]
    refused: list[Response] = []
    try:
        with bounded(server, 400, 60):
            for number, wire in enumerate(wires):
                wire.send(head(f"POST {CHAT} HTTP/1.1", f"Content-Length: {len(part) + 1}", port=server.port))
                for at in range(0, len(part), MB):
                    wire.send(part[at : at + MB])
                if number > 6:
                    with Wire(server.port) as other:
                        assert answers_rightly(other, server)
            # Stalled connections make room for a new one.
            time.sleep(1.5)
            with Wire(server.port) as other:
                assert other.send(large).response().status == 200
        for wire in wires:
            wire.wait_at_most(1)
            with suppress(TimeoutError):
                refused.append(wire.response())
        for answer in refused:
            assert_is_error(answer, 503)
            assert answer.headers["retry-after"]
        assert 2 <= len(refused) <= 4
    finally:
        for wire in wires:
            wire.reset()


@pytest.mark.parametrize("chunked", [False, True])
def test_a_too_large_body_is_refused_and_the_connection_can_be_reused(server: Server, chunked: bool) -> None:
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {40 * MB}"
    with Wire(server.port, timeout=60) as wire:
        wire.send(head(f"POST {CHAT} HTTP/1.1", length, port=server.port))
        for _ in range(40):
            wire.send(b"%x\r\n" % MB if chunked else b"", b"x" * MB, b"\r\n" if chunked else b"")
        wire.send(b"0\r\n\r\n" if chunked else b"")
        assert_is_error(wire.response(), 413)
        assert answers_rightly(wire, server)


def test_a_too_large_content_length_is_refused_at_once(server: Server) -> None:
    for length in (33 * MB, 10**18):
        with Wire(server.port) as wire:
            announced = (f"Content-Length: {length}", "Expect: 100-continue")
            wire.send(head(f"POST {CHAT} HTTP/1.1", *announced, port=server.port))
            assert_is_error(wire.response(), 413)


def deflated(body: bytes, wbits: int) -> bytes:
    """Return the body compressed with a form of deflate."""
    packer = zlib.compressobj(wbits=wbits)
    return packer.compress(body) + packer.flush()


ZEROS = gzip.compress(bytes(40 * MB))
PACKED: dict[str, tuple[str, Callable[[], bytes], int]] = {
    "gzip": ("gzip", lambda: gzip.compress(QUESTION), 200),
    "gzip by its old name": ("x-gzip", lambda: gzip.compress(QUESTION), 200),
    "gzip in other letters": ("GZIP, identity", lambda: gzip.compress(QUESTION), 200),
    "gzip in two members": ("gzip", lambda: gzip.compress(QUESTION[:20]) + gzip.compress(QUESTION[20:]), 200),
    "deflate with zlib's header": ("deflate", lambda: deflated(QUESTION, 15), 200),
    "deflate alone": ("deflate", lambda: deflated(QUESTION, -15), 200),
    "megabytes of spaces": ("gzip", lambda: gzip.compress(QUESTION + b" " * (20 * MB)), 200),
    "identity": ("identity", lambda: QUESTION, 200),
    "no coding": ("", lambda: QUESTION, 200),
    "nothing": ("gzip", lambda: b"", 400),
    "cut off": ("gzip", lambda: gzip.compress(QUESTION)[:-9], 400),
    "cut off in its header": ("gzip", lambda: gzip.compress(QUESTION)[:5], 400),
    "one byte of deflate": ("deflate", lambda: b"x", 400),
    "a wrong checksum": ("gzip", lambda: gzip.compress(QUESTION)[:-8] + bytes(8), 400),
    "followed by more": ("gzip", lambda: gzip.compress(QUESTION) + b"more", 400),
    "deflate, followed by more": ("deflate", lambda: deflated(QUESTION, 15) + b"more", 400),
    "not packed": ("gzip", lambda: QUESTION, 400),
    "packed twice": ("gzip", lambda: gzip.compress(gzip.compress(QUESTION)), 400),
    "many empty members": ("gzip", lambda: gzip.compress(b"") * 100_000, 400),
    "a bomb": ("gzip", lambda: ZEROS, 413),
    "a bomb in a bomb": ("gzip", lambda: gzip.compress(ZEROS), 400),
    "a bomb of deflate": ("deflate", lambda: deflated(bytes(40 * MB), -15), 413),
    "a bomb of values": ("gzip", lambda: gzip.compress(b'{"x":[' + b"[]," * 2_000_000), 413),
    "two codings": ("gzip, gzip", lambda: gzip.compress(gzip.compress(QUESTION)), 415),
    "brotli": ("br", lambda: b"\x0b", 415),
    "a word": ("utf-8", lambda: QUESTION, 415),
}


@needs_proc
@pytest.mark.parametrize(("coding", "make", "status"), PACKED.values(), ids=PACKED)
def test_a_compressed_body_is_read_within_the_limits(
    server: Server, coding: str, make: Callable[[], bytes], status: int
) -> None:
    packed = make()
    chunks = (
        b"".join(
            b"%x\r\n%s\r\n" % (len(packed[at : at + 5000]), packed[at : at + 5000])
            for at in range(0, len(packed), 5000)
        )
        + b"0\r\n\r\n"
    )
    field = f"Content-Encoding: {coding}"
    with bounded(server, 200, 12), Wire(server.port) as wire:
        answers = [
            wire.send(post(CHAT, packed, field, port=server.port)).response(),
            wire.send(
                head(f"POST {CHAT} HTTP/1.1", field, "Transfer-Encoding: chunked", port=server.port), chunks
            ).response(),
        ]
        assert answers_rightly(wire, server)
    for answer in answers:
        assert answer.status == status, answer
        if status != 200:
            assert_is_error(answer)
        assert status != 415 or answer.headers["accept-encoding"] == "gzip, deflate"


# -------------------------------------------------------------------------------------------------------- broken HTTP


def test_a_chunked_body_is_read(server: Server) -> None:
    chunks = b"".join(b"%x;ignored=%s\r\n%c\r\n" % (1, b"y" * 10, byte) for byte in QUESTION)
    chunks += b"0\r\nX-Trailer: x\r\n\r\n"
    with Wire(server.port) as wire:
        wire.send(head(f"POST {CHAT} HTTP/1.1", "Transfer-Encoding: chunked", port=server.port), chunks)
        assert wire.response().status == 200
        assert answers_rightly(wire, server)


def test_expect_100_continue_is_answered(server: Server) -> None:
    with Wire(server.port) as wire:
        length = f"Content-Length: {len(QUESTION)}"
        wire.send(head(f"POST {CHAT} HTTP/1.1", length, "Expect: 100-continue", port=server.port))
        assert wire.until(b"\r\n\r\n").startswith(b"HTTP/1.1 100")
        assert wire.send(QUESTION).response().status == 200


SMUGGLING = {
    "both lengths": ("Content-Length: 4", "Transfer-Encoding: chunked"),
    "the same length twice": ("Content-Length: 4", "Content-Length: 4"),
    "two lengths": ("Content-Length: 4", "Content-Length: 90"),
    "a negative length": ("Content-Length: -1",),
    "a length with a sign": ("Content-Length: +4",),
    "a length in hexadecimal": ("Content-Length: 0x4",),
    "a huge length": ("Content-Length: 99999999999999999999999999",),
    "an unknown encoding": ("Transfer-Encoding: xchunked",),
    "an encoding that is not the last": ("Transfer-Encoding: chunked, identity",),
    "a name with a space": ("Transfer-Encoding : chunked",),
    "a folded line": ("X: y", " Transfer-Encoding: chunked"),
    "a line end in a value": ("X: y\nContent-Length: 90",),
    "a zero in a value": ("X: a\0b",),
}


@pytest.mark.parametrize("headers", SMUGGLING.values(), ids=SMUGGLING)
def test_an_ambiguous_request_cannot_smuggle_another(server: Server, headers: tuple[str, ...]) -> None:
    hidden = head("GET /v1/models HTTP/1.1", port=server.port)
    with Wire(server.port) as wire:
        wire.send(head(f"POST {CHAT} HTTP/1.1", *headers, port=server.port), b"0\r\n\r\n", hidden)
        wire.half_close()
        answer = wire.response()
        assert answer.status == 400, answer
        assert b'"object":"list"' not in answer.body + wire.rest()


CHUNKED = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
NONSENSE = {
    "nothing": b"",
    "an empty line": b"\r\n" * 1000,
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)) * 2,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/9": b"GET / HTTP/9.9\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "no method": b"/ HTTP/1.1\r\n\r\n",
    "bytes": bytes(range(256)) * 100,
    "a header without a name": b"GET / HTTP/1.1\r\n: x\r\n\r\n",
    "a path that is no UTF-8": b"GET /\xff\xfe%ff HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a path with spaces": b"GET /a b HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "no path": b"GET  HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "an asterisk": b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a chunk without a size": CHUNKED + b"xyz\r\n",
    "a huge chunk": CHUNKED + b"f" * 40 + b"\r\n",
}


@pytest.mark.parametrize("data", NONSENSE.values(), ids=NONSENSE)
def test_malformed_http_ends_only_its_own_connection(server: Server, data: bytes) -> None:
    with Wire(server.port) as wire:
        wire.send(data)
        wire.half_close()
        rest = wire.rest()
    assert rest[:10] in (b"", b"HTTP/1.1 4", b"HTTP/1.1 2"), rest
    assert rest[:12] != b"HTTP/1.1 400" or b'{"error":{"message":' in rest


def test_a_websocket_upgrade_is_ignored(server: Server) -> None:
    upgrade = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: eA==")
    for path in ("/", CHAT, "/nothing"):
        with Wire(server.port) as wire:
            answer = wire.send(head(f"GET {path} HTTP/1.1", *upgrade, port=server.port)).response()
            assert answer.status in (200, 404, 405)


def test_an_http_1_0_client_gets_a_whole_response_and_a_closed_connection(server: Server) -> None:
    request = post(CHAT, QUESTION, port=server.port).replace(b"HTTP/1.1", b"HTTP/1.0")
    with Wire(server.port) as wire:
        assert wire.send(request).response().status == 200
        assert wire.is_over()


def test_a_connection_can_be_reused_after_errors_and_streams(server: Server) -> None:
    with Wire(server.port) as wire:
        for path, body, status in [
            (CHAT, b"{", 400),
            ("/nothing", b"{}", 404),
            (CHAT, QUESTION, 200),
            ("/health", b"x", 405),
            (CHAT, QUESTION[:-1] + b',"stream":true}', 200),
            (CHAT, QUESTION[:-1] + b',"model":"x"}', 404),
            (CHAT, QUESTION, 200),
        ]:
            assert wire.send(post(path, body, port=server.port)).response().status == status


def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    asked = [post(CHAT, body, port=server.port) for body in (QUESTION, b"{")]
    asked += [head(f"GET {path} HTTP/1.1", port=server.port) for path in ("/v1/models/demo", "/no")]
    with Wire(server.port) as wire:
        wire.send(b"".join(asked * 5))
        assert [wire.response().status for _ in range(20)] == [200, 400, 200, 404] * 5


TINY = b"GET /h HTTP/1.1\r\nHost: a\r\n\r\n"
AHEAD = {
    "tiny requests": TINY,
    "tiny requests of HTTP/1.0": b"GET / HTTP/1.0\r\n\r\n",
    "tiny requests that offer an upgrade": TINY.replace(b"a\r\n", b"a\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n"),
    "tiny chunks": b"POST /h HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
    "empty lines": b"\r\n",
}


@needs_proc
@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize("unit", AHEAD.values(), ids=AHEAD)
def test_endless_pipelined_requests_take_bounded_memory(server: Server, unit: bytes, reads: bool) -> None:
    with Wire(server.port) as slow:
        slow.send(post(CHAT, BABBLING, port=server.port))
        slow.until(b"data: ")
        with bounded(server, 60, 60), flood(server, unit, 3, reads=reads):
            for _ in range(5):
                began = time.monotonic()
                health(server)
                assert time.monotonic() - began < 5


@contextmanager
def flood(server: Server, unit: bytes, clients: int, *, reads: bool) -> Iterator[None]:
    """Let clients repeat the same bytes, some megabytes at most, while the block runs."""
    block = unit * (64_000 // len(unit))
    wires = [Wire(server.port) for _ in range(clients)]
    threads = [threading.Thread(target=send_all, args=[wire, [block] * 40], daemon=True) for wire in wires]
    threads += [threading.Thread(target=read_all, args=[wire], daemon=True) for wire in wires if reads]
    for thread in threads:
        thread.start()
    time.sleep(1)
    yield
    for wire in wires:
        wire.half_close()
        wire.reset()
    for thread in threads:
        thread.join(10)


def send_all(wire: Wire, parts: list[bytes]) -> None:
    """Send until either end closes the connection."""
    with suppress(OSError):
        wire.send(*parts)


def read_all(wire: Wire) -> None:
    """Read until either end closes the connection, and discard it."""
    with suppress(OSError):
        while wire.receive():
            pass


def test_many_pipelined_requests_are_all_answered(server: Server) -> None:
    with Wire(server.port) as wire:
        thread = threading.Thread(target=wire.send, args=[TINY.replace(b"Host: a", b"Host: localhost") * 20_000])
        thread.start()
        assert {wire.response().status for _ in range(20_000)} == {404}
        thread.join()
        assert answers_rightly(wire, server)


def test_garbage_after_a_request_is_refused_after_its_response(server: Server) -> None:
    for body in (QUESTION, QUESTION[:-1] + b',"stream":true}'):
        with Wire(server.port) as wire:
            wire.send(post(CHAT, body, port=server.port), b"garbage\r\n\r\n")
            assert wire.response().status == 200
            assert_is_error(wire.response(), 400)
            assert wire.is_over()


@needs_proc
def test_heads_of_many_small_fields_take_bounded_memory(server: Server) -> None:
    begin = head("GET /health HTTP/1.1", port=server.port)[:-2]
    wires = []
    try:
        with bounded(server, 60, 20):
            for fields in (b"a:\r\n" * 15_000, b"a:\r\n" * 200 + b"b: " + b"y" * 30_000):
                wires += [Wire(server.port).send(begin + fields) for _ in range(100)]
            health(server)
        assert_is_error(wires[0].response(), 431)
        with Wire(server.port) as wire:
            lines = [f"X-{number}: y" for number in range(200)]
            assert wire.send(head("GET /health HTTP/1.1", *lines, port=server.port)).response().status == 200
    finally:
        for wire in wires:
            wire.reset()


@needs_proc
@pytest.mark.parametrize("part", [b"X: " + b"y" * 1000 + b"\r\n", b"y" * 1000], ids=["many headers", "one header"])
def test_an_endless_head_takes_bounded_memory(server: Server, part: bytes) -> None:
    with bounded(server, 100, 5), Wire(server.port) as wire:
        wire.send(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: ")
        for _ in range(300):
            wire.send(part * 1000)
        assert wire.rest()[:12] in (b"HTTP/1.1 431", b"")


@needs_proc
@pytest.mark.parametrize(
    "part", [b"X: y\r\n" * 160, b"y" * 1000, b";" + b"x" * 1000], ids=["many trailers", "one trailer", "no size"]
)
def test_an_endless_trailer_takes_bounded_memory(server: Server, part: bytes) -> None:
    end = b"1\r\nx\r\n1" if part.startswith(b";") else b"1\r\nx\r\n0\r\nX: "
    with bounded(server, 100, 5), Wire(server.port) as wire:
        wire.send(head(f"POST {CHAT} HTTP/1.1", "Transfer-Encoding: chunked", port=server.port) + end)
        for _ in range(300):
            wire.send(part * 1000)
        assert b"HTTP/1.1 431" in (rest := wire.rest()) or not rest


def test_a_large_body_does_not_count_as_head(server: Server) -> None:
    body = QUESTION[:-1] + b',"x":"' + b"y" * 300_000 + b'"}'
    request = post(CHAT, body, port=server.port)
    with Wire(server.port) as wire:
        for cut in (1, 30, len(request) - len(body) - 1):
            wire.send(request[:cut])
            time.sleep(0.05)
            wire.send(request[cut:] + request[:5])
            time.sleep(0.05)
            wire.send(request[5:])
            assert [wire.response().status for _ in range(2)] == [200, 200]


def test_a_very_long_path_is_refused_or_not_found(server: Server) -> None:
    for size in (10_000, 60_000, MB):
        with Wire(server.port) as wire:
            wire.send(head(f"GET /{'a' * size} HTTP/1.1", port=server.port))
            wire.half_close()
            assert wire.rest()[:12] in (b"HTTP/1.1 404", b"HTTP/1.1 400", b"HTTP/1.1 431", b"HTTP/1.1 414", b"")


# --------------------------------------------------------------------------------------- slow and disconnected clients


def test_slow_clients_do_not_delay_others(server: Server) -> None:
    request = post(CHAT, QUESTION, port=server.port)
    wires = [Wire(server.port) for _ in range(100)]
    try:
        for number, wire in enumerate(wires):
            wire.send(request[: number * len(request) // 100])
        with Wire(server.port, timeout=10) as wire:
            assert answers_rightly(wire, server)
        for number, wire in enumerate(wires):
            wire.send(request[number * len(request) // 100 :])
        assert {wire.response().status for wire in wires} == {200}
    finally:
        for wire in wires:
            wire.reset()


@pytest.mark.parametrize("part", [20, 0.5, 0.99], ids=["the head", "half of the body", "most of the body"])
def test_a_disconnect_in_the_middle_of_a_request_is_harmless(server: Server, part: float) -> None:
    request = post(CHAT, QUESTION, port=server.port)
    cut = int(part if part > 1 else len(request) * part)
    for end in (Wire.reset, Wire.half_close):
        with Wire(server.port) as wire:
            wire.send(request[:cut])
            end(wire)
            if end is Wire.half_close:
                assert wire.rest() == b""


def test_a_half_closed_client_gets_its_response_or_the_end(server: Server) -> None:
    with Wire(server.port) as wire:
        wire.send(post(CHAT, QUESTION, port=server.port))
        wire.half_close()
        rest = wire.rest()
    assert not rest or b"3 + 4 = 7." in rest


def _read_slowly(wire: Wire) -> None:
    for _ in range(20):
        wire.receive(1)
        time.sleep(0.05)


def _break_off(wire: Wire) -> None:
    wire.until(b"data: ")
    wire.reset()


def _half_close(wire: Wire) -> None:
    wire.half_close()
    wire.receive()


def ways_to_leave() -> dict[str, Callable[[Wire], object]]:
    """Return the ways in which clients read a stream, by name."""
    return {
        "reads nothing": lambda _: time.sleep(1),
        "reads a byte at a time": _read_slowly,
        "leaves in the middle": lambda wire: wire.until(b"data: "),
        "resets in the middle": _break_off,
        "leaves at once": lambda _: None,
        "closes its sending half": _half_close,
        "sends more": lambda wire: wire.until(b"data: ") and wire.send(b"x" * 100_000),
    }


@pytest.mark.parametrize("leave", ways_to_leave().values(), ids=ways_to_leave())
def test_an_unusual_reader_of_a_stream_does_not_delay_others(server: Server, leave: Callable[[Wire], object]) -> None:
    with Wire(server.port) as wire:
        wire.send(post(CHAT, BABBLING, port=server.port))
        leave(wire)
        # The request is for the same model, so that it runs beside the stream.
        short = BABBLING.replace(b"100000", b"5").replace(b"true", b"false")
        with Wire(server.port, timeout=20) as other:
            assert other.send(post(CHAT, short, port=server.port)).response().json["usage"]["completion_tokens"] == 5


@needs_proc
def test_readers_that_disconnect_leak_no_files_or_memory(server: Server) -> None:
    def come_and_go(times: int) -> None:
        for number in range(times):
            with Wire(server.port) as wire:
                wire.send(post(CHAT, BABBLING, port=server.port))
                if number % 3:
                    wire.until(b"data: ")
                if number % 2:
                    wire.reset()

    def files() -> int:
        return len(os.listdir(f"/proc/{server.process.pid}/fd"))

    come_and_go(30)
    before = memory(server), files()
    come_and_go(200)
    deadline = time.monotonic() + 10
    while health(server)["active"]:
        assert time.monotonic() < deadline
    assert files() <= before[1] + 2 and memory(server) - before[0] < 60 * MB


# ------------------------------------------------------------------------------------------------------ hostile models


LOOPING = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
GREEDY = "{{ 'x' * 10 ** 10 }}"


@needs_proc
@pytest.mark.parametrize("template", [LOOPING, GREEDY], ids=["looping", "greedy"])
def test_a_hostile_chat_template_does_not_stop_the_server(shared: Server, server: Server, template: str) -> None:
    name = f"org/hostile-{len(template)}"
    template = "{% if messages[0].content == 'x' %}" + template + "{% endif %}" + CHATML
    folder = write_chain(shared.home / f"m{len(template)}", BABBLE, template=template)
    shared.cache_dir.add(name, files_of(folder))
    model = json.dumps({"model": name, "max_tokens": 3}).encode()[1:-1] + b","
    asked = b"{" + model + b'"messages":[{"role":"user","content":"%s"}]}'
    with bounded(server, 300, 30), Wire(server.port, timeout=100) as wire, Wire(server.port, timeout=100) as other:
        wire.send(post(CHAT, asked % b"x", port=server.port))
        for _ in range(10):
            began = time.monotonic()
            health(server)
            assert time.monotonic() - began < 2
        other.send(post(CHAT, asked % b"y", port=server.port))
        error = assert_is_error(wire.response(), 400)
        assert "chat template" in error["message"]
        assert other.response().json["usage"]["completion_tokens"] == 3
