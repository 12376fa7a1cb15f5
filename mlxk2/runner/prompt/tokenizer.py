"""A model's tokenizer. Its files are untrusted programs, so they run in separate processes."""

from __future__ import annotations

import copy
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from mlx_lm import tokenizer_utils, utils

from mlxk2.checkpoint import compatibility
from mlxk2.errors import ModelError, ModelNotRunnableError, ModelUnhealthyError
from mlxk2.fence import fence
from mlxk2.formatting import one_line
from mlxk2.names import folder_of, pull_command, short_hash
from mlxk2.runner.output import detokenizers
from mlxk2.runner.prompt.confined import IsCancelled, Pool, Result, Starter, never_cancelled
from mlxk2.runner.request import too_long

# A model type with the generic tokenizer class, which reads tokenizer.json.
_GENERIC_TOKENIZER = "aria"
_READ_BY_GENERIC = ("tokenizer.json", "tokenizer.model")
_FIRST_BYTES = 512  # Enough to recognise a file of tiktoken.
# Likely tokens are decoded again and again, so remember the texts of up to 4 tokens.
_MAX_REMEMBERED = 1 << 17
_MAX_SHORT_TOKENS = 4
# Remember the text of the last tokens of a prompt, for so many prompts.
_TAIL_TOKENS = 16
_MAX_TAILS = 256


class RefusedError(Exception):
    """The chat template or the tokenizer can't make a prompt from this input; the message says why."""


class DecodeError(RuntimeError):
    """Tokens can't be decoded to text; this ends only the completion with these tokens."""


@dataclass(frozen=True)
class AddedToken:
    """An added token: whether it is special."""

    special: bool


class Tokenizer:
    """Has the interface of mlx-lm's tokenizer wrapper, but runs the tokenizer in other processes.

    Raise ModelUnhealthyError if the tokenizer is damaged, and the errors of `ConfinedProcess.ask`. `damaged` returns
    the former from a reason.
    """

    def __init__(
        self, pool: Pool, description: Mapping[str, Any], damaged: Callable[[str], ModelUnhealthyError]
    ) -> None:
        self._pool = pool
        self._damaged = damaged
        self._is_cancelled: IsCancelled = never_cancelled
        self._size: int = description["size"]
        self._names: list[str | None] | None = description["names"]
        self._vocabulary: dict[str, int] = description["vocabulary"]
        # The tokens of the letter a, without and with the tokens that the tokenizer adds to a text.
        self._letters: dict[bool, Sequence[int]] = {False: description["letter"]}
        self.eos_token_ids: set[int] = set(description["ends"])
        added: dict[str, tuple[str, bool]] = description["added"]
        self.added_tokens_decoder = {int(token): AddedToken(special) for token, (_, special) in added.items()}
        self._added = {int(token): name for token, (name, _) in added.items()}
        self.all_special_ids: list[int] = description["special"]
        self.bos_token: str | None = description["bos_token"]
        self.has_chat_template: bool = description["has_chat_template"]
        self.chat_template: str | None = description["chat_template"]
        self.think_start: str | None = description["think_start"]
        self.think_end: str | None = description["think_end"]
        self.structural_markers: Sequence[str] = description["structural_markers"]
        self.response_transitions: Mapping[str, Any] = description["response_transitions"]
        self.response_initial_state: str | None = description["response_initial_state"]
        # A model that thinks needs the text at the end of each prompt; the process sends it with the tokens.
        self._is_thinking = self.has_thinking or "</think>" in (self.chat_template or "")
        self._tails: dict[tuple[int, ...], str] = {}
        self._decode_short = lru_cache(_MAX_REMEMBERED)(self._decode)
        kind, trim_space = description["detokenizer"], description["trim_space"]
        detokenizer_class = detokenizers.BY_NAME.get(kind) or getattr(tokenizer_utils, kind)
        options = {} if trim_space is None else {"trim_space": trim_space}
        self._detokenizer = detokenizer_class(self, **options)

    def cancellable(self, is_cancelled: IsCancelled) -> Tokenizer:
        """Return this tokenizer for one request; its work raises OperationCancelled once the request is cancelled."""
        view = copy.copy(self)
        view._is_cancelled = is_cancelled
        return view

    def close(self) -> None:
        """End the tokenizer's processes."""
        self._pool.close()

    @property
    def has_thinking(self) -> bool:
        """Whether mlx-lm knows the marks around this model's reasoning."""
        return self.think_start is not None

    @property
    def detokenizer(self) -> Any:
        """A new detokenizer for each access."""
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
        """Return the tokens of a text; raise ContextLengthError early if they are far more than `context`."""
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
        """Return the tokens of a conversation; `options` are those of transformers, and template variables."""
        question = {"ask": "chat", "messages": messages, "options": options, "context": context}
        return self._tokens(question, context)

    def _tokens(self, question: Mapping[str, Any], context: int | None) -> Sequence[int]:
        head, tokens = self._ask({**question, "tail": _TAIL_TOKENS if self._is_thinking else 0})
        if "too_long" in head:
            assert context is not None
            raise too_long(head["too_long"], context)
        if self._is_thinking:
            if len(self._tails) > _MAX_TAILS:
                self._tails.clear()
            self._tails[tuple(tokens[-_TAIL_TOKENS:])] = head["tail"]
        return tokens

    def decode(self, tokens: Sequence[int], **_: Any) -> str:
        """Return the text of these tokens, including marks."""
        if len(tokens) <= _TAIL_TOKENS and (tail := self._tails.get(tuple(tokens))) is not None:
            return tail
        return self._decode_short(tuple(tokens)) if len(tokens) <= _MAX_SHORT_TOKENS else self._decode(tokens)

    def _decode(self, tokens: Sequence[int]) -> str:
        try:
            text: str = self._ask({"ask": "decode", "ids": list(tokens)})[0]["text"]
        except (ModelError, RefusedError) as error:
            raise DecodeError(str(error)) from error
        return text

    def _ask(self, question: Mapping[str, Any]) -> Result:
        head, tokens = self._pool.ask(question, self._is_cancelled)
        if "damaged" in head:
            raise self._damaged(head["damaged"])
        if "refused" in head:
            raise RefusedError(head["refused"])
        return head, tokens


def load_tokenizer(
    folder: Path, config: Mapping[str, Any], starter: Starter, name: str, is_cancelled: IsCancelled = never_cancelled
) -> Tokenizer:
    """Load the tokenizer of a folder in a separate process; raise ModelUnhealthyError if it is damaged.

    `name` is the name of the model.
    """
    # transformers warns about uses that mlxk2 does not have.
    logging.getLogger("transformers").setLevel(logging.ERROR)
    # mlx-lm has defaults for some architectures whose models lack tokenizer settings. If the architecture can't be
    # imported, loading the weights will report that.
    defaults = None
    with suppress(ValueError, LookupError, OSError, ImportError), fence():
        model_class, _ = utils._get_classes(utils.load_config(folder))
        defaults = getattr(sys.modules[model_class.__module__], "TOKENIZER_DEFAULTS", None)
    opening = {
        "ask": "open",
        "folder": str(folder.absolute()),
        "options": _options(folder),
        "ends": token_ids(config.get("eos_token_id")) or None,
        "defaults": defaults,
    }
    pool = Pool(starter, opening, partial(_check, name, folder))
    return Tokenizer(pool, pool.open(is_cancelled), partial(explain_damage, name, folder))


def explain_damage(name: str, folder: Path, reason: str) -> ModelUnhealthyError:
    """Return the error for a model's tokenizer that can't be loaded or fails, with the command that repairs it.

    The command pulls the model again if its folder is the place of the model in the cache.
    """
    remedy = "Put its files into the folder again, from where you have the model."
    if folder.parts[-3:-1] == (folder_of(name), "snapshots"):
        command = pull_command(name, short_hash(folder.name))
        remedy = f"Repair it with: {command}" if command else "Remove the model, or choose another one."
    why = one_line(reason.replace(str(folder), folder.name))
    return ModelUnhealthyError(f"The tokenizer of {name} is damaged, or of an unknown kind ({why}). {remedy}")


def _check(name: str, folder: Path, head: Mapping[str, Any]) -> None:
    """Raise the error for a tokenizer that could not be loaded."""
    reason = next((head[kind] for kind in ("damaged", "refused", "missing", "needs_code") if kind in head), None)
    if reason is None:
        return
    reason = reason.replace(str(folder), folder.name)
    if "tiktoken" in reason:
        # transformers treats a damaged file of sentencepiece as one of tiktoken, and then asks for tiktoken.
        with suppress(OSError):
            begin = (folder / "tokenizer.model").read_bytes()[:_FIRST_BYTES]
            if not (folder / "tokenizer.json").exists() and not compatibility.is_tiktoken(begin):
                raise explain_damage(name, folder, "tokenizer.model is not a file of sentencepiece")
    if "needs_code" in head:
        raise ModelNotRunnableError(f"The tokenizer needs the model's own code, which is never executed: {reason}")
    if "missing" in head:
        raise ModelNotRunnableError(f"The model's tokenizer needs a package that is not installed: {reason}")
    raise explain_damage(name, folder, reason)


def token_ids(named: object) -> list[int]:
    """Return the token ids in a value of a config: one id or a list of ids."""
    return [token for token in (named if isinstance(named, list) else [named]) if type(token) is int]


def _options(folder: Path) -> dict[str, Any]:
    """Return the options for loading the tokenizer, without the model's own code and without names mlx-lm lacks."""
    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    settings: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        found = json.loads((folder / "tokenizer_config.json").read_bytes())
        settings = found if isinstance(found, dict) else {}
    if "auto_map" in settings and any((folder / name).is_file() for name in _READ_BY_GENERIC):
        options["tokenizer_type"] = _GENERIC_TOKENIZER
    if mlx_lm := compatibility.installation():
        # Without the name, the model's own template is used; mlxk2 does not call tools.
        known = {"chat_template_type": mlx_lm.chat_templates, "tool_parser_type": mlx_lm.tool_parsers}
        options |= {key: None for key, names in known.items() if str(settings.get(key)) not in names}
    return options
