"""A conversation as a Markdown file: for each message a heading with its role, an empty line, and its text."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence

from mlxk2.errors import OperationError, ValidationError, cause
from mlxk2.runner.prompt.prompter import Message
from mlxk2.runner.request import MAX_PROMPT_CHARACTERS

_ROLES = "System|User|Assistant"
_HEADING = re.compile(rf"^## ({_ROLES})\n\n", re.MULTILINE)
# In the file, a backslash marks each line of a message that looks like a heading; Markdown does not show it.
_HEADING_IN_MESSAGE = re.compile(rf"^(?=\\*## (?:{_ROLES})$)", re.MULTILINE)
_ESCAPE = re.compile(rf"^\\(?=\\*## (?:{_ROLES})$)", re.MULTILINE)
# The roles of a conversation that the user continues.
_ORDER = re.compile("(System )?(User Assistant )*")


def save(name: str, messages: Sequence[Message]) -> None:
    """Write a conversation to a new file; raise OperationError or ValidationError, with the cause, if that fails."""
    sections = []
    for message in messages:
        content = _HEADING_IN_MESSAGE.sub(r"\\", message["content"])
        sections.append(f"## {message['role'].capitalize()}\n\n{content}\n")
    try:
        with open(os.path.expanduser(name), "x", encoding="utf-8", newline="") as file:
            file.write("\n".join(sections))
    except FileExistsError as error:
        raise OperationError(f"{name} already exists and was not changed; choose another name.") from error
    except OSError as error:
        raise OperationError(f"{name} can't be written: {cause(error)}.") from error
    except ValueError as error:
        raise ValidationError(f"{name} can't be written: {error}.") from error


def load(name: str) -> list[Message]:
    """Return the conversation that `save` wrote to a file; raise OperationError or ValidationError if there is none."""
    path = os.path.expanduser(name)
    try:
        # Opening a pipe would wait for its other end.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValidationError(f"{name} can't be read: it is not a file.")
        with open(path, encoding="utf-8", newline="") as file:
            text = file.read(MAX_PROMPT_CHARACTERS + 1)
    except OSError as error:
        raise OperationError(f"{name} can't be read: {cause(error)}.") from error
    except ValueError as error:
        raise ValidationError(f"{name} can't be read as text: {error}.") from error
    # `save` ends a message with one line end, and separates it from the next heading with another.
    before, *sections = _HEADING.split(text.removesuffix("\n") + "\n\n")
    roles, contents = sections[::2], sections[1::2]
    order = "".join(f"{role} " for role in roles)
    if before or not roles or len(text) > MAX_PROMPT_CHARACTERS or not _ORDER.fullmatch(order):
        raise ValidationError(
            f"{name} is not a conversation that /save wrote: messages below the headings `## User` and `## Assistant` "
            "by turns, perhaps after `## System`."
        )
    return [
        {"role": role.lower(), "content": _ESCAPE.sub("", content.removesuffix("\n\n"))}
        for role, content in zip(roles, contents, strict=True)
    ]
