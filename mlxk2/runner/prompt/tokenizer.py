"""A model's tokenizer. Its files are programs of strangers, so all its work is done in processes of their own."""

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
from mlxk2.runner.prompt.confined import Cancelled, Pool, Result, Starter, never_cancelled
from mlxk2.runner.request import too_long

# A model type whose tokenizer class is the generic one that reads tokenizer.json.
_GENERIC_TOKENIZER = "aria"
_READ_BY_GENERIC = ("tokenizer.json", "tokenizer.model")
# Enough bytes to recognise a file of tiktoken.
_FIRST_BYTES = 512
# The names of likely tokens are decoded again and again: so many texts of so few tokens are remembered.
_MAX_REMEMBERED = 1 << 17
_MAX_SHORT_TOKENS = 4
# Tokens at the end of a prompt whose text is remembered, and how many such ends are.
_TAIL_TOKENS = 16
_MAX_TAILS = 256


class RefusedError(Exception):
    """The chat template or the tokenizer can't make a prompt of this conversation or text; the message says why."""


class DecodeError(RuntimeError):
    """Tokens can't be turned into text; like any fault of a completion, this ends that completion alone."""


@dataclass(frozen=True)
class AddedToken:
    """Whether an added token is special."""

    special: bool


class Tokenizer:
    """What mlx-lm's tokenizer wrapper says of the tokenizer of a folder, without its code running in this process.

    Raise ModelUnhealthyError if the tokenizer is damaged, and what `ConfinedProcess.ask` raises. `damaged` makes that
    error from its reason.
    """

    def __init__(
        self, pool: Pool, description: Mapping[str, Any], damaged: Callable[[str], ModelUnhealthyError]
    ) -> None:
        self._pool = pool
        self._damaged = damaged
        self._cancelled: Cancelled = never_cancelled
        self._size: int = description["size"]
        self._names: list[str | None] | None = description["names"]
        self._vocabulary: dict[str, int] = description["vocabulary"]
        # The tokens of the letter a, without and with what the tokenizer puts around a text.
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
        # The text at the end of each prompt is needed; it comes along with the tokens.
        self._is_thinking = self.has_thinking or "</think>" in (self.chat_template or "")
        self._tails: dict[tuple[int, ...], str] = {}
        self._decode_short = lru_cache(_MAX_REMEMBERED)(self._decode)
        kind, trim_space = description["detokenizer"], description["trim_space"]
        detokenizer_class = detokenizers.BY_NAME.get(kind) or getattr(tokenizer_utils, kind)
        options = {} if trim_space is None else {"trim_space": trim_space}
        self._detokenizer = detokenizer_class(self, **options)

    def cancellable(self, cancelled: Cancelled) -> Tokenizer:
        """Return this tokenizer for one request; its work raises OperationCancelled once the request is cancelled."""
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
        """Return the text of these tokens, with all their marks."""
        if len(tokens) <= _TAIL_TOKENS and (tail := self._tails.get(tuple(tokens))) is not None:
            return tail
        return self._decode_short(tuple(tokens)) if len(tokens) <= _MAX_SHORT_TOKENS else self._decode(tokens)

    def _decode(self, tokens: Sequence[int]) -> str:
        try:
            text: str = self._ask({"ask": "decode", "ids": list(tokens)})[0]["text"]
        except (ModelError, RefusedError) as fault:
            raise DecodeError(str(fault)) from fault
        return text

    def _ask(self, question: Mapping[str, Any]) -> Result:
        head, tokens = self._pool.ask(question, self._cancelled)
        if "damaged" in head:
            raise self._damaged(head["damaged"])
        if "refused" in head:
            raise RefusedError(head["refused"])
        return head, tokens


def load_tokenizer(
    folder: Path, config: Mapping[str, Any], starter: Starter, name: str, cancelled: Cancelled = never_cancelled
) -> Tokenizer:
    """Load the tokenizer of a folder in a process of its own; raise ModelUnhealthyError if it is damaged.

    `name` is the model's.
    """
    # Its warnings are about uses that mlxk2 does not have.
    logging.getLogger("transformers").setLevel(logging.ERROR)
    # mlx-lm has defaults for models of some kinds that came without settings of their tokenizer. If the architecture
    # can't be imported, the loading of the weights says so.
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
    return Tokenizer(pool, pool.open(cancelled), partial(explain_damage, name, folder))


def explain_damage(name: str, folder: Path, reason: str) -> ModelUnhealthyError:
    """Return the error for a model's tokenizer that can't be loaded or fails, with the command that repairs it.

    The model is one of the cache if its folder is where the cache has that model.
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
    reason = " ".join(reason.replace(str(folder), folder.name).split())
    if "tiktoken" in reason:
        # transformers takes a damaged file of sentencepiece for one of tiktoken, and then asks for tiktoken.
        with suppress(OSError):
            begin = (folder / "tokenizer.model").read_bytes()[:_FIRST_BYTES]
            if not (folder / "tokenizer.json").exists() and not compatibility.is_tiktoken(begin):
                raise explain_damage(name, folder, "tokenizer.model is no file of sentencepiece's")
    if "needs_code" in head:
        raise ModelNotRunnableError(f"The model's tokenizer needs code of its own, which is never executed: {reason}")
    if "missing" in head:
        raise ModelNotRunnableError(f"The model's tokenizer needs what is not installed here: {reason}")
    raise explain_damage(name, folder, reason)


def token_ids(named: object) -> list[int]:
    """Return the token ids that a config names, one or several."""
    return [token for token in (named if isinstance(named, list) else [named]) if type(token) is int]


def _options(folder: Path) -> dict[str, Any]:
    """Return how to load the tokenizer: without code of the model, and without what only another mlx-lm has."""
    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    settings: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        found = json.loads((folder / "tokenizer_config.json").read_bytes())
        settings = found if isinstance(found, dict) else {}
    if "auto_map" in settings and any((folder / name).is_file() for name in _READ_BY_GENERIC):
        options["tokenizer_type"] = _GENERIC_TOKENIZER
    if mlx_lm := compatibility.installation():
        # The model's own template is used, and tools are not called.
        known = {"chat_template_type": mlx_lm.chat_templates, "tool_parser_type": mlx_lm.tool_parsers}
        options |= {key: None for key, names in known.items() if str(settings.get(key)) not in names}
    return options
