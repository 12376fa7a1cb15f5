"""The models under load, and their possible completions.

`demo` is part of the package. WALK never changes; only a few letters can follow each of its letters, so every
completion can be checked. TALE is damaged, removed, pulled and updated all the time. BULK is so large that a pull can
be killed halfway; its files are undamaged, but can't be loaded. HOSTILE has a tokenizer that fills the memory.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from support.pulling import MIB, big_model
from support.tiny_models import END, LETTERS, NEWLINE, SPACE, say, write_chain

DEMO, WALK, TALE, BULK, HOSTILE = "demo", "soak/walk", "soak/tale", "soak/bulk", "soak/hostile"
# A chain model can't write a word twice.
EDITIONS = tuple(f"Once upon some time there was the {place}" for place in ("sea", "wood", "hill"))
_BULK_BYTES = 6 * MIB
_STEPS = (1, 2, 5)
_ENDS = "dmtz"

FOLLOWS: Mapping[str, Sequence[str]] = {
    NEWLINE: LETTERS,
    **{
        letter: [LETTERS[(place + step) % len(LETTERS)] for step in _STEPS] + [END] * (letter in _ENDS)
        for place, letter in enumerate(LETTERS)
    },
}


def fault_of_walk(text: str, reason: str, after: str = NEWLINE) -> str | None:
    """Return why WALK can't have written a completion without a stop string; None if it can."""
    for letter in text:
        if letter not in FOLLOWS[after]:
            return f"{letter!r} can't follow {after!r}"
        after = letter
    if reason == "stop" and END not in FOLLOWS[after]:
        return f"the completion can't end after {after!r}"
    return None


def walk(folder: Path) -> dict[str, bytes]:
    """Return the files of WALK, made in `folder`."""
    return _files(write_chain(folder / "walk", FOLLOWS))


def hostile(folder: Path) -> dict[str, bytes]:
    """Return the files of HOSTILE, whose tokenizer needs a hundred gigabytes for a text with an "a"."""
    files = _files(write_chain(folder / "hostile", FOLLOWS))
    tokenizer = json.loads(files["tokenizer.json"])
    many = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}
    tokenizer["normalizer"] = {"type": "Sequence", "normalizers": [many] * 11}
    return {**files, "tokenizer.json": json.dumps(tokenizer).encode()}


def tale(folder: Path, edition: int) -> dict[str, bytes]:
    """Return the files of the edition of TALE that writes EDITIONS[edition]."""
    first, *rest = EDITIONS[edition].split(" ")
    return _files(write_chain(folder / f"tale-{edition}", say(first, *(SPACE + word for word in rest))))


def bulk() -> dict[str, bytes]:
    """Return the files of BULK."""
    return big_model(_BULK_BYTES)


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
