"""The interactive conversation: read lines and commands, and print completions."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Protocol

from prompt_toolkit import PromptSession
from prompt_toolkit.filters import Condition, has_focus
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from mlxk2.chat import transcript
from mlxk2.chat.assistant import Assistant, Completion
from mlxk2.chat.printer import Printer
from mlxk2.chat.terminal import Terminal
from mlxk2.errors import ContextLengthError, MlxkError
from mlxk2.formatting import printable
from mlxk2.runner.prompt.prompter import Message

ReadTurn = Callable[[], str]

_PROMPT, _CONTINUED = "> ", ". "
_BLOCK = '"""'
_LEAVE = ("/bye", "/exit", "/quit", "exit", "quit")
_WAYS_OUT = "To leave, type /bye or press Ctrl-D.\n"
_HELP = f"""\
/?, /help     show this list
/clear        forget the conversation (the system prompt stays)
/system TEXT  set the system prompt; without TEXT, show it
/save FILE    write the conversation to a new file
/load FILE    replace this conversation by one that /save wrote
/stats        show the size and speed of the conversation
/bye          leave; so do /exit, exit, quit and Ctrl-D
A line that ends in \\ continues on the next line; {_BLOCK} begins and ends a block of lines.
Ctrl-C discards what you are typing. While an answer comes, it ends the answer and keeps its text so far.
The up arrow brings back what you typed before. Ctrl-Z suspends the program.
"""


class Streams(Protocol):
    """The streams to which the conversation is written."""

    @property
    def stdout(self) -> IO[str]:
        """The stream for completions."""

    @property
    def stderr(self) -> IO[str]:
        """The stream for errors."""


def converse(
    assistant: Assistant,
    streams: Streams,
    terminal: Terminal,
    environment: Mapping[str, str],
    system: str | None,
    **shown: bool,
) -> None:
    """Hold a conversation on the terminal until the user leaves; `shown` are options of `Chat`."""
    session = open_session(environment)

    def read_turn() -> str:
        while True:
            try:
                with terminal.reading():
                    return session.prompt(_PROMPT)
            except KeyboardInterrupt:
                if not session.default_buffer.text:
                    streams.stdout.write(_WAYS_OUT)
                    streams.stdout.flush()

    Chat(assistant, streams, system, terminal, **shown).run(read_turn)


def open_session(environment: Mapping[str, str]) -> PromptSession[str]:
    """Return the session that reads turns; all lines of a turn are one text and one entry of the history.

    The history is in a file that only the user can read, or in memory if the file can't be written.
    """
    state = environment.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    file = Path(state) / "mlxk2" / "history"
    history: History = FileHistory(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(file, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600))
    except OSError:
        history = InMemoryHistory()
    keys = KeyBindings()
    session: PromptSession[str] = PromptSession(
        history=history, enable_suspend=True, key_bindings=keys, prompt_continuation=_CONTINUED
    )
    goes_on = Condition(lambda: needs_line(session.default_buffer.text))

    @keys.add("enter", filter=has_focus(session.default_buffer) & goes_on)
    def begin_line(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if not is_block(buffer.text):
            buffer.text = buffer.text.removesuffix("\\")
            buffer.cursor_position = len(buffer.text)
        buffer.insert_text("\n")

    return session


class Chat:
    """A conversation with a model: the turns so far, and the user's commands.

    With `no_stream`, print a completion when it is complete; with `verbose`, print its statistics on stderr.
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

    def run(self, read_turn: ReadTurn) -> None:
        """Complete turn after turn; `read_turn` returns what the user typed, and raises EOFError to leave."""
        self._out.write("Type a message, /? for help, /bye to leave.\n")
        self._out.flush()
        try:
            while (text := message_of(read_turn())) not in _LEAVE:
                word, _, rest = text.partition(" ")
                # Python represents bytes that it could not decode as surrogates.
                if any(0xD800 <= ord(character) <= 0xDFFF for character in text):
                    self._out.write("This is not UTF-8 text, so it was ignored. Set the terminal to UTF-8.\n")
                elif word == "/?" or (word.startswith("/") and word[1:].isalpha()):
                    self._out.write(self._run_command(word, rest.strip()))
                elif text:
                    self._complete(text)
                self._out.flush()
        except (EOFError, KeyboardInterrupt):
            self._out.write("\n")

    def _complete(self, text: str) -> None:
        """Print the model's completion for a message, and add both to the turns."""
        message: Message = {"role": "user", "content": text}
        printer = Printer(
            self._out, hide_reasoning=self._hide_reasoning, whole=self._no_stream, terminal=self._terminal
        )
        printer.begin()
        try:
            completion = self._assistant.complete([*self._messages, message], printer.show)
        except MlxkError as error:
            again = "\nThe conversation did not change. /clear starts a new one; arrow up shows your message again."
            self._terminal.hide()
            described = printable(error.message, keep="\n")
            self._err.write(f"Error: {described}{again if isinstance(error, ContextLengthError) else ''}\n")
            return
        printer.end(interrupted=completion.finish_reason == "interrupted")
        if completion.finish_reason == "length":
            self._out.write("[The answer was cut at the limit of tokens]\n")
        if self._verbose:
            self._out.flush()
            self._err.write(f"{completion.statistics}\n")
        self._last = completion
        self._tokens += completion.usage.completion_tokens
        if completion.text:
            self._turns += [message, {"role": "assistant", "content": completion.text}]

    def _run_command(self, word: str, argument: str) -> str:
        """Execute a command and return the text to print."""
        match word:
            case "/?" | "/help":
                return _HELP
            case "/clear":
                self._turns.clear()
                return "The conversation is cleared.\n"
            case "/system" if argument:
                self._system = argument
                return "The system prompt is set.\n"
            case "/system":
                return f"The system prompt is: {self._system}\n" if self._system else "There is no system prompt.\n"
            case "/save" | "/load" if not argument:
                return f"{word} needs the name of a file.\n"
            case "/save" | "/load":
                return self._save_or_load(word, argument)
            case "/stats":
                if self._last is None:
                    return "The conversation has no completion yet.\n"
                turns = len(self._turns) // 2
                return f"{turns} turns, {self._tokens} tokens generated. Last: {self._last.statistics}\n"
        return f"There is no command {word}; /? lists them.\n"

    def _save_or_load(self, word: str, name: str) -> str:
        try:
            if word == "/save":
                transcript.save(name, self._messages)
                return f"Saved to {name}.\n"
            messages = transcript.load(name)
        except MlxkError as error:
            return f"{printable(error.message)}\n"
        self._turns = [message for message in messages if message["role"] != "system"]
        self._system = messages[0]["content"] if messages[0]["role"] == "system" else None
        return f"Loaded {len(self._turns) // 2} turns from {name}.\n"


def is_block(typed: str) -> bool:
    """Return whether a text begins with the mark of a block of lines."""
    return typed.lstrip().startswith(_BLOCK)


def needs_line(typed: str) -> bool:
    """Return whether a text continues on the next line: its block is open, or it ends in a backslash."""
    return typed.count(_BLOCK) < 2 if is_block(typed) else typed.endswith("\\")


def message_of(typed: str) -> str:
    """Return the message in a text: the lines of its block, or all of it."""
    return (typed.split(_BLOCK)[1] if is_block(typed) else typed).strip()
