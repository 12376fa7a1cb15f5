"""Access to the server: its accepted host names, its key, and how both are set at the start."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Program
from starlette.datastructures import Headers
from support.conformance import error_of
from support.serving import Server
from support.wire import Wire, assert_is_error

from mlxk2.errors import OperationError
from mlxk2.server.http.access import Access
from mlxk2.server.http.listener import bind

# --------------------------------------------------------------------------------------------------------------- keys


def is_accepted(key: str, *fields: tuple[bytes, bytes]) -> bool:
    """Return whether a server with this key accepts a request with these fields."""
    return Access(api_key=key).knows_key(Headers(raw=list(fields)))


RIGHT = {
    "bearer": ("k", (b"authorization", b"Bearer k")),
    "another case": ("k", (b"authorization", b"bEARER k")),
    "more white space": ("k", (b"authorization", b" Bearer \t k \t")),
    "a tab": ("k", (b"authorization", b"Bearer\tk")),
    "x-api-key": ("k", (b"x-api-key", b" k ")),
    "the second is right": ("k", (b"authorization", b"Bearer unused"), (b"x-api-key", b"k")),
    "the first is right": ("k", (b"authorization", b"Bearer k"), (b"x-api-key", b"unused")),
    "UTF-8": ("sésame", (b"authorization", "Bearer sésame".encode())),
    "Latin-1": ("sésame", (b"authorization", "Bearer sésame".encode("latin-1"))),
    "UTF-8 that ends like white space": ("voilà", (b"authorization", "Bearer voilà".encode())),
    "UTF-8 that begins and ends so": ("àÅ", (b"x-api-key", "àÅ".encode())),
    "past Latin-1": ("ключ\U0001f511", (b"x-api-key", "ключ\U0001f511".encode())),
    "no UTF-8": (os.fsdecode(b"k\xff\xfe"), (b"x-api-key", b"k\xff\xfe")),
}
WRONG = {
    "nothing": ("k",),
    "no scheme": ("k", (b"authorization", b"k")),
    "another scheme": ("k", (b"authorization", b"Basic k")),
    "an empty key": ("k", (b"authorization", b"Bearer "), (b"x-api-key", b"")),
    "bytes that are no UTF-8": ("k", (b"authorization", b"Bearer \xff"), (b"x-api-key", b"\xff\xfe")),
    "a longer one": ("k", (b"x-api-key", b"k\xff")),
    "another one that is no UTF-8": (os.fsdecode(b"k\xff"), (b"x-api-key", b"k\xfe")),
}


@pytest.mark.parametrize("case", RIGHT.values(), ids=RIGHT)
def test_the_right_key_is_accepted_in_every_form(case: tuple[str, *tuple[tuple[bytes, bytes], ...]]) -> None:
    assert is_accepted(*case)


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_a_wrong_key_is_refused(case: tuple[str, *tuple[tuple[bytes, bytes], ...]]) -> None:
    assert not is_accepted(*case)


@pytest.mark.parametrize(
    "key", ["", " ", "\t\r\n", "two words", "two\nlines", "nbsp\u00a0inside", "\x7f", "a\x01b"], ids=ascii
)
@pytest.mark.parametrize("way", ["option", "variable"])
def test_an_unsendable_key_is_refused_at_the_start(
    mlxk2: Program, monkeypatch: pytest.MonkeyPatch, key: str, way: str
) -> None:
    words = ["--api-key", key] if way == "option" else []
    monkeypatch.setenv("MLXK2_API_KEY", "right" if words else key)
    error = error_of(mlxk2("serve", "--port", "0", *words, "--json"), "server")
    assert error["type"] == "ValidationError"
    assert ("--api-key" if words else "MLXK2_API_KEY") in error["message"]


@pytest.mark.e2e
@pytest.mark.parametrize("key", [b" spaced\r\n", b"no\xff\xfeUTF-8"], ids=ascii)
def test_a_server_with_an_unusual_key_works(tmp_path: Path, key: bytes) -> None:
    def status(port: int, given: bytes) -> int:
        with Wire(port) as wire:
            fields = b"Host: localhost\r\nAuthorization: Bearer %s" % given
            return wire.send(b"GET /v1/models HTTP/1.1\r\n%s\r\n\r\n" % fields).response().status

    with Server(home=tmp_path, environment={"MLXK2_API_KEY": os.fsdecode(key)}) as server:
        assert status(server.port, key.strip()) == 200
        assert [status(server.port, given) for given in (b"x", b"\xff", b"", "é".encode())] == [401] * 4
        assert server.complaints == []


# -------------------------------------------------------------------------------------------------------------- names


NAMES = ("my-mac.local", "[fd00::1]", "HOST.docker.internal:8000")
FORMS = [
    "my-mac.local",
    "MY-MAC.local.",
    "my-mac.local:1",
    "my-mac.local.:8000",
    "[fd00::1]:8000",
    "[FD00:0:0::1]",
    "host.docker.internal",
    "localhost.",
    "[0:0:0:0:0:0:0:1]",
]


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Yield a server on the loopback with further host names."""
    words = [word for name in (*NAMES, "fd00::2") for word in ("--allowed-host", name)]
    with Server(*words, home=tmp_path_factory.mktemp("named")) as server:
        yield server


def request_with_host(server: Server, host: str) -> tuple[int, str]:
    """Return the status of a request with this host, and the message of its error."""
    with Wire(server.port) as wire:
        fields = f"Host: {host}\r\nAuthorization: Bearer secret"
        answer = wire.send(f"GET /v1/models HTTP/1.1\r\n{fields}\r\n\r\n".encode()).response()
        return answer.status, "" if answer.status == 200 else assert_is_error(answer)["message"]


@pytest.mark.e2e
@pytest.mark.parametrize("host", [*FORMS, "[fd00::2]"])
def test_an_allowed_host_is_accepted_in_every_form(named: Server, host: str) -> None:
    assert request_with_host(named, host) == (200, "")


@pytest.mark.e2e
@pytest.mark.parametrize(
    "host", ["other.local", "my-mac.local.evil.example", "my-mac.local..", "fd00::1", "[fd00::3]", "x y"]
)
def test_another_host_is_refused_with_advice(named: Server, host: str) -> None:
    status, message = request_with_host(named, host)
    assert status == 403
    assert host in ("my-mac.local..", "fd00::1", "x y") or f"--allowed-host {host.strip('[]')}" in message.replace(
        "[", ""
    )


@pytest.mark.e2e
def test_the_machines_own_names_are_accepted_on_all_addresses_with_a_key(tmp_path: Path) -> None:
    own = socket.gethostname()
    for words, key, status in (("0.0.0.0", "secret", 200), ("0.0.0.0", "", 403), ("127.0.0.1", "secret", 403)):
        environment = {"MLXK2_API_KEY": key} if key else {}
        with Server("--host", words, home=tmp_path, environment=environment) as server:
            for name in (own, f"{own.partition('.')[0]}.local"):
                assert request_with_host(server, f"{name}:{server.port}")[0] == status


@pytest.mark.parametrize("name", ["", " ", "http://my-mac.local", "my mac", "a/b", "*", "[::1", "é.local"], ids=ascii)
def test_an_invalid_host_name_is_refused_at_the_start(mlxk2: Program, name: str) -> None:
    assert "--allowed-host" in error_of(mlxk2("serve", "--allowed-host", name, "--json"), "server")["message"]


# ------------------------------------------------------------------------------------------------------------- origin


WRONG_ORIGINS = ["", "foo", "chat.example", "localhost:3000", "null", "https://chat.example/", "https://chat.example/x"]
WRONG_ORIGINS += ["https://Chat.example", "https://chat.example:443", "http://chat.example:80", "https://*.example"]
WRONG_ORIGINS += ["https://", "https://a b", "https://me@chat.example", "https://é.example", "https://chat.example?x"]


@pytest.mark.parametrize("origin", WRONG_ORIGINS, ids=ascii)
def test_an_invalid_origin_is_refused_at_the_start(mlxk2: Program, origin: str) -> None:
    words = ("--cors-origin", "https://chat.example", "--cors-origin", origin)
    error = error_of(mlxk2("serve", *words, "--json"), "server")
    assert error["type"] == "ValidationError"
    assert error["message"].startswith("--cors-origin ")


RIGHT_ORIGINS = ["*", "https://chat.example", "http://localhost:3000", "http://[::1]:3000", "http://127.0.0.1:8080"]
RIGHT_ORIGINS += [
    "https://chat.example:8443",
    "http://chat.example:443",
    "chrome-extension://abcdef",
    "app://obsidian.md",
]


@pytest.mark.parametrize("origin", RIGHT_ORIGINS)
def test_an_origin_in_the_form_of_browsers_is_accepted(mlxk2: Program, origin: str) -> None:
    # The model is looked for after the options were checked.
    error = error_of(mlxk2("serve", "--cors-origin", origin, "--model", "org/none", "--json"), "server")
    assert error["type"] == "model_not_found"


# --------------------------------------------------------------------------------------------------------------- port


@pytest.mark.parametrize(("listening", "asked"), [("0.0.0.0", "127.0.0.1"), ("127.0.0.1", "0.0.0.0")])
def test_a_port_that_accepts_connections_is_in_use_on_macos(listening: str, asked: str) -> None:
    # On macOS, the system itself reports no error here.
    with socket.create_server((listening, 0)) as other:
        port = other.getsockname()[1]
        other.settimeout(30)
        with pytest.raises(OperationError, match="it is in use"):
            bind(asked, port, platform="darwin")
        other.accept()[0].close()
        other.settimeout(0.2)
        with pytest.raises(OperationError, match="it is in use"):
            bind(asked, port, platform="linux")
        with pytest.raises(TimeoutError):
            other.accept()
    with bind(asked, port, platform="darwin") as own:
        assert own.getsockname()[1] == port
