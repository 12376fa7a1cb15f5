"""`/v1/models`: the models that can run here."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from mlxk2.errors import MlxkError
from mlxk2.server.api import Operation
from mlxk2.server.app import READ_METHODS, name_field, service_of
from mlxk2.server.catalog import ServedModel
from mlxk2.server.http.disconnect import cancel_on_disconnect


class Model(BaseModel):
    """A model that can run here.

    `created` is in seconds since 1970. `context_length` is in tokens; it is null if the model's files do not have it.
    """

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    context_length: int | None


class Models(BaseModel):
    """All models that can run here."""

    object: Literal["list"]
    data: list[Model]


router = APIRouter()


# Some clients leave out the `/v1`.
@router.api_route("/v1/models", methods=READ_METHODS)
@router.api_route("/models", methods=READ_METHODS, include_in_schema=False)
async def list_models(request: Request) -> JSONResponse:
    """Return all models that can run here."""
    async with cancel_on_disconnect(request.receive):
        models = await service_of(request).catalog.all()
    return JSONResponse({"object": "list", "data": [_render(model) for model in models]})


@router.api_route("/v1/models/{model:path}", methods=READ_METHODS)
@router.api_route("/models/{model:path}", methods=READ_METHODS, include_in_schema=False)
async def retrieve_model(request: Request, model: str) -> JSONResponse:
    """Return one model, by its exact name."""
    with name_field("model", MlxkError):
        async with cancel_on_disconnect(request.receive):
            return JSONResponse(_render(await service_of(request).catalog.one(model)))


def _render(model: ServedModel) -> dict[str, Any]:
    """Return the JSON object of a model; its owner is the first part of its name."""
    owner, _, _ = model.name.rpartition("/")
    return {
        "id": model.name,
        "object": "model",
        "created": model.last_modified,
        "owned_by": owner or "mlxk2",
        "context_length": model.context_length,
    }


OPERATIONS = (
    Operation("get", "/v1/models", "The models that can run here", Models),
    Operation("get", "/v1/models/{model}", "One of these models", Model, statuses=(404,)),
)
