"""Which files of a folder stay at home: the patterns of `.hfignore`, read as git reads a `.gitignore`.

Supported: blank lines and `#` comments, `*`, `?`, `[a-z]` and `[!a-z]`, `**`, a `/` at the start or in the middle (the
pattern counts from the folder's top), a `/` at the end (folders only), `!` (take back in), and `\\` before a character
that is meant literally. The last pattern that matches decides; what is in an ignored folder can't be taken back in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

IGNORE_FILE = ".hfignore"

# What tools and systems leave behind, and what may hold secrets; a `!` can take them back in.
DEFAULTS = (
    ".DS_Store", "._*", "Thumbs.db", "__pycache__/", "*.pyc", ".ipynb_checkpoints/", ".venv/", "venv/", ".env",
    "*.lock",
)  # fmt: skip
# The hub takes nothing of these names.
ALWAYS = (".git", ".cache")

_TOKEN = re.compile(
    r"""(?P<folders>(?:(?<=/)|^)\*\*+/)  # any number of folders, none too
      | (?P<rest>(?<=/)\*\*+$)           # all that is inside
      | (?P<stars>\*+)
      | (?P<one>\?)
      | \[(?P<not>[!^]?)(?P<class>(?:\\.|[^\\])(?:\\.|[^\]\\])*+)\]
      | (?P<open>\[)
      | \\(?P<escaped>.)
      | (?P<plain>.)""",
    re.VERBOSE | re.DOTALL,
)

_FOLDERS, _STARS, _NOTHING = "(?:[^/]+/)*", "[^/]*", "(?!)"
# No path is longer.
_LONGEST = 4096


class _Rule(NamedTuple):
    pattern: re.Pattern[str]
    folders_only: bool
    ignores: bool


@dataclass(frozen=True)
class Ignore:
    """The merged rules: the defaults, then the user's lines, then what the hub forbids."""

    lines: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> Ignore:
        """The rules with the text of an ignore file."""
        return cls((*DEFAULTS, *text.splitlines(), *ALWAYS))

    @property
    def text(self) -> str:
        """All patterns, as a `.gitignore` would have them."""
        return "".join(f"{line}\n" for line in self.lines)

    def matches(self, name: str, is_folder: bool) -> bool:
        """Whether a pattern means this path itself, relative to the top; folders above it are not looked at."""
        for rule in reversed(self._rules):
            if (is_folder or not rule.folders_only) and rule.pattern.fullmatch(name):
                return rule.ignores
        return False

    def covers(self, name: str) -> bool:
        """Whether a file stays at home, for itself or for a folder above it."""
        parts = name.split("/")
        folders = ("/".join(parts[:depth]) for depth in range(1, len(parts)))
        return any(self.matches(folder, is_folder=True) for folder in folders) or self.matches(name, is_folder=False)

    @cached_property
    def _rules(self) -> list[_Rule]:
        return list(_parsed(self.lines))


def _parsed(lines: Iterable[str]) -> Iterable[_Rule]:
    for line in lines:
        line = _without_trailing_spaces(line)
        if not line or line.startswith("#") or len(line) > _LONGEST:
            continue
        ignores = not line.startswith("!")
        pattern = line if ignores else line[1:]
        folders_only = pattern.endswith("/")
        pattern = pattern.removesuffix("/")
        if pattern and (regex := _compiled(pattern)):
            yield _Rule(regex, folders_only, ignores)


def _without_trailing_spaces(line: str) -> str:
    stripped = line.rstrip(" \t\r")
    is_escaped = len(stripped) < len(line) and stripped.endswith("\\") and not stripped.endswith("\\\\")
    return stripped + " " if is_escaped else stripped


def _compiled(pattern: str) -> re.Pattern[str] | None:
    """The regular expression of a pattern; None for one that can match nothing, such as `[z-a]`."""
    is_anchored = "/" in pattern
    text = pattern.removeprefix("/") if is_anchored else f"**/{pattern}"
    pieces = [_translated(token) for token in _TOKEN.finditer(text)]
    try:
        return re.compile(_joined(pieces, _FOLDERS, _joined_segments), re.DOTALL)
    except re.error:
        return None


def _joined_segments(pieces: Sequence[str]) -> str:
    return "/".join(_joined(segment, _STARS, "".join) for segment in _split(pieces, "/"))


def _joined(pieces: Sequence[str], wildcard: str, join: Callable[[list[str]], str]) -> str:
    """Join the pieces around a wildcard, each one but the last content with the first place where its rest matches.

    No other place could be better, and trying them all takes for ever.
    """
    head, *tails = [join(part) for part in _split(pieces, wildcard)]
    hurried = [f"(?>{wildcard}?{tail})" for tail in tails[:-1]]
    return "".join([head, *hurried, *(wildcard + tail for tail in tails[-1:])])


def _split(pieces: Sequence[str], at: str) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for piece in pieces:
        if piece == at:
            parts.append([])
        else:
            parts[-1].append(piece)
    return parts


def _translated(token: re.Match[str]) -> str:
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
        return _translated_class(token["not"], token["class"])
    return re.escape(token["escaped"] or token["plain"])


def _translated_class(negated: str, members: str) -> str:
    """A class of characters; never the slash."""
    inner = re.sub(r"\\(.)|([\[\]&~|^])", lambda match: re.escape(match[1] or match[2]), members)
    return f"(?!/)[{'^' if negated else ''}{inner}]"
