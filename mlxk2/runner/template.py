"""The chat template of a model: a program that came with it, and is run in a process of its own, within limits."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError
from mlx_lm.tokenizer_utils import TokenizerWrapper
from transformers import PreTrainedTokenizerBase

from mlxk2.errors import ModelError
from mlxk2.runner import template_process

_PROGRAM = Path(template_process.__file__)


def confine(tokenizer: TokenizerWrapper) -> None:
    """Have a tokenizer's chat template, if it came with the model, rendered in a process of its own."""
    inner = tokenizer._tokenizer
    is_library_code = type(inner).apply_chat_template is not PreTrainedTokenizerBase.apply_chat_template
    if tokenizer._chat_template is None and isinstance(inner.chat_template, str) and not is_library_code:
        tokenizer._chat_template = ChatTemplate(inner.chat_template, inner.special_tokens_map)


def is_confined(tokenizer: Any) -> bool:
    """Whether conversations are rendered in a process of their own, as text."""
    return isinstance(getattr(tokenizer, "_chat_template", None), ChatTemplate)


class ChatTemplate:
    """Renders conversations, as the function that mlx-lm's tokenizer wrapper takes for it.

    Raises TemplateError where the template refuses a conversation, ModelError where it does not come to an end.
    """

    def __init__(self, source: str, variables: Mapping[str, Any]) -> None:
        self._source = source
        self._variables = {"tools": None, "documents": None, **variables}
        self._process = self._start()

    def __call__(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
        """Return the text of the prompt."""
        if self._process.poll() is not None:
            self._stop()
            self._process = self._start()
        try:
            return self._render({**self._variables, "messages": messages, **variables})
        except TemplateError:
            raise
        except BaseException:
            # What it would still say belongs to nobody.
            self._stop()
            raise

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-P", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is not meant for it
        )
        self._stop = weakref.finalize(self, _end, process)
        _write(process, self._source)
        return process

    def _render(self, variables: Mapping[str, Any]) -> str:
        _write(self._process, variables)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ModelError(f"The model's chat template {_death(self._process.wait())}; it can't be used.")
        answer = json.loads(line)
        if "error" in answer:
            raise TemplateError(answer["error"])
        text: str = answer["text"]
        return text


def _write(process: subprocess.Popen[bytes], value: object) -> None:
    assert process.stdin is not None
    # One that has ended says so when it is read from.
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(json.dumps(value, ensure_ascii=False).encode() + b"\n")
        process.stdin.flush()


def _death(code: int) -> str:
    if code == -signal.SIGPROF:
        return f"ran for more than {template_process.SECONDS:g} seconds"
    return f"ended its process ({code})"


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    with contextlib.suppress(BrokenPipeError), process:
        pass
