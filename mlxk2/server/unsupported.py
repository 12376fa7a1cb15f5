"""Fields that OpenAI defines and this server does not have yet: a request that uses one is refused by its name."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic_core import PydanticCustomError

# Each with the values that ask for nothing, beside null.
FIELDS: Mapping[str, tuple[object, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "function_call": ("none",),
    "functions": ([],),
    "include_obfuscation": (False,),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "reasoning_effort": (),
    "refusal": (),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "tool_call_id": (),
    "tool_calls": ([],),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}


def refuse_unsupported(fields: Mapping[str, object]) -> None:
    """Raise pydantic's error, which names the field, if one of these asks for what is not there."""
    for name, value in fields.items():
        if name in FIELDS and value is not None and not any(_same(value, idle) for idle in FIELDS[name]):
            raise PydanticCustomError("unsupported", "{name} is not supported.", {"name": name})


def _same(value: object, idle: object) -> bool:
    # In Python True == 1.
    return type(value) is type(idle) and value == idle
