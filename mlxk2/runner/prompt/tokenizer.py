"""A model's tokenizer, all of whose work is done in processes of their own: its files are programs of strangers."""

from __future__ import annotations

import copy
import importlib
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from mlx_lm import tokenizer_utils, utils

from mlxk2.checkpoint import compatibility
from mlxk2.checkpoint.tokenizer_files import is_tiktoken
from mlxk2.errors import ModelError, ModelNotRunnableError, ModelUnhealthyError
from mlxk2.fence import fenced
from mlxk2.runner.prompt import detokenizers
from mlxk2.runner.prompt.confined import Answer, Cancelled, Pool, Starter
from mlxk2.runner.request import too_long

# Any type whose tokenizer class is the generic one that reads tokenizer.json.
_GENERIC_TOKENIZER = "aria"
_READ_BY_GENERIC = ("tokenizer.json", "tokenizer.model")
_FIRST_BYTES = 512
# Decoded again and again for the names of likely tokens.
_MAX_REMEMBERED, _MAX_SHORT = 1 << 17, 4
# Tokens at the end of a prompt, and how many such ends are remembered.
_TAIL, _MAX_TAILS = 16, 256


class RefusedError(Exception):
    """The chat template, or the tokenizer, can't make a prompt of this conversation or text; the message says why."""


class DecodeError(RuntimeError):
    """Tokens can't be turned into text; as any fault of an answer, it ends that answer alone."""


@dataclass(frozen=True)
class AddedToken:
    """Whether an added token is special."""

    special: bool


class Tokenizer:
    """What mlx-lm's tokenizer wrapper says of the tokenizer of a folder, without its code running in this process.

    Raises ModelUnhealthyError where the tokenizer is damaged, and what `Confined.ask` raises.
    """

    def __init__(self, pool: Pool, said: Mapping[str, Any]) -> None:
        self._pool = pool
        self._cancelled: Cancelled = bool
        self._size: int = said["size"]
        self._names: list[str | None] | None = said["names"]
        self._vocabulary: dict[str, int] = said["vocabulary"]
        # Asked for with each text, with and without what is put around it.
        self._letters: dict[bool, Sequence[int]] = {False: said["letter"]}
        self.eos_token_ids: set[int] = set(said["ends"])
        self.added_tokens_decoder = {int(token): AddedToken(special) for token, (_, special) in said["added"].items()}
        self._added = {int(token): name for token, (name, _) in said["added"].items()}
        self.all_special_ids: list[int] = said["special"]
        self.bos_token: str | None = said["bos_token"]
        self.has_chat_template: bool = said["has_chat_template"]
        self.chat_template: str | None = said["chat_template"]
        self.think_start: str | None = said["think_start"]
        self.think_end: str | None = said["think_end"]
        self.structural_markers: Sequence[str] = said["structural_markers"]
        self.response_transitions: Mapping[str, Any] = said["response_transitions"]
        self.response_initial_state: str | None = said["response_initial_state"]
        # How prompts end is asked of each; it comes along with their tokens.
        self._is_thinking = self.has_thinking or "</think>" in (self.chat_template or "")
        self._tails: dict[tuple[int, ...], str] = {}
        self._decode_short = lru_cache(_MAX_REMEMBERED)(self._decode)
        self._detokenizer = self._new_detokenizer(said["detokenizer"], said["trim_space"])

    def _new_detokenizer(self, kind: str, trim_space: bool | None) -> Any:
        made = detokenizers.BY_NAME.get(kind) or getattr(tokenizer_utils, kind)
        return made(self) if trim_space is None else made(self, trim_space=trim_space)

    def until(self, cancelled: Cancelled) -> Tokenizer:
        """Return this tokenizer for one request: once that is `cancelled`, what it asked for is ended."""
        view = copy.copy(self)
        view._cancelled = cancelled
        return view

    def close(self) -> None:
        """End its processes."""
        self._pool.close()

    @property
    def has_thinking(self) -> bool:
        """Whether mlx-lm knows the marks around reasoning."""
        return self.think_start is not None

    @property
    def detokenizer(self) -> Any:
        """A new detokenizer at each reading."""
        detokenizer = copy.copy(self._detokenizer)
        detokenizer.reset()
        return detokenizer

    def __len__(self) -> int:
        return self._size

    def get_vocab(self) -> dict[str, int]:
        """Return the ids of all tokens by their names."""
        return self._vocabulary

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str | None]:
        """Return the names of tokens."""
        if self._names is not None:
            return [self._names[token] for token in ids]
        names = {number: name for name, number in self._vocabulary.items()} | self._added
        return [names.get(token) for token in ids]

    def convert_tokens_to_ids(self, name: str) -> int | None:
        """Return the id of a token."""
        found: int | None = self._ask({"ask": "find", "names": [name]})[0]["ids"][0]
        return found

    def encode(self, text: str, add_special_tokens: bool = True, context: int | None = None) -> Sequence[int]:
        """Return the tokens of a text; raise ContextLengthError early for one of far more than `context`."""
        if text == "a" and add_special_tokens in self._letters:
            return self._letters[add_special_tokens]
        question = {"ask": "encode", "text": text, "special": add_special_tokens, "context": context}
        tokens = self._tokens(question, context)
        if text == "a":
            self._letters[add_special_tokens] = tokens
        return tokens

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], /, context: int | None = None, **options: Any
    ) -> Sequence[int]:
        """Return the tokens of a conversation; the `options` are transformers' and the variables of the template."""
        question = {"ask": "chat", "messages": messages, "options": options, "context": context}
        return self._tokens(question, context)

    def _tokens(self, question: Mapping[str, Any], context: int | None) -> Sequence[int]:
        head, tokens = self._ask({**question, "tail": _TAIL if self._is_thinking else 0})
        if "too_long" in head:
            assert context is not None
            raise too_long(head["too_long"], context)
        if self._is_thinking:
            if len(self._tails) > _MAX_TAILS:
                self._tails.clear()
            self._tails[tuple(tokens[-_TAIL:])] = head["tail"]
        return tokens

    def decode(self, tokens: Sequence[int], **_: Any) -> str:
        """Return the text of these tokens, with all their marks."""
        if len(tokens) <= _TAIL and (tail := self._tails.get(tuple(tokens))) is not None:
            return tail
        return self._decode_short(tuple(tokens)) if len(tokens) <= _MAX_SHORT else self._decode(tokens)

    def _decode(self, tokens: Sequence[int]) -> str:
        try:
            text: str = self._ask({"ask": "decode", "ids": list(tokens)})[0]["text"]
        except (ModelError, RefusedError) as fault:
            raise DecodeError(str(fault)) from fault
        return text

    def _ask(self, question: Mapping[str, Any]) -> Answer:
        answer = self._pool.ask(question, self._cancelled)
        if "damaged" in answer[0]:
            raise ModelUnhealthyError(
                f"The model's tokenizer is damaged. Pull the model again or choose another one: {answer[0]['damaged']}"
            )
        if "refused" in answer[0]:
            raise RefusedError(answer[0]["refused"])
        return answer


def load_tokenizer(
    folder: Path, config: Mapping[str, Any], starter: Starter, damaged: str, cancelled: Cancelled = bool
) -> Tokenizer:
    """Load the tokenizer of a model's folder in a process of its own; raise ModelUnhealthyError that says `damaged`."""
    # What it warns of changes nothing here.
    logging.getLogger("transformers").setLevel(logging.ERROR)
    opening = {
        "ask": "open",
        "folder": str(folder.absolute()),
        "options": _options(folder),
        "ends": token_ids(config.get("eos_token_id")) or None,
        "defaults": _defaults(folder),
    }
    pool = Pool(starter, opening, partial(_check, damaged, folder))
    return Tokenizer(pool, pool.open(cancelled))


def _check(damaged: str, folder: Path, said: Mapping[str, Any]) -> None:
    reason = next((said[kind] for kind in ("damaged", "refused", "missing", "needs_code") if kind in said), None)
    if reason is None:
        return
    reason = " ".join(reason.replace(str(folder), folder.name).split())
    if "tiktoken" in reason and _is_misread(folder):
        reason = "tokenizer.model is no file of sentencepiece's"
    elif "needs_code" in said:
        raise ModelNotRunnableError(f"The model's tokenizer needs code of its own, which is never executed: {reason}")
    elif "missing" in said:
        raise ModelNotRunnableError(f"The model's tokenizer needs what is not installed here: {reason}")
    raise ModelUnhealthyError(f"{damaged}: {reason}")


def _is_misread(folder: Path) -> bool:
    """Whether transformers took a damaged file of sentencepiece for one of tiktoken, which it then says it needs."""
    with suppress(OSError):
        begin = (folder / "tokenizer.model").read_bytes()[:_FIRST_BYTES]
        return not (folder / "tokenizer.json").exists() and not is_tiktoken(begin)
    return False


def token_ids(named: object) -> list[int]:
    """Return the token ids that a config names, one or several."""
    return [token for token in (named if isinstance(named, list) else [named]) if type(token) is int]


def _options(folder: Path) -> dict[str, Any]:
    """Return how to load the tokenizer: without code of the model, and without what only another mlx-lm has."""
    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    settings = _settings(folder)
    if "auto_map" in settings and any((folder / name).is_file() for name in _READ_BY_GENERIC):
        options["tokenizer_type"] = _GENERIC_TOKENIZER
    if mlx_lm := compatibility.installation():
        # The model's own template serves, and tools are not called.
        known = {"chat_template_type": mlx_lm.chat_templates, "tool_parser_type": mlx_lm.tool_parsers}
        options |= {key: None for key, names in known.items() if str(settings.get(key)) not in names}
    return options


def _settings(folder: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        settings = json.loads((folder / "tokenizer_config.json").read_bytes())
        return settings if isinstance(settings, dict) else {}
    return {}


def _defaults(folder: Path) -> Any:
    """Return what mlx-lm has for models of this kind that came without settings of their tokenizer."""
    # An architecture that can't be imported is named when the weights are loaded.
    with suppress(ValueError, LookupError, OSError, ImportError), fenced():
        model_class, _ = utils._get_classes(utils.load_config(folder))
        return getattr(importlib.import_module(model_class.__module__), "TOKENIZER_DEFAULTS", None)
    return None
