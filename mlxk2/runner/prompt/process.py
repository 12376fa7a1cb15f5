"""The program that makes the prompts of one model: it renders the chat template and runs the tokenizer, within limits.

Both come with the model and are untrusted. Questions are lines of JSON on stdin. A result is a line of JSON on stdout,
followed by token ids; `bytes` in the line is their number of bytes. The program does not import MLX.
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

from mlxk2.formatting import reason_of
from mlxk2.runner.prompt import chat_template
from mlxk2.runner.prompt.confined import MAX_CPU_SECONDS, MAX_MEMORY_BYTES, MAX_TEMPLATE_SECONDS
from mlxk2.runner.prompt.messages import TEMPLATE_ERRORS, render_any

_CHARACTERS_PER_TOKEN = 8  # The average in most texts is lower.
# A text of at most so many characters is tokenized as a whole, so that an error has the exact number of tokens.
_MAX_COUNTED_CHARACTERS = 1 << 18
_MAX_MESSAGE_CHARACTERS = 300
_MAX_TOKEN_CHARACTERS = 4096  # The longest token of any known model has a few hundred characters.
# Every tokenizer makes tokens from these texts. transformers also loads unknown files, and then makes no tokens.
_PROBES = ("a", "The 1.", "\u7684")
_INSTALL = "pip install"  # In transformers' messages about missing packages, which have several types.
_CODE = "trust_remote_code"  # In transformers' message about a tokenizer that is the model's own code.

Result = tuple[dict[str, Any], bytes]


class _TooLongError(Exception):
    """The text has more tokens than the context; the message is their number, or words such as "more than 9"."""


class _Model:
    """The tokenizer and the chat template of one folder."""

    def __init__(self, folder: str, options: dict[str, Any], ends: Any, defaults: Any) -> None:
        tokenizer_utils = _import_tokenizer_utils()
        from mlxk2.runner.output.detokenizers import (  # noqa: PLC0415 - it imports the module that is prepared above
            SentencePieceDetokenizer,
        )

        # mlx-lm's own class fails on token names that only look like bytes.
        tokenizer_utils.SPMStreamingDetokenizer = SentencePieceDetokenizer
        self._wrapper = tokenizer_utils.load(Path(folder), options, eos_token_ids=ends, defaults=defaults)
        self._tokenizer = self._wrapper._tokenizer
        self._source = chat_template.find_source(Path(folder), self._tokenizer.chat_template)
        self._template: Any = None

    def describe(self) -> dict[str, Any]:
        """Return the properties of the tokenizer that the asking process needs."""
        wrapper, detokenizer = self._wrapper, self._wrapper._detokenizer
        if not any(wrapper.encode(text, add_special_tokens=False) for text in _PROBES):
            raise ValueError("it makes no tokens from any text")
        kind, has_names = type(detokenizer), hasattr(detokenizer, "tokenmap")
        has_code = wrapper._chat_template is not None or _is_library_code(self._tokenizer)
        return {
            "size": len(wrapper),
            "names": wrapper.convert_ids_to_tokens(list(range(len(wrapper)))) if has_names else None,
            # For the replaced class, the name of mlx-lm's class.
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
        """Return the tokens of a conversation; `options` are those of `apply_chat_template` and template variables."""
        with _limit(signal.ITIMER_PROF, MAX_TEMPLATE_SECONDS):
            rendered = render_any(lambda form: self._render(list(form), dict(options)), messages)
        return rendered if not isinstance(rendered, str) else self.encode(rendered, False, context)

    def _render(self, messages: list[Any], options: dict[str, Any]) -> Any:
        """Return the text of a conversation, or its tokens if a library's code renders it."""
        wrapper = self._wrapper
        if (kwarg := wrapper._thinking_kwarg) != "enable_thinking" and "enable_thinking" in options:
            options[kwarg] = options.pop("enable_thinking")
        if wrapper._chat_template is not None:
            return wrapper._chat_template(messages, **options)
        if _is_library_code(self._tokenizer):
            return self._tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options)
        if self._source is None:
            raise ValueError("the model has no chat template")
        if self._template is None:
            self._template = chat_template.environment().from_string(self._source)
        variables = {"tools": None, "documents": None, **self._tokenizer.special_tokens_map, **options}
        return chat_template.render(self._template, messages, variables)

    def encode(self, text: str, special: bool, context: int | None) -> Sequence[int]:
        """Return the tokens of a text; test the beginning of a long text first, because the whole takes long."""
        length = len(text) if context is None else max(context * _CHARACTERS_PER_TOKEN, _MAX_COUNTED_CHARACTERS)
        while length < len(text):
            beginning = self._tokenizer.encode(text[:length], add_special_tokens=special)
            if context is not None and len(beginning) > context:
                raise _TooLongError(f"more than {context}")
            length *= 2
        tokens: Sequence[int] = self._tokenizer.encode(text, add_special_tokens=special)
        # Allow more than the context, because the asking process removes some tokens around the text.
        if context is not None and len(tokens) > 2 * context:
            raise _TooLongError(str(len(tokens)))
        return tokens

    def decode(self, ids: list[int]) -> str:
        """Return the text of tokens."""
        text: str = self._tokenizer.decode(ids)
        if len(text) > _MAX_TOKEN_CHARACTERS * (len(ids) + 1):
            # Many such texts would fill the memory of the asking process.
            raise ValueError(f"the model's tokenizer makes {len(text)} characters from {len(ids)} tokens")
        return text


def _import_tokenizer_utils() -> Any:
    """Import mlx-lm's module of tokenizers without PyTorch and without the rest of mlx-lm, which imports MLX."""
    # transformers would import PyTorch if it is installed, which takes seconds, and gigabytes with CUDA.
    sys.modules["torch"] = None  # type: ignore[assignment]
    if "mlx_lm" not in sys.modules:
        found = importlib.util.find_spec("mlx_lm")
        assert found is not None
        package = types.ModuleType("mlx_lm")
        package.__path__ = list(found.submodule_search_locations or ())
        sys.modules["mlx_lm"] = package
    from mlx_lm import tokenizer_utils  # noqa: PLC0415 - after these changes it imports neither MLX nor PyTorch

    return tokenizer_utils


def _is_library_code(tokenizer: Any) -> bool:
    base = sys.modules["transformers.tokenization_utils_base"].PreTrainedTokenizerBase
    return type(tokenizer).apply_chat_template is not base.apply_chat_template


@contextlib.contextmanager
def _limit(timer: int, seconds: float) -> Iterator[None]:
    """Limit the processor time of the block; at the limit, the kernel ends the process."""
    signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        signal.setitimer(timer, 0)


def main() -> None:
    """Read questions until stdin ends."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open(0, "rb") as questions, open(os.dup(1), "wb") as results:
        # Discard the output of libraries, which is not a result.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        _import_tokenizer_utils()
        _limit_memory()
        serve(questions, results)


def _limit_memory() -> None:
    """Limit the memory in addition to what is mapped now: libraries map much memory on machines with many processors.

    macOS refuses such a limit; there the asking process watches the memory.
    """
    kind, mapped = resource.RLIMIT_AS, 0
    try:
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        if sys.platform != "linux":
            return
        # Some containers have no /proc. There, limit the data alone, of which the process has little now.
        kind = resource.RLIMIT_DATA
    with contextlib.suppress(ValueError, OSError):
        limits = [mapped + MAX_MEMORY_BYTES, *resource.getrlimit(kind)]
        lowest = min(limit for limit in limits if limit != resource.RLIM_INFINITY)
        resource.setrlimit(kind, (lowest, lowest))


def serve(questions: BinaryIO, results: BinaryIO) -> None:
    """Write the result of every question; the question `open` sets the model's folder for the other questions."""
    model: _Model | None = None
    for line in questions:
        question = json.loads(line)
        tokens = b""
        try:
            with _limit(signal.ITIMER_VIRTUAL, MAX_CPU_SECONDS[question["ask"]]):
                if question["ask"] == "open":
                    model = None
                    opened = _Model(question["folder"], question["options"], question["ends"], question["defaults"])
                    head = opened.describe()
                    model = opened
                else:
                    assert model is not None
                    head, tokens = model.result_of(question)
        except BaseException as error:  # noqa: BLE001 - every error of the untrusted programs is a result
            head = _refusal(error, is_opening=question["ask"] == "open")
        results.write(json.dumps({**head, "bytes": len(tokens)}).encode() + b"\n" + tokens)
        results.flush()


def _refusal(error: BaseException, *, is_opening: bool) -> dict[str, Any]:
    """Return the kind and the reason of an error; panics of Rust libraries are not Exceptions."""
    if isinstance(error, _TooLongError):
        return {"too_long": str(error)}
    if isinstance(error, MemoryError):
        return {"refused": f"it needs more than {MAX_MEMORY_BYTES >> 20} MB of memory"}
    if isinstance(error, ImportError):
        kind = "missing"
    elif is_opening:
        kind = "missing" if _INSTALL in str(error) else "needs_code" if _CODE in str(error) else "damaged"
    else:
        kind = "refused" if isinstance(error, TEMPLATE_ERRORS) else "damaged"
    return {kind: reason_of(error)}


if __name__ == "__main__":
    main()
