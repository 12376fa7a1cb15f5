"""The application: OpenAI's API, the state of the server, and the chat page."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Hashable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from mlxk2 import __version__
from mlxk2.errors import ContextLengthError, MlxkError, ValidationError
from mlxk2.runner.request import check_tokens
from mlxk2.server.catalog import Catalog
from mlxk2.server.generation import Generation
from mlxk2.server.http.access import Access, Guard, client_of
from mlxk2.server.http.disconnect import EventStream, while_connected
from mlxk2.server.openai import description, errors, sse, translation
from mlxk2.server.openai.rendering import ChatRenderer, CompletionRenderer, Renderer, model_object
from mlxk2.server.openai.requests import ChatBody, CompletionBody, GenerationBody
from mlxk2.server.preparing import MakeRequests, Preparer
from mlxk2.server.scheduler import Scheduler
from mlxk2.sleep import NoSleep

B = TypeVar("B", bound=GenerationBody)

_PAGE_FOLDER = Path(__file__).parent / "page"
# No text can become a script, and the page can load from, and send to, this server alone. It makes no HTML from text;
# with Trusted Types the browser makes sure of that.
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_PAGE_HEADERS = {
    "Content-Security-Policy": _PAGE_POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # Browsers ask each time, and get a 304 as long as the file is the same: an update shows at once.
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class Service:
    """The parts that the routes use; `max_tokens` limits a completion whose request sets no limit.

    A stream begins after at most `stream_seconds` of preparing its prompt, and has an event every `heartbeat` seconds.
    """

    scheduler: Scheduler
    catalog: Catalog
    preparing: Preparer
    max_tokens: int | None = None
    heartbeat: float = 10.0
    stream_seconds: float = 10.0
    no_sleep: NoSleep = field(default_factory=NoSleep)


def create_app(service: Service, access: Access) -> FastAPI:
    """Return the ASGI application."""
    app = FastAPI(
        routes=_router.routes, title="mlxk2", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    app.state.service = service
    app.openapi = partial(description.describe, has_key=access.api_key is not None)  # type: ignore[method-assign] # FastAPI's documented way
    app.mount("/page", PageFiles(directory=_PAGE_FOLDER), name="page")
    for kind in errors.HANDLED:
        app.add_exception_handler(kind, errors.respond_to_error)
    app.add_middleware(Awake, no_sleep=service.no_sleep)
    app.add_middleware(Guard, access=access, render=errors.render_refusal)
    if access.origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(access.origins), allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    return app


class Awake:
    """An ASGI layer that keeps the machine awake until the response to a POST request, which may generate, is sent."""

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
# HTTP requires HEAD for each path that has GET.
_READ = ["GET", "HEAD"]


@_router.api_route("/", methods=_READ, include_in_schema=False)
async def _page() -> Response:
    return FileResponse(_PAGE_FOLDER / "index.html", headers=_PAGE_HEADERS)


@_router.api_route("/health", methods=_READ)
async def _health(request: Request) -> JSONResponse:
    service = _service(request)
    loaded, loading = service.scheduler.pool.key, service.scheduler.pool.loading
    # The server is ready when the pinned model is in memory; other models are loaded on demand.
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


# Some clients leave out the `/v1` of OpenAI's paths.
@_router.api_route("/v1/models", methods=_READ)
@_router.api_route("/models", methods=_READ, include_in_schema=False)
async def _models(request: Request) -> JSONResponse:
    async with while_connected(request.receive):
        models = await _service(request).catalog.all()
    return JSONResponse({"object": "list", "data": [model_object(model) for model in models]})


@_router.api_route("/v1/models/{model:path}", methods=_READ)
@_router.api_route("/models/{model:path}", methods=_READ, include_in_schema=False)
async def _model(request: Request, model: str) -> JSONResponse:
    with _about("model", MlxkError):
        async with while_connected(request.receive):
            return JSONResponse(model_object(await _service(request).catalog.one(model)))


@_router.post("/v1/chat/completions")
@_router.post("/chat/completions", include_in_schema=False)
async def _chat(request: Request) -> Response:
    body = await _body(request, ChatBody)
    make = partial(translation.chat_requests, body, default_limit=_service(request).max_tokens)
    return await _respond(request, body, make, ChatRenderer(logprobs=body.likeliest_count is not None))


@_router.post("/v1/completions")
@_router.post("/completions", include_in_schema=False)
async def _complete(request: Request) -> Response:
    body = await _body(request, CompletionBody)
    make = partial(translation.completion_requests, body, default_limit=_service(request).max_tokens)
    return await _respond(request, body, make, CompletionRenderer(logprobs=body.likeliest_count is not None))


async def _respond(
    request: Request, body: ChatBody | CompletionBody, make: MakeRequests, renderer: Renderer
) -> Response:
    """Generate, and return one response or a stream.

    A stream begins when its prompt is ready and the queue has room for it, or after `stream_seconds`; until then an
    error is a status.
    """
    service = _service(request)
    max_count = service.scheduler.limits.max_concurrent
    if body.count > max_count:
        message = f"The request asks for {body.count} completions, but this server generates at most {max_count}"
        raise ValidationError(f"{message} at once.", param="n")
    async with while_connected(request.receive), AsyncExitStack() as stack:
        begun = asyncio.ensure_future(_begin(service, body.model, make, renderer, client_of(request.scope)))
        stack.callback(_abandon, begun)
        if not body.stream:
            with _about(renderer.prompt_field, ContextLengthError, ValidationError):
                return Response(await sse.fold(await begun, renderer), media_type="application/json")
        done, _ = await asyncio.wait({begun}, timeout=service.stream_seconds)
        name = (await begun).name if done else body.model or ""
        stack.pop_all()
        frames = sse.frames(
            begun, renderer, name, includes_usage=body.includes_usage, heartbeat=service.heartbeat
        )
        return EventStream(frames, partial(_abandon, begun))


async def _begin(
    service: Service, name: str | None, make: MakeRequests, renderer: Renderer, client: Hashable
) -> Generation:
    """Find the model that a request names, prepare its prompts, and queue it."""
    pool, catalog = service.scheduler.pool, service.catalog
    with _about("model", MlxkError):
        if name is None:
            key = catalog.default(pool.key)
        elif known := catalog.known(name, pool.key):
            key = known
        else:
            key = await catalog.search(name)
    with _about(renderer.prompt_field, ContextLengthError, ValidationError):
        requests, renderer.vocabulary = await service.preparing.prepare(key, make, client)
        if loaded := pool.get(key):
            for entry in requests:
                check_tokens(entry, loaded.vocabulary_size)
        return service.scheduler.submit(key, requests, client)


def _abandon(begun: asyncio.Future[Generation]) -> None:
    """Stop the generation of a request, in whatever state it is."""
    if not begun.done():
        begun.cancel()
        begun.add_done_callback(_abandon)
    elif not begun.cancelled() and begun.exception() is None:
        begun.result().close()


@contextmanager
def _about(field: str, *kinds: type[MlxkError]) -> Iterator[None]:
    """Add the field of the request to errors of these kinds that name none."""
    try:
        yield
    except kinds as error:
        raise error.about(field) from error.__cause__


async def _body(request: Request, kind: type[B]) -> B:
    return kind.model_validate_json(await request.body())


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service
