"""What stands before every route: who may ask, from where, and how much they may send."""

from __future__ import annotations

import ipaddress
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlxk2.server.faults import RETRY_AFTER, refusal
from mlxk2.server.listener import LOOPBACK

MOST_BODY_BYTES = 32 << 20
# Of the bodies of all requests together.
MOST_HELD_BYTES = 256 << 20
# Each value that JSON is parsed into takes a hundred times the bytes of its text, and all others wait meanwhile.
_MARKS = b",[{"
MOST_MARKS = 1 << 20
WILDCARDS = ("0.0.0.0", "::", "")
# The page asks for the key itself, and whether the server lives is no secret.
OPEN_PATHS = ("/", "/health")
OPEN_FOLDER = "/page/"
_HOST = re.compile(r"(?:\[(?P<address>[0-9a-f:.]+)\]|(?P<name>[a-z0-9_.-]+))(?::\d{0,5})?", re.IGNORECASE)


@dataclass(frozen=True)
class Access:
    """Who may use the server: the address it is bound to, the key if one is needed, web pages of other origins."""

    host: str = "127.0.0.1"
    api_key: str | None = None
    origins: Collection[str] = ()

    def knows_host(self, header: str) -> bool:
        """Whether a Host header names this server; a foreign name that leads here (DNS rebinding) does not."""
        name = _host_name(header)
        return name in LOOPBACK or name == self.host.lower() or (self.host in WILDCARDS and _is_address(name))

    def knows_origin(self, origin: str, host: str) -> bool:
        """Whether a page of this origin may call: the server's own, or one that was allowed."""
        return origin in self.origins or "*" in self.origins or origin in (f"http://{host}", f"https://{host}")

    def knows_key(self, authorization: str) -> bool:
        """Whether an Authorization header carries the key."""
        scheme, _, key = authorization.partition(" ")
        if self.api_key is None:
            return True
        # Starlette reads the bytes of headers as Latin-1.
        given = key.strip().encode("latin-1")
        return scheme.lower() == "bearer" and secrets.compare_digest(given, self.api_key.encode())


def _host_name(header: str) -> str:
    """Return the name in a Host header, "" for one that is no host with or without a port."""
    match = _HOST.fullmatch(header)
    return (match["address"] or match["name"]).lower() if match else ""


def _is_address(name: str) -> bool:
    # A page can't rebind an address: only names are looked up.
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class Guard:
    """An ASGI layer that refuses strangers, and bodies that are too large."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer with the reason why not."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        answer = self._refused(scope["path"], headers) or _announces_too_much(headers)
        if answer is None:
            answer = await self._passed_on(scope, receive, send)
        if answer is not None:
            await answer(scope, receive, send)

    async def _passed_on(self, scope: Scope, receive: Receive, send: Send) -> Response | None:
        """Pass a request on as long as its body keeps to the limits; return the answer to one that does not."""
        body = _Body()

        async def limited() -> Message:
            message = await receive()
            part = message.get("body", b"")
            self._held += len(part)
            body.take(part, self._held)
            return message

        try:
            await self._app(scope, limited, send)
        except _BodyRefused as refused:
            return refused.answer
        finally:
            self._held -= body.size
        return None

    def _refused(self, path: str, headers: Headers) -> Response | None:
        host = ", ".join(headers.getlist("host"))
        if not self._access.knows_host(host):
            return refusal(f"This server does not answer to the name {host!r}.", 403, code="invalid_host")
        origin = headers.get("origin")
        if origin and not self._access.knows_origin(origin, host):
            message = f"Pages of {origin} may not call this server; --cors-origin allows it."
            return refusal(message, 403, code="invalid_origin")
        is_open = path in OPEN_PATHS or path.startswith(OPEN_FOLDER)
        if not is_open and not self._access.knows_key(headers.get("authorization", "")):
            return refusal(
                "The API key is missing or wrong. Send it as `Authorization: Bearer KEY`.",
                401,
                headers={"WWW-Authenticate": "Bearer"},
            )
        return None


class _BodyRefused(Exception):
    """A body goes past a limit."""

    def __init__(self, answer: Response) -> None:
        super().__init__()
        self.answer = answer


class _Body:
    """How large a body is, as far as it has come."""

    def __init__(self) -> None:
        self.size = 0
        self._marks = 0

    def take(self, part: bytes, held: int) -> None:
        """Count the next bytes of the body, where those of all requests are `held`; raise _BodyRefused past a limit."""
        self.size += len(part)
        self._marks += sum(part.count(mark) for mark in _MARKS)
        if self.size > MOST_BODY_BYTES:
            raise _BodyRefused(_too_large())
        if self._marks > MOST_MARKS:
            raise _BodyRefused(refusal(f"The body has more than {MOST_MARKS:,} values.", 413))
        if held > MOST_HELD_BYTES:
            message = "The server holds too many large requests. Try again in a moment."
            raise _BodyRefused(refusal(message, 503, code="server_busy", headers={"Retry-After": RETRY_AFTER}))


def _too_large() -> Response:
    return refusal(f"The body is larger than {MOST_BODY_BYTES >> 20} MB.", 413)


def _announces_too_much(headers: Headers) -> Response | None:
    length = headers.get("content-length", "")
    return _too_large() if length.isdigit() and int(length) > MOST_BODY_BYTES else None
