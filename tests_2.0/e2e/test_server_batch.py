"""Many clients of one server: each gets its own text while others connect, disconnect or stall."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.architectures import ARCHITECTURES
from support.layouts import README
from support.processes import needs_proc
from support.serving import Server, cache_dir_of
from support.tiny_models import BABBLE, write_chain, write_random

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

CHAT = "/v1/chat/completions"
CAPITAL = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}
PARIS = "The capital of France is Paris."
# The server may take this many seconds to notice a disconnect.
SOON = 1.0


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a model whose answers take a minute."""
    return str(write_chain(tmp_path_factory.mktemp("endless") / "babble", BABBLE, context=1 << 17))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Yield a server of the demo model."""
    with Server("--model", "demo", home=tmp_path_factory.mktemp("demo")) as server:
        yield server


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory, endless: str) -> Iterator[Server]:
    """Yield a server that generates one endless answer at a time."""
    home = tmp_path_factory.mktemp("narrow")
    with Server("--model", endless, "--max-concurrent", "1", "--max-queue", "3", home=home) as server:
        yield server


def health(server: Server | Impatient) -> dict[str, Any]:
    """Return the body of /health."""
    return dict(httpx.get(f"{server.url}/health", timeout=30).json())


def wait_for(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.01)


def connect(port: int, body: dict[str, Any], *, window: int = 0) -> socket.socket:
    """Send a chat request on a new connection and return it; `window` is the size of its receive buffer."""
    connection = socket.socket()
    connection.settimeout(60)
    if window:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    connection.connect(("127.0.0.1", port))
    content = json.dumps(body).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
    connection.sendall(head.encode() + content)
    return connection


def read_until(connection: socket.socket, mark: bytes) -> bytes:
    """Return everything up to a mark."""
    said = b""
    while mark not in said:
        part = connection.recv(1 << 16)
        assert part, said
        said += part
    return said


# ------------------------------------------------------------------------------------------------------ many clients


def test_sixty_four_concurrent_requests_are_all_served(demo: Server) -> None:
    barrier = threading.Barrier(64)

    def ask(number: int) -> str:
        barrier.wait(30)
        body = CAPITAL if number % 2 else {**CAPITAL, "stream": True}
        with contextlib.closing(connect(demo.port, body)) as connection:
            said = read_until(connection, b"[DONE]" if body.get("stream") else b'"usage"').decode()
        events = [line[6:] for line in said.splitlines() if line.startswith("data: {")]
        choices = [choice for event in events for choice in json.loads(event)["choices"]]
        return "".join(choice["delta"].get("content", "") for choice in choices) or PARIS * (PARIS in said)

    with ThreadPoolExecutor(64) as pool:
        assert set(pool.map(ask, range(64))) == {PARIS}
    wait_for(lambda: health(demo)["active"] == 0, SOON)


def test_a_full_queue_responds_503_with_retry_after(narrow: Server) -> None:
    connections = [connect(narrow.port, {**CAPITAL, "stream": True}) for _ in range(4)]
    try:
        wait_for(lambda: health(narrow)["queued"] == 3)
        refused = httpx.post(f"{narrow.url}{CHAT}", json=CAPITAL, timeout=30)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "server_busy")
        assert int(refused.headers["Retry-After"]) > 0
    finally:
        for connection in connections:
            connection.close()
    wait_for(lambda: health(narrow)["active"] == health(narrow)["queued"] == 0, SOON)


def test_a_short_question_does_not_wait_for_long_answers(endless: str, tmp_path: Path) -> None:
    with Server("--model", endless, home=tmp_path) as server:
        streams = [connect(server.port, {**CAPITAL, "stream": True}) for _ in range(4)]
        for stream in streams:
            read_until(stream, b"data: ")
        started = time.monotonic()
        short = httpx.post(f"{server.url}{CHAT}", json={**CAPITAL, "max_tokens": 2}, timeout=60)
        assert short.json()["usage"]["completion_tokens"] == 2
        assert time.monotonic() - started < 3
        assert health(server)["active"] == 4
        for stream in streams:
            stream.close()


# -------------------------------------------------------------------------------------------------------- disconnects


def assert_freed(server: Server) -> None:
    """Fail unless the server soon has no requests and answers a new one."""
    wait_for(lambda: health(server)["active"] == health(server)["queued"] == 0, SOON)
    assert httpx.post(f"{server.url}{CHAT}", json={**CAPITAL, "max_tokens": 2}, timeout=60).status_code == 200


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
@pytest.mark.parametrize("way", ["close", "reset", "half"])
def test_a_disconnect_frees_the_slot(narrow: Server, stream: bool, way: str) -> None:
    connection = connect(narrow.port, {**CAPITAL, "stream": stream})
    wait_for(lambda: health(narrow)["active"] == 1)
    leave(connection, way)
    assert_freed(narrow)
    connection.close()


def leave(connection: socket.socket, way: str) -> None:
    """Close a connection: in the normal way, by a reset, or only its sending half, which a server can't distinguish."""
    if way == "half":
        connection.shutdown(socket.SHUT_WR)
        return
    if way == "reset":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()


def test_a_disconnect_removes_the_request_from_the_queue(narrow: Server) -> None:
    first = connect(narrow.port, {**CAPITAL, "stream": True})
    read_until(first, b"data: ")
    waiting = [connect(narrow.port, {**CAPITAL, "stream": stream}) for stream in (True, False)]
    wait_for(lambda: health(narrow)["queued"] == 2)
    for connection in waiting:
        connection.close()
    wait_for(lambda: health(narrow)["queued"] == 0, SOON)
    assert health(narrow)["active"] == 1
    first.close()
    assert_freed(narrow)


def test_a_disconnect_while_the_model_loads_frees_the_request(tmp_path: Path) -> None:
    deep = {**ARCHITECTURES["llama"], "num_hidden_layers": 300}
    with Server("--model", str(write_random(tmp_path / "deep", deep)), home=tmp_path, ready=False) as server:
        connections = [connect(server.port, {**CAPITAL, "stream": stream}) for stream in (True, False)]
        wait_for(lambda: health(server)["queued"] >= 2)
        for connection in connections:
            connection.close()
        server.wait_until_ready()
        assert_freed(server)


@needs_proc
def test_a_hundred_disconnects_leak_no_files_or_memory(endless: str, tmp_path: Path) -> None:
    with Server("--model", endless, "--max-concurrent", "8", home=tmp_path) as server:

        def come_and_go(count: int) -> None:
            for number in range(count):
                connection = connect(server.port, {**CAPITAL, "stream": number % 3 != 0})
                time.sleep(0.002 * (number % 7))
                leave(connection, ("close", "reset")[number % 2])

        def held() -> tuple[int, int]:
            wait_for(lambda: health(server)["active"] == health(server)["queued"] == 0, 10)
            process = Path(f"/proc/{server.process.pid}")
            status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
            time.sleep(0.2)
            return len(list((process / "fd").iterdir())), int(status["VmRSS"].split()[0]) >> 10

        come_and_go(50)
        files, megabytes = held()
        come_and_go(100)
        files_after, megabytes_after = held()
        assert files_after <= files + 1
        assert megabytes_after < megabytes + 30
        assert_freed(server)
        assert server.complaints == []


# ----------------------------------------------------------------------------------------------------- stalled clients

IMPATIENT = """
import sys
from mlxk2.runner.offline import offline
with offline():
    from mlxk2.server import lifecycle as serving
from mlxk2.server.http.listener import bind
listener = bind("127.0.0.1", 0)
model, patience = sys.argv[1:]
settings = serving.Settings(
    cache_dir="/nowhere", access=serving.Access(), limits=serving.Limits(16, 16),
    memory=serving.MemoryChoice(prompt_cache=0),
    pinned=(model, serving.ModelKey("babble", model)), stall_seconds=float(patience),
)
serving.serve(settings, listener, lambda: print(listener.getsockname()[1], flush=True), sys.exit)
"""


class Impatient:
    """A server whose timeout for connections is one second."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process = process
        self.port = port
        self.url = f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def impatient(endless: str) -> Iterator[Impatient]:
    """Yield a server of endless answers with short timeouts."""
    command = [sys.executable, "-c", IMPATIENT, endless, "1.0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            server = Impatient(process, int(process.stdout.readline()))
            wait_for(lambda: httpx.get(f"{server.url}/health", timeout=30).status_code == 200)
            yield server
        finally:
            process.kill()


def is_closed(connection: socket.socket, seconds: float) -> bool:
    """Return whether the server closes a connection within that time without sending a byte."""
    connection.settimeout(seconds)
    try:
        return not connection.recv(1 << 16)
    except ConnectionError:
        return True
    except TimeoutError:
        return False


LOGPROBS = {**CAPITAL, "stream": True, "logprobs": True, "top_logprobs": 20, "n": 16}


def test_a_client_that_stops_reading_is_cut_off(impatient: Impatient) -> None:
    connection = connect(impatient.port, LOGPROBS, window=4096)
    wait_for(lambda: health(impatient)["active"] == 16)
    # The buffers of the system fill first, which may be megabytes.
    wait_for(lambda: health(impatient)["active"] == 0, 60)
    connection.close()
    short = httpx.post(f"{impatient.url}{CHAT}", json={**CAPITAL, "max_tokens": 2}, timeout=60)
    assert short.status_code == 200


def test_a_client_that_reads_single_bytes_is_cut_off(impatient: Impatient) -> None:
    connection = connect(impatient.port, LOGPROBS, window=4096)
    wait_for(lambda: health(impatient)["active"] == 16)
    deadline = time.monotonic() + 60
    while health(impatient)["active"]:
        assert time.monotonic() < deadline
        with contextlib.suppress(ConnectionError):
            connection.recv(1)
        time.sleep(0.1)
    connection.close()


HALVES = (
    b"",
    b"POST /v1/chat/comp",
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{",
)


@pytest.mark.parametrize("sent", HALVES, ids=["nothing", "a line", "a body"])
def test_an_incomplete_request_times_out(impatient: Impatient, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", impatient.port)) as connection:
        connection.sendall(sent)
        assert is_closed(connection, 10)


def test_a_head_sent_byte_by_byte_times_out(impatient: Impatient) -> None:
    with socket.create_connection(("127.0.0.1", impatient.port)) as connection:
        connection.settimeout(0.2)
        deadline = time.monotonic() + 10
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for byte in b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 1000:
                assert time.monotonic() < deadline, "it is still waited for"
                connection.send(bytes([byte]))
                time.sleep(0.1)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_slow_body_times_out(impatient: Impatient, chunked: bool) -> None:
    kind = "Transfer-Encoding: chunked" if chunked else "Content-Length: 3000000"
    unit = b"1\r\nx\r\n" if chunked else b"x"
    begin = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n{kind}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", impatient.port)) as connection:
        connection.sendall(begin.encode() + unit * 100_000)
        connection.settimeout(10)
        deadline = time.monotonic() + 20
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while time.monotonic() < deadline:
                connection.send(unit)
                time.sleep(0.1)
            pytest.fail("it is still waited for")


def test_a_body_sent_fast_enough_is_read(impatient: Impatient) -> None:
    body = json.dumps({**CAPITAL, "max_tokens": 2, "unknown": "x" * 1_000_000}).encode()
    begin = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", impatient.port), timeout=30) as connection:
        connection.sendall(begin.encode())
        for start in range(0, len(body), 50_000):
            connection.sendall(body[start : start + 50_000])
            time.sleep(0.2)
        assert read_until(connection, b"}").startswith(b"HTTP/1.1 200 ")


def test_an_incomplete_second_request_times_out(impatient: Impatient) -> None:
    first = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    half = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"
    with socket.create_connection(("127.0.0.1", impatient.port)) as connection:
        connection.sendall(first + half)
        assert read_until(connection, b"}").startswith(b"HTTP/1.1 200 ")
        assert is_closed(connection, 10)


AHEAD = {
    "a stray line end": b"\r\n",
    "a part of the next request": b"POST /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nx",
}


@pytest.mark.parametrize("sent", AHEAD.values(), ids=AHEAD)
def test_bytes_sent_during_a_stream_do_not_end_it(impatient: Impatient, sent: bytes) -> None:
    connection = connect(impatient.port, {**CAPITAL, "stream": True})
    read_until(connection, b"data: ")
    connection.sendall(sent)
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        assert connection.recv(1 << 16), "the answer was cut off"
    connection.close()


@pytest.mark.parametrize("ahead", [b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /hea"], ids=["whole", "a part"])
@pytest.mark.parametrize("stream", [True, False])
def test_a_disconnect_after_a_pipelined_request_is_noticed(impatient: Impatient, stream: bool, ahead: bytes) -> None:
    connection = connect(impatient.port, {**CAPITAL, "stream": stream})
    wait_for(lambda: health(impatient)["active"] == 1)
    connection.sendall(ahead)
    time.sleep(0.2)
    connection.close()
    wait_for(lambda: health(impatient)["active"] == 0, SOON)


def test_a_line_end_after_a_response_does_not_keep_the_connection_open(impatient: Impatient) -> None:
    with contextlib.closing(connect(impatient.port, {**CAPITAL, "max_tokens": 1})) as connection:
        read_until(connection, b'"usage"')
        connection.sendall(b"\r\n")
        deadline = time.monotonic() + 10
        while connection.recv(1 << 16):
            assert time.monotonic() < deadline


def test_a_slow_but_steady_reader_gets_the_whole_response(impatient: Impatient) -> None:
    many = {**CAPITAL, "n": 16, "max_tokens": 300, "logprobs": True, "top_logprobs": 20}
    with contextlib.closing(connect(impatient.port, many, window=1 << 16)) as connection:
        said = read_until(connection, b"\r\n\r\n")
        head, _, body = said.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        assert length > 5_000_000
        started = time.monotonic()
        while len(body) < length:
            part = connection.recv(1 << 16)
            assert part, f"cut off after {len(body)} of {length} bytes"
            body += part
            # This reads two megabytes a second.
            time.sleep(max(0.0, len(body) / 2_000_000 - (time.monotonic() - started)))
    assert len(json.loads(body)["choices"]) == 16


def test_an_idle_connection_is_kept_open(impatient: Impatient) -> None:
    events: list[str] = []
    trace = {"trace": lambda event, _: events.append(event)}
    with httpx.Client(base_url=impatient.url, timeout=30) as client:
        client.get("/health", extensions=trace)
        time.sleep(2.5)
        client.get("/health", extensions=trace)
    assert events.count("connection.connect_tcp.complete") == 1
    assert events.count("http11.receive_response_headers.complete") == 2


def test_a_slow_reader_does_not_slow_others(impatient: Impatient) -> None:
    slow = connect(impatient.port, {**LOGPROBS, "n": 8}, window=4096)
    wait_for(lambda: health(impatient)["active"] == 8)
    for _ in range(3):
        started = time.monotonic()
        answer = httpx.post(f"{impatient.url}{CHAT}", json={**CAPITAL, "max_tokens": 10}, timeout=60)
        assert answer.json()["usage"]["completion_tokens"] == 10
        assert time.monotonic() - started < 5
    slow.close()


# ------------------------------------------------------------------------------------------------------ the same text

KINDS = ("llama", "sliding window", "recurrent")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the home of servers with a model of each kind of state."""
    home = tmp_path_factory.mktemp("kinds")
    for kind in KINDS:
        folder = write_random(home / "written" / kind.replace(" ", "-"), ARCHITECTURES[kind])
        (folder / "README.md").write_bytes(README)
        cache_dir_of(home).add(f"org/{folder.name}", {path.name: path.read_bytes() for path in folder.iterdir()})
    return home


@pytest.fixture(scope="module")
def caching(home: Path) -> Iterator[Server]:
    """Yield a server with a prompt cache."""
    with Server(home=home) as server:
        yield server


@pytest.fixture(scope="module")
def forgetful(home: Path) -> Iterator[Server]:
    """Yield a server without a prompt cache."""
    with Server("--prompt-cache-bytes", "0", home=home) as server:
        yield server


def questions(kind: str) -> list[dict[str, Any]]:
    """Return eight requests with different seeds; their prompts are shorter and longer than a window of 16."""
    shared = "To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer. " * 2
    prompts = ("Hi", shared, shared + "No.", shared[:90], "x" * 17, shared + "Yes?", "Once", shared[:150])
    return [
        {
            "model": f"org/{kind.replace(' ', '-')}",
            "prompt": prompt,
            "seed": number,
            "temperature": 1.0,
            "max_tokens": 12 + 7 * number,
            "repetition_penalty": 1.1 if number % 2 else None,
        }
        for number, prompt in enumerate(prompts)
    ]


def whole(server: Server, body: dict[str, Any]) -> str:
    """Return the text of a whole response."""
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


def streamed(server: Server, body: dict[str, Any]) -> str:
    """Return the text of a stream."""
    said = httpx.post(f"{server.url}/v1/completions", json={**body, "stream": True}, timeout=120).text
    *events, done = (line[6:] for line in said.splitlines() if line.startswith("data: "))
    assert done == "[DONE]"
    return "".join(choice["text"] for event in events for choice in json.loads(event)["choices"])


@pytest.mark.parametrize("kind", KINDS)
def test_the_text_is_the_same_alone_together_streamed_and_cached(caching: Server, forgetful: Server, kind: str) -> None:
    asked = questions(kind)
    alone = [whole(forgetful, body) for body in asked]
    assert len(set(alone)) == len(alone)
    assert [streamed(forgetful, body) for body in asked] == alone
    for server in (forgetful, caching, caching):
        with ThreadPoolExecutor(8) as pool:
            # The answers differ in length, and each request starts a little later than the one before.
            late = [pool.submit(_later, number * 0.02, server, body) for number, body in enumerate(asked)]
            assert [task.result() for task in late] == alone
    assert [whole(caching, body) for body in asked] == alone
    usage = httpx.post(f"{caching.url}/v1/completions", json=asked[2], timeout=120).json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] > 0


def _later(pause: float, server: Server, body: dict[str, Any]) -> str:
    time.sleep(pause)
    return (whole if body["seed"] % 2 else streamed)(server, body)
