"""One revision's files in the cache, or those of a user's folder, and what stands in them."""

from __future__ import annotations

import os
import re
from codecs import BOM_UTF8
from collections.abc import Iterable
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mlxk2.checkpoint import litter, safetensors
from mlxk2.checkpoint.files import (
    CONFIG_LIMIT,
    INDEX_LIMIT,
    BrokenFile,
    File,
    Tree,
    finite,
    parse_json,
    read,
    read_whole,
)
from mlxk2.names import INCOMPLETE

if TYPE_CHECKING:
    from mlxk2.checkpoint.card import Card

MAX_TOKENIZER_CONFIG_BYTES = 1 << 24
MAX_SHARDS = 99_999  # Their numbers have five digits.
MAX_CARD_BYTES = 1 << 20
MAX_JSON_NESTING = 64
MAX_BLANK_BYTES = 1024
LFS_POINTER_START = b"version https://git-lfs"
MAX_LFS_POINTER_BYTES = 1024
IS_LFS_POINTER = "is a Git LFS pointer, not the file itself"
TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")

_MORE_TEMPLATES = "additional_chat_templates/"
# The value is a text with a character that is no white space, or templates with names.
_TEMPLATE_KEY = re.compile(rb'"chat_template"\s*:\s*(?:"(?:\s|\\[nrt])*(?!\\[nrt])[^"\s]|\[\s*\{|\{\s*")')
_TEMPLATE_TYPE_KEY = re.compile(rb'"chat_template_type"\s*:\s*"')


class Snapshot:
    """A model's files at one revision, without litter; each is read at most once, however often it is asked for.

    `path` is the folder that holds the files; of a model without any snapshot (`is_missing`), the model's own folder.
    Reading stays inside `roots`; None means no bounds, in a folder that the user named by path. `problem` is why the
    operating system does not let the user see which snapshots there are. `files` takes the place of a look at the disk.
    """

    def __init__(
        self,
        name: str,
        commit: str | None,
        path: str,
        roots: tuple[str, ...] | None,
        *,
        is_missing: bool = False,
        problem: str | None = None,
        files: Iterable[File] | None = None,
    ) -> None:
        self.name = name
        self.commit = commit
        self.path = path
        self.roots = roots
        self.is_missing = is_missing
        self.problem = problem
        self._tree = Tree(roots)
        self._shards: dict[str, list[str]] = {}
        self._card: Card | None = None
        if files is not None:
            self.files = tuple(file for file in files if not litter.is_litter(file.name))

    def unread(self, files: Iterable[File] | None = None) -> Snapshot:
        """Return the same snapshot with nothing read, and with these files, or else those that the next look finds."""
        return Snapshot(
            self.name,
            self.commit,
            self.path,
            self.roots,
            is_missing=self.is_missing,
            problem=self.problem,
            files=files,
        )

    @property
    def key(self) -> tuple[str, str | None, str, tuple[str, ...] | None, bool, str | None]:
        """What two looks at one snapshot have in common, whatever files they found."""
        return self.name, self.commit, self.path, self.roots, self.is_missing, self.problem

    def is_unchanged_since(self, other: Snapshot) -> bool:
        """Return whether an earlier look found the same files in the same places."""
        return self.key == other.key and _marks(self.files) == _marks(other.files)

    @cached_property
    def is_inside(self) -> bool:
        """Whether the folder, all links followed, lies inside the roots."""
        return self._tree.contains(self.path)

    @cached_property
    def files(self) -> tuple[File, ...]:
        """The files, by name."""
        # In a folder of the user's, a secret or a lock file is no part of the model.
        leaves_out = litter.is_private if self.roots is None else litter.is_litter
        return () if self.is_missing else tuple(self._tree.files(self.path, leaves_out))

    @cached_property
    def _by_name(self) -> dict[str, File]:
        return {file.name: file for file in self.files}

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def file(self, name: str) -> File | None:
        """Return the file of this name, relative to the snapshot, or None."""
        return self._by_name.get(name)

    def named(self, *suffixes: str) -> list[File]:
        """Return the files whose names end in one of these, by name."""
        return [file for file in self.files if file.name.endswith(suffixes)]

    @property
    def size_bytes(self) -> int:
        """Bytes of all files, each blob counted once; without a snapshot, of what a download left."""
        files: Iterable[File] = self.files
        if self.is_missing:
            cache_dir, *_ = self.roots or (self.path,)
            folders = [self.path]
            if not self.path.startswith(os.path.join(cache_dir, "")):
                # Only where downloads write: a folder that is a link may lead anywhere, also to the root of a disk.
                folders = [os.path.join(self.path, name) for name in ("blobs", "refs", "snapshots", INCOMPLETE)]
            files = (file for folder in folders for file in self._tree.files(folder))
        return sum({file.identity: file.size for file in files}.values())

    def json(self, name: str) -> dict[str, Any]:
        """Return the JSON object in a file; raise BrokenFile when there is no file or no object in it."""
        file = self.file(name)
        if file is None:
            raise BrokenFile(name, "is missing")
        limit = INDEX_LIMIT if name.endswith(".index.json") else CONFIG_LIMIT
        text = read_whole(file, limit.bytes)
        if is_lfs_pointer(text):
            raise BrokenFile(name, IS_LFS_POINTER)
        value = parse_json(name, text, limit, encoding="utf-8-sig", parse_float=finite)
        if not isinstance(value, dict) or not value:
            raise BrokenFile(name, "is not a JSON object with content")
        return value

    def shards_of(self, index: str) -> list[str]:
        """Return the names in an index's `weight_map`, sorted; raise BrokenFile when the index has none."""
        if index not in self._shards:
            weight_map = self.json(index).get("weight_map")
            if not isinstance(weight_map, dict) or not weight_map:
                raise BrokenFile(index, "has no weight_map")
            shards = set(map(str, weight_map.values()))
            if len(shards) > MAX_SHARDS:
                raise BrokenFile(index, f"names too many files ({len(shards):,}, at most {MAX_SHARDS:,})")
            self._shards[index] = sorted(shards)
        return self._shards[index]

    @cached_property
    def config(self) -> dict[str, Any] | BrokenFile:
        """The object in config.json, or why it can't be read."""
        try:
            config = self.json("config.json")
        except BrokenFile as error:
            return error.without_traceback()
        level: list[object] = [config]
        for _ in range(MAX_JSON_NESTING):
            containers = [value for value in level if isinstance(value, dict | list)]
            level = [child for value in containers for child in (value.values() if isinstance(value, dict) else value)]
        # `show` prints a config, and JSON encoders recurse.
        return BrokenFile("config.json", "is nested too deeply") if level else config

    @property
    def config_or_empty(self) -> dict[str, Any]:
        """The object in config.json; empty where it can't be read."""
        return self.config if isinstance(self.config, dict) else {}

    @property
    def has_marked_config(self) -> bool:
        """Whether config.json begins with a byte order mark, which only some programs skip."""
        file = self.file("config.json")
        return file is not None and not file.problem and read(file, len(BOM_UTF8)) == BOM_UTF8

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
        for file in (*filter(None, [self.file(TEMPLATE_FILES[0])]), *more):
            with suppress(BrokenFile):
                if file.size > MAX_BLANK_BYTES or read(file, MAX_BLANK_BYTES).strip():
                    return True
        files = filter(None, map(self.file, ("tokenizer_config.json", TEMPLATE_FILES[1])))
        # The key is looked for in the text: such a file can also have megabytes of tokens.
        return any(_has_key(_TEMPLATE_KEY, file) for file in files)

    def card(self, *words: str) -> Card | None:
        """Return the model card if one of these words stands in it, else None."""
        if not any(word in self._card_text for word in words):
            return None
        if self._card is None:
            # Most cards have none of the words.
            from mlxk2.checkpoint.card import parse  # noqa: PLC0415 - a YAML parser is slower to import than all else

            self._card = parse(self._card_text)
        return self._card

    @cached_property
    def _card_text(self) -> str:
        file = self.file("README.md")
        try:
            return read(file, MAX_CARD_BYTES).decode("utf-8", "replace") if file else ""
        except BrokenFile:
            return ""

    @cached_property
    def safetensors(self) -> dict[str, str | BrokenFile | None]:
        """The format that the metadata of each safetensors file names, or why the file is not complete, by name."""
        found: dict[str, str | BrokenFile | None] = {}
        for file in self.named(".safetensors"):
            try:
                found[file.name] = safetensors.read_metadata(file).get("format")
            except BrokenFile as error:
                found[file.name] = error.without_traceback()
        return found

    @cached_property
    def lfs_pointers(self) -> set[str]:
        """The names of the files that are only Git LFS pointers to their content."""
        small = (file for file in self.files if file.size <= MAX_LFS_POINTER_BYTES and not file.problem)
        return {file.name for file in small if is_lfs_pointer(read(file, MAX_LFS_POINTER_BYTES))}


def is_lfs_pointer(text: bytes) -> bool:
    """Return whether these bytes are a Git LFS pointer, which stands for a large file that was not fetched."""
    return len(text) <= MAX_LFS_POINTER_BYTES and text.startswith(LFS_POINTER_START)


def _has_key(key: re.Pattern[bytes], file: File) -> bool:
    try:
        return bool(key.search(read_whole(file, MAX_TOKENIZER_CONFIG_BYTES)))
    except BrokenFile:
        return False


def _marks(files: Iterable[File]) -> list[tuple[str, str, int, tuple[int, int], str | None]]:
    return [(file.name, file.path, file.size, file.identity, file.problem) for file in files]
