"""The files of one snapshot, each read at most once, however many questions are asked of it."""

from __future__ import annotations

import os
import re
from codecs import BOM_UTF8
from collections.abc import Iterable
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from mlxk2.checkpoint import json_text, litter, safetensors
from mlxk2.checkpoint.files import BrokenFile, File, Tree, read, read_whole
from mlxk2.names import INCOMPLETE

if TYPE_CHECKING:
    from mlxk2.checkpoint.card import Card

MAX_TOKENIZER_CONFIG_BYTES = 1 << 24
MAX_SHARDS = 99_999  # their numbers have five digits
MAX_CARD_BYTES = 1 << 20
MAX_JSON_NESTING = 64
LFS_POINTER_START = b"version https://git-lfs"
MAX_LFS_POINTER_BYTES = 1024
IS_LFS_POINTER = "is a Git LFS pointer, not the file itself"
TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")

_MORE_TEMPLATES = "additional_chat_templates/"
# A text with a character that is no white space, or templates with names.
_TEMPLATE_KEY = re.compile(
    rb'"chat_template"\s*:\s*(?:"(?:\s|\\[nrt])*(?!\\[nrt])[^"\s]|\[\s*\{|\{\s*")'
)
_TEMPLATE_TYPE_KEY = re.compile(rb'"chat_template_type"\s*:\s*"')
MAX_BLANK_BYTES = 1024


class Snapshot(NamedTuple):
    """A model's files at one revision.

    `path` is the folder that holds them: of a model without any snapshot (`is_missing`) the model's own folder. Reading
    stays inside `roots`; None stands for no bounds, in a folder that the user named by path. A `problem` is why the
    operating system does not let the user see which snapshots there are.
    """

    name: str
    commit: str | None
    path: str
    roots: tuple[str, ...] | None
    is_missing: bool = False
    problem: str | None = None


class Contents:
    """A snapshot's files without litter, or those of them that are given, and what stands in them."""

    def __init__(self, snapshot: Snapshot, files: Iterable[File] | None = None) -> None:
        self.snapshot = snapshot
        self._tree = Tree(snapshot.roots)
        self.is_inside = self._tree.contains(snapshot.path)
        if files is None:
            # In a folder of the user's, a secret or a lock file is as little the model's as for a push.
            leaves_out = litter.stays_at_home if snapshot.roots is None else litter.is_litter
            files = [] if snapshot.is_missing else self._tree.files(snapshot.path, leaves_out)
        self.files = tuple(file for file in files if not litter.is_litter(file.name))
        self._by_name = {file.name: file for file in self.files}
        self._shards: dict[str, list[str]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def file(self, name: str) -> File | None:
        """The file of this name, relative to the snapshot."""
        return self._by_name.get(name)

    def file_of(self, problem: str) -> File | None:
        """Return the file that a problem is about: its text begins or ends with the file's name."""
        named = [file for file in self.files if problem.startswith(f"{file.name} ")]
        named += [file for file in self.files if problem.endswith(f": {file.name}")]
        return max(named, key=lambda file: len(file.name), default=None)

    def is_unchanged_since(self, other: Contents) -> bool:
        """Whether an earlier look found the same files in the same places."""
        return self.snapshot == other.snapshot and _marks(self.files) == _marks(other.files)

    def named(self, *suffixes: str) -> list[File]:
        """The files whose names end in one of these, by name."""
        return [file for file in self.files if file.name.endswith(suffixes)]

    def json(self, name: str) -> dict[str, Any]:
        """The JSON object in a file; BrokenFile when there is no file or no object in it."""
        file = self._by_name.get(name)
        if file is None:
            raise BrokenFile(f"{name} is missing")
        limit = json_text.INDEX if name.endswith(".index.json") else json_text.CONFIG
        text = read_whole(file, limit.bytes)
        if is_lfs_pointer(text):
            raise BrokenFile(f"{name} {IS_LFS_POINTER}")
        value = json_text.parse(name, text, limit, encoding="utf-8-sig", parse_float=json_text.finite)
        if not isinstance(value, dict) or not value:
            raise BrokenFile(f"{name} is not a JSON object with content")
        return value

    def shards_of(self, index: str) -> list[str]:
        """Return the names in an index's `weight_map`, sorted; BrokenFile when the index has none."""
        if index not in self._shards:
            weight_map = self.json(index).get("weight_map")
            if not isinstance(weight_map, dict) or not weight_map:
                raise BrokenFile(f"{index} has no weight_map")
            shards = set(map(str, weight_map.values()))
            if len(shards) > MAX_SHARDS:
                raise BrokenFile(f"{index} names too many files ({len(shards):,}, at most {MAX_SHARDS:,})")
            self._shards[index] = sorted(shards)
        return self._shards[index]

    @property
    def has_chat_template(self) -> bool:
        """Whether the model has a chat template: one that comes with it, or one of mlx-lm's, by name."""
        return self.has_own_template or self.names_template_type

    @cached_property
    def names_template_type(self) -> bool:
        """Whether the tokenizer's config names a chat template that is part of mlx-lm."""
        file = self.file("tokenizer_config.json")
        return file is not None and _has_key(_TEMPLATE_TYPE_KEY, file)

    @cached_property
    def has_own_template(self) -> bool:
        """Whether a chat template comes with the model, in a file of its own or in the tokenizer's config."""
        more = (file for file in self.named(".jinja") if file.name.startswith(_MORE_TEMPLATES))
        if any(map(_has_text, (*filter(None, [self.file(TEMPLATE_FILES[0])]), *more))):
            return True
        files = filter(None, map(self.file, ("tokenizer_config.json", TEMPLATE_FILES[1])))
        # The key is looked for in the text: such a file can have megabytes of tokens besides.
        return any(_has_key(_TEMPLATE_KEY, file) for file in files)

    @cached_property
    def config(self) -> dict[str, Any] | BrokenFile:
        """What stands in config.json, or why that can't be said."""
        try:
            config = self.json("config.json")
        except BrokenFile as error:
            return BrokenFile(str(error))  # without the traceback, which would keep the text that was read
        # A config is printed by `show`, and JSON encoders recurse.
        return BrokenFile("config.json is nested too deeply") if _is_too_deep(config) else config

    @property
    def has_marked_config(self) -> bool:
        """Whether config.json begins with a byte order mark, which only some programs read over."""
        file = self._by_name.get("config.json")
        return file is not None and not file.problem and read(file, len(BOM_UTF8)) == BOM_UTF8

    @property
    def config_or_empty(self) -> dict[str, Any]:
        """What stands in config.json; nothing where it can't be read."""
        return self.config if isinstance(self.config, dict) else {}

    def card(self, *words: str) -> Card | None:
        """The model card, if one of these words stands in it, else None."""
        # Importing a YAML parser takes longer than all the rest: most cards have nothing to say that matters here.
        return self._card if any(word in self._card_text for word in words) else None

    @cached_property
    def _card(self) -> Card:
        card: Card = import_module("mlxk2.checkpoint.card").parse(self._card_text)
        return card

    @cached_property
    def _card_text(self) -> str:
        file = self._by_name.get("README.md")
        try:
            return read(file, MAX_CARD_BYTES).decode("utf-8", "replace") if file else ""
        except BrokenFile:
            return ""

    @cached_property
    def safetensors(self) -> dict[str, dict[str, str] | BrokenFile]:
        """Of every safetensors file what its metadata says of its format, or what is wrong with it, by name."""
        return {file.name: _safetensors_metadata(file) for file in self.named(".safetensors")}

    @cached_property
    def lfs_pointers(self) -> set[str]:
        """The names of the files that are only Git LFS pointers to their content."""
        small = (file for file in self.files if file.size <= MAX_LFS_POINTER_BYTES and not file.problem)
        return {file.name for file in small if is_lfs_pointer(read(file, MAX_LFS_POINTER_BYTES))}

    @property
    def size_bytes(self) -> int:
        """Bytes of all files, each blob counted once; without a snapshot, of what a download left."""
        files = self._remains() if self.snapshot.is_missing else self.files
        return sum({file.identity: file.size for file in files}.values())

    def _remains(self) -> Iterable[File]:
        hub, *_ = self.snapshot.roots or (self.snapshot.path,)
        if self.snapshot.path.startswith(os.path.join(hub, "")):
            return self._tree.files(self.snapshot.path)
        # Only where downloads write: a folder that is a link may lead anywhere, to the root of a disk for one.
        folders = (os.path.join(self.snapshot.path, name) for name in ("blobs", "refs", "snapshots", INCOMPLETE))
        return (file for folder in folders for file in self._tree.files(folder))


def _has_text(file: File) -> bool:
    """Whether there is more in a file than white space, as far as it can be read."""
    try:
        return file.size > MAX_BLANK_BYTES or bool(read(file, MAX_BLANK_BYTES).strip())
    except BrokenFile:
        return False


def _has_key(key: re.Pattern[bytes], file: File) -> bool:
    try:
        return bool(key.search(read_whole(file, MAX_TOKENIZER_CONFIG_BYTES)))
    except BrokenFile:
        return False


def _marks(files: Iterable[File]) -> list[tuple[str, str, int, tuple[int, int], str | None]]:
    return [(file.name, file.path, file.size, file.identity, file.problem) for file in files]


def is_lfs_pointer(text: bytes) -> bool:
    """Whether these bytes are a Git LFS pointer, which stands for a large file that was not fetched."""
    return len(text) <= MAX_LFS_POINTER_BYTES and text.startswith(LFS_POINTER_START)


def _safetensors_metadata(file: File) -> dict[str, str] | BrokenFile:
    try:
        metadata = safetensors.read_metadata(file)
    except BrokenFile as error:
        return BrokenFile(str(error))  # without the traceback, which would keep the header
    return {"format": metadata["format"]} if "format" in metadata else {}


def _is_too_deep(value: object) -> bool:
    level = [value]
    for _ in range(MAX_JSON_NESTING):
        level = [child for parent in level for child in _children(parent)]
    return bool(level)


def _children(value: object) -> list[object]:
    if isinstance(value, dict):
        return list(value.values())
    return list(value) if isinstance(value, list) else []
