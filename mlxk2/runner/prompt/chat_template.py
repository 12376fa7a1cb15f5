"""Render a conversation with a chat template, in the environment for which templates are written.

Templates are untrusted programs. They run in the process of `process.py`, within its limits of time and memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, Template, nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

_MAX_CHARACTERS = 64 << 20  # More than any prompt has.
# Marks the end of a last message that will be continued. As in transformers, it ends in a space, which can be trimmed.
_END = "CONTINUE_FINAL_MESSAGE_TAG "


class _TransformersExtension(Extension):
    """The additions of transformers to Jinja: functions, a filter, and `{% generation %}`.

    That tag marks the model's text for training; here its content is only rendered.
    """

    tags = {"generation"}

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        environment.filters["tojson"] = self.tojson
        environment.globals |= {
            "raise_exception": self.raise_exception,
            "strftime_now": self.strftime_now,
            "dict": _Dict(),
            "namespace": _Namespace,
        }

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

    def _render(self, caller: Callable[[], str]) -> str:
        return caller()

    @staticmethod
    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        """Return a value as JSON; Jinja's own filter escapes HTML."""
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    @staticmethod
    def raise_exception(message: str) -> None:
        """Refuse a conversation."""
        raise TemplateError(message)

    @staticmethod
    def strftime_now(form: str) -> str:
        """Return the current local time."""
        return datetime.now().strftime(form)  # noqa: DTZ005 - the user's date


class _Dict:
    """The harmless part of `dict` for templates."""

    def __call__(self, *values: Any, **named: Any) -> dict[Any, Any]:
        return dict(*values, **named)

    def fromkeys(self, *values: Any) -> dict[Any, Any]:
        return dict.fromkeys(*values)


class _Namespace(Namespace):
    """`namespace` without names that give access to Python's internals."""

    def __init__(*values: Any, **named: Any) -> None:
        self, *rest = values
        attributes = dict(*rest, **named)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"A namespace can't have an attribute named {name!r}.")


def environment() -> ImmutableSandboxedEnvironment:
    """Return the environment of https://huggingface.co/docs/transformers/chat_templating_writing."""
    extensions = [_TransformersExtension, loopcontrols]
    return ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)


def find_source(folder: Path, loaded: object) -> str | None:
    """Return the chat template of a model: the one that transformers `loaded`, or one from files that it does not read.

    Skip an empty template; from several with names, return the default. Raise ValueError for a file that is not JSON.
    """
    if source := _source_of(loaded):
        return source
    for name in ("tokenizer_config.json", "chat_template.json"):
        if (folder / name).is_file():
            found = json.loads((folder / name).read_bytes())
            if source := _source_of(found.get("chat_template") if isinstance(found, dict) else found):
                return source
    return None


def _source_of(value: object) -> str | None:
    """Return the template from a value in a file: a text, or named templates in a list or an object."""
    if isinstance(value, str):
        text = value.removeprefix("\ufeff")
        return text if text.strip() else None
    if isinstance(value, list):
        entries = (entry for entry in value if isinstance(entry, dict))
        value = {entry.get("name"): entry.get("template") for entry in entries}
    if not isinstance(value, dict):
        return None
    sources = {name: source for name, text in value.items() if isinstance(text, str) and (source := _source_of(text))}
    return sources.get("default") or next(iter(sources.values()), None)


def render(template: Template, messages: Sequence[dict[str, Any]], variables: Mapping[str, Any]) -> str:
    """Return the text of a conversation; with `continue_final_message`, cut it at the end of the last message.

    This is the behaviour of `apply_chat_template` in transformers.
    """
    values = dict(variables)
    if not values.pop("continue_final_message", False):
        return _check_length(template.render({**values, "messages": messages}))
    last = messages[-1]
    content = last["content"] if isinstance(last["content"], str) else last["content"][0]["text"]
    ended = content + _END if content is last["content"] else [{**last["content"][0], "text": content + _END}]
    text = _check_length(template.render({**values, "messages": [*messages[:-1], {**last, "content": ended}]}))
    end = text.rfind(_END.strip())
    if end < 0 or content.strip() not in text:
        raise TemplateError("it omits the last message, which the request wants to continue")
    # If the space after the mark is missing, the template trims messages.
    return text[:end] if text.startswith(_END, end) else text[:end].rstrip()


def _check_length(text: str) -> str:
    if len(text) > _MAX_CHARACTERS:
        raise TemplateError(f"it makes a prompt of {len(text)} characters")
    return text
