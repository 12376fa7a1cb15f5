"""The program that renders one chat template again and again, within limits of time and memory.

It reads lines of JSON, the template first and then the variables of each rendering, and answers each rendering with a
line. It imports nothing of mlxk2 and little else, so that it is up before the model is.
"""

from __future__ import annotations

import contextlib
import json
import resource
import signal
from collections.abc import Callable
from datetime import datetime
from typing import Any, BinaryIO

from jinja2 import Template, nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

# Of processor time, for one rendering. The longest conversations that fit a context take a tenth of it.
SECONDS = 2.0
MEMORY = 1 << 30
# Characters; more than any prompt has.
MOST_TEXT = 64 << 20
_MOST_MESSAGE = 300


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


def main() -> None:
    """Answer until nobody asks any more."""
    with contextlib.suppress(ValueError, OSError):  # systems that know no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open(0, "rb") as asked, open(1, "wb") as answers:
        serve(asked, answers)


def serve(asked: BinaryIO, answers: BinaryIO) -> None:
    """Answer every line of variables with a line that has either `text` or `error`."""
    source = json.loads(asked.readline())
    template: Template | None = None
    for line in asked:
        # Nobody handles its signal: the kernel ends the process, whatever it is in.
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            template = template or environment().from_string(source)
            answer = {"text": _limited(template.render(json.loads(line)))}
        except MemoryError:
            answer = {"error": f"it needs more than {MEMORY >> 20} MB of memory"}
        except Exception as fault:  # noqa: BLE001 - whatever a program does wrong is told
            answer = {"error": (str(fault) or type(fault).__name__)[:_MOST_MESSAGE]}
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(json.dumps(answer, ensure_ascii=False).encode() + b"\n")
        answers.flush()


def _limited(text: str) -> str:
    if len(text) > MOST_TEXT:
        raise TemplateError(f"it makes a prompt of {len(text)} characters")
    return text


if __name__ == "__main__":
    main()
