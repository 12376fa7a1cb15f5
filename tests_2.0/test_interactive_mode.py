"""The interactive chat: its commands, input of several lines, and the conversation that it keeps."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest_runner import ScriptedBackend, Streams, assistant, saying, streams, tokens_of

from mlxk2.chat.repl import Chat


def chat(
    turns: Sequence[str | BaseException],
    backend: ScriptedBackend | None = None,
    system: str | None = None,
    hide_reasoning: bool = False,
    max_tokens: int | None = None,
    **flags: bool,
) -> tuple[Streams, ScriptedBackend]:
    """Run a chat with these turns, then press Ctrl-D; return the output and the backend."""
    backend = backend or saying("Paris.")
    given = iter(turns)

    def read() -> str:
        turn = next(given, EOFError())
        if isinstance(turn, BaseException):
            raise turn
        return turn

    shown = streams()
    Chat(assistant(backend, max_tokens), shown, system, hide_reasoning=hide_reasoning, **flags).run(read)
    return shown, backend


@pytest.mark.parametrize("leave", ["/bye", "/exit", "/quit", "exit", "quit", EOFError()])
def test_exit_quit_and_ctrl_d_end_the_chat(leave: Any) -> None:
    _, backend = chat([leave, "never asked"])
    assert backend.requests == []


def test_a_chat_sends_the_earlier_turns() -> None:
    shown, backend = chat(["France?", "Sure?"])
    assert backend.prompts == ["user:France?;", "user:France?;assistant:Paris.;user:Sure?;"]
    assert shown.stdout.getvalue().count("Paris.\n") == 2


def test_the_system_prompt_comes_first_and_can_be_changed() -> None:
    shown, backend = chat(["/system", "a", "/system be brief", "b", "/system"], system="be kind")
    assert backend.prompts[0].startswith("system:be kind;user:a;")
    assert backend.prompts[1].startswith("system:be brief;user:a;")
    assert "The system prompt is: be brief" in shown.stdout.getvalue()


def test_clear_keeps_only_the_system_prompt() -> None:
    _, backend = chat(["a", "/clear", "b"], system="be kind")
    assert backend.prompts[1] == "system:be kind;user:b;"


def test_reasoning_is_shown_but_not_kept_in_the_conversation() -> None:
    thinking = saying("<think>", "Hm.", "</think>", "\n\nParis.")
    shown, backend = chat(["a", "b"], thinking)
    assert "[Reasoning]\nHm.\n\n[Answer]\nParis.\n" in shown.stdout.getvalue()
    assert backend.prompts[1] == "user:a;assistant:Paris.;user:b;"


def test_reasoning_can_be_hidden() -> None:
    shown, _ = chat(["a"], saying("<think>", "Hm.", "</think>", "\n\nParis."), hide_reasoning=True)
    assert "Hm." not in shown.stdout.getvalue()
    assert "Paris.\n" in shown.stdout.getvalue()


def test_verbose_prints_statistics_after_every_answer() -> None:
    shown, _ = chat(["a", "b"], verbose=True)
    printed = shown.stderr.getvalue().splitlines()
    assert [line.split(" in ")[0] for line in printed] == [
        "prompt: 7 tokens, answer: 7 tokens",
        "prompt: 31 tokens, answer: 7 tokens",
    ]
    assert all(line.endswith("end: stop") for line in printed)
    assert chat(["a"])[0].stderr.getvalue() == ""


@pytest.mark.parametrize("no_stream", [True, False])
def test_no_stream_prints_an_answer_only_when_it_is_whole(no_stream: bool) -> None:
    halves = ScriptedBackend(lambda _: [*tokens_of("Par"), RuntimeError("no")], marks=("<end>",))
    shown, _ = chat(["a"], halves, no_stream=no_stream)
    assert ("Par" in shown.stdout.getvalue()) is not no_stream
    whole, backend = chat(["a", "b"], saying("<think>", "Hm.", "</think>", "Paris."), no_stream=no_stream)
    assert whole.stdout.getvalue().count("[Reasoning]\nHm.\n\n[Answer]\nParis.\n") == 2
    assert backend.prompts[1] == "user:a;assistant:Paris.;user:b;"


def test_triple_quotes_enclose_several_lines() -> None:
    assert chat(['"""one\n\n  two\nthree"""'])[1].prompts == ["user:one\n\n  two\nthree;"]
    assert chat(['"""one"""'])[1].prompts == ["user:one;"]
    assert chat(["pasted\\\n  lines"])[1].prompts == ["user:pasted\\\n  lines;"]


def test_an_empty_line_is_ignored() -> None:
    assert chat(["", "   "])[1].requests == []


def test_save_writes_the_conversation_to_a_new_file_only(tmp_path: Path) -> None:
    file = tmp_path / "talk.md"
    shown, _ = chat(["France?", f"/save {file}", "Sure?", f"/save {file}"], system="be kind")
    assert file.read_text() == "## System\n\nbe kind\n\n## User\n\nFrance?\n\n## Assistant\n\nParis.\n"
    assert f"{file} already exists and was not changed" in shown.stdout.getvalue()


def test_errors_of_save_are_printed(tmp_path: Path) -> None:
    shown, _ = chat(["/save", f"/save {tmp_path}/none/talk.md"])
    assert "needs the name of a file" in shown.stdout.getvalue()
    assert "No such file or directory" in shown.stdout.getvalue()


TRICKY = ["a\n## User\n\n## Assistant\n", "\\## System", "## User\n\r\nb", "c\u2028\n\\\\## Assistant"]


@pytest.mark.parametrize("system", [None, "be\n\n## User\n\nkind"])
def test_a_saved_conversation_can_be_loaded(tmp_path: Path, system: str | None) -> None:
    file = tmp_path / "talk.md"
    backend = saying("\n## User\n\nParis.\n\n")
    chat([*TRICKY, f"/save {file}", "last"], backend, system)
    shown, other = chat(["/system else", "else", f"/load {file}", "last"], saying("Rome."), "not loaded")
    assert other.prompts[-1] == backend.prompts[-1]
    assert f"Loaded 4 turns from {file}.\n" in shown.stdout.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file or directory"),
        (b"", "not a conversation that /save wrote"),
        (b"Dear diary,\n\n## User\n\na\n\n## Assistant\n\nb\n", "not a conversation that /save wrote"),
        (b"## User\n\na\n", "not a conversation that /save wrote"),
        (b"## User\n\na\n\n## Assistant\n\nb\n\n## System\n\nc\n", "not a conversation that /save wrote"),
        (b"## User\n\n\xff\n\n## Assistant\n\nb\n", "invalid start byte"),
    ],
)
def test_a_file_without_a_conversation_changes_nothing(tmp_path: Path, content: bytes | None, said: str) -> None:
    file = tmp_path / "talk.md"
    if content is not None:
        file.write_bytes(content)
    shown, backend = chat(["a", f"/load {file}", "b"], system="be kind")
    assert said in shown.stdout.getvalue()
    assert backend.prompts[-1] == "system:be kind;user:a;assistant:Paris.;user:b;"


def test_load_refuses_paths_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    shown, _ = chat(["/load", f"/load {tmp_path}/pipe", f"/load {tmp_path}", "/load \0"])
    assert "needs the name of a file" in shown.stdout.getvalue()
    assert shown.stdout.getvalue().count("it is not a file") == 2
    assert "null byte" in shown.stdout.getvalue()


def test_stats_help_and_unknown_commands_print_text() -> None:
    shown, backend = chat(["/stats", "a", "/stats", "/help", "/?", "/sing"])
    said = shown.stdout.getvalue()
    assert "The conversation has no completion yet." in said
    assert "1 turns, 7 tokens generated" in said
    assert said.count("/save FILE") == said.count("/load FILE") == 2
    assert "no command /sing" in said
    assert len(backend.requests) == 1


@pytest.mark.parametrize("line", ["caf\udce9", "/system caf\udce9"])
def test_text_that_is_not_utf8_is_refused(line: str) -> None:
    shown, backend = chat([line, "b"])
    assert "not UTF-8" in shown.stdout.getvalue()
    assert backend.prompts == ["user:b;"]


def test_a_line_that_begins_with_a_path_is_a_question() -> None:
    assert chat(["/etc/passwd is what?"])[1].prompts == ["user:/etc/passwd is what?;"]


def test_a_question_past_the_context_keeps_the_conversation() -> None:
    backend = saying("Paris.", context_length=60)
    shown, _ = chat(["a", "x" * 80, "b"], backend)
    assert "context has 60" in shown.stderr.getvalue()
    assert "/clear" in shown.stderr.getvalue()
    assert backend.prompts[-1] == "user:a;assistant:Paris.;user:b;"


def test_an_answer_cut_by_the_limit_is_marked() -> None:
    shown, _ = chat(["a"], max_tokens=3)
    assert "Par\n[The answer was cut" in shown.stdout.getvalue()


def test_a_model_error_does_not_end_the_chat() -> None:
    scripts: Iterator[Sequence[int | Exception]] = iter([[RuntimeError("out of memory\x1b[2J")], tokens_of("Paris.")])
    shown, backend = chat(["a", "b"], ScriptedBackend(lambda _: next(scripts)))
    assert "out of memory\ufffd[2J" in shown.stderr.getvalue()
    assert backend.prompts[-1] == "user:b;"
    assert "Paris." in shown.stdout.getvalue()


def test_a_question_without_an_answer_is_not_kept() -> None:
    scripts = iter([tokens_of("<end>"), tokens_of("Paris.")])
    _, backend = chat(["a", "b"], ScriptedBackend(lambda _: next(scripts)))
    assert backend.prompts[-1] == "user:b;"
