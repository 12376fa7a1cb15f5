"""Fields that OpenAI or another server defines, and that ask for what this one does not have yet.

A request that uses one is refused by its name: without it, the answer would be another one than the one asked for.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic_core import PydanticCustomError

# Each with the values that ask for nothing, beside null.
FIELDS: Mapping[str, tuple[object, ...]] = {
    "audio": (),
    "best_of": (1,),
    "chat_template": (),
    "documents": ([],),
    "ebnf": (),
    "echo": (False,),
    "function_call": ("none",),
    "functions": ([],),
    "grammar": (),
    "guided_choice": (),
    "guided_decoding_backend": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_json_object": (False,),
    "guided_regex": (),
    "guided_whitespace_pattern": (),
    "include_obfuscation": (False,),
    "json_schema": (),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "reasoning_effort": (),
    "refusal": (),
    "regex": (),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "structured_outputs": (),
    "suffix": ("",),
    "think": (),
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
