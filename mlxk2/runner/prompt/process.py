"""The program that makes the prompts of one model: it renders the chat template and runs the tokenizer, within limits.

Both are programs that came with the model. Questions are lines of JSON on stdin. A result is a line of JSON on stdout,
followed by as many bytes of token ids as its `bytes` says. The program does not import MLX.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import resource
import signal
import sys
import types
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from mlxk2.runner.prompt import chat_template
from mlxk2.runner.prompt.confined import MAX_MEMORY, SECONDS, TEMPLATE_SECONDS
from mlxk2.runner.prompt.messages import FAULTS, render_any

# Average characters per token; most texts have fewer.
_CHARACTERS_PER_TOKEN = 8
# Characters. A text up to this length becomes tokens as a whole, so that an error has their exact number.
_MAX_COUNTED = 1 << 18
_MAX_MESSAGE_CHARACTERS = 300
# Characters that a token may be decoded to; the longest of any known model has some hundred.
_MAX_TOKEN_TEXT = 4096
# Texts of which any tokenizer makes tokens. transformers also loads files that it does not know, and has none then.
_PROBES = ("a", "The 1.", "\u7684")
# transformers says this of packages that are missing, with errors of several types.
_INSTALL = "pip install"
# transformers says this of a tokenizer that is code of the model's.
_CODE = "trust_remote_code"

Result = tuple[dict[str, Any], bytes]


class _TooLongError(Exception):
    """The text has more tokens than the context: how many, in words."""


class _Model:
    """The tokenizer and the chat template of one folder."""

    def __init__(self, folder: str, options: dict[str, Any], ends: Any, defaults: Any) -> None:
        tokenizer_utils = _import_tokenizer_utils()
        from mlxk2.runner.output.detokenizers import (  # noqa: PLC0415 - it imports the module that is prepared above
            SentencePieceDetokenizer,
        )

        # mlx-lm's own class fails on names of tokens that only look like bytes.
        tokenizer_utils.SPMStreamingDetokenizer = SentencePieceDetokenizer
        self._wrapper = tokenizer_utils.load(Path(folder), options, eos_token_ids=ends, defaults=defaults)
        self._tokenizer = self._wrapper._tokenizer
        self._source = chat_template.find_source(Path(folder), self._tokenizer.chat_template)
        self._template: Any = None

    def describe(self) -> dict[str, Any]:
        """Return all that the asking process needs to know of the tokenizer."""
        wrapper, detokenizer = self._wrapper, self._wrapper._detokenizer
        if not any(wrapper.encode(text, add_special_tokens=False) for text in _PROBES):
            raise ValueError("it makes no tokens of any text")
        kind, has_names = type(detokenizer), hasattr(detokenizer, "tokenmap")
        has_code = wrapper._chat_template is not None or _is_library_code(self._tokenizer)
        return {
            "size": len(wrapper),
            "names": wrapper.convert_ids_to_tokens(list(range(len(wrapper)))) if has_names else None,
            # The name of mlx-lm's class, which is replaced above.
            "detokenizer": "SPMStreamingDetokenizer" if hasattr(kind, "_try_flush") else kind.__name__,
            "trim_space": getattr(detokenizer, "trim_space", None),
            "vocabulary": wrapper.get_vocab(),
            "added": {token: [str(entry), entry.special] for token, entry in wrapper.added_tokens_decoder.items()},
            "special": wrapper.all_special_ids,
            "ends": sorted(wrapper.eos_token_ids),
            "bos_token": wrapper.bos_token,
            "has_chat_template": has_code or self._source is not None,
            "chat_template": self._source,
            "think_start": wrapper.think_start,
            "think_end": wrapper.think_end,
            "structural_markers": wrapper.structural_markers,
            "response_transitions": wrapper.response_transitions,
            "response_initial_state": wrapper.response_initial_state,
            "letter": wrapper.encode("a", add_special_tokens=False),
        }

    def result_of(self, question: Mapping[str, Any]) -> Result:
        """Return the result of a question about this model."""
        match question["ask"]:
            case "chat":
                tokens = self.chat(question["messages"], question["options"], question["context"])
            case "encode":
                tokens = self.encode(question["text"], question["special"], question["context"])
            case "decode":
                return {"text": self.decode(question["ids"])}, b""
            case _:
                return {"ids": [self._tokenizer.convert_tokens_to_ids(name) for name in question["names"]]}, b""
        last = question["tail"]
        return {"tail": self.decode(list(tokens[-last:])) if last and tokens else ""}, array("I", tokens).tobytes()

    def chat(self, messages: list[Any], options: dict[str, Any], context: int | None) -> Sequence[int]:
        """Return the tokens of a conversation; `options` are `apply_chat_template`'s, and the template's variables."""
        with _limit(signal.ITIMER_PROF, TEMPLATE_SECONDS):
            rendered = render_any(lambda form: self._render(list(form), dict(options)), messages)
        return rendered if not isinstance(rendered, str) else self.encode(rendered, False, context)

    def _render(self, messages: list[Any], options: dict[str, Any]) -> Any:
        """Return the text of a conversation, or its tokens if code of a library renders it."""
        wrapper = self._wrapper
        if (kwarg := wrapper._thinking_kwarg) != "enable_thinking" and "enable_thinking" in options:
            options[kwarg] = options.pop("enable_thinking")
        if wrapper._chat_template is not None:
            return wrapper._chat_template(messages, **options)
        if _is_library_code(self._tokenizer):
            return self._tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options)
        if self._source is None:
            raise ValueError("there is none")
        if self._template is None:
            self._template = chat_template.environment().from_string(self._source)
        variables = {"tools": None, "documents": None, **self._tokenizer.special_tokens_map, **options}
        return chat_template.render(self._template, messages, variables)

    def encode(self, text: str, special: bool, context: int | None) -> Sequence[int]:
        """Return the tokens of a text; try the beginning of a long text first, because the whole takes its time."""
        length = len(text) if context is None else max(context * _CHARACTERS_PER_TOKEN, _MAX_COUNTED)
        while length < len(text):
            beginning = self._tokenizer.encode(text[:length], add_special_tokens=special)
            if context is not None and len(beginning) > context:
                raise _TooLongError(f"more than {context}")
            length *= 2
        tokens: Sequence[int] = self._tokenizer.encode(text, add_special_tokens=special)
        # A few too many may be marks around the text, which the asking process takes away.
        if context is not None and len(tokens) > 2 * context:
            raise _TooLongError(str(len(tokens)))
        return tokens

    def decode(self, ids: list[int]) -> str:
        """Return the text of tokens."""
        text: str = self._tokenizer.decode(ids)
        if len(text) > _MAX_TOKEN_TEXT * (len(ids) + 1):
            # Many such texts would fill the memory of the process that asks.
            raise ValueError(f"the model's tokenizer makes {len(text)} characters of {len(ids)} tokens")
        return text


def _import_tokenizer_utils() -> Any:
    """Import mlx-lm's module without the rest of mlx-lm, which imports MLX, and without PyTorch.

    The tokenizer must behave as mlx-lm's wrapper does, so that module is needed here.
    """
    # transformers would import it where it is installed: seconds, and gigabytes with CUDA. No tokenizer needs it.
    sys.modules["torch"] = None  # type: ignore[assignment]
    if "mlx_lm" not in sys.modules:
        found = importlib.util.find_spec("mlx_lm")
        assert found is not None
        package = types.ModuleType("mlx_lm")
        package.__path__ = list(found.submodule_search_locations or ())
        sys.modules["mlx_lm"] = package
    from mlx_lm import tokenizer_utils  # noqa: PLC0415 - only now it imports neither MLX nor PyTorch

    return tokenizer_utils


def _is_library_code(tokenizer: Any) -> bool:
    base = sys.modules["transformers.tokenization_utils_base"].PreTrainedTokenizerBase
    return type(tokenizer).apply_chat_template is not base.apply_chat_template


@contextlib.contextmanager
def _limit(timer: int, seconds: float) -> Iterator[None]:
    """Limit the processor time of what is inside: the kernel ends the process, whatever code it is in."""
    signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        signal.setitimer(timer, 0)


def main() -> None:
    """Take questions until stdin ends."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open(0, "rb") as questions, open(os.dup(1), "wb") as results:
        # What libraries print is no result.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        _import_tokenizer_utils()
        # Limit the memory beyond what is mapped by now: libraries map much where there are many processors. Where that
        # is refused, as on macOS, the process is watched from outside.
        with contextlib.suppress(ValueError, OSError):
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limits = [pages * resource.getpagesize() + MAX_MEMORY, *resource.getrlimit(resource.RLIMIT_AS)]
            lowest = min(limit for limit in limits if limit != resource.RLIM_INFINITY)
            resource.setrlimit(resource.RLIMIT_AS, (lowest, lowest))
        serve(questions, results)


def serve(questions: BinaryIO, results: BinaryIO) -> None:
    """Write the result of every question; `open` names the folder that the other questions are about."""
    model: _Model | None = None
    for line in questions:
        question = json.loads(line)
        tokens = b""
        try:
            with _limit(signal.ITIMER_VIRTUAL, SECONDS[question["ask"]]):
                if question["ask"] == "open":
                    model = None
                    opened = _Model(question["folder"], question["options"], question["ends"], question["defaults"])
                    head = opened.describe()
                    model = opened
                else:
                    assert model is not None
                    head, tokens = model.result_of(question)
        except BaseException as fault:  # noqa: BLE001 - whatever a program does wrong becomes a result
            head = _refusal(fault, is_opening=question["ask"] == "open")
        results.write(json.dumps({**head, "bytes": len(tokens)}).encode() + b"\n" + tokens)
        results.flush()


def _refusal(fault: BaseException, *, is_opening: bool) -> dict[str, Any]:
    """Return what went wrong, by its kind; panics of Rust libraries are no Exceptions."""
    if isinstance(fault, _TooLongError):
        return {"too_long": str(fault)}
    if isinstance(fault, MemoryError):
        return {"refused": f"it needs more than {MAX_MEMORY >> 20} MB of memory"}
    reason = str(fault)[:_MAX_MESSAGE_CHARACTERS]
    if isinstance(fault, ImportError):
        return {"missing": reason}
    if is_opening:
        kind = "missing" if _INSTALL in str(fault) else "needs_code" if _CODE in str(fault) else "damaged"
    else:
        kind = "refused" if isinstance(fault, FAULTS) else "damaged"
    return {kind: reason or type(fault).__name__}


if __name__ == "__main__":
    main()
