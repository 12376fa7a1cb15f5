"""The models of a Hugging Face cache: which there are, and which one a name means.

Layout: `hub/models--org--name/{refs/<ref>, blobs/<etag>, snapshots/<commit>/…}`; a snapshot's files are links into
`blobs/`, and a blob may itself be a link into the store `hub/blobs/` that all repos share.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from mlxk2.cache import naming, refs
from mlxk2.cache.files import Tree
from mlxk2.errors import AmbiguousMatchError, HashNotFoundError, ModelNotFoundError, OperationError

DEMO_FOLDER = os.path.join(os.path.dirname(os.path.dirname(__file__)), "demo")
MIN_HASH_LENGTH = 3

_COMMIT = re.compile(r"[A-Za-z0-9]{40}")


class Snapshot(NamedTuple):
    """A model's files at one revision.

    `path` is the folder that holds them: of a model without any snapshot (`is_missing`) the model's own folder. Reading
    stays inside `roots`; None stands for no bounds, in a folder that the user named by path.
    """

    name: str
    commit: str | None
    path: str
    roots: tuple[str, ...] | None
    is_missing: bool = False


class CachedModel(NamedTuple):
    """One `models--…` folder of the cache; both paths are real ones."""

    name: str
    path: str
    hub: str

    def revisions(self) -> list[str]:
        """The folders under `snapshots/`, newest first."""
        folder = os.path.join(self.path, "snapshots")
        if not Tree(self._roots).contains(folder):
            return []
        try:
            entries = [entry for entry in os.scandir(folder) if os.path.isdir(entry.path)]
            entries.sort(key=lambda entry: (-entry.stat().st_mtime_ns, entry.name))
        except OSError:
            return []  # without a snapshot that can be read a model has none: health says so
        return [entry.name for entry in entries]

    def ref(self, name: str) -> str | None:
        """The commit that a ref such as `main` names."""
        return refs.commit_of(name, self.path, Tree(self._roots))

    def snapshot(self) -> Snapshot:
        """The snapshot that `refs/main` names, else the newest."""
        revisions = self.revisions()
        if not revisions:
            return Snapshot(self.name, None, self.path, self._roots, is_missing=True)
        main = self.ref("main")
        return self._at(main if main in revisions else revisions[0])

    def snapshot_at(self, revision: str) -> Snapshot:
        """The snapshot at a ref, or at the only commit that begins with `revision`."""
        revisions = self.revisions()
        if (commit := self.ref(revision)) in revisions:
            return self._at(commit)
        matches = [r for r in revisions if r.startswith(revision)] if len(revision) >= MIN_HASH_LENGTH else []
        if not matches:
            raise HashNotFoundError(
                f"{self.name} has no revision {revision!r} in the cache "
                f"(a branch, or at least {MIN_HASH_LENGTH} characters of a hash).",
                available_hashes=revisions,
                hint=f"If the hub has it: mlxk2 pull {self.name}@{revision}",
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
        # A model's folder may be a link that its user laid, to another disk for instance.
        return (self.hub, self.path)


class Cache:
    """A Hugging Face hub folder."""

    def __init__(self, hub: str | os.PathLike[str]) -> None:
        self.hub = os.path.realpath(hub)

    def scan(self) -> list[CachedModel]:
        """All models of the cache, by name; datasets, spaces and the shared blobs are none."""
        try:
            entries = list(os.scandir(self.hub))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise OperationError(f"The cache folder can't be read: {error.strerror}.") from error
        return sorted(
            (
                CachedModel(naming.repo_id_of(entry.name), _real(entry), self.hub)
                for entry in entries
                if entry.name.startswith(naming.FOLDER_PREFIX) and os.path.isdir(entry.path)
            ),
            key=lambda model: (model.name, model.path),
        )

    def resolve(self, argument: str) -> Snapshot:
        """The snapshot that a model argument means: `demo`, a folder by path, or a model of the cache."""
        if argument == naming.DEMO:
            return _folder(naming.DEMO, DEMO_FOLDER)
        if naming.is_path(argument):
            return folder_snapshot(argument)
        name, revision = naming.parse(argument)
        model = self.find(name, revision)
        return model.snapshot() if revision is None else model.snapshot_at(revision)

    def find(self, name: str, revision: str | None = None) -> CachedModel:
        """The one model of the cache that a name means: its default org first, then exactly, then by substring.

        The `revision` is not looked for; it is part of the command that downloads a model which is not there.
        """
        matches = self.matching(name)
        if not matches:
            wanted = naming.candidates(name)[0] + ("" if revision is None else f"@{revision}")
            raise ModelNotFoundError(
                f"Model {name!r} is not in the cache. To download it: mlxk2 pull {wanted}",
                hint="`mlxk2 list --all` shows what is in the cache.",
            )
        if len(matches) > 1:
            raise AmbiguousMatchError(
                f"{len(matches)} models match {name!r}; name one of them in full.",
                matches=[model.name for model in matches],
            )
        return matches[0]

    def matching(self, name: str) -> list[CachedModel]:
        """The models that a name may mean, by name; more than one when it is ambiguous."""
        models = self.scan()
        for wanted in naming.candidates(name):
            if found := [model for model in models if model.name == wanted]:
                return found[:1]
        return [model for model in models if name.lower() in model.name.lower()]


def repair_hint(snapshot: Snapshot, argument: str) -> str | None:
    """How to repair the damaged model that a model argument meant; None of one that no pull would bring."""
    if snapshot.roots is None:
        return None
    _, at, revision = argument.partition("@")
    return f"Repair it with: mlxk2 pull {snapshot.name}{at}{revision}"


def _real(entry: os.DirEntry[str]) -> str:
    return os.path.realpath(entry.path) if entry.is_symlink() else entry.path


def folder_snapshot(path: str) -> Snapshot:
    """The model in a folder that the user named by path."""
    if "\0" in path or not os.path.isdir(path):
        raise ModelNotFoundError(f"There is no folder {path!r}.")
    return _folder(naming.readable(os.path.basename(os.path.abspath(path))) or path, path)


def _folder(name: str, path: str) -> Snapshot:
    return Snapshot(name, None, path, roots=None)


def hub_folder(environment: Mapping[str, str]) -> str:
    """Where the cache is, by the variables and in the order that huggingface_hub honours."""
    if hub := environment.get("HF_HUB_CACHE") or environment.get("HUGGINGFACE_HUB_CACHE"):
        return _expanded(hub)
    cache_home = environment.get("XDG_CACHE_HOME") or "~/.cache"
    return _expanded(os.path.join(environment.get("HF_HOME") or os.path.join(cache_home, "huggingface"), "hub"))


def _expanded(path: str) -> str:
    return os.path.expandvars(os.path.expanduser(path))
