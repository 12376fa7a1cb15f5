"""Access: check the key, the host name, the origin and the size of requests."""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection, Hashable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import product

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from mlxk2.server.http.bodies import Body, Budget, coding_of
from mlxk2.server.http.listener import LOOPBACK, WILDCARDS, host_name, is_address, typed_host_name
from mlxk2.server.http.refusals import MAX_BODY_BYTES, Refusal, RenderRefusal, body_too_large

# These paths need no key: the page asks the user for it, and the server's state is not secret.
OPEN_PATHS = ("/", "/health")
OPEN_FOLDER = "/page/"
_OLD_VERSIONS = ("0.9", "1.0")  # Of HTTP. They allow requests without a Host header, and browsers don't use them.


@dataclass(frozen=True)
class Access:
    """The rules of access: the server's address, its key or None, and the origins whose web pages may call it.

    `names` are other names of the server, in the form of `host_name`.
    """

    host: str = "127.0.0.1"
    api_key: str | None = None
    origins: Collection[str] = ()
    names: Collection[str] = ()

    def knows_host(self, header: str) -> bool:
        """Return whether a Host header names this server; other names can be an attack (DNS rebinding)."""
        name = host_name(header)
        # An address is safe, because DNS rebinding needs a name.
        is_own = name in LOOPBACK or name in self.names or (self.host in WILDCARDS and is_address(name))
        return bool(name) and (is_own or name == typed_host_name(self.host))

    def knows_origin(self, origin: str, host: str) -> bool:
        """Return whether a page of this origin may call the server: its own page, or one that the user allowed."""
        return origin in self.origins or "*" in self.origins or origin in (f"http://{host}", f"https://{host}")

    def knows_key(self, headers: Headers) -> bool:
        """Return whether one of the keys in a request is right."""
        if self.api_key is None:
            return True
        # Clients send the key as UTF-8 or, as browsers do, as Latin-1.
        keys = [self.api_key.encode("utf-8", "surrogateescape")]
        with suppress(UnicodeEncodeError):
            keys.append(self.api_key.encode("latin-1"))
        # Compare all pairs, so that the time reveals nothing about the key.
        return any([secrets.compare_digest(given, key) for given, key in product(_keys_of(headers), keys)])


def client_of(scope: Scope) -> Hashable:
    """Return an id for the client of a request: requests with the same keys and the same address have the same id."""
    address = scope.get("client")
    # Use a hash, because keys are secret and can be long.
    return hash((address and address[0], *_keys_of(Headers(scope=scope))))


def _keys_of(headers: Headers) -> Iterator[bytes]:
    """Return the keys of a request as bytes; starlette decodes headers as Latin-1."""
    given = list(headers.getlist("x-api-key"))
    for value in headers.getlist("authorization"):
        scheme, _, key = value.replace("\t", " ").strip(" ").partition(" ")
        if scheme.lower() == "bearer":
            given.append(key)
    # Strip only these two characters; other white space can be a byte of a UTF-8 character.
    return (key.strip(" \t").encode("latin-1") for key in given)


def plain_path(path: str) -> str:
    """Return a path without repeated slashes and without a slash at the end, which clients add by mistake.

    A path of only slashes is returned unchanged.
    """
    return re.sub("//+", "/", path).rstrip("/") or path


class Guard:
    """An ASGI layer that refuses requests without access and bodies that are too large, and unpacks the other bodies.

    It passes each path to the routes in its plain form, so that clients are not redirected.
    """

    def __init__(self, app: ASGIApp, access: Access, render: RenderRefusal) -> None:
        self._app = app
        self._access = access
        self._render = render
        self._budget = Budget()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or respond with a refusal."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = {**scope, "path": plain_path(scope["path"])}
        headers = Headers(scope=scope)
        try:
            self._check(scope, headers)
            body = Body(receive, coding_of(", ".join(headers.getlist("content-encoding"))), self._budget)
            try:
                await self._app(scope, body.receive, send)
            finally:
                body.close()
        except Refusal as refusal:
            await self._render(scope["path"], refusal)(scope, receive, send)

    def _check(self, scope: Scope, headers: Headers) -> None:
        """Raise Refusal if the head of a request shows that the request is not allowed."""
        hosts = headers.getlist("host")
        if not hosts and scope["http_version"] not in _OLD_VERSIONS:
            raise Refusal("The request has no Host header, which HTTP/1.1 requires.", 400, code="invalid_host")
        host = ", ".join(hosts)
        if hosts and not self._access.knows_host(host):
            message = f"This server does not accept the host name {host!r}."
            if name := host_name(host):
                message += f" To allow it, start the server with --allowed-host {name}."
            raise Refusal(message, 403, code="invalid_host")
        origin = headers.get("origin")
        if origin and not self._access.knows_origin(origin, host):
            message = f"Pages of {origin} may not call this server; --cors-origin allows it."
            raise Refusal(message, 403, code="invalid_origin")
        path = scope["path"]
        is_open = path in OPEN_PATHS or path.startswith(OPEN_FOLDER)
        if not is_open and not self._access.knows_key(headers):
            raise Refusal(
                "The API key is missing or wrong. Send it as `Authorization: Bearer KEY` or `X-Api-Key: KEY`.",
                401,
                headers={"WWW-Authenticate": "Bearer"},
            )
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > MAX_BODY_BYTES:
            raise body_too_large()
