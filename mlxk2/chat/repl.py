"""The interactive conversation: lines and commands in, answers out."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Protocol

from prompt_toolkit import PromptSession
from prompt_toolkit.history import FileHistory, History, InMemoryHistory

from mlxk2.chat.assistant import Answer, Assistant
from mlxk2.chat.printer import Printer
from mlxk2.errors import ContextLengthError, MlxkError, cause
from mlxk2.formatting import printable
from mlxk2.runner.prompt.prompter import Message

ReadLine = Callable[[str], str]

_PROMPT, _CONTINUED = "> ", ". "
_BLOCK = '"""'
_LEAVE = ("exit", "quit")
_HELP = f"""\
/help         this list
/clear        forget the conversation (the system prompt stays)
/system TEXT  set the system prompt; without TEXT, show it
/save FILE    write the conversation to a new file
/stats        show the size and speed of the conversation
exit, quit    leave; so does Ctrl-D, or Ctrl-C at the prompt
A line that ends in \\ goes on in the next one; {_BLOCK} begins and ends a block of lines.
Ctrl-C ends an answer and keeps what was said so far. Ctrl-Z suspends the program.
"""


class Streams(Protocol):
    """Where the conversation is written."""

    @property
    def stdout(self) -> IO[str]:
        """For answers."""

    @property
    def stderr(self) -> IO[str]:
        """For what went wrong."""


def converse(assistant: Assistant, streams: Streams, system: str | None, **manner: bool) -> None:
    """Hold a conversation on the terminal until the user leaves; `manner` is what `Chat` may be told."""
    session: PromptSession[str] = PromptSession(history=_history(os.environ), enable_suspend=True)
    Chat(assistant, streams, system, **manner).run(session.prompt)


class Chat:
    """A conversation with a model: the turns so far, and what the user can do with them.

    With `no_stream` an answer is printed when it is whole, with `verbose` its statistics follow on stderr.
    """

    def __init__(
        self,
        assistant: Assistant,
        streams: Streams,
        system: str | None,
        *,
        hide_reasoning: bool = False,
        no_stream: bool = False,
        verbose: bool = False,
    ) -> None:
        self._assistant = assistant
        self._out = streams.stdout
        self._err = streams.stderr
        self._system = system
        self._hide_reasoning = hide_reasoning
        self._no_stream = no_stream
        self._verbose = verbose
        self._turns: list[Message] = []
        self._last: Answer | None = None
        self._tokens = 0
        self._commands: dict[str, Callable[[str], str]] = {
            "/help": lambda _: _HELP,
            "/clear": self._clear,
            "/system": self._set_system,
            "/save": self._save,
            "/stats": self._statistics,
        }

    def run(self, read_line: ReadLine) -> None:
        """Answer turn after turn; `read_line` shows a prompt and raises EOFError or KeyboardInterrupt to leave."""
        self._out.write("Type a message, /help for help, exit to leave.\n")
        self._out.flush()
        try:
            while (text := read_turn(read_line)) not in _LEAVE:
                self._handle(text)
        except (EOFError, KeyboardInterrupt):
            self._out.write("\n")

    def _handle(self, text: str) -> None:
        if not _is_utf8(text):
            self._out.write("This is not UTF-8 text, so it was not taken. Set the terminal to UTF-8.\n")
            return
        word, _, rest = text.partition(" ")
        if command := self._commands.get(word):
            self._out.write(command(rest.strip()))
        elif word.startswith("/") and word[1:].isalpha():
            self._out.write(f"There is no command {word}; /help lists them.\n")
        elif text:
            self._answer(text)
        self._out.flush()

    def _answer(self, text: str) -> None:
        question: Message = {"role": "user", "content": text}
        printer = Printer(self._out, hide_reasoning=self._hide_reasoning, whole=self._no_stream)
        try:
            answer = self._assistant.reply(self._conversation(question), printer.show)
        except MlxkError as error:
            again = "\nThe conversation is as it was. /clear starts a new one; arrow up brings your message back."
            said = printable(error.message, keep="\n")
            self._err.write(f"Error: {said}{again if isinstance(error, ContextLengthError) else ''}\n")
            return
        printer.end(interrupted=answer.finish_reason == "interrupted")
        if answer.finish_reason == "length":
            self._out.write("[The answer was cut: no tokens are left for it]\n")
        if self._verbose:
            self._out.flush()
            self._err.write(f"{answer.statistics}\n")
        self._last = answer
        self._tokens += answer.tokens
        if answer.response:
            self._turns += [question, {"role": "assistant", "content": answer.response}]

    def _conversation(self, question: Message) -> list[Message]:
        system: list[Message] = [{"role": "system", "content": self._system}] if self._system else []
        return [*system, *self._turns, question]

    def _clear(self, _: str) -> str:
        self._turns.clear()
        return "The conversation is cleared.\n"

    def _set_system(self, text: str) -> str:
        if text:
            self._system = text
            return "The system prompt is set.\n"
        return f"The system prompt is: {self._system}\n" if self._system else "There is no system prompt.\n"

    def _save(self, name: str) -> str:
        if not name:
            return "/save needs the name of a file.\n"
        system: list[Message] = [{"role": "system", "content": self._system}] if self._system else []
        text = "\n".join(f"## {turn['role'].capitalize()}\n\n{turn['content']}\n" for turn in [*system, *self._turns])
        try:
            with open(os.path.expanduser(name), "x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            return f"{name} exists and stays as it is; choose another name.\n"
        except (OSError, ValueError) as fault:
            return f"{name} can't be written: {cause(fault) if isinstance(fault, OSError) else fault}.\n"
        return f"Saved to {name}.\n"

    def _statistics(self, _: str) -> str:
        if self._last is None:
            return "Nothing was said yet.\n"
        turns = len(self._turns) // 2
        return f"{turns} turns, {self._tokens} tokens generated. Last: {self._last.statistics}\n"


def _is_utf8(text: str) -> bool:
    """Whether a text has no bytes that Python could not read and put aside as surrogates."""
    try:
        text.encode()
    except UnicodeError:
        return False
    return True


def read_turn(read_line: ReadLine) -> str:
    """Read what the user says: one line, lines joined by a backslash at their end, or a block in triple quotes."""
    line = read_line(_PROMPT)
    if line.lstrip().startswith(_BLOCK):
        return _read_block(line.lstrip().removeprefix(_BLOCK), read_line)
    while line.endswith("\\"):
        line = line[:-1] + "\n" + read_line(_CONTINUED)
    return line.strip()


def _read_block(line: str, read_line: ReadLine) -> str:
    lines: list[str] = []
    while _BLOCK not in line:
        lines.append(line)
        line = read_line(_CONTINUED)
    lines.append(line.partition(_BLOCK)[0])
    return "\n".join(lines).strip()


def _history(environment: Mapping[str, str]) -> History:
    """Return the history of what was typed, in a file that only its user can read, or in memory if that can't be."""
    state = environment.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    file = Path(state) / "mlxk2" / "history"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(file, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600))
    except OSError:
        return InMemoryHistory()
    return FileHistory(file)
