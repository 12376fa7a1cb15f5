"""The interactive conversation: it reads lines and commands, and prints completions."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Protocol

from prompt_toolkit import PromptSession
from prompt_toolkit.history import FileHistory, History, InMemoryHistory

from mlxk2.chat.assistant import Assistant, Completion
from mlxk2.chat.printer import Printer
from mlxk2.chat.terminal import Terminal
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
        """For completions."""

    @property
    def stderr(self) -> IO[str]:
        """For what went wrong."""


def converse(
    assistant: Assistant,
    streams: Streams,
    terminal: Terminal,
    environment: Mapping[str, str],
    system: str | None,
    **shown: bool,
) -> None:
    """Hold a conversation on the terminal until the user leaves; `shown` are options of `Chat`.

    The history of what was typed is in a file that only its user can read, or in memory if that can't be written.
    """
    state = environment.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    file = Path(state) / "mlxk2" / "history"
    history: History = FileHistory(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(file, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600))
    except OSError:
        history = InMemoryHistory()
    session: PromptSession[str] = PromptSession(history=history, enable_suspend=True)

    def read_line(prompt: str) -> str:
        with terminal.reading():
            return session.prompt(prompt)

    Chat(assistant, streams, system, terminal, **shown).run(read_line)


class Chat:
    """A conversation with a model: the turns so far, and the user's commands.

    With `no_stream` a completion is printed when it is whole; with `verbose` its statistics follow on stderr.
    """

    def __init__(
        self,
        assistant: Assistant,
        streams: Streams,
        system: str | None,
        terminal: Terminal | None = None,
        /,
        *,
        hide_reasoning: bool = False,
        no_stream: bool = False,
        verbose: bool = False,
    ) -> None:
        self._assistant = assistant
        self._out = streams.stdout
        self._err = streams.stderr
        self._system = system
        self._terminal = terminal or Terminal(streams.stdout, streams.stderr, shows=False)
        self._hide_reasoning = hide_reasoning
        self._no_stream = no_stream
        self._verbose = verbose
        self._turns: list[Message] = []
        self._last: Completion | None = None
        self._tokens = 0

    @property
    def _messages(self) -> list[Message]:
        """The system prompt and the turns so far."""
        system: list[Message] = [{"role": "system", "content": self._system}] if self._system else []
        return [*system, *self._turns]

    def run(self, read_line: ReadLine) -> None:
        """Complete turn after turn; `read_line` shows a prompt and raises EOFError or KeyboardInterrupt to leave."""
        self._out.write("Type a message, /help for help, exit to leave.\n")
        self._out.flush()
        try:
            while (text := read_turn(read_line)) not in _LEAVE:
                word, _, rest = text.partition(" ")
                # Bytes that Python could not read are surrogates in the text.
                if any(0xD800 <= ord(character) <= 0xDFFF for character in text):
                    self._out.write("This is not UTF-8 text, so it was not taken. Set the terminal to UTF-8.\n")
                elif word.startswith("/") and word[1:].isalpha():
                    self._out.write(self._run_command(word, rest.strip()))
                elif text:
                    self._complete(text)
                self._out.flush()
        except (EOFError, KeyboardInterrupt):
            self._out.write("\n")

    def _complete(self, text: str) -> None:
        """Print what the model says to a message, and add both to the turns."""
        message: Message = {"role": "user", "content": text}
        printer = Printer(
            self._out, hide_reasoning=self._hide_reasoning, whole=self._no_stream, terminal=self._terminal
        )
        printer.begin()
        try:
            completion = self._assistant.complete([*self._messages, message], printer.show)
        except MlxkError as error:
            again = "\nThe conversation is as it was. /clear starts a new one; arrow up brings your message back."
            self._terminal.hide()
            described = printable(error.message, keep="\n")
            self._err.write(f"Error: {described}{again if isinstance(error, ContextLengthError) else ''}\n")
            return
        printer.end(interrupted=completion.finish_reason == "interrupted")
        if completion.finish_reason == "length":
            self._out.write("[The answer was cut: no tokens are left for it]\n")
        if self._verbose:
            self._out.flush()
            self._err.write(f"{completion.statistics}\n")
        self._last = completion
        self._tokens += completion.usage.completion_tokens
        if completion.text:
            self._turns += [message, {"role": "assistant", "content": completion.text}]

    def _run_command(self, word: str, argument: str) -> str:
        """Do what a command says; return what to print."""
        match word:
            case "/help":
                return _HELP
            case "/clear":
                self._turns.clear()
                return "The conversation is cleared.\n"
            case "/system" if argument:
                self._system = argument
                return "The system prompt is set.\n"
            case "/system":
                return f"The system prompt is: {self._system}\n" if self._system else "There is no system prompt.\n"
            case "/save":
                return self._save(argument)
            case "/stats":
                if self._last is None:
                    return "Nothing was said yet.\n"
                turns = len(self._turns) // 2
                return f"{turns} turns, {self._tokens} tokens generated. Last: {self._last.statistics}\n"
        return f"There is no command {word}; /help lists them.\n"

    def _save(self, name: str) -> str:
        if not name:
            return "/save needs the name of a file.\n"
        text = "\n".join(f"## {turn['role'].capitalize()}\n\n{turn['content']}\n" for turn in self._messages)
        try:
            with open(os.path.expanduser(name), "x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            return f"{name} exists and stays as it is; choose another name.\n"
        except (OSError, ValueError) as fault:
            return f"{name} can't be written: {cause(fault) if isinstance(fault, OSError) else fault}.\n"
        return f"Saved to {name}.\n"


def read_turn(read_line: ReadLine) -> str:
    """Read what the user says: one line, lines joined by a backslash at their end, or a block in triple quotes."""
    line = read_line(_PROMPT)
    if not line.lstrip().startswith(_BLOCK):
        while line.endswith("\\"):
            line = line[:-1] + "\n" + read_line(_CONTINUED)
        return line.strip()
    line = line.lstrip().removeprefix(_BLOCK)
    lines: list[str] = []
    while _BLOCK not in line:
        lines.append(line)
        line = read_line(_CONTINUED)
    lines.append(line.partition(_BLOCK)[0])
    return "\n".join(lines).strip()
