"""The program that makes prompts of one model: it renders its chat template and runs its tokenizer, within limits.

Both are programs that came with the model. Questions are lines of JSON on stdin. An answer is a line of JSON on stdout,
followed by as many bytes of token ids as its `bytes` says. It imports nothing of MLX.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from mlxk2.runner.limits import MEMORY, SECONDS, TEMPLATE_SECONDS, TOKEN_TEXT
from mlxk2.runner.prompt import chat_template
from mlxk2.runner.prompt.messages import FAULTS, render_any

# Average characters per token; most texts have fewer.
_CHARACTERS = 8
_MAX_MESSAGE = 300
# Texts of which any tokenizer makes tokens; transformers also loads files that it does not know, and has none then.
_PROBES = ("a", "The 1.", "\u7684")
# What transformers says of packages that it does without, with errors of several types.
_INSTALL = "pip install"
# What it says of a tokenizer that is code of the model's.
_CODE = "trust_remote_code"

Answer = tuple[dict[str, Any], bytes]


class _TooLongError(Exception):
    """The text has more tokens than the context: how many, in words."""


class _Model:
    """The tokenizer and the chat template of one folder."""

    def __init__(self, folder: str, options: dict[str, Any], ends: Any, defaults: Any) -> None:
        tokenizer_utils = _import_tokenizer_utils()
        # It fails on pieces that only look like bytes.
        pieces = importlib.import_module("mlxk2.runner.prompt.detokenizers").SentencePieceDetokenizer
        tokenizer_utils.SPMStreamingDetokenizer = pieces
        self._wrapper = tokenizer_utils.load(Path(folder), options, eos_token_ids=ends, defaults=defaults)
        self._tokenizer = self._wrapper._tokenizer
        self._source = chat_template.find_source(Path(folder), self._tokenizer.chat_template)
        self._template: Any = None

    def describe(self) -> dict[str, Any]:
        """Return all that the asking process needs to know of the tokenizer."""
        wrapper, detokenizer = self._wrapper, self._wrapper._detokenizer
        has_names = hasattr(detokenizer, "tokenmap")
        if not any(wrapper.encode(text, add_special_tokens=False) for text in _PROBES):
            raise ValueError("it makes no tokens of any text")
        return {
            "size": len(wrapper),
            "names": wrapper.convert_ids_to_tokens(list(range(len(wrapper)))) if has_names else None,
            "detokenizer": self._kind_of_detokenizer,
            "trim_space": getattr(detokenizer, "trim_space", None),
            "vocabulary": wrapper.get_vocab(),
            "added": {token: [str(entry), entry.special] for token, entry in wrapper.added_tokens_decoder.items()},
            "special": wrapper.all_special_ids,
            "ends": sorted(wrapper.eos_token_ids),
            "bos_token": wrapper.bos_token,
            "has_chat_template": self._has_template,
            "chat_template": self._source,
            "think_start": wrapper.think_start,
            "think_end": wrapper.think_end,
            "structural_markers": wrapper.structural_markers,
            "response_transitions": wrapper.response_transitions,
            "response_initial_state": wrapper.response_initial_state,
            "letter": wrapper.encode("a", add_special_tokens=False),
        }

    @property
    def _kind_of_detokenizer(self) -> str:
        """The name of the class that mlx-lm chose."""
        kind = type(self._wrapper._detokenizer)
        return "SPMStreamingDetokenizer" if hasattr(kind, "_try_flush") else kind.__name__

    @property
    def _has_template(self) -> bool:
        has_code = self._wrapper._chat_template is not None or _is_library_code(self._tokenizer)
        return has_code or self._source is not None

    def chat(self, messages: list[Any], options: dict[str, Any], context: int | None) -> Sequence[int]:
        """Return the tokens of a conversation; `options` are `apply_chat_template`'s, and the template's variables."""
        with _limit(signal.ITIMER_PROF, TEMPLATE_SECONDS):
            rendered = render_any(lambda form: self._render(list(form), dict(options)), messages)
        return rendered if not isinstance(rendered, str) else self.encode(rendered, False, context)

    def _render(self, messages: list[Any], options: dict[str, Any]) -> Any:
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
        """Return the tokens of a text; of a long one try the beginning first, since the whole takes its time."""
        length = len(text) if context is None else context * _CHARACTERS
        while length < len(text):
            if context is not None and len(self._encoded(text[:length], special)) > context:
                raise _TooLongError(f"more than {context}")
            length *= 2
        tokens = self._encoded(text, special)
        # A few too many may be marks around the text, which the asking process takes away.
        if context is not None and len(tokens) > 2 * context:
            raise _TooLongError(str(len(tokens)))
        return tokens

    def _encoded(self, text: str, special: bool) -> Sequence[int]:
        tokens: Sequence[int] = self._tokenizer.encode(text, add_special_tokens=special)
        return tokens

    def decode(self, ids: list[int]) -> str:
        """Return the text of tokens."""
        text: str = self._tokenizer.decode(ids)
        if len(text) > TOKEN_TEXT * (len(ids) + 1):
            # Many such texts would fill the memory of the process that asks.
            raise ValueError(f"the model's tokenizer makes {len(text)} characters of {len(ids)} tokens")
        return text

    def find(self, names: list[str]) -> list[Any]:
        """Return the ids of tokens by their names."""
        return [self._tokenizer.convert_tokens_to_ids(name) for name in names]


def _import_tokenizer_utils() -> Any:
    """Import mlx-lm's module without the rest of mlx-lm, which imports MLX, and without PyTorch."""
    # transformers would import it where it is installed: seconds, and gigabytes with CUDA. No tokenizer needs it.
    sys.modules["torch"] = None  # type: ignore[assignment]
    if "mlx_lm" not in sys.modules:
        found = importlib.util.find_spec("mlx_lm")
        assert found is not None
        package = types.ModuleType("mlx_lm")
        package.__path__ = list(found.submodule_search_locations or ())
        sys.modules["mlx_lm"] = package
    return importlib.import_module("mlx_lm.tokenizer_utils")


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
    """Answer until stdin ends."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open(0, "rb") as asked, open(os.dup(1), "wb") as answers:
        # What libraries print is no answer.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        _import_tokenizer_utils()
        _limit_memory()
        serve(asked, answers)


def _limit_memory() -> None:
    """Limit what this process may take beyond what it has: libraries map much where there are many processors.

    Where that is refused, as on macOS, the process is watched from outside.
    """
    with contextlib.suppress(ValueError, OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limits = [pages * resource.getpagesize() + MEMORY, *resource.getrlimit(resource.RLIMIT_AS)]
        lowest = min(limit for limit in limits if limit != resource.RLIM_INFINITY)
        resource.setrlimit(resource.RLIMIT_AS, (lowest, lowest))


def serve(asked: BinaryIO, answers: BinaryIO) -> None:
    """Answer every question; `open` names the folder that the others are about."""
    model: _Model | None = None
    for line in asked:
        question = json.loads(line)
        if question["ask"] == "open":
            model = None
            answer = _guarded(_open_model, question)
            model = answer[0].pop("model", None)
        else:
            answer = _guarded(_answer, {**question, "model": model})
        answers.write(json.dumps({**answer[0], "bytes": len(answer[1])}).encode() + b"\n" + answer[1])
        answers.flush()


def _open_model(question: Mapping[str, Any]) -> Answer:
    with _limit(signal.ITIMER_VIRTUAL, SECONDS["open"]):
        model = _Model(question["folder"], question["options"], question["ends"], question["defaults"])
        return {"model": model, **model.describe()}, b""


def _answer(question: Mapping[str, Any]) -> Answer:
    model: _Model = question["model"]
    with _limit(signal.ITIMER_VIRTUAL, SECONDS[question["ask"]]):
        match question["ask"]:
            case "chat":
                tokens = model.chat(question["messages"], question["options"], question["context"])
            case "encode":
                tokens = model.encode(question["text"], question["special"], question["context"])
            case "decode":
                return {"text": model.decode(question["ids"])}, b""
            case _:
                return {"ids": model.find(question["names"])}, b""
    last = question["tail"]
    return {"tail": model.decode(list(tokens[-last:])) if last and tokens else ""}, array("I", tokens).tobytes()


def _guarded(ask: Callable[[Mapping[str, Any]], Answer], question: Mapping[str, Any]) -> Answer:
    """Return the answer, or what went wrong; panics of Rust libraries are no Exceptions."""
    try:
        return ask(question)
    except _TooLongError as fault:
        return {"too_long": str(fault)}, b""
    except MemoryError:
        return {"refused": f"it needs more than {MEMORY >> 20} MB of memory"}, b""
    except ImportError as fault:
        return {"missing": str(fault)[:_MAX_MESSAGE]}, b""
    except BaseException as fault:  # noqa: BLE001 - whatever a program does wrong becomes an answer
        said = str(fault) or type(fault).__name__
        if question["ask"] == "open":
            kind = "missing" if _INSTALL in said else "needs_code" if _CODE in said else "damaged"
            return {kind: said[:_MAX_MESSAGE]}, b""
        return {"refused" if isinstance(fault, FAULTS) else "damaged": said[:_MAX_MESSAGE]}, b""


if __name__ == "__main__":
    main()
