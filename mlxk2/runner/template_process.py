"""Chat templates: the environment they are written for, and how a conversation is rendered with one.

They are programs of strangers, and run in the process of `tokenizer_process`, within its limits of memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from jinja2 import Template, nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

# Characters; more than any prompt has.
MOST_TEXT = 64 << 20
# Marks where a last message ends that is to be continued; as transformers does, with a space that may be trimmed.
_END = "CONTINUE_FINAL_MESSAGE_TAG "


class _Generation(Extension):
    """`{% generation %}`, which marks for training what the model said, and renders what is in it."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

    def _render(self, caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    """`dict`, as far as it is harmless."""

    def __call__(self, *values: Any, **named: Any) -> dict[Any, Any]:
        return dict(*values, **named)

    def fromkeys(self, *values: Any) -> dict[Any, Any]:
        return dict.fromkeys(*values)


class _Namespace(Namespace):
    """`namespace`, without the names that lead into Python."""

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


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    # Jinja's own escapes HTML.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)  # noqa: DTZ005 - the day that the user has


def environment() -> ImmutableSandboxedEnvironment:
    """Return what chat templates are written for: https://huggingface.co/docs/transformers/chat_templating_writing."""
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    made.filters["tojson"] = _tojson
    made.globals |= {"raise_exception": _raise, "strftime_now": _now, "dict": _Dict(), "namespace": _Namespace}
    return made


def render(template: Template, messages: list[dict[str, Any]], variables: Mapping[str, Any]) -> str:
    """Return the text of a conversation; with `continue_final_message`, only up to the end of the last message.

    Semantics: `apply_chat_template` of transformers.
    """
    values = dict(variables)
    if not values.pop("continue_final_message", False):
        return _limited(template.render(messages=messages, **values))
    last = messages[-1]
    text = _limited(template.render(messages=[*messages[:-1], {**last, "content": last["content"] + _END}], **values))
    end = text.rfind(_END.strip())
    if end < 0 or last["content"].strip() not in text:
        raise TemplateError("it leaves out the last message, which is to be continued")
    # Without the space behind the mark, the template trims messages.
    return text[:end] if text.startswith(_END, end) else text[:end].rstrip()


def _limited(text: str) -> str:
    if len(text) > MOST_TEXT:
        raise TemplateError(f"it makes a prompt of {len(text)} characters")
    return text
