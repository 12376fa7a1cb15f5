"""The rules that exclude files from an upload: the patterns of `.hfignore`, with the meaning of a `.gitignore`.

Supported: blank lines and `#` comments, `*`, `?`, `[a-z]` and `[!a-z]`, `**`, a `/` at the start or in the middle (the
pattern is relative to the folder), a `/` at the end (folders only), `!` (include again), and `\\` before a literal
character. The last matching pattern decides. A file in an ignored folder can't be included again. The default patterns
ignore the content of folders for secrets, not the folders, so that `!.aws/config` includes that one file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mlxk2.checkpoint import litter

IGNORE_FILE = ".hfignore"

# The hub refuses files of these names.
ALWAYS = (".git", ".cache")
# Old clients of the hub keep a token in this folder.
_TOKEN_FOLDER = ".huggingface"
_FOLDER_OF_SECRETS = {folder: f"**/{folder}/*" for folder in litter.SECRET_FOLDERS}
_SECRETS = (
    *_FOLDER_OF_SECRETS.values(),
    f"**/{_TOKEN_FOLDER}/token",
    *litter.SECRETS,
    *(f"!{pattern}" for pattern in litter.NO_SECRETS),
)
# Files of tools and operating systems, and files that can hold secrets. A line with `!` includes them again.
DEFAULTS = (
    *(pattern for pattern in litter.TOOLS if pattern != _TOKEN_FOLDER),
    f"**/{_TOKEN_FOLDER}/*",
    *litter.WORK_FILES,
    *_SECRETS,
)

_TOKEN = re.compile(
    r"""(?P<folders>(?:(?<=/)|^)\*\*+/)  # zero or more folders
      | (?P<rest>(?<=/)\*\*+$)           # everything inside
      | (?P<stars>\*+)
      | (?P<one>\?)
      | \[(?P<not>[!^]?)(?P<class>(?:\\.|[^\\])(?:\\.|[^\]\\])*+)\]
      | (?P<open>\[)
      | \\(?P<escaped>.)
      | (?P<plain>.)""",
    re.VERBOSE | re.DOTALL,
)

_FOLDERS, _STARS, _NOTHING = "(?:[^/]+/)*", "[^/]*", "(?!)"
MAX_PATTERN_CHARACTERS = 4096  # No path is longer.


class _Rule(NamedTuple):
    pattern: re.Pattern[str]
    folders_only: bool
    ignores: bool
    is_of_secrets: bool


@dataclass(frozen=True)
class Ignore:
    """The merged rules: the defaults, then the user's lines, then the names that the hub refuses.

    `text` holds all patterns in the syntax of a `.gitignore`. The tuples hold the rules in reverse order, because the
    last matching pattern decides.
    """

    text: str
    own: tuple[_Rule, ...]
    defaults: tuple[_Rule, ...]

    @classmethod
    def of(cls, text: str) -> Ignore:
        """Return the default rules merged with the text of an ignore file."""
        lines = text.splitlines()
        # `!.ssh/` includes the folder; then only the keys in it stay ignored.
        returned = {_FOLDER_OF_SECRETS.get(line[1:].strip("*/ \t")) for line in lines if line.startswith("!")}
        defaults = [line for line in DEFAULTS if line not in returned]
        own = [*lines, *ALWAYS]
        return cls(
            "".join(f"{line}\n" for line in (*defaults, *own)),
            tuple(_parse(own, are_defaults=False))[::-1],
            tuple(_parse(defaults, are_defaults=True))[::-1],
        )

    def matches(self, name: str, is_folder: bool) -> bool:
        """Return whether a path relative to the top is ignored by its own name; do not check the folders above it."""
        rule = self._find_rule(name, is_folder)
        return rule is not None and rule.ignores

    def covers(self, name: str) -> bool:
        """Return whether a file is ignored by its own name or by the name of a folder above it."""
        rule = self._find_covering_rule(name, is_folder=False)
        return rule is not None and rule.ignores

    def is_secret(self, name: str, is_folder: bool = False) -> bool:
        """Return whether a path is ignored because it looks like a secret, and not because of a line of the user."""
        rule = self._find_covering_rule(name, is_folder)
        return rule is not None and rule.ignores and rule.is_of_secrets

    def includes(self, name: str) -> bool:
        """Return whether a line of the user with `!` includes this file."""
        rule = self._find_rule(name, is_folder=False)
        return rule is not None and not rule.ignores and not rule.is_of_secrets

    def _find_covering_rule(self, name: str, is_folder: bool) -> _Rule | None:
        for slash in re.finditer("/", name):
            rule = self._find_rule(name[: slash.start()], is_folder=True)
            if rule is not None and rule.ignores:
                return rule
        return self._find_rule(name, is_folder)

    def _find_rule(self, name: str, is_folder: bool) -> _Rule | None:
        # `is_private` decides with a single pattern that most names match none of the many defaults.
        rules = self.own + (self.defaults if litter.is_private(name) else ())
        fitting = (rule for rule in rules if is_folder or not rule.folders_only)
        return next((rule for rule in fitting if rule.pattern.fullmatch(name)), None)


def _parse(lines: Iterable[str], *, are_defaults: bool) -> Iterator[_Rule]:
    for line in lines:
        pattern = line.rstrip(" \t\r")
        if len(pattern) < len(line) and pattern.endswith("\\") and not pattern.endswith("\\\\"):
            pattern += " "  # The backslash makes the space after it literal.
        if not pattern or pattern.startswith("#") or len(pattern) > MAX_PATTERN_CHARACTERS:
            continue
        ignores = not pattern.startswith("!")
        pattern = pattern.removeprefix("!")
        folders_only = pattern.endswith("/")
        pattern = pattern.removesuffix("/")
        # The defaults ignore case: on a Mac's disk `.ENV` is `.env`, and a key is secret in any spelling.
        if pattern and (regex := _compile(pattern, re.IGNORECASE if are_defaults else 0)):
            yield _Rule(regex, folders_only, ignores, are_defaults and line in _SECRETS)


def _compile(pattern: str, flags: int) -> re.Pattern[str] | None:
    """Return the regular expression of a pattern, or None for a pattern that matches nothing, such as `[z-a]`."""
    is_anchored = "/" in pattern
    text = pattern.removeprefix("/") if is_anchored else f"**/{pattern}"
    pieces = [_translate(token) for token in _TOKEN.finditer(text)]
    groups = []
    for group in _split(pieces, _FOLDERS):
        segments = (["".join(part) for part in _split(segment, _STARS)] for segment in _split(group, "/"))
        groups.append("/".join(_join(parts, _STARS) for parts in segments))
    try:
        return re.compile(_join(groups, _FOLDERS), re.DOTALL | flags)
    except re.error:
        return None


def _join(parts: Sequence[str], wildcard: str) -> str:
    """Join regular expressions by a wildcard. Each one except the last matches only at its first possible place.

    A later place never helps a match, and trying all places takes exponential time.
    """
    head, *tails = parts
    first_places = [f"(?>{wildcard}?{tail})" for tail in tails[:-1]]
    return "".join([head, *first_places, *(wildcard + tail for tail in tails[-1:])])


def _split(pieces: Sequence[str], at: str) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for piece in pieces:
        if piece == at:
            parts.append([])
        else:
            parts[-1].append(piece)
    return parts


def _translate(token: re.Match[str]) -> str:
    if token["folders"]:
        return _FOLDERS
    if token["rest"]:
        return ".+"
    if token["stars"]:
        return _STARS
    if token["one"]:
        return "[^/]"
    if token["open"]:
        return _NOTHING
    if token["class"]:
        # A class of characters never matches the slash.
        members = re.sub(r"\\(.)|([\[\]&~|^])", lambda match: re.escape(match[1] or match[2]), token["class"])
        return f"(?!/)[{'^' if token['not'] else ''}{members}]"
    return re.escape(token["escaped"] or token["plain"])
