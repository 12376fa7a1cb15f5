"""The routes: OpenAI's API, the state of the server, and the chat page."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import pydantic
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from mlxk2 import __version__
from mlxk2.errors import ContextLengthError, MlxkError, ValidationError
from mlxk2.runner.request import check_tokens
from mlxk2.server import chat_page
from mlxk2.server.awake import Awake
from mlxk2.server.catalog import Catalog
from mlxk2.server.engine import Engine, Target
from mlxk2.server.generation import Reply
from mlxk2.server.http.access import Access, Guard, client_of
from mlxk2.server.http.disconnect import EventStream, while_connected
from mlxk2.server.http.paths import Paths
from mlxk2.server.openai import description, errors, invalid, sse, translation
from mlxk2.server.openai.rendering import ChatShape, CompletionShape, Shape
from mlxk2.server.openai.requests import ChatBody, CompletionBody, GenerationBody
from mlxk2.server.openai.schemas import Models
from mlxk2.server.preparing import Make, Preparing
from mlxk2.sleep import NoSleep

B = TypeVar("B", bound=GenerationBody)
# What to answer to a request that an error ended.
Handler = Callable[[Request, Any], Response]


@dataclass(frozen=True)
class Service:
    """What the routes work with; `max_tokens` limits an answer whose request does not say.

    A stream has an event every `pulse` seconds, and begins after `patience` seconds of preparing its prompt.
    """

    engine: Engine
    catalog: Catalog
    preparing: Preparing
    max_tokens: int | None = None
    pulse: float = 10.0
    patience: float = 10.0
    no_sleep: NoSleep = field(default_factory=NoSleep)


def create_app(service: Service, access: Access) -> FastAPI:
    """Return the ASGI application."""
    app = FastAPI(title="mlxk2", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.service = service
    app.openapi = partial(description.description, has_key=access.api_key is not None)  # type: ignore[method-assign] # FastAPI's documented way
    _add_routes(app)
    _add_handlers(app)
    app.add_middleware(Awake, no_sleep=service.no_sleep)
    app.add_middleware(Guard, access=access)
    app.add_middleware(Paths)
    if access.origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(access.origins), allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    return app


def _add_routes(app: FastAPI) -> None:
    # HTTP demands HEAD wherever there is GET.
    look = partial(app.api_route, methods=["GET", "HEAD"])
    look("/health")(_health)
    # Some clients leave out the beginning of OpenAI's paths.
    for begin, is_described in (("/v1", True), ("", False)):
        look(f"{begin}/models", include_in_schema=is_described)(_models)
        look(f"{begin}/models/{{model:path}}", include_in_schema=is_described)(_model)
        app.post(f"{begin}/chat/completions", include_in_schema=is_described)(_chat)
        app.post(f"{begin}/completions", include_in_schema=is_described)(_complete)
    look("/", include_in_schema=False)(chat_page.page)
    app.mount("/page", chat_page.Files(), name="page")


def _add_handlers(app: FastAPI) -> None:
    handlers: dict[type[Exception], Handler] = {
        MlxkError: lambda _, error: errors.response_of(error),
        pydantic.ValidationError: lambda _, error: JSONResponse(invalid.body_of(error), 400),
        HTTPException: lambda _, error: errors.of_http(error),
        ClientDisconnect: lambda *_: Response(status_code=499),  # nobody is left to read it
        Exception: lambda *_: errors.refusal("The server made a mistake; its log says more.", 500),
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, _in_the_loop(handler))


def _in_the_loop(handler: Handler) -> Callable[[Request, Any], Awaitable[Response]]:
    """Return the handler as a coroutine: others are given a thread for each error."""

    async def handle(request: Request, error: Any) -> Response:
        return handler(request, error)

    return handle


async def _health(request: Request) -> JSONResponse:
    service = _service(request)
    engine = service.engine
    # The model of the start is waited for; others are loaded on demand, by a server that is ready.
    is_ready = engine.target is not None or not service.catalog.is_pinned(engine.loading)
    state = {
        "status": "ok" if is_ready else "loading",
        "model": engine.target.name if engine.target else None,
        "loading": engine.loading.name if engine.loading else None,
        "active": engine.active,
        "queued": engine.queued,
        "version": __version__,
    }
    return JSONResponse(state, 200 if is_ready else 503)


async def _models(request: Request) -> JSONResponse:
    async with while_connected(request.receive):
        entries = await _service(request).catalog.all()
    return JSONResponse(Models(object="list", data=entries).model_dump())


async def _model(request: Request, model: str) -> JSONResponse:
    with _about("model", MlxkError):
        async with while_connected(request.receive):
            entry = await _service(request).catalog.one(model)
    return JSONResponse(entry.model_dump())


async def _chat(request: Request) -> Response:
    body = await _body(request, ChatBody)
    make = partial(translation.chat_requests, body, default_limit=_service(request).max_tokens)
    shape = ChatShape(logprobs=body.wanted_logprobs is not None)
    return await _answer(request, body, Work(body.n or 1, make, shape, "messages"))


async def _complete(request: Request) -> Response:
    body = await _body(request, CompletionBody)
    make = partial(translation.completion_requests, body, default_limit=_service(request).max_tokens)
    shape = CompletionShape(logprobs=body.logprobs is not None)
    return await _answer(request, body, Work((body.n or 1) * len(body.prompts), make, shape, "prompt"))


@dataclass(frozen=True)
class Work:
    """What a request asks for: how many answers, their prompts and shape, and the field that errors name."""

    slots: int
    make: Make
    shape: Shape
    field: str


async def _answer(request: Request, body: GenerationBody, work: Work) -> Response:
    """Generate; answer as a stream or as a whole.

    A stream begins when its prompt is ready and the queue has room for it; until then an error is a status.
    """
    service = _service(request)
    most = service.engine.limits.max_concurrent
    if work.slots > most:
        message = f"{work.slots} answers are asked for, but this server gives at most {most} at once."
        raise ValidationError(message, param="n")
    async with while_connected(request.receive), AsyncExitStack() as held:
        begun = asyncio.ensure_future(_begin(service, body.model, work, client_of(request.scope)))
        held.callback(_abandon, begun)
        if not body.stream:
            with _about(work.field, ContextLengthError, ValidationError):
                return Response(await sse.fold(await begun, work.shape), media_type="application/json")
        done, _ = await asyncio.wait({begun}, timeout=service.patience)
        name = (await begun).name if done else body.model or ""
        held.pop_all()
        frames = sse.frames(
            begun, work.shape, name, includes_usage=body.includes_usage, pulse=service.pulse
        )
        return EventStream(frames, partial(_abandon, begun))


async def _begin(service: Service, name: str | None, work: Work, client: Hashable) -> Reply:
    """Make the prompts and queue the client's request."""
    target = await _target(service, name)
    with _about(work.field, ContextLengthError, ValidationError):
        requests, work.shape.vocabulary = await service.preparing.prepare(target, work.make, client)
        if service.engine.model is not None and service.engine.target == target:
            for entry in requests:
                check_tokens(entry, service.engine.model.vocabulary_size)
        return await service.engine.generate(target, work.slots, lambda _: requests, client)


def _abandon(begun: asyncio.Future[Reply]) -> None:
    """Stop what a request began, however far it came."""
    if not begun.done():
        begun.cancel()
        begun.add_done_callback(_abandon)
    elif not begun.cancelled() and begun.exception() is None:
        begun.result().close()


@contextmanager
def _about(field: str, *kinds: type[MlxkError]) -> Iterator[None]:
    """Say of an error of these kinds that names no field that it is about this one."""
    try:
        yield
    except kinds as error:
        error.param = error.param or field
        raise


async def _target(service: Service, name: str | None) -> Target:
    loaded = service.engine.target
    with _about("model", MlxkError):
        if name is None:
            return service.catalog.default(loaded)
        if target := service.catalog.known(name, loaded):
            return target
        return await service.catalog.search(name)


async def _body(request: Request, kind: type[B]) -> B:
    return kind.model_validate_json(await request.body())


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service
