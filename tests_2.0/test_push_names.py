"""The file names that `push` refuses: those that no `pull` accepts, or that some disks treat as equal."""

from __future__ import annotations

import unicodedata

import pytest
from support.layouts import chat_model
from support.pulling import pull_error
from support.pushing import MODEL, Pusher

MODEL_FILES = {name: content for name, content in chat_model().items() if isinstance(content, bytes)}
DEEP = "/".join(["a" * 200] * 5)
E_WITH_ACUTE = "\N{LATIN SMALL LETTER E WITH ACUTE}.txt"

NAMES = {
    "a\\b.txt": "backslash",
    "a\nb.txt": "line end",
    "a\rb.txt": "line end",
    "a\u2028b.txt": "line end",
    "a\tb.txt": "control character",
    "\x1b[31mred.txt": "control character",
    "a\x7f.txt": "control character",
    "sub\\folder/b.txt": "backslash",
    "sub\n/b.txt": "line end",
    DEEP: "bytes",
}
TWINS = {
    "case": (("readme.md", "README.md"), "readme.md", "README.md: they differ only in upper and lower case"),
    "case of a folder": (("Images/a.png", "images/A.png"), "images/A.png", "only in upper and lower case"),
    "other letters": (("Äh.txt", "äh.txt"), "äh.txt", "only in upper and lower case"),
    "form": (
        (E_WITH_ACUTE, unicodedata.normalize("NFD", E_WITH_ACUTE)),
        E_WITH_ACUTE,
        "only in how accents are encoded",
    ),
    "file and folder": (("Docs", "docs/a.txt"), "Docs", "docs/a.txt: one would be a file and a folder"),
}


def anomalies(pusher: Pusher) -> list[tuple[str, str, str | None]]:
    """Return the errors of the folder: code, message and path."""
    found = pusher.data("--check-only")["workspace_health"]["anomalies"]
    return [(a["code"], a["message"], a["path"]) for a in found if a["severity"] == "error"]


@pytest.mark.parametrize(("name", "problem"), NAMES.items(), ids=map(repr, NAMES))
def test_a_name_that_pull_refuses_is_not_pushed(pusher: Pusher, name: str, problem: str) -> None:
    pusher.add({"a": b"1"})
    pusher.write(MODEL_FILES | {name: b"x"})
    [(code, message, path)] = anomalies(pusher)
    assert (code, path, problem in message, message.isprintable()) == ("unusable_file", name, True, True)
    for words in (("--dry-run",), ("--private",)):
        error = pusher.error(*words)
        assert (error["type"], problem in error["message"]) == ("push_operation_failed", True)
        assert "Rename" in error["hint"]
    assert pusher.remote_files() == {"a": b"1"}
    # `pull` refuses the name for the same reason.
    pusher.server.add("org/other", MODEL_FILES | {name: b"x"})
    error = pull_error(pusher.client, "org/other")
    assert (error["type"], problem in error["message"]) == ("download_failed", True)


def test_a_name_with_a_line_end_is_shown_on_one_line(pusher: Pusher) -> None:
    pusher.write(MODEL_FILES | {"a\nb.txt": b"x"})
    assert pusher.run("--check-only").out.count("\n") == 2
    assert "a\N{REPLACEMENT CHARACTER}b.txt has a line end in its name" in pusher.run("--dry-run").err


@pytest.mark.parametrize(("names", "path", "problem"), TWINS.values(), ids=TWINS)
def test_names_that_some_disks_treat_as_equal_are_not_pushed(
    pusher: Pusher, names: tuple[str, str], path: str, problem: str
) -> None:
    (pusher.folder / "Case").touch()
    if (pusher.folder / "case").exists():
        pytest.skip("the disk of the tests ignores case itself")
    (pusher.folder / "Case").unlink()
    pusher.add({"a": b"1"})
    pusher.write(MODEL_FILES | dict.fromkeys(names, b"x"))
    [(code, message, found)] = anomalies(pusher)
    assert (code, found, problem in message) == ("unusable_file", path, True)
    assert problem in pusher.error("--private")["message"]
    assert pusher.remote_files() == {"a": b"1"}


def test_one_of_two_colliding_names_may_be_ignored(pusher: Pusher) -> None:
    pusher.add({}, private=True)
    pusher.write({"README.md": b"x", "readme.md": b"y", ".hfignore": b"/readme.md\n"})
    pusher.data("--private")
    assert sorted(pusher.remote_files()) == [".hfignore", "README.md"]


@pytest.mark.parametrize(
    "name", ["a b", "ä ö/ü", "\N{PILE OF POO}", "a:b|c<d>?*", "..a", "a..", "...", "-x", "~", "a" * 250]
)
def test_unusual_names_are_pushed(pusher: Pusher, name: str) -> None:
    pusher.write(MODEL_FILES | {name: b"x"})
    assert anomalies(pusher) == []
    pusher.data("--private", "--create")
    assert name in pusher.remote_files()
    assert pusher.client.run("pull", MODEL, HF_TOKEN=pusher.token).code == 0
