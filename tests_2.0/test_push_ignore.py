"""`.hfignore` has the rules of `.gitignore`: the supported patterns are compared with git itself."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fuzz import EFFORT

from mlxk2.workspace import folder
from mlxk2.workspace.ignore import ALWAYS, DEFAULTS, Ignore

PATHS = [
    "a",
    "a.txt",
    "b.txt",
    "a/b",
    "a/b.txt",
    "a/c/b.txt",
    "a/c/d/b.txt",
    "c/a/b",
    "c/a.txt",
    "notes.ipynb",
    "sub/notes.ipynb",
    "sub/a/x",
    "x y",
    "[a]",
    "a]",
    "!a",
    "#a",
    "ab",
    "aab",
    "a*b",
    "abc",
    "deep/er/abc/file",
    ".hidden",
    "[",
    "[]",
    "[!]",
    "sub/.hidden/x",
    "foo/bar/baz",
    "bar/foo",
    "ä.txt",
    "a-b",
    "a^b",
    "trailing ",
    "back\\slash",
]
PATTERNS = [
    "a",
    "a/",
    "/a",
    "/a/",
    "a/b",
    "*.txt",
    "/*.txt",
    "*",
    "a/*",
    "a/**",
    "**/b.txt",
    "a/**/b.txt",
    "**/a/**",
    "**",
    "*.ipynb",
    "sub",
    "sub/*",
    "?",
    "a?",
    "?b",
    "[ab]",
    "[!a]b",
    "[^a]b",
    "[a-c]*",
    "a[b-c]",
    "\\[a]",
    "[[]a]",
    "[]]",
    "a]",
    "\\!a",
    "\\#a",
    "# a",
    "",
    "   ",
    "a   ",
    "trailing\\ ",
    "x y",
    ".*",
    ".hidden",
    "a\\*b",
    "a*b",
    "foo/*/baz",
    "foo/**",
    "*/foo",
    "foo",
    "*\n!a.txt",
    "*.txt\n!a.txt",
    "a/\n!a/b",
    "a/*\n!a/b",
    "!a",
    "/",
    "//a",
    "a//b",
    "**a",
    "a**b",
    "[",
    "[a",
    "[]",
    "[]a]",
    "[!]",
    "*/****/b*",
    "a\\",
    "ä*",
    "[a^b]*",
    "a[-]b",
    "a[*]b",
    "/sub/*\n!/sub/a/",
    "*\r",
    "a.txt\r\nb.txt",
]

# Random patterns are made of these pieces and compared with git on these paths.
PIECES = ["*", "**", "/", "**/", "/**", "a", "b", "?", "[ab]", "[!a]", "a*", "!", "\\", "\\*", " ", ".", "c/"]
DEEP = ["/".join(source) for depth in (1, 2, 3, 4) for source in product(("a", "b", "ab", "aab"), repeat=depth)]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a git repository whose ignore file is `.hfignore`."""
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    path = tmp_path_factory.mktemp("repository")
    subprocess.run(["git", "init", "-q", str(path)], check=True, capture_output=True)
    return path


@pytest.mark.parametrize("lines", PATTERNS)
def test_patterns_match_as_in_git(repository: Path, lines: str) -> None:
    ours = Ignore.of(lines)
    assert {path for path in PATHS if ours.covers(path)} == ignored_by_git(repository, lines, PATHS)


def ignored_by_git(repository: Path, lines: str, paths: Sequence[str]) -> set[str]:
    """Return the paths that git ignores with these patterns."""
    exclude = repository / ".git" / "info" / "exclude"
    exclude.write_bytes("\n".join([*DEFAULTS, lines, *ALWAYS, ""]).encode())
    command = ["git", "-c", "core.ignoreCase=false", "check-ignore", "--no-index", "--stdin", "-z"]
    asked = "".join(f"{path}\0" for path in paths).encode()
    answer = subprocess.run(command, cwd=repository, input=asked, capture_output=True)
    return set(answer.stdout.decode().split("\0")) - {""}


@pytest.mark.sampled
def test_random_patterns_match_as_in_git(repository: Path) -> None:
    source = random.Random(20_251_123)
    for _ in range(15 * EFFORT):
        lines = "".join(source.choices(PIECES, k=source.randrange(1, 8)))
        if re.search(r"[^/*]\*\*+\\*/", lines):
            continue  # against its documentation, git lets these stars match folders after plain letters
        ours = Ignore.of(lines)
        assert {path for path in DEEP if ours.covers(path)} == ignored_by_git(repository, lines, DEEP), lines


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("*a" * 40 + "b", "a" * 250),
        ("**/a/" * 20 + "b", "a/" * 2000 + "c"),
        ("**/*a*/" * 20 + "b", "aa/" * 1000 + "c"),
        ("?" * 5000, "a" * 5000),
        ("[" * 4000, "["),
        ("a/" * 5000, "a"),
        ("\\" * 5000, "\\"),
        ("**" * 5000, "a"),
    ],
    ids=["stars", "folders", "both", "ones", "brackets", "slashes", "backslashes", "many stars"],
)
def test_every_pattern_is_matched_quickly(pattern: str, name: str) -> None:
    began = time.process_time()
    Ignore.of(pattern).matches(name, is_folder=False)
    assert time.process_time() - began < 2


@pytest.mark.sampled
@settings(derandomize=True, database=None, deadline=None, max_examples=50 * EFFORT)
@given(text=st.text() | st.text("*?[]!^-\\/ab#\n "), name=st.text(min_size=1) | st.text("ab/", min_size=1))
def test_any_text_is_accepted_as_patterns(text: str, name: str) -> None:
    assert Ignore.of(text).covers(name) in (True, False)


@pytest.mark.parametrize(
    "name",
    [
        ".git/config",
        "sub/.git/HEAD",
        ".DS_Store",
        "a/.DS_Store",
        "__pycache__/x.pyc",
        ".venv/bin/python",
        "poetry.lock",
        ".cache/huggingface/x",
        "a/.cache/b",
        ".cache",
        "._model.safetensors",
        ".env",
    ],
)
def test_default_rules_ignore_private_and_temporary_files(name: str) -> None:
    assert Ignore.of("").covers(name)


@pytest.mark.parametrize(
    ("line", "name", "stays"),
    [
        ("!*.lock", "poetry.lock", False),
        ("!.env", ".env", False),
        ("!.git", ".git/config", True),
        ("!.cache/", ".cache/x", True),
        ("!.git/\n!.git/**", ".git/config", True),
    ],
)
def test_default_rules_can_be_negated_unless_the_hub_forbids_it(line: str, name: str, stays: bool) -> None:
    assert Ignore.of(line).covers(name) is stays


def test_the_text_of_the_rules_gives_the_same_rules() -> None:
    ignore = Ignore.of("a\n!b")
    again = Ignore.of(ignore.text)
    for name in ("a", "b", "c/a", ".env", ".git/config", "poetry.lock", "model.safetensors"):
        assert again.covers(name) is ignore.covers(name)
    assert ignore.text.splitlines()[len(DEFAULTS) : len(DEFAULTS) + 2] == ["a", "!b"]


def test_ignored_folders_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed" / "pipe").symlink_to("/nowhere")
    (tmp_path / ".hfignore").write_bytes(b"\xef\xbb\xbfclosed/\n")
    assert [file.name for file in folder.find(str(tmp_path)).files] == [".hfignore"]
