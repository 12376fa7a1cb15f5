"""What is on the hub: repos, their branches and commits, and the users who may read them."""

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
    """The bytes of a file; a large file is stored separately, under its SHA-256."""

    data: bytes
    is_lfs: bool = False
    xet_hash: str | None = None
    claimed_size: int | None = None

    @property
    def size(self) -> int:
        """Return the size that the hub reports; a test may have falsified it."""
        return len(self.data) if self.claimed_size is None else self.claimed_size

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def oid(self) -> str:
        """Return git's hash of the file, or of the LFS pointer if the file is large."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.data)}\n"
        text = pointer.encode() if self.is_lfs else self.data
        return hashlib.sha1(f"blob {len(text)}\0".encode() + text).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.oid


@dataclass(frozen=True)
class Commit:
    """All files of a repo at one commit."""

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
        """Move a branch to a new commit with exactly these files."""
        parent = self.branches.get(branch)
        listing = "".join(f"{name} {blob.etag}\n" for name, blob in sorted(files.items()))
        text = f"{self.repo_id} {len(self.commits)} {parent} {message}\n{listing}"
        commit = Commit(hashlib.sha1(text.encode()).hexdigest(), parent, message, dict(files))
        self.commits[commit.oid] = commit
        self.branches[branch] = commit.oid
        return commit

    def find(self, revision: str) -> Commit | None:
        """Return the commit of a branch or of a full hash, as the real hub does; None if there is none."""
        return self.commits.get(self.branches.get(revision, revision))

    def history(self, commit: Commit) -> Iterable[Commit]:
        """Yield a commit and its ancestors, newest first."""
        here: Commit | None = commit
        while here is not None:
            yield here
            here = self.commits.get(here.parent or "")


@dataclass
class Hub:
    """Everything on the hub. `tokens` maps a token to its user; `objects` are uploaded large files by SHA-256.

    `in_store` finds files that were uploaded to the Xet store. `ignore_rules` are those that uploads contained.
    `changed` edits a listing before it is sent, so that a test can make the hub lie.
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
        """Return the bytes of a large file; None if the hub does not have it."""
        if sha256 in self.objects:
            return self.objects[sha256]
        blobs = (b for repo in self.repos.values() for c in repo.commits.values() for b in c.files.values())
        found = next((blob.data for blob in blobs if blob.is_lfs and blob.sha256 == sha256), None)
        if found is not None:
            self.objects[sha256] = found
        return found


def is_large(name: str, data: bytes) -> bool:
    """Return whether the hub stores a file outside git, by the real hub's rule."""
    return name.endswith(LFS_SUFFIXES) or len(data) > LFS_SIZE
