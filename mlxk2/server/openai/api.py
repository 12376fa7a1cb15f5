"""OpenAI's API: its endpoints, and the paths that it owns."""

from __future__ import annotations

from functools import partial

from mlxk2.server.api import Api
from mlxk2.server.openai import chat, completions, errors, models
from mlxk2.server.openai.fields import StreamOptions

_BODIES = (chat.TextPart, chat.Message, StreamOptions, chat.ChatBody, completions.CompletionBody)

OPENAI = Api(
    paths=("/v1", "/chat/completions", "/completions", "/models"),
    routes=(*models.router.routes, *chat.router.routes, *completions.router.routes),
    operations=(*models.OPERATIONS, *chat.OPERATIONS, *completions.OPERATIONS),
    stream_note="The whole response; with `stream`, events `data: ` with a {chunk} each, or an Error at the end, and "
    "then `data: [DONE]`.",
    error=errors.Error,
    render=partial(errors.render, frozenset(name for kind in _BODIES for name in kind.model_fields)),
)
