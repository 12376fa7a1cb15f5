"""Names of repos, cache folders, model arguments and repo files. All functions work on strings and read no disk."""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import NamedTuple

from mlxk2.errors import ValidationError
from mlxk2.formatting import cut

FOLDER_PREFIX = "models--"
DEFAULT_ORG = "mlx-community"
DEMO = "demo"
INCOMPLETE = ".incomplete"
REMOVED = ".removed"  # A removal without a trash renames entries of a model's folder to names with this prefix.
COMPANION = "._"  # On disks of other systems, macOS keeps a file's attributes in a second file with this prefix.
MAX_LENGTH = 96  # Characters of a repo id.
# Limits for a file in a snapshot. Linux and macOS allow 255 bytes in a name, macOS 1,024 in a whole path.
MAX_PART_BYTES = 255
MAX_PATH_BYTES = 800

_SHORT_HASH = 7
_MACOS_METADATA = (".DS_Store", ".localized")
# What the hub accepts: https://huggingface.co/docs/huggingface_hub/package_reference/utilities (validate_repo_id).
_REPO_ID = re.compile(r"(?!.*(?:--|\.\.))[A-Za-z0-9_][\w.-]*(?<![.-])/[A-Za-z0-9_](?:[\w.-]*[A-Za-z0-9_])?", re.ASCII)
_REVISION = re.compile(r"(?!-)[\w./-]+", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# HFS+ and ext4 with casefold ignore invisible characters; Windows disks ignore dots and spaces at the end of a name.
_IGNORED = re.compile(
    r"[. ]+(?=/|\Z)|[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    r"\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_LINE_END = re.compile(r"[\n\v\f\r\x1c-\x1e\x85\u2028\u2029]")


class Demo(NamedTuple):
    """The model that comes with mlxk2."""

    name: str = DEMO


class Folder(NamedTuple):
    """A model in a folder of the user, given by its path."""

    path: str


class Repo(NamedTuple):
    """A model in the cache or on the hub: `name` or `name@revision`."""

    name: str
    revision: str | None = None


ModelRef = Demo | Folder | Repo


def parse(argument: str) -> ModelRef:
    """Parse a model argument; raise ValidationError when it can't name a model."""
    if argument == DEMO:
        return Demo()
    if argument in (".", "..") or argument.startswith(("/", "./", "../")):
        return Folder(argument)
    return parse_repo(argument)


def require_repo(argument: str, *, if_demo: str, if_folder: str) -> Repo:
    """Parse a model argument that must name a repo; raise ValidationError for the demo model or a folder.

    The error's message is `if_demo`, or the folder's path followed by `if_folder`.
    """
    match parse(argument):
        case Repo() as repo:
            return repo
        case Demo():
            raise ValidationError(if_demo)
        case Folder(path):
            raise ValidationError(f"{path!r} is a folder; {if_folder}")


def parse_repo(argument: str) -> Repo:
    """Split and check `name` or `name@revision`; raise ValidationError when it is invalid."""
    name, at, revision = argument.partition("@")
    if not name.strip():
        problem = "it is empty"
    elif len(name) > MAX_LENGTH:
        problem = f"it has {len(name)} characters, but at most {MAX_LENGTH} are allowed"
    elif name.startswith("/") or name.endswith("/") or "//" in name:
        problem = "a name has the form org/model (a folder is written ./folder)"
    else:
        problem = _find_forbidden(name)
    if problem:
        raise ValidationError(f"Invalid model name {_quote(name)}: {problem}.")
    if not at:
        return Repo(name)
    if name == DEMO:
        raise ValidationError(f"`{DEMO}` is the model that comes with mlxk2 and has no revisions: write {DEMO} alone.")
    if not revision.strip():
        problem = "write name@hash with at least 3 characters of the hash, or name@branch"
    elif revision.startswith("/"):
        problem = "a branch does not begin with /"
    else:
        problem = _find_forbidden(revision)
    if problem:
        raise ValidationError(f"Invalid revision {_quote(revision)}: {problem}.")
    return Repo(name, revision)


def _find_forbidden(text: str) -> str:
    """Return why a text is forbidden in a model argument, or an empty text if it is allowed."""
    if ".." in text:
        return "'..' is not allowed"
    if "\\" in text:
        return "a backslash is not allowed"
    return "control characters are not allowed" if _CONTROL.search(text) else ""


def _quote(text: str) -> str:
    return repr(cut(text, MAX_LENGTH))


def pull_command(name: str, revision: str | None = None) -> str | None:
    """Return the command that downloads a model, or None if the name or revision is invalid on every hub."""
    is_possible = _REPO_ID.fullmatch(name) and not name.endswith(".git") and len(name) <= MAX_LENGTH
    if not is_possible or (revision is not None and not _REVISION.fullmatch(revision)):
        return None
    return f"mlxk2 pull {name}" + ("" if revision is None else f"@{revision}")


def folder_of(repo_id: str) -> str:
    """Convert `org/name` to `models--org--name`."""
    return FOLDER_PREFIX + repo_id.replace("/", "--")


def repo_id_of(folder: str) -> str:
    """Convert `models--org--name` to `org/name`."""
    return readable(folder.removeprefix(FOLDER_PREFIX).replace("--", "/"))


def readable(file_name: str) -> str:
    """Return a name from the disk as text; bytes that are not UTF-8 become replacement characters."""
    return file_name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def is_macos_metadata(file_name: str) -> bool:
    """Return whether macOS creates files with this name by itself; they are not part of a folder's content."""
    return file_name.startswith(COMPANION) or file_name in _MACOS_METADATA


def candidates(name: str) -> list[str]:
    """Return the full names that a short name can stand for, in the order in which to try them."""
    return [name] if "/" in name else [f"{DEFAULT_ORG}/{name}", name]


def is_match(name: str, pattern: str) -> bool:
    """Return whether a full name contains a pattern, or matches it if it is a glob such as `mlx-community/*4bit*`.

    Upper and lower case are the same. A glob can omit the default org, like the table of `list`.
    """
    name, pattern = name.lower(), pattern.lower()
    return pattern in name or fnmatchcase(name, pattern) or fnmatchcase(name.removeprefix(DEFAULT_ORG + "/"), pattern)


class Collision(NamedTuple):
    """Two files of one repo that some disks can't keep in one folder; `reason` is the end of a sentence."""

    first: str
    second: str
    reason: str


def fold(name: str) -> str:
    """Return the form of a name in which case, invisible characters and the encoding of accents make no difference.

    Two names with one form are the same name on at least one kind of disk.
    """
    return _IGNORED.sub("", unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold()))


def is_one_text(first: str, second: str) -> bool:
    """Return whether two names are equal, or differ only in how their accents are encoded."""
    return unicodedata.normalize("NFC", first) == unicodedata.normalize("NFC", second)


def collisions(paths: Iterable[str]) -> Iterator[Collision]:
    """Yield each of these paths (with `/`) that some disks can't keep together with an earlier one.

    Some disks, such as those of macOS, ignore case and the encoding of accents. Folders that differ only in these
    become one folder there, which is harmless.
    """
    paths = list(paths)
    folders = {fold(path[: slash.start()]): path for path in reversed(paths) for slash in re.finditer("/", path)}
    files: dict[str, str] = {}
    for path in paths:
        key = fold(path)
        if key in files:
            yield Collision(files[key], path, _difference(files[key], path))
        elif key in folders:
            yield Collision(folders[key], path, "one would be a file and a folder")
        files.setdefault(key, path)


def _difference(first: str, second: str) -> str:
    """Return the difference between two names that some disks treat as equal, as the end of a sentence."""
    if is_one_text(first, second):
        differ = "how accents are encoded"
    elif is_one_text(_IGNORED.sub("", first), _IGNORED.sub("", second)):
        differ = "invisible characters, or dots and spaces at the end"
    else:
        differ = "upper and lower case"
    return f"they differ only in {differ}, which some disks ignore (those of macOS do)"


def short_hash(commit: str) -> str:
    """Return the first seven characters of a commit, as git shows it to people."""
    return commit[:_SHORT_HASH]


def problem_of_file(path: str) -> str | None:
    """Return why a repo file can't have this path, or None if it can; `push` and `pull` share these rules."""
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
