"""The application: the common part of all APIs, the route of the server's state, and the chat page.

Each API has a folder beside this file, and its `Api` in the folder's `api.py`; its endpoints call `respond`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Hashable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, Protocol

import pydantic
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from mlxk2 import __version__
from mlxk2.errors import ContextLengthError, MlxkError, ValidationError
from mlxk2.formatting import cut
from mlxk2.runner.output.text import Vocabulary
from mlxk2.runner.request import GenerationRequest, check_tokens
from mlxk2.server.api import Api, Operation, describe, list_paths, render_error
from mlxk2.server.catalog import Catalog
from mlxk2.server.generation import Generation
from mlxk2.server.http.access import Access, Guard, client_of
from mlxk2.server.http.disconnect import EventStream, cancel_on_disconnect
from mlxk2.server.http.refusals import Refusal
from mlxk2.server.http.request_log import WORK, RequestLog, Work
from mlxk2.server.preparing import Preparer, PromptModel
from mlxk2.server.scheduler import Scheduler
from mlxk2.sleep import NoSleep

# HTTP requires HEAD for each path that has GET.
READ_METHODS = ["GET", "HEAD"]
# The paths of no API.
_OWN_PATHS = ("GET /", "GET /health", "GET /openapi.json")
# Characters of a path or a method that are repeated in an error.
_MAX_REPEATED = 100
_PAGE_FOLDER = Path(__file__).parent / "page"
# Text can't become a script, and the page communicates only with this server. The page makes no HTML from text, and
# Trusted Types make the browser enforce that.
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_PAGE_HEADERS = {
    "Content-Security-Policy": _PAGE_POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # Browsers ask each time and get a 304 while the file is unchanged, so an update is visible at once.
    "Cache-Control": "no-cache",
}


class RequestBody(Protocol):
    """The valid body of a request for completions."""

    @property
    def model(self) -> str | None:
        """The name of the model, or None if the server shall choose it."""

    @property
    def stream(self) -> bool | None:
        """Whether the response is a stream."""

    @property
    def count(self) -> int:
        """The number of sequences to generate."""

    def requests(self, model: PromptModel, default_limit: int | None) -> Sequence[GenerationRequest]:
        """Return the requests for the runner; `default_limit` applies if the body does not limit its tokens."""


class ResponseRenderer(Protocol):
    """Renders the response to one request; errors of the prompt and of the count name these fields of the body."""

    prompt_field: str
    count_field: str
    # The vocabulary of the model, set when it is known; logprobs need its token names.
    vocabulary: Vocabulary | None

    async def whole(self, generation: Generation) -> bytes:
        """Wait until all sequences end, and return the response as JSON; raise the error of a sequence that failed."""

    def frames(self, begun: asyncio.Future[Generation], model: str, heartbeat: float) -> AsyncIterator[bytes]:
        """Yield server-sent events, at least one every `heartbeat` seconds; the last one can be an error.

        `begun` is the future of the generation, and `model` is the name of its model.
        """


@dataclass(frozen=True)
class Service:
    """The parts of the server that endpoints use; `max_tokens` limits completions whose requests set no limit.

    A stream begins at most `stream_seconds` after its request, and has an event at least every `heartbeat` seconds.
    """

    scheduler: Scheduler
    catalog: Catalog
    preparing: Preparer
    max_tokens: int | None = None
    heartbeat: float = 10.0
    stream_seconds: float = 10.0
    no_sleep: NoSleep = field(default_factory=NoSleep)

    async def begin(self, body: RequestBody, renderer: ResponseRenderer, client: Hashable) -> Generation:
        """Find the model of a request, prepare the prompts, and queue the request."""
        pool, catalog = self.scheduler.pool, self.catalog
        with name_field("model", MlxkError):
            if body.model is None:
                key = catalog.default(pool.key)
            elif known := catalog.known(body.model, pool.key):
                key = known
            else:
                key = await catalog.search(body.model)
        with name_field(renderer.prompt_field, ContextLengthError, ValidationError):
            make = partial(body.requests, default_limit=self.max_tokens)
            requests, renderer.vocabulary = await self.preparing.prepare(key, make, client)
            if size := pool.vocabulary_size(key):
                for entry in requests:
                    check_tokens(entry, size)
            return self.scheduler.submit(key, requests, client)

    def abandon(self, begun: asyncio.Future[Generation]) -> None:
        """Stop the generation of a request in any state."""
        if not begun.done():
            begun.cancel()
            begun.add_done_callback(self.abandon)
        elif not begun.cancelled() and begun.exception() is None:
            self.scheduler.cancel(begun.result())


def create_app(service: Service, access: Access, apis: Sequence[Api], *, logs_health: bool = False) -> FastAPI:
    """Return the ASGI application with these APIs; the first API also handles errors of paths without an owner."""
    app = FastAPI(
        routes=[*_router.routes, *(route for api in apis for route in api.routes)],
        title="mlxk2",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    app.openapi = cache(partial(describe, apis, [HEALTH], has_key=access.api_key is not None))  # type: ignore[method-assign] # FastAPI's documented way
    app.mount("/page", PageFiles(directory=_PAGE_FOLDER), name="page")
    for kind in (MlxkError, pydantic.ValidationError, HTTPException, ClientDisconnect, Exception):
        app.add_exception_handler(kind, partial(_respond_to_error, apis))
    app.add_middleware(Awake, no_sleep=service.no_sleep)
    app.add_middleware(Guard, access=access, render=partial(render_error, apis))
    if access.origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(access.origins), allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    app.add_middleware(RequestLog, logs_health=logs_health)
    return app


async def _respond_to_error(apis: Sequence[Api], request: Request, error: Exception) -> Response:
    """Return the response for an error; this is a coroutine because starlette runs other functions in a thread."""
    if isinstance(error, ClientDisconnect):
        return Response(status_code=499)  # The client has disconnected and reads no response.
    if isinstance(error, HTTPException):
        error = _refuse_route(apis, request, error)
    elif not isinstance(error, MlxkError | pydantic.ValidationError):
        error = Refusal("The server has an internal error; its log has the details.", 500)
    return render_error(apis, request.scope["path"], error)


def _refuse_route(apis: Sequence[Api], request: Request, error: HTTPException) -> Refusal:
    """Return the refusal of an unknown path, which names those there are, or of a method, which names the right one."""
    path = request.scope["path"]
    shown = cut(path, _MAX_REPEATED)
    if error.status_code == 404:
        return Refusal(f"There is no path {shown!r}. The paths are: {list_paths(apis, _OWN_PATHS, path)}.", 404)
    if error.status_code == 405:
        allowed = sorted((error.headers or {}).get("Allow", ", ".join(READ_METHODS)).split(", "))
        message = f"The path {shown!r} takes {' or '.join(allowed)}, not {cut(request.method, _MAX_REPEATED)}."
        return Refusal(message, 405, headers={"Allow": ", ".join(allowed)})
    return Refusal(f"{error.detail}.", error.status_code, headers=error.headers)


class Awake:
    """An ASGI layer that keeps the machine awake while a POST request, which can generate, is handled."""

    def __init__(self, app: ASGIApp, no_sleep: NoSleep) -> None:
        self._app = app
        self._no_sleep = no_sleep

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] == "http" and scope["method"] == "POST":
            with self._no_sleep.hold():
                await self._app(scope, receive, send)
        else:
            await self._app(scope, receive, send)


class PageFiles(StaticFiles):
    """The files of the chat page."""

    def file_response(self, full_path: str | os.PathLike[str], *args: Any, **options: Any) -> Response:
        """Return a file, or a 304 if it has not changed."""
        response = super().file_response(full_path, *args, **options)
        response.headers.update(_PAGE_HEADERS)
        return response


_router = APIRouter()


@_router.api_route("/", methods=READ_METHODS, include_in_schema=False)
async def page() -> Response:
    """Return the chat page."""
    return FileResponse(_PAGE_FOLDER / "index.html", headers=_PAGE_HEADERS)


class Health(pydantic.BaseModel):
    """The state of the server."""

    status: Literal["ok", "loading"]
    model: str | None
    loading: str | None
    active: int
    queued: int
    version: str


@_router.api_route("/health", methods=READ_METHODS)
async def health(request: Request) -> JSONResponse:
    """Return the state of the server."""
    service = service_of(request)
    loaded, loading = service.scheduler.pool.key, service.scheduler.pool.loading
    # The server is ready after the pinned model is loaded; other models are loaded on demand.
    is_ready = loaded is not None or loading is None or loading != service.catalog.pinned
    state = {
        "status": "ok" if is_ready else "loading",
        "model": loaded.name if loaded else None,
        "loading": loading.name if loading else None,
        "active": service.scheduler.active,
        "queued": service.scheduler.queued,
        "version": __version__,
    }
    return JSONResponse(state, 200 if is_ready else 503)


HEALTH = Operation(
    "get",
    "/health",
    "The state of the server",
    Health,
    needs_key=False,
    unready="The first model is being loaded, or the server is busy or shutting down.",
)


async def respond(request: Request, body: RequestBody, renderer: ResponseRenderer) -> Response:
    """Generate, and return one response or a stream.

    A stream begins when its prompt is ready and its request is queued, or after `stream_seconds`. An error before that
    is a response with an error status.
    """
    service = service_of(request)
    max_count = service.scheduler.limits.max_concurrent
    if body.count > max_count:
        message = f"The request asks for {body.count} completions, but this server generates at most {max_count}"
        raise ValidationError(f"{message} at once.", param=renderer.count_field)
    async with cancel_on_disconnect(request.receive), AsyncExitStack() as stack:
        begun = asyncio.ensure_future(service.begin(body, renderer, client_of(request.scope)))
        request.scope["state"][WORK] = Work(body.model, begun)
        stack.callback(service.abandon, begun)
        if not body.stream:
            with name_field(renderer.prompt_field, ContextLengthError, ValidationError):
                return Response(await renderer.whole(await begun), media_type="application/json")
        done, _ = await asyncio.wait({begun}, timeout=service.stream_seconds)
        name = (await begun).name if done else body.model or ""
        stack.pop_all()
        frames = renderer.frames(begun, name, service.heartbeat)
        return EventStream(frames, partial(service.abandon, begun))


@contextmanager
def name_field(field: str, *kinds: type[MlxkError]) -> Iterator[None]:
    """Add a field of the request to errors of these kinds that have no field."""
    try:
        yield
    except kinds as error:
        raise error.about(field) from error.__cause__


def service_of(request: Request) -> Service:
    """Return the service of the application that handles a request."""
    service: Service = request.app.state.service
    return service
