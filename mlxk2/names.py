"""Repo ids, cache folder names, model arguments and the names of a repo's files; pure strings, no disk."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from mlxk2.errors import ValidationError
from mlxk2.formatting import cut

FOLDER_PREFIX = "models--"
DEFAULT_ORG = "mlx-community"
DEMO = "demo"
INCOMPLETE = ".incomplete"
REMOVED = ".removed"  # Begins the names of what a removal hid in a model's folder; `hidden.py` has the rest.
COMPANION = "._"  # Begins the name under which macOS keeps a file's attributes on a disk that is not its own.
MAX_LENGTH = 96
# Of a file below a snapshot. Linux and macOS take a name of 255 bytes; macOS takes 1,024 for a path with all above it.
MAX_PART_BYTES = 255
MAX_PATH_BYTES = 800

_SHORT_HASH = 7
_MACOS_METADATA = (".DS_Store", ".localized")
# What the hub accepts: https://huggingface.co/docs/huggingface_hub/package_reference/utilities (validate_repo_id).
_REPO_ID = re.compile(r"(?!.*(?:--|\.\.))[A-Za-z0-9_][\w.-]*(?<![.-])/[A-Za-z0-9_](?:[\w.-]*[A-Za-z0-9_])?", re.ASCII)
_REVISION = re.compile(r"(?!-)[\w./-]+", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# Some disks leave out characters that are not seen (HFS+, ext4 that ignores case), others dots and spaces at the end of
# a name (those of Windows).
_LEFT_OUT = re.compile(
    r"[. ]+(?=/|\Z)|[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    r"\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_LINE_END = re.compile(r"[\n\v\f\r\x1c-\x1e\x85\u2028\u2029]")


class ModelArgument(NamedTuple):
    """A model as named on the command line: `name` or `name@revision`."""

    name: str
    revision: str | None


def folder_of(repo_id: str) -> str:
    """`org/name` → `models--org--name`."""
    return FOLDER_PREFIX + repo_id.replace("/", "--")


def repo_id_of(folder: str) -> str:
    """`models--org--name` → `org/name`."""
    return readable(folder.removeprefix(FOLDER_PREFIX).replace("--", "/"))


def readable(file_name: str) -> str:
    """A name from the disk; bytes that are no UTF-8 become replacement characters."""
    return file_name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def is_macos_metadata(file_name: str) -> bool:
    """Return whether macOS lays files of this name beside the user's: no refs, no locks, and no content of a folder."""
    return file_name.startswith(COMPANION) or file_name in _MACOS_METADATA


def candidates(name: str) -> list[str]:
    """The full names that a name may be or stand for, in the order in which they are tried."""
    return [name] if "/" in name else [f"{DEFAULT_ORG}/{name}", name]


class Collision(NamedTuple):
    """Two files of one repo that some disk can't keep side by side, and why, as the end of a sentence."""

    first: str
    second: str
    reason: str


def folded(name: str) -> str:
    """The name as the most tolerant disk reads it: without case or what is not seen, each accent in one form only."""
    return _LEFT_OUT.sub("", unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold()))


def is_one_text(first: str, second: str) -> bool:
    """Whether two names differ in nothing but how their accents are encoded."""
    return unicodedata.normalize("NFC", first) == unicodedata.normalize("NFC", second)


def collisions(paths: Iterable[str]) -> Iterator[Collision]:
    """Yield each of these paths (with `/`) that some disk can't keep beside an earlier one.

    A disk may ignore case and the form of accents, as macOS's does. Folders that differ in that alone are one folder
    there, which harms no file in them.
    """
    paths = list(paths)
    folders = {folded(path[: slash.start()]): path for path in reversed(paths) for slash in re.finditer("/", path)}
    files: dict[str, str] = {}
    for path in paths:
        key = folded(path)
        if key in files:
            yield Collision(files[key], path, _why_one(files[key], path))
        elif key in folders:
            yield Collision(folders[key], path, "one would be a file and a folder")
        files.setdefault(key, path)


def _why_one(first: str, second: str) -> str:
    if is_one_text(first, second):
        differ = "how accents are encoded"
    elif is_one_text(_LEFT_OUT.sub("", first), _LEFT_OUT.sub("", second)):
        differ = "characters that are not seen, or dots and spaces at the end"
    else:
        differ = "upper and lower case"
    return f"they differ only in {differ}, which some disks ignore (those of macOS do)"


def short_hash(commit: str) -> str:
    """As much of a commit as people need to tell it from others."""
    return commit[:_SHORT_HASH]


def pull_command(argument: str) -> str | None:
    """The command that downloads `org/name` or `org/name@revision`; None where no hub can have what that names."""
    name, at, revision = argument.partition("@")
    is_possible = _REPO_ID.fullmatch(name) and not name.endswith(".git") and len(name) <= MAX_LENGTH
    if not is_possible or (at and not _REVISION.fullmatch(revision)):
        return None
    return f"mlxk2 pull {argument}"


def is_path(argument: str) -> bool:
    """Whether a model argument names a folder rather than a model of the cache."""
    return argument in (".", "..") or argument.startswith(("/", "./", "../"))


def parse(argument: str) -> ModelArgument:
    """Split and check a model argument; ValidationError when it can't be the name of a model."""
    name, at, revision = argument.partition("@")
    if problem := _problem_of_name(name):
        raise ValidationError(f"Invalid model name {_shown(name)}: {problem}.")
    if at and name == DEMO:
        raise ValidationError(f"`{DEMO}` is the model that comes with mlxk2 and has no revisions: write {DEMO} alone.")
    if at and (problem := _problem_of_revision(revision)):
        raise ValidationError(f"Invalid revision {_shown(revision)}: {problem}.")
    return ModelArgument(name, revision if at else None)


def problem_of_file(path: str) -> str | None:
    """Return why no file of a repo may have this path, else None; `push` and `pull` refuse the same ones."""
    try:
        size = len(path.encode("utf-8"))
    except UnicodeEncodeError:
        return "has a name that is not UTF-8"
    parts = path.split("/")
    if {"", ".", ".."} & set(parts):
        return "is not a path below the folder"
    if "\\" in path:
        return "has a backslash in its name"
    if _LINE_END.search(path):
        return "has a line end in its name"
    if _CONTROL.search(path):
        return "has a control character in its name"
    if max(len(part.encode("utf-8")) for part in parts) > MAX_PART_BYTES:
        return f"has a name of more than {MAX_PART_BYTES} bytes"
    return f"has a path of more than {MAX_PATH_BYTES} bytes" if size > MAX_PATH_BYTES else None


def _problem_of_name(name: str) -> str | None:
    if not name.strip():
        return "it is empty"
    if len(name) > MAX_LENGTH:
        return f"it has {len(name)} characters, at most {MAX_LENGTH} are possible"
    if name.startswith("/") or name.endswith("/") or "//" in name:
        return "a name has the form org/model (a folder is written ./folder)"
    return _forbidden_part(name)


def _problem_of_revision(revision: str) -> str | None:
    if not revision.strip():
        return "write name@hash with at least 3 characters of the hash, or name@branch"
    if revision.startswith("/"):
        return "a branch does not begin with /"
    return _forbidden_part(revision)


def _forbidden_part(text: str) -> str | None:
    if ".." in text:
        return "'..' is not allowed"
    if "\\" in text:
        return "a backslash is not allowed"
    if _CONTROL.search(text):
        return "control characters are not allowed"
    return None


def _shown(text: str) -> str:
    return repr(cut(text, MAX_LENGTH))
