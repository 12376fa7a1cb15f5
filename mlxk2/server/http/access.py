"""What stands before every route: who may ask, under which name of the server, and how much they may send."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Hashable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import product

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from mlxk2.server.http.bodies import MOST_BODY_BYTES, Body, BodyRefused, Budget, coding_of, too_large
from mlxk2.server.http.listener import LOOPBACK, WILDCARDS, host_name, is_address, typed_host_name
from mlxk2.server.openai.errors import refusal

# The page asks for the key itself, and whether the server lives is no secret.
OPEN_PATHS = ("/", "/health")
OPEN_FOLDER = "/page/"
# Their requests need not name a host, and browsers do not speak them.
_OLD_VERSIONS = ("0.9", "1.0")


@dataclass(frozen=True)
class Access:
    """Who may use the server: the address it is bound to, the key if one is needed, web pages of other origins.

    `names` are further names that it answers to, in the form of `host_name`.
    """

    host: str = "127.0.0.1"
    api_key: str | None = None
    origins: Collection[str] = ()
    names: Collection[str] = ()

    def knows_host(self, header: str) -> bool:
        """Whether a Host header names this server; a foreign name that leads here (DNS rebinding) does not."""
        name = host_name(header)
        # A page can't rebind an address: only names are looked up.
        is_own = name in LOOPBACK or name in self.names or (self.host in WILDCARDS and is_address(name))
        return bool(name) and (is_own or name == typed_host_name(self.host))

    def knows_origin(self, origin: str, host: str) -> bool:
        """Whether a page of this origin may call: the server's own, or one that was allowed."""
        return origin in self.origins or "*" in self.origins or origin in (f"http://{host}", f"https://{host}")

    def knows_key(self, headers: Headers) -> bool:
        """Whether one of the keys that a request carries is right."""
        if self.api_key is None:
            return True
        pairs = product(_keys_of(headers), _bytes_of(self.api_key))
        # All comparisons are made, so that the time they take says nothing.
        return any([secrets.compare_digest(given, key) for given, key in pairs])


def client_of(scope: Scope) -> Hashable:
    """Return the client of a request: requests with the same keys from the same address are one client's."""
    address = scope.get("client")
    # Only a number is remembered: keys are secrets, and may be long.
    return hash((address and address[0], *_keys_of(Headers(scope=scope))))


def _keys_of(headers: Headers) -> Iterator[bytes]:
    """Yield the keys of a request as bytes: starlette reads headers as Latin-1."""
    given = list(headers.getlist("x-api-key"))
    for value in headers.getlist("authorization"):
        scheme, _, key = value.replace("\t", " ").strip(" ").partition(" ")
        if scheme.lower() == "bearer":
            given.append(key)
    # Only these are white space here: others may be part of a character of UTF-8.
    return (key.strip(" \t").encode("latin-1") for key in given)


def _bytes_of(key: str) -> Iterator[bytes]:
    """Yield a key in the forms in which clients send it: UTF-8 and, as browsers do, Latin-1."""
    yield key.encode("utf-8", "surrogateescape")
    with suppress(UnicodeEncodeError):
        yield key.encode("latin-1")


class Guard:
    """An ASGI layer that refuses strangers, and bodies that are too large; it unpacks the others."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access
        self._budget = Budget()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer with the reason why not."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        answer = self._refused(scope, headers) or _announces_too_much(headers)
        if answer is None:
            answer = await self._passed_on(scope, headers, receive, send)
        if answer is not None:
            await answer(scope, receive, send)

    async def _passed_on(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> Response | None:
        """Pass a request on as long as its body keeps to the limits; return the answer to one that does not."""
        try:
            body = Body(receive, coding_of(", ".join(headers.getlist("content-encoding"))), self._budget)
        except BodyRefused as refused:
            return refused.answer
        try:
            await self._app(scope, body.receive, send)
        except BodyRefused as refused:
            return refused.answer
        finally:
            body.close()
        return None

    def _refused(self, scope: Scope, headers: Headers) -> Response | None:
        hosts = headers.getlist("host")
        if not hosts and scope["http_version"] not in _OLD_VERSIONS:
            return refusal("The request has no Host header, which HTTP/1.1 requires.", 400, code="invalid_host")
        host = ", ".join(hosts)
        if hosts and not self._access.knows_host(host):
            return _unknown_host(host)
        origin = headers.get("origin")
        if origin and not self._access.knows_origin(origin, host):
            message = f"Pages of {origin} may not call this server; --cors-origin allows it."
            return refusal(message, 403, code="invalid_origin")
        path = scope["path"]
        is_open = path in OPEN_PATHS or path.startswith(OPEN_FOLDER)
        if not is_open and not self._access.knows_key(headers):
            return refusal(
                "The API key is missing or wrong. Send it as `Authorization: Bearer KEY` or `X-Api-Key: KEY`.",
                401,
                headers={"WWW-Authenticate": "Bearer"},
            )
        return None


def _unknown_host(host: str) -> Response:
    message = f"This server does not answer to the name {host!r}."
    if name := host_name(host):
        message += f" To allow it, start the server with --allowed-host {name}."
    return refusal(message, 403, code="invalid_host")


def _announces_too_much(headers: Headers) -> Response | None:
    length = headers.get("content-length", "")
    return too_large() if length.isdigit() and int(length) > MOST_BODY_BYTES else None
