"""The files of one revision in the cache, or of a user's folder, and their content."""

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
MAX_SHARDS = 99_999  # The names of shards have five digits.
MAX_CARD_BYTES = 1 << 20
MAX_JSON_NESTING = 64
MAX_BLANK_BYTES = 1024
LFS_POINTER_START = b"version https://git-lfs"
MAX_LFS_POINTER_BYTES = 1024
IS_LFS_POINTER = "is a Git LFS pointer, not the file itself"
TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")

_MORE_TEMPLATES = "additional_chat_templates/"
# The value is a text with at least one character that is not white space, or a list or object of named templates.
_TEMPLATE_KEY = re.compile(rb'"chat_template"\s*:\s*(?:"(?:\s|\\[nrt])*(?!\\[nrt])[^"\s]|\[\s*\{|\{\s*")')
_TEMPLATE_TYPE_KEY = re.compile(rb'"chat_template_type"\s*:\s*"')


class Snapshot:
    """The files of a model at one revision, without litter. Each file is read at most once.

    `path` is the folder of the files; if the model has no snapshot (`is_missing`), it is the model's own folder.
    Reading stays inside `roots`; None means a folder that the user named by path, without such bounds. `problem` says
    why the operating system does not let the user list the snapshots. If `files` is given, the disk is not searched for
    them.
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

    def reset(self, files: Iterable[File] | None = None) -> Snapshot:
        """Return the same snapshot with nothing read yet; its files are `files`, or are searched on the disk again."""
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
        """Everything that identifies the snapshot, except its files."""
        return self.name, self.commit, self.path, self.roots, self.is_missing, self.problem

    def is_unchanged_since(self, other: Snapshot) -> bool:
        """Return whether an earlier search found the same files in the same places."""
        return self.key == other.key and _marks(self.files) == _marks(other.files)

    @cached_property
    def is_inside(self) -> bool:
        """Whether the folder lies inside the roots after all links are followed."""
        return self._tree.contains(self.path)

    @cached_property
    def files(self) -> tuple[File, ...]:
        """The files, sorted by name."""
        # In a user's folder, a secret or a lock file is not part of the model.
        leaves_out = litter.is_private if self.roots is None else litter.is_litter
        return () if self.is_missing else tuple(self._tree.files(self.path, leaves_out))

    @cached_property
    def _by_name(self) -> dict[str, File]:
        return {file.name: file for file in self.files}

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def file(self, name: str) -> File | None:
        """Return the file with this name, relative to the snapshot, or None."""
        return self._by_name.get(name)

    def files_ending(self, *suffixes: str) -> list[File]:
        """Return the files whose names end in one of these suffixes, sorted by name."""
        return [file for file in self.files if file.name.endswith(suffixes)]

    @property
    def size_bytes(self) -> int:
        """Bytes of all files, each blob counted once; without a snapshot, bytes of the files that a download left."""
        files: Iterable[File] = self.files
        if self.is_missing:
            cache_dir, *_ = self.roots or (self.path,)
            folders = [self.path]
            if not self.path.startswith(os.path.join(cache_dir, "")):
                # The model's folder is a link and can lead anywhere, also to the root of a disk. Count only the folders
                # into which downloads write.
                folders = [os.path.join(self.path, name) for name in ("blobs", "refs", "snapshots", INCOMPLETE)]
            files = (file for folder in folders for file in self._tree.files(folder))
        return sum({file.identity: file.size for file in files}.values())

    def json(self, name: str) -> dict[str, Any]:
        """Return the JSON object in a file; raise BrokenFile when the file is missing or holds no object."""
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
        """Return the file names in an index's `weight_map`, sorted; raise BrokenFile when the index has no such map."""
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
        """The object in config.json, or the error if it can't be read."""
        try:
            config = self.json("config.json")
        except BrokenFile as error:
            return error.without_traceback()
        level: list[object] = [config]
        for _ in range(MAX_JSON_NESTING):
            containers = [value for value in level if isinstance(value, dict | list)]
            level = [child for value in containers for child in (value.values() if isinstance(value, dict) else value)]
        # `show` prints the config, and JSON encoders fail on deep nesting because they recurse.
        return BrokenFile("config.json", "is nested too deeply") if level else config

    @property
    def config_or_empty(self) -> dict[str, Any]:
        """The object in config.json, or an empty one if it can't be read."""
        return self.config if isinstance(self.config, dict) else {}

    @property
    def has_marked_config(self) -> bool:
        """Whether config.json begins with a byte order mark, which some programs can't read."""
        file = self.file("config.json")
        return file is not None and not file.problem and read(file, len(BOM_UTF8)) == BOM_UTF8

    @property
    def has_chat_template(self) -> bool:
        """Whether the model has a chat template: in its own files, or as the name of a template in mlx-lm."""
        return self.has_own_template or self.names_template_type

    @cached_property
    def names_template_type(self) -> bool:
        """Whether the tokenizer's config names a chat template of mlx-lm."""
        file = self.file("tokenizer_config.json")
        return file is not None and _has_key(_TEMPLATE_TYPE_KEY, file)

    @cached_property
    def has_own_template(self) -> bool:
        """Whether the model's files have a chat template, in a separate file or in the tokenizer's config."""
        more = (file for file in self.files_ending(".jinja") if file.name.startswith(_MORE_TEMPLATES))
        for file in (*filter(None, [self.file(TEMPLATE_FILES[0])]), *more):
            with suppress(BrokenFile):
                if file.size > MAX_BLANK_BYTES or read(file, MAX_BLANK_BYTES).strip():
                    return True
        files = filter(None, map(self.file, ("tokenizer_config.json", TEMPLATE_FILES[1])))
        # Search the text for the key instead of parsing it: such a file can have megabytes of tokens.
        return any(_has_key(_TEMPLATE_KEY, file) for file in files)

    def card(self, *words: str) -> Card | None:
        """Return the model card if its text contains one of these words, else None."""
        if not any(word in self._card_text for word in words):
            return None
        if self._card is None:
            # Most cards contain none of the words, so most listings never import the parser.
            from mlxk2.checkpoint.card import parse  # noqa: PLC0415 - a YAML parser is the slowest import of `list`

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
        """For each safetensors file by name: the format in its metadata, or the error if the file is not complete."""
        found: dict[str, str | BrokenFile | None] = {}
        for file in self.files_ending(".safetensors"):
            try:
                found[file.name] = safetensors.read_metadata(file).get("format")
            except BrokenFile as error:
                found[file.name] = error.without_traceback()
        return found

    @cached_property
    def lfs_pointers(self) -> set[str]:
        """The names of the files that are Git LFS pointers instead of content."""
        small = (file for file in self.files if file.size <= MAX_LFS_POINTER_BYTES and not file.problem)
        return {file.name for file in small if is_lfs_pointer(read(file, MAX_LFS_POINTER_BYTES))}


def is_lfs_pointer(text: bytes) -> bool:
    """Return whether these bytes are a Git LFS pointer, which takes the place of a large file that was not fetched."""
    return len(text) <= MAX_LFS_POINTER_BYTES and text.startswith(LFS_POINTER_START)


def _has_key(key: re.Pattern[bytes], file: File) -> bool:
    try:
        return bool(key.search(read_whole(file, MAX_TOKENIZER_CONFIG_BYTES)))
    except BrokenFile:
        return False


def _marks(files: Iterable[File]) -> list[tuple[str, str, int, tuple[int, int], str | None]]:
    return [(file.name, file.path, file.size, file.identity, file.problem) for file in files]
