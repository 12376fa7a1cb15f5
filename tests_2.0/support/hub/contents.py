"""What the hub has: repos, their branches and commits, and who may see them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

LFS_SUFFIXES = (".safetensors", ".gguf", ".bin", ".model", ".tiktoken", "tokenizer.json")
LFS_SIZE = 10_000_000

Files = Mapping[str, "Blob"]


@dataclass(frozen=True)
class Blob:
    """The bytes of a file; those of a large file are kept apart, under their SHA-256."""

    data: bytes
    is_lfs: bool = False
    xet_hash: str | None = None
    claimed_size: int | None = None

    @property
    def size(self) -> int:
        """The size that the hub tells; it may lie."""
        return len(self.data) if self.claimed_size is None else self.claimed_size

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def oid(self) -> str:
        """The name git gives to the file; of a large one, to the pointer that stands for it."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.data)}\n"
        text = pointer.encode() if self.is_lfs else self.data
        return hashlib.sha1(f"blob {len(text)}\0".encode() + text).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.oid


@dataclass(frozen=True)
class Commit:
    """All files of a repo at one time."""

    oid: str
    parent: str | None
    message: str
    files: Files


@dataclass
class Repo:
    """A repo; `readers` are the users who may read a private or gated one."""

    repo_id: str
    private: bool = False
    gated: bool = False
    readers: set[str] = field(default_factory=set)
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Files, branch: str, message: str) -> Commit:
        """Put a branch at a new commit with exactly these files."""
        parent = self.branches.get(branch)
        listing = "".join(f"{name} {blob.etag}\n" for name, blob in sorted(files.items()))
        text = f"{self.repo_id} {len(self.commits)} {parent} {message}\n{listing}"
        commit = Commit(hashlib.sha1(text.encode()).hexdigest(), parent, message, dict(files))
        self.commits[commit.oid] = commit
        self.branches[branch] = commit.oid
        return commit

    def find(self, revision: str) -> Commit | None:
        """The commit that a branch names or whose full hash this is, as on the real hub."""
        return self.commits.get(self.branches.get(revision, revision))

    def history(self, commit: Commit) -> Iterable[Commit]:
        """A commit and those before it."""
        here: Commit | None = commit
        while here is not None:
            yield here
            here = self.commits.get(here.parent or "")


@dataclass
class Contents:
    """Everything the hub knows. `tokens` maps a token to its user; `objects` are uploaded large files by SHA-256.

    `in_store` finds those that were uploaded to the store beside the hub. `ignore_rules` came along with uploads.
    `changed` is what a listing becomes before it is sent: a hub may lie.
    """

    repos: dict[str, Repo] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    ignore_rules: list[str | None] = field(default_factory=list)
    page_size: int = 1000
    changed: Callable[[list[dict[str, Any]]], list[dict[str, Any]]] = lambda listing: listing
    in_store: Callable[[str], Blob | None] = lambda _: None

    def object(self, sha256: str) -> bytes | None:
        """The bytes of a large file."""
        if sha256 in self.objects:
            return self.objects[sha256]
        blobs = (b for repo in self.repos.values() for c in repo.commits.values() for b in c.files.values())
        found = next((blob.data for blob in blobs if blob.is_lfs and blob.sha256 == sha256), None)
        if found is not None:
            self.objects[sha256] = found
        return found


def is_large(name: str, data: bytes) -> bool:
    """Whether a file is kept apart from git, as the real hub would."""
    return name.endswith(LFS_SUFFIXES) or len(data) > LFS_SIZE
