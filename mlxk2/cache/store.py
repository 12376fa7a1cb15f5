"""List the models of a Hugging Face cache, and find the model that a name means.

Layout of the cache folder: `models--org--name/{refs/<ref>, blobs/<etag>, snapshots/<commit>/…}`. A snapshot's files are
links into the model's `blobs/`. A blob can itself be a link into the cache folder's `blobs/`, which all repos share.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from mlxk2 import names
from mlxk2.cache import refs
from mlxk2.checkpoint.files import Tree
from mlxk2.checkpoint.snapshot import Snapshot
from mlxk2.errors import AmbiguousMatchError, HashNotFoundError, ModelNotFoundError, OperationError, cause
from mlxk2.names import Demo, Folder, ModelRef, Repo

DEMO_FOLDER = os.path.join(os.path.dirname(os.path.dirname(__file__)), "demo")
MIN_HASH_LENGTH = 3
NO_CACHE = "The cache folder does not exist. If it is on another disk, connect that disk."

_COMMIT = re.compile(r"[A-Za-z0-9]{40}")


class CachedModel(NamedTuple):
    """One `models--…` folder of the cache; both paths are real paths."""

    name: str
    path: str
    cache_dir: str

    def revisions(self) -> list[str]:
        """Return the folders under `snapshots/`, newest first; raise OperationError when they can't be read."""
        try:
            return self._revisions()
        except OSError as error:
            raise OperationError(f"{self.name} can't be read: {_problem_of_snapshots(error)}.") from error

    def _revisions(self) -> list[str]:
        folder = os.path.join(self.path, "snapshots")
        if not Tree(self._roots).contains(folder):
            return []
        try:
            entries = [entry for entry in os.scandir(folder) if _is_folder(entry)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [entry.name for entry in sorted(entries, key=lambda entry: (-_changed_ns(entry), entry.name))]

    def snapshot(self) -> Snapshot:
        """Return the snapshot that `refs/main` names, or else the newest one.

        If the snapshots can't be read, return a snapshot with a `problem`. Raise ModelNotFoundError when the model is
        no longer in the cache.
        """
        tree = Tree(self._roots)
        try:
            os.lstat(self.path)
            revisions = self._revisions()
            problem = refs.find_refusal(self.path, "main", tree) if revisions else None
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ModelNotFoundError(f"{self.name} is no longer in the cache.") from error
        except OSError as error:
            problem = _problem_of_snapshots(error)
        if problem:
            return Snapshot(self.name, None, self.path, self._roots, is_missing=True, problem=problem)
        if not revisions:
            return Snapshot(self.name, None, self.path, self._roots, is_missing=True)
        main = refs.commit_of(self.path, "main", tree)
        return self._at(main if main in revisions else revisions[0])

    def snapshot_at(self, revision: str) -> Snapshot:
        """Return the snapshot of a ref, or of the only commit that begins with `revision`.

        Raise HashNotFoundError when no commit matches, and AmbiguousMatchError when several do.
        """
        revisions = self.revisions()
        if (commit := refs.commit_of(self.path, revision, Tree(self._roots))) in revisions:
            return self._at(commit)
        matches = [r for r in revisions if r.startswith(revision)] if len(revision) >= MIN_HASH_LENGTH else []
        if not matches:
            if problem := refs.find_refusal(self.path, revision, Tree(self._roots)):
                raise OperationError(f"{self.name} can't be read: {problem}.")
            command = names.pull_command(self.name, revision)
            raise HashNotFoundError(
                f"{self.name} has no revision {revision!r} in the cache "
                f"(a branch, or at least {MIN_HASH_LENGTH} characters of a hash).",
                available_hashes=revisions,
                hint=command and f"If the hub has it: {command}",
            )
        if len(matches) > 1:
            raise AmbiguousMatchError(
                f"{self.name} has several revisions that begin with {revision!r}; write more of the hash.",
                matches=[f"{self.name}@{match}" for match in matches],
            )
        return self._at(matches[0])

    def _at(self, revision: str) -> Snapshot:
        commit = revision if _COMMIT.fullmatch(revision) else None
        return Snapshot(self.name, commit, os.path.join(self.path, "snapshots", revision), self._roots)

    @property
    def _roots(self) -> tuple[str, str]:
        # The user can replace a model's folder by a link, for instance to another disk.
        return (self.cache_dir, self.path)


class Cache:
    """A Hugging Face cache; `path` is the real path of its folder, the `cache_dir` of huggingface_hub."""

    def __init__(self, cache_dir: str | os.PathLike[str]) -> None:
        self.path = os.path.realpath(cache_dir)

    @property
    def is_missing(self) -> bool:
        """Whether the folder is missing, because nothing was downloaded yet or its disk is not connected."""
        return not os.path.lexists(self.path)

    def scan(self) -> list[CachedModel]:
        """Return all models of the cache, sorted by name, without datasets, spaces and the shared blobs."""
        try:
            entries = list(os.scandir(self.path))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise OperationError(f"The cache folder can't be read: {cause(error)}.") from error
        return sorted(
            (
                CachedModel(
                    names.repo_id_of(entry.name),
                    os.path.realpath(entry.path) if entry.is_symlink() else entry.path,
                    self.path,
                )
                for entry in entries
                if entry.name.startswith(names.FOLDER_PREFIX) and _is_folder(entry) and not _is_removed(entry.path)
            ),
            key=lambda model: (model.name, model.path),
        )

    def resolve(self, ref: ModelRef) -> Snapshot:
        """Return the snapshot that a model argument names; raise NotFoundError when it does not exist."""
        match ref:
            case Demo(name):
                return Snapshot(name, None, DEMO_FOLDER, roots=None)
            case Folder(path):
                return folder_snapshot(path)
            case Repo(name, revision):
                model = self.find(name, revision)
                return model.snapshot() if revision is None else model.snapshot_at(revision)

    def find(self, name: str, revision: str | None = None) -> CachedModel:
        """Return the model that a name means: first in the default org, then with exactly this name, then by substring.

        Raise ModelNotFoundError or AmbiguousMatchError. `revision` is used only in the hint about how to download it.
        """
        matches = self.find_matches(name)
        if not matches:
            command = names.pull_command(names.candidates(name)[0], revision)
            download = f" To download it: {command}" if command else ""
            raise ModelNotFoundError(
                f"Model {name!r} is not in the cache.{download}",
                hint=NO_CACHE if self.is_missing else "`mlxk2 list --all` shows what is in the cache.",
            )
        if len(matches) > 1:
            raise AmbiguousMatchError(
                f"{len(matches)} models match {name!r}; name one of them in full.",
                matches=[model.name for model in matches],
            )
        return matches[0]

    def find_matches(self, name: str) -> list[CachedModel]:
        """Return the models that a name can mean, sorted by name; several when the name is ambiguous."""
        models = self.scan()
        for candidate in names.candidates(name):
            if found := [model for model in models if model.name == candidate]:
                return found[:1]
        return [model for model in models if name.lower() in model.name.lower()]


def _problem_of_snapshots(error: OSError) -> str:
    return f"its snapshots can't be read ({cause(error)})"


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder, or can't be examined because of the operating system's permissions."""
    try:
        return entry.is_dir()
    except OSError as error:
        return error.errno not in (errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG)


def _changed_ns(entry: os.DirEntry[str]) -> int:
    """Return the time of a folder's last change, or 0 if it can't be read."""
    try:
        return entry.stat().st_mtime_ns
    except OSError:
        return 0


def _is_removed(folder: str) -> bool:
    return is_removed(lambda name: os.path.lexists(os.path.join(folder, name)))


def is_removed(has: Callable[[str], bool]) -> bool:
    """Return whether a removal on a full disk hid all snapshots of a model and was then killed.

    `has` returns whether the model's folder has an entry of this name; a dangling link counts too.
    """
    return has(names.REMOVED) and not has("snapshots")


def folder_snapshot(path: str) -> Snapshot:
    """Return the model in a user's folder; raise ModelNotFoundError when the folder does not exist."""
    if "\0" in path or not os.path.isdir(path):
        raise ModelNotFoundError(f"There is no folder {path!r}.")
    name = names.readable(os.path.basename(os.path.abspath(path))) or path
    return Snapshot(name, None, path, roots=None)


def find_cache_dir(environment: Mapping[str, str]) -> str:
    """Return the path of the cache folder from the variables of huggingface_hub, in the same order of precedence."""
    if named := environment.get("HF_HUB_CACHE") or environment.get("HUGGINGFACE_HUB_CACHE"):
        return _expand(named)
    cache_home = environment.get("XDG_CACHE_HOME") or "~/.cache"
    return _expand(os.path.join(environment.get("HF_HOME") or os.path.join(cache_home, "huggingface"), "hub"))


def describe_missing_cache(environment: Mapping[str, str]) -> str | None:
    """Return a warning when the cache folder that the user's variables name is missing, or None.

    If the default folder is missing, nothing was downloaded yet, and that needs no warning.
    """
    named = [name for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME") if environment.get(name)]
    cache = Cache(find_cache_dir(environment))
    return f"{NO_CACHE} ({named[0]} leads to {cache.path})" if named and cache.is_missing else None


def _expand(path: str) -> str:
    return os.path.expandvars(os.path.expanduser(path))
