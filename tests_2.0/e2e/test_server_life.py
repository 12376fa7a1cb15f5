"""The life of `mlxk2 serve` as a process: its start, its port, and its end by each signal at any moment."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from support import starting
from support.architectures import ARCHITECTURES
from support.conformance import data_of
from support.processes import living_processes, needs_proc
from support.serving import Server, cache_dir_of, environment_of
from support.tiny_models import BABBLE, say, write_chain, write_random

import mlxk2

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

# The shutdown of a server may take this many seconds.
MOST = 5.0
SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 0}
both_signals = pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)

LONG = {"messages": [{"role": "user", "content": "Count from 1 to 100."}], "temperature": 0}
SHORT = {"messages": [{"role": "user", "content": "What is 3 + 4?"}], "temperature": 0}
STREAM = {**LONG, "stream": True}


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a model whose answers take a minute."""
    return str(write_chain(tmp_path_factory.mktemp("endless") / "babble", BABBLE, context=1 << 17))


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a model that takes seconds to load and seconds to read a prompt."""
    shape = {"num_hidden_layers": 600, "hidden_size": 64, "intermediate_size": 64, "max_position_embeddings": 1 << 16}
    folder = tmp_path_factory.mktemp("slow") / "deep"
    return str(write_random(folder, {**ARCHITECTURES["llama"], **shape}))


def stop_in_time(server: Server, number: signal.Signals) -> int:
    """Send a signal and return the exit code; fail if it takes more than five seconds or a process is left."""
    start = time.monotonic()
    code = server.stop(number)
    assert time.monotonic() - start < MOST, server.err
    assert_gone(server)
    return code


def assert_gone(server: Server) -> None:
    """Fail unless all processes of the server have ended and its port is free."""
    # The helper process of multiprocessing ends a moment later.
    wait_for(lambda: not living_processes(server.process.pid), 2)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", server.port))


def wait_for(condition: Any, seconds: float = 30.0) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.02)


def health(server: Server) -> dict[str, Any]:
    """Return the body of /health."""
    return dict(httpx.get(f"{server.url}/health", timeout=30).json())


def post(server: Server, body: dict[str, Any]) -> socket.socket:
    """Send a chat request on a new connection and return it."""
    content = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    connection.sendall(head.encode() + content)
    return connection


def rest(connection: socket.socket) -> bytes:
    """Return everything up to the end of a connection."""
    parts = []
    with connection:
        while part := connection.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


def program(*words: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a `serve` that fails at its start."""
    cache_dir_of(home)
    command = [sys.executable, "-m", "mlxk2", *words]
    variables = environment_of(home) | environment
    return starting.run(command, env=variables, cwd=home, capture_output=True, text=True, timeout=90, check=False)


# -------------------------------------------------------------------------------------------------------------- start


@pytest.mark.parametrize("words", [("serve", "--json"), ("--json", "server")], ids=" ".join)
def test_the_envelope_is_printed_first_and_once_the_port_answers(tmp_path: Path, words: tuple[str, ...]) -> None:
    with Server("--model", "demo", home=tmp_path, command=words, ready=False) as server:
        assert httpx.get(f"{server.url}/health", timeout=30).status_code in (200, 503)
        result = SimpleNamespace(code=0, json=server.envelope)
        data = data_of(result, "server")
        assert data == {"host": "127.0.0.1", "port": server.port, "url": server.url, "model": "demo"}
        assert server.stop() == 0
        assert server.process.stdout is not None
        assert server.process.stdout.read() == b""


def test_the_start_line_shows_the_address(tmp_path: Path) -> None:
    command = [sys.executable, "-u", "-m", "mlxk2", "serve", "--model", "demo", "--port", "0"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment_of(tmp_path), stdout=pipe, stderr=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            line = re.match(r"Serving with demo on (http://127\.0\.0\.1:\d+) .*Ctrl-C", process.stdout.readline())
            assert line is not None
            assert httpx.get(f"{line[1]}/health", timeout=30).json()["status"] in ("ok", "loading")
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=20)
            assert (out, err.splitlines()[-1]) == ("", "INFO: The server has stopped.")
            assert process.returncode == 130
        finally:
            process.kill()


def test_health_is_503_until_the_model_is_loaded(tmp_path: Path, slow: str) -> None:
    with Server("--model", slow, home=tmp_path, ready=False) as server:
        answer = httpx.get(f"{server.url}/health", timeout=30)
        assert (answer.status_code, answer.json()["status"], answer.json()["loading"]) == (503, "loading", "deep")
        server.wait_until_ready()
        assert health(server)["model"] == "deep"


REFUSED = {
    "bad host": (("--host", "no.such.host.invalid"), "can't listen on 'no.such.host.invalid'"),
    "no name": (("--host", "a..b"), "it is not a host name"),
    "not ours": (("--host", "192.0.2.1"), "192.0.2.1"),
    "no model": (("--model", "org/none"), "org/none"),
    "no adapter": (("--model", "demo", "--adapter", "nowhere"), "nowhere"),
    "no size": (("--prompt-cache-bytes", "much"), "much"),
    "no port": (("--port", "70000"), "70000"),
    "nothing at once": (("--max-concurrent", "0"), "--max-concurrent"),
    "less than no queue": (("--max-queue", "-1"), "--max-queue"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_options_at_the_start_give_one_error(tmp_path: Path, case: str) -> None:
    words, reason = REFUSED[case]
    done = program("serve", "--port", "0", *words, home=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert reason in done.stderr and "Traceback" not in done.stderr
    assert sum(line.startswith("Error:") for line in done.stderr.splitlines()) == 1
    done = program("serve", "--port", "0", *words, "--json", home=tmp_path)
    assert done.returncode == 1
    data_of(SimpleNamespace(code=1, json=json.loads(done.stdout)), "server", code=1)


@pytest.mark.parametrize("reload", [(), ("--reload",)], ids=["plain", "reload"])
def test_a_port_in_use_is_an_error_with_advice(tmp_path: Path, reload: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = program("serve", "--port", port, *reload, home=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"Error: The server can't listen on 127.0.0.1 port {port}: it is in use.\nChoose another port with --port.\n"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may use every port")
def test_a_privileged_port_is_a_permission_error(tmp_path: Path) -> None:
    done = program("serve", "--port", "1", home=tmp_path)
    assert done.returncode == 1
    assert "Permission denied" in done.stderr and "--port" in done.stderr


@pytest.mark.parametrize("reload", [(), ("--reload",)], ids=["plain", "reload"])
def test_a_start_model_that_fails_to_load_is_reported(tmp_path: Path, reload: tuple[str, ...]) -> None:
    folder = write_chain(tmp_path / "odd", say("x"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 8}))
    with Server("--model", str(folder), *reload, home=tmp_path, ready=False) as server:
        if reload:
            # The user may repair the model's files, so the supervisor waits for a change.
            wait_for(lambda: "odd can't be loaded" in server.err)
            assert stop_in_time(server, signal.SIGINT) == 130
        else:
            assert server.process.wait(30) == 1
        assert "odd can't be loaded" in server.err
        assert "Traceback" not in server.err
        assert server.process.stdout is not None
        assert server.process.stdout.read() == b""


def test_serving_every_address_without_a_key_prints_a_warning(tmp_path: Path) -> None:
    with Server("--host", "0.0.0.0", "--model", "demo", home=tmp_path) as server:
        assert server.url == f"http://127.0.0.1:{server.port}"
        assert server.envelope["data"]["host"] == "0.0.0.0"
        assert "anyone who can reach 0.0.0.0" in server.err and "MLXK2_API_KEY" in server.err
    with Server("--host", "0.0.0.0", home=tmp_path, environment={"MLXK2_API_KEY": "secret"}) as server:
        assert "anyone who can reach" not in server.err


def test_the_ipv6_loopback_can_be_served(tmp_path: Path) -> None:
    with Server("--host", "::1", "--model", "demo", home=tmp_path) as server:
        assert server.url == f"http://[::1]:{server.port}"
        assert httpx.post(f"{server.url}/v1/chat/completions", json=SHORT, timeout=60).status_code == 200


# ---------------------------------------------------------------------------------------------------- keys and logs


def test_the_key_is_in_no_process_list_and_no_log(tmp_path: Path) -> None:
    arguments = ("--model", "demo", "--verbose", "--log-level", "debug", "--reload")
    with Server(*arguments, home=tmp_path, environment={"MLXK2_API_KEY": "top-secret"}) as server:
        lines = living_processes(server.process.pid).values()
        assert len(lines) >= 2 and not any("top-secret" in line for line in lines)
        url = f"{server.url}/v1/chat/completions"
        assert httpx.post(url, json=SHORT, timeout=60).status_code == 401
        headers = {"Authorization": "Bearer top-secret"}
        assert httpx.post(url, json=SHORT, headers=headers, timeout=60).status_code == 200
        assert stop_in_time(server, signal.SIGTERM) == 0
        assert "POST /v1/chat/completions" in server.err
        assert "top-secret" not in server.err and "3 + 4" not in server.err
        assert server.process.stdout is not None
        assert server.process.stdout.read() == b""


# The options, then whether the log has other requests, those for /health, and the end of the server.
LOGS = {
    "": (True, False, True),
    "--verbose": (True, True, True),
    "--log-level debug": (True, True, True),
    "--log-level warning": (False, False, False),
    "--verbose --log-level error": (True, True, False),
}


@pytest.mark.parametrize(("words", "expected"), LOGS.items(), ids=[words or "nothing" for words in LOGS])
def test_each_log_level_has_its_lines(tmp_path: Path, words: str, expected: tuple[bool, bool, bool]) -> None:
    with Server(*words.split(), home=tmp_path) as server:
        assert httpx.get(f"{server.url}/v1/nothing", timeout=30).status_code == 404
        assert health(server)["status"] == "ok"
        assert stop_in_time(server, signal.SIGTERM) == 0
        found = ("GET /v1/nothing 404 in ", "GET /health 200 in ", "The server has stopped.")
        assert tuple(text in server.err for text in found) == expected


def test_the_log_has_one_line_for_each_load_and_request(tmp_path: Path, endless: str) -> None:
    with Server("--model", "demo", home=tmp_path) as server:
        chat = f"{server.url}/v1/chat/completions"
        for body in (SHORT, {**SHORT, "stream": True, "n": 2}, {**SHORT, "model": "a\nb\x1b[31m, c" + "d" * 1000}):
            httpx.post(chat, json=body, timeout=60)
        httpx.get(f"{server.url}/a%0Ab%1B%20{'c' * 1000}?key=secret", timeout=30)
        assert stop_in_time(server, signal.SIGTERM) == 0
        long = "[cd]{180,200}\u2026"
        lines = [
            r"Loaded demo in \d+\.\d\d s",
            r"POST /v1/chat/completions 200 in \d+\.\d\d s, demo, prompt: 16 tokens, answer: 9 tokens",
            r"POST /v1/chat/completions 200 in \d+\.\d\d s, demo, prompt: 16 tokens, answer: 18 tokens",
            rf"POST /v1/chat/completions 400 in \d+\.\d\d s, 'a\\nb\\x1b\[31m, {long}'",
            rf"GET /a%0Ab%1B%20{long} 404 in \d+\.\d\d s",
            r"The server has stopped\.",
        ]
        assert re.fullmatch("".join(f"INFO: {line}\n" for line in lines), server.err), server.err
    with Server("--model", endless, home=tmp_path) as server:
        with contextlib.closing(post(server, STREAM)) as connection:
            while b"data: " not in connection.recv(1 << 16):
                pass
        wait_for(lambda: "POST /v1/chat/completions 200 (not finished) in " in server.err)


# ----------------------------------------------------------------------------------------------------------- shutdown


@both_signals
def test_a_signal_ends_streams_with_an_error_and_done(tmp_path: Path, endless: str, number: signal.Signals) -> None:
    with Server("--model", endless, home=tmp_path) as server:
        connections = [post(server, STREAM) for _ in range(8)]
        whole = post(server, LONG)
        for connection in connections:
            while b"data: " not in connection.recv(1 << 16):
                pass
        wait_for(lambda: health(server)["active"] == 9)
        assert stop_in_time(server, number) == SIGNALS[number]
        for connection in connections:
            *_, error, done = (line for line in rest(connection).split(b"\r\n") if line.startswith(b"data: "))
            assert json.loads(error[6:])["error"]["code"] == "shutting_down"
            assert done.strip() == b"data: [DONE]"
        head, _, body = rest(whole).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ") and b"retry-after: " in head
        assert json.loads(body)["error"]["code"] == "shutting_down"
        assert server.complaints == []


@both_signals
def test_a_signal_ends_queued_requests_with_an_error(tmp_path: Path, endless: str, number: signal.Signals) -> None:
    with Server("--model", endless, "--max-concurrent", "1", home=tmp_path) as server:
        connections = [post(server, STREAM)]
        while b"data: " not in connections[0].recv(1 << 16):
            pass
        connections += [post(server, STREAM) for _ in range(3)]
        other = post(server, {**STREAM, "model": "demo"})
        wait_for(lambda: health(server)["queued"] == 4)
        assert stop_in_time(server, number) == SIGNALS[number]
        assert b"shutting_down" in rest(connections[0])
        # The prompts were ready, so their streams had begun.
        assert all(b"shutting_down" in rest(connection) for connection in (*connections[1:], other))
        assert server.complaints == []


@both_signals
def test_a_signal_during_a_load_ends_the_server_in_time(tmp_path: Path, slow: str, number: signal.Signals) -> None:
    with Server("--model", slow, home=tmp_path, ready=False) as server:
        connection = post(server, SHORT)
        wait_for(lambda: health(server)["queued"] > 0)
        assert stop_in_time(server, number) == SIGNALS[number]
        assert rest(connection).startswith(b"HTTP/1.1 503 ")
        assert server.complaints == []


@both_signals
def test_a_signal_during_a_long_prompt_ends_the_server_in_time(
    tmp_path: Path, slow: str, number: signal.Signals
) -> None:
    with Server("--model", slow, home=tmp_path) as server:
        prompt = {"messages": [{"role": "user", "content": "x" * 40000}], "stream": True}
        connections = [post(server, prompt) for _ in range(2)]
        wait_for(lambda: health(server)["active"] == 2)
        time.sleep(0.5)
        assert stop_in_time(server, number) == SIGNALS[number]
        assert all(b"shutting_down" in rest(connection) for connection in connections)
        assert server.complaints == []


@both_signals
def test_a_signal_with_idle_clients_ends_the_server_in_time(tmp_path: Path, number: signal.Signals) -> None:
    with Server("--model", "demo", home=tmp_path) as server:
        idle = httpx.Client(base_url=server.url)
        assert idle.post("/v1/chat/completions", json=SHORT, timeout=60).status_code == 200
        silent = socket.create_connection(("127.0.0.1", server.port))
        half = socket.create_connection(("127.0.0.1", server.port))
        half.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        with contextlib.closing(silent), contextlib.closing(half), contextlib.closing(idle):
            assert stop_in_time(server, number) == SIGNALS[number]
        assert server.complaints == []


@needs_proc
@both_signals
def test_a_signal_with_a_stalled_reader_ends_the_server_in_time(
    tmp_path: Path, endless: str, number: signal.Signals
) -> None:
    with Server("--model", endless, home=tmp_path) as server:
        with stalled(server):
            assert stop_in_time(server, number) == SIGNALS[number]
        assert server.complaints == []


@contextlib.contextmanager
def stalled(server: Server) -> Iterator[socket.socket]:
    """Yield a connection whose client reads nothing, once the server can't write any more."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", server.port))
    content = json.dumps({**STREAM, "logprobs": True, "top_logprobs": 20, "n": 16}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
    connection.sendall(head.encode() + content)
    with contextlib.closing(connection):
        sent = -1
        while (now := unsent(connection)) != sent or now == 0:
            sent = now
            time.sleep(0.5)
        yield connection


def unsent(connection: socket.socket) -> int:
    """Return how many bytes wait in the server's end of a connection, by the kernel's table."""
    port = f":{connection.getsockname()[1]:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, _, remote, _, queues, *_ = line.split()
        if remote.endswith(port):
            return int(queues.split(":")[0], 16)
    return 0


@needs_proc
def test_a_second_ctrl_c_ends_the_server_at_once(tmp_path: Path, endless: str) -> None:
    # The first Ctrl-C waits for the stalled reader, the second does not.
    with Server("--model", endless, home=tmp_path) as server, stalled(server):
        server.process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert server.process.poll() is None
        start = time.monotonic()
        assert server.stop(signal.SIGINT) in (130, -signal.SIGINT)
        assert time.monotonic() - start < 1
        assert_gone(server)


@both_signals
@pytest.mark.parametrize("pause", [0.1, 0.4, 0.8])
def test_a_signal_during_the_start_ends_the_server(tmp_path: Path, number: signal.Signals, pause: float) -> None:
    server = Server("--model", "demo", home=tmp_path, ready=False)
    try:
        time.sleep(pause)
        assert server.stop(number) in (SIGNALS[number], -number)
        wait_for(lambda: not living_processes(server.process.pid), 2)
    finally:
        server.__exit__(None, None, None)


# --------------------------------------------------------------------------------------------------------- --reload


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """Return a copy of the program that a test can change while it runs."""
    folder = tmp_path / "code" / "mlxk2"
    shutil.copytree(Path(mlxk2.__file__).parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def reloading(code: Path, home: Path) -> Server:
    """Return a server of that code that restarts when the code changes."""
    return Server("--model", "demo", "--reload", home=home, environment={"PYTHONPATH": str(code.parent)})


def answer_of(server: Server) -> str:
    """Return the answer to the short question; a restarting server lets clients wait."""
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=SHORT, timeout=60)
    return str(answer.json()["choices"][0]["message"]["content"])


def version_of(server: Server) -> str | None:
    """Return the version in /health; None from a server that is shutting down."""
    with contextlib.suppress(httpx.TransportError):
        return str(health(server)["version"])
    return None


@both_signals
def test_reload_serves_the_new_code(tmp_path: Path, code: Path, number: signal.Signals) -> None:
    with reloading(code, tmp_path) as server:
        assert answer_of(server) == "3 + 4 = 7."
        before = living_processes(server.process.pid)
        source = code / "__init__.py"
        source.write_text(re.sub(r'__version__ = ".*"', '__version__ = "9.9.9"', source.read_text()))
        wait_for(lambda: version_of(server) == "9.9.9", 60)
        assert answer_of(server) == "3 + 4 = 7."
        after = living_processes(server.process.pid)
        assert len(before) == len(after) and before != after
        assert stop_in_time(server, number) == SIGNALS[number]
        assert server.process.stdout is not None
        assert server.process.stdout.read() == b"", "one envelope is enough"


def test_reload_survives_a_syntax_error(tmp_path: Path, code: Path) -> None:
    with reloading(code, tmp_path) as server:
        source = code / "server" / "app.py"
        right = source.read_text()
        source.write_text("this is no Python\n")
        wait_for(lambda: "invalid syntax" in server.err, 60)
        source.write_text(right)
        os.utime(source, (time.time() + 5, time.time() + 5))
        assert answer_of(server) == "3 + 4 = 7."
        assert stop_in_time(server, signal.SIGINT) == 130


PAUSES = """
import os, signal, socket, sys
from mlxk2.server.reload import Reloader

def end_at(moment):
    lines = 0
    def trace(frame, event, _):
        nonlocal lines
        if event == "line":
            lines += 1
            if lines == moment:
                os.kill(os.getpid(), signal.SIGTERM)
        return trace
    return trace

for moment in range(1, 61):
    reloader = Reloader(print, socket.socket(), print)
    reloader.config.reload_delay = 0.001
    signal.signal(signal.SIGTERM, reloader.signal_handler)
    sys.settrace(end_at(moment))
    try:
        while True:
            reloader.pause()
    except StopIteration:
        sys.settrace(None)
    print(moment, flush=True)
"""


def test_reload_ends_on_a_signal_at_any_line_of_its_wait() -> None:
    done = subprocess.run([sys.executable, "-c", PAUSES], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == [str(moment) for moment in range(1, 61)]


@pytest.mark.parametrize("reload", [(), ("--reload",)], ids=["plain", "reload"])
def test_sigkill_leaves_no_processes(tmp_path: Path, reload: tuple[str, ...]) -> None:
    with Server("--model", "demo", *reload, home=tmp_path) as server:
        connection = post(server, STREAM)
        assert server.stop(signal.SIGKILL) == -signal.SIGKILL
        connection.close()
        wait_for(lambda: not living_processes(server.process.pid), MOST)
        assert_gone(server)
