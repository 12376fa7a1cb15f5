"""Which files of a folder stay at home: the patterns of `.hfignore`, read as git reads a `.gitignore`.

Supported: blank lines and `#` comments, `*`, `?`, `[a-z]` and `[!a-z]`, `**`, a `/` at the start or in the middle (the
pattern counts from the folder's top), a `/` at the end (folders only), `!` (take back in), and `\\` before a character
that is meant literally. The last pattern that matches decides; what is in an ignored folder can't be taken back in.
The default patterns ignore what is in a folder for secrets, not the folder: `!.aws/config` takes that one file back in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from mlxk2.checkpoint import litter

IGNORE_FILE = ".hfignore"

# The hub takes nothing of these names.
ALWAYS = (".git", ".cache")
# Old clients of the hub keep a token among what they left in this folder.
_TOKEN_FOLDER = ".huggingface"
_FOLDER_OF_SECRETS = {folder: f"**/{folder}/*" for folder in litter.SECRET_FOLDERS}
_SECRETS = (
    *_FOLDER_OF_SECRETS.values(), f"**/{_TOKEN_FOLDER}/token", *litter.SECRETS,
    *(f"!{pattern}" for pattern in litter.NO_SECRETS),
)  # fmt: skip
# What tools and systems leave behind, and what may hold secrets; a `!` can take them back in.
DEFAULTS = (
    *(pattern for pattern in litter.TOOLS if pattern != _TOKEN_FOLDER), f"**/{_TOKEN_FOLDER}/*", *litter.PRIVATE,
    *_SECRETS,
)  # fmt: skip

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
    is_of_secrets: bool


@dataclass(frozen=True)
class Ignore:
    """The merged rules: the defaults, then the user's lines, then what the hub forbids."""

    lines: tuple[str, ...]
    defaults: int = 0

    @classmethod
    def of(cls, text: str) -> Ignore:
        """The rules with the text of an ignore file."""
        own = text.splitlines()
        # `!.ssh/` takes the folder back in: then its content is ignored no more, but for keys.
        returned = {_FOLDER_OF_SECRETS.get(line[1:].strip("*/ \t")) for line in own if line.startswith("!")}
        defaults = [line for line in DEFAULTS if line not in returned]
        return cls((*defaults, *own, *ALWAYS), len(defaults))

    @property
    def text(self) -> str:
        """All patterns, as a `.gitignore` would have them."""
        return "".join(f"{line}\n" for line in self.lines)

    def matches(self, name: str, is_folder: bool) -> bool:
        """Whether a pattern means this path itself, relative to the top; folders above it are not looked at."""
        rule = self._deciding(name, is_folder)
        return rule is not None and rule.ignores

    def covers(self, name: str) -> bool:
        """Whether a file stays at home, for itself or for a folder above it."""
        rule = self._covering(name, is_folder=False)
        return rule is not None and rule.ignores

    def withholds(self, name: str, is_folder: bool = False) -> bool:
        """Whether it stays at home because it looks like a secret, and for nothing that the user wrote."""
        rule = self._covering(name, is_folder)
        return rule is not None and rule.ignores and rule.is_of_secrets

    def takes_in(self, name: str) -> bool:
        """Whether a `!` of the user's means this file."""
        rule = self._deciding(name, is_folder=False)
        return rule is not None and not rule.ignores and not rule.is_of_secrets

    def _covering(self, name: str, is_folder: bool) -> _Rule | None:
        for slash in re.finditer("/", name):
            rule = self._deciding(name[: slash.start()], is_folder=True)
            if rule is not None and rule.ignores:
                return rule
        return self._deciding(name, is_folder)

    def _deciding(self, name: str, is_folder: bool) -> _Rule | None:
        # Most names have nothing of what the many defaults are about, which one pattern finds out.
        rules = self._own_rules + (self._default_rules if litter.stays_at_home(name) else [])
        fitting = (rule for rule in rules if is_folder or not rule.folders_only)
        return next((rule for rule in fitting if rule.pattern.fullmatch(name)), None)

    @cached_property
    def _own_rules(self) -> list[_Rule]:
        """Those after the defaults, the last first."""
        return [*_parsed(self.lines[self.defaults :], are_defaults=False)][::-1]

    @cached_property
    def _default_rules(self) -> list[_Rule]:
        return [*_parsed(self.lines[: self.defaults], are_defaults=True)][::-1]


def _parsed(lines: Iterable[str], *, are_defaults: bool) -> Iterable[_Rule]:
    for line in lines:
        line = _without_trailing_spaces(line)
        if not line or line.startswith("#") or len(line) > _LONGEST:
            continue
        ignores = not line.startswith("!")
        pattern = line if ignores else line[1:]
        folders_only = pattern.endswith("/")
        pattern = pattern.removesuffix("/")
        # A Mac's disk has `.ENV` for `.env`, and a key is one in any spelling.
        if pattern and (regex := _compiled(pattern, re.IGNORECASE if are_defaults else 0)):
            yield _Rule(regex, folders_only, ignores, are_defaults and line in _SECRETS)


def _without_trailing_spaces(line: str) -> str:
    stripped = line.rstrip(" \t\r")
    is_escaped = len(stripped) < len(line) and stripped.endswith("\\") and not stripped.endswith("\\\\")
    return stripped + " " if is_escaped else stripped


def _compiled(pattern: str, flags: int) -> re.Pattern[str] | None:
    """The regular expression of a pattern; None for one that can match nothing, such as `[z-a]`."""
    is_anchored = "/" in pattern
    text = pattern.removeprefix("/") if is_anchored else f"**/{pattern}"
    pieces = [_translated(token) for token in _TOKEN.finditer(text)]
    try:
        return re.compile(_joined(pieces, _FOLDERS, _joined_segments), re.DOTALL | flags)
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
