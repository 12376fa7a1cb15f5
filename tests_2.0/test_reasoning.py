"""Separating reasoning from the answer: by tokens, by the prompt, and by text at the beginning of the output."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

import pytest
from conftest_runner import OneProcess, ScriptedTokenizer, generate, saying, tokens_of
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.application import serving
from support.following import finished, text
from support.tiny_models import CHATML, write_tokenizer

from mlxk2.runner.events import TextDelta
from mlxk2.runner.output.reasoning import MAX_BEGINNING, Marks, ReasoningSplitter
from mlxk2.runner.output.text import Vocabulary
from mlxk2.runner.prompt.confined import Starter
from mlxk2.runner.prompt.prompter import Prompter
from mlxk2.runner.prompt.tokenizer import load_tokenizer

THINK = ("<end>", "<think>", "</think>")
MISTRAL = ("<end>", "[THINK]", "[/THINK]")
GEMMA = ("<end>", "<|channel>", "<channel|>")
NONE = ("<end>",)
KNOWS = "{# <think> </think> #}"

USE = "Use <think>x</think> like so."

# For each case: the marks of the model; whether the prompt opens reasoning (None if unknown); the generated text; the
# reasoning in it; the answer in it.
SAID = {
    "line ends": (THINK, False, ("<think>", "\nHm.", "</think>", "\n\nParis."), "Hm.", "Paris."),
    "an empty thought": (THINK, False, ("<think>", "\n\n", "</think>", "\n\nParis."), "", "Paris."),
    "white space before": (THINK, False, (" \n", "<think>", "Hm.", "</think>", "Paris."), "Hm.", "Paris."),
    "special marks": (MISTRAL, False, ("[THINK]", "Hm.", "[/THINK]", "Paris."), "Hm.", "Paris."),
    "special marks in a line": (MISTRAL, False, ("A ", "[THINK]", "Hm.", "[/THINK]", "B"), "Hm.", "A B"),
    "marks of several tokens": (GEMMA, False, ("<|channel>", "thought\nHm.", "<channel|>", "Paris."), "Hm.", "Paris."),
    "several tokens, quoted": (GEMMA, False, ("<|channel>thought x<channel|>",), "", "<|channel>thought x<channel|>"),
    "several thoughts": (
        THINK,
        False,
        ("<think>", "a.", "</think>", "One.\n", "<think>", "\nb.", "</think>", "\nTwo."),
        "a.b.",
        "One.\nTwo.",
    ),
    "a thought after a call": (
        THINK,
        False,
        ("<tool_call>{}</tool_call>\n", "<think>", "Hm.", "</think>", "Hi"),
        "Hm.",
        "<tool_call>{}</tool_call>\nHi",
    ),
    "a thought that does not end": (THINK, False, ("<think>", "Hm. </thi"), "Hm. </thi", ""),
    "opened by the prompt": (THINK, True, ("Hm.", "</think>", "\n\nParis."), "Hm.", "Paris."),
    "opened by the prompt and again": (THINK, True, ("<think>", "\nHm.", "</think>", "\n\nParis."), "Hm.", "Paris."),
    "opened by the prompt, never closed": (THINK, True, ("Hm.",), "Hm.", ""),
    "closed by the prompt and again": (THINK, False, ("\n", "</think>", "\n\nParis."), "", "\nParis."),
    "a mark within a thought": (
        THINK,
        False,
        ("<think>", "Use <think>, ", "<think>", ".", "</think>", "x"),
        "Use <think>, <think>.",
        "x",
    ),
    "closing text within a thought": (THINK, False, ("<think>", "a</think>b", "</think>", "x"), "a</think>b", "x"),
    "spelled": (THINK, False, ("<thi", "nk>Hm.</thin", "k>Paris."), "Hm.", "Paris."),
    "spelled, then closed": (THINK, False, ("<think>Hm.", "</think>", "Paris."), "Hm.", "Paris."),
    "spelled by a model that knows no marks": (NONE, False, ("\n<think>\nHm.</think>\n\nParis.",), "Hm.", "Paris."),
    "spelled twice": (NONE, False, ("<think>a</think>\n<think>b</think>c",), "a", "<think>b</think>c"),
    "spelled in brackets": (NONE, False, ("[THINK]a[/THINK]b",), "", "[THINK]a[/THINK]b"),
    "begun to be spelled": (NONE, False, ("\n<thin",), "", "\n<thin"),
    "quoted": (NONE, False, (USE,), "", USE),
    "quoted by a model that knows the marks": (THINK, None, (USE,), "", USE),
    "quoted in tokens": (THINK, None, ("Use ", "<think>", "x", "</think>", " like so."), "", USE),
    "quoted in tokens after a thought": (
        THINK,
        None,
        ("<think>", "Hm.", "</think>", "Use `", "<think>", "` and `", "</think>", "`."),
        "Hm.",
        "Use `<think>` and `</think>`.",
    ),
    "quoted at the beginning": (THINK, None, ("`", "</think>", "` ends it."), "", "`</think>` ends it."),
    "closed alone": (THINK, None, ("Let me see.", "</think>", "\n\nParis."), "Let me see.", "Paris."),
    "closed alone, special": (MISTRAL, None, ("\nLet me see.", "[/THINK]", "Paris."), "Let me see.", "Paris."),
    "closed alone at once": (THINK, None, ("\n", "</think>", "\n\nParis."), "", "Paris."),
    "closed alone and late": (THINK, None, ("x" * 65, "</think>", "y"), "", "x" * 65 + "</think>y"),
    "a special token that separates": (
        ("<end>", "<|other_thought|>"),
        False,
        ("a", "<|other_thought|>", "b", "<pad>"),
        "",
        "a<|other_thought|>b",
    ),
}


@pytest.mark.parametrize(("marks", "thinking", "said", "reasoning", "answer"), SAID.values(), ids=SAID)
def test_reasoning_and_answer_are_separated(
    marks: Sequence[str], thinking: bool | None, said: Sequence[str], reasoning: str, answer: str
) -> None:
    chunks = generate(saying(*said, marks=marks), thinking=thinking)
    assert (text(chunks, "reasoning"), text(chunks)) == (reasoning, answer)


# The same cases with marks that only the chat template contains.
OF_THE_TEMPLATE = {
    "opened by the prompt": (True, "Hm.</think>\n\nParis.", "Hm.", "Paris."),
    "spelled": (None, "<think>Hm.</think>\n\nParis.", "Hm.", "Paris."),
    "closed alone": (None, "Hm.</think>\n\nParis.", "Hm.", "Paris."),
    "quoted": (False, "Use <think>x</think> like so.", "", "Use <think>x</think> like so."),
}


@pytest.mark.parametrize(("thinking", "said", "reasoning", "answer"), OF_THE_TEMPLATE.values(), ids=OF_THE_TEMPLATE)
def test_marks_known_only_from_the_template_separate_reasoning(
    thinking: bool | None, said: str, reasoning: str, answer: str
) -> None:
    chunks = generate(saying(said, marks=NONE, chat_template=KNOWS), thinking=thinking)
    assert (text(chunks, "reasoning"), text(chunks)) == (reasoning, answer)


def test_a_template_with_only_the_opening_mark_is_enough() -> None:
    chunks = generate(saying("Hm.</think>Paris.", marks=NONE, chat_template="Q<think>\nOkay, "), thinking=True)
    assert (text(chunks, "reasoning"), text(chunks)) == ("Hm.", "Paris.")


def test_the_sentences_of_granite_separate_reasoning() -> None:
    template = "Write 'Here is my thought process:', then 'Here is my response:'."
    backend = saying("Here is my thought process: Hm.\nHere is my response: Paris.", marks=NONE, chat_template=template)
    chunks = generate(backend)
    assert (text(chunks, "reasoning"), text(chunks)) == (" Hm.\n", " Paris.")


def test_a_plain_completion_shows_all_marks() -> None:
    chunks = generate(saying("[THINK]", "a", "[/THINK]", "b", "<pad>", marks=MISTRAL), plain=True)
    assert text(chunks) == "[THINK]a[/THINK]b"


def test_a_limit_inside_the_reasoning_leaves_the_answer_empty() -> None:
    chunks = generate(saying("<think>", "Hmmm"), max_tokens=3)
    assert (text(chunks, "reasoning"), text(chunks), finished(chunks).reason) == ("Hm", "", "length")


def test_stop_strings_apply_to_the_answer_but_not_to_reasoning() -> None:
    chunks = generate(saying("a\n\nb", "</think>", "c\n\nd"), thinking=None, stop=("\n\n",))
    assert (text(chunks, "reasoning"), text(chunks), finished(chunks).reason) == ("a\n\nb", "c", "stop")


def test_an_answer_that_may_be_reasoning_streams_after_its_beginning() -> None:
    events = generate(saying("x" * 200), thinking=None)
    first, *others = [event.text for event in events if isinstance(event, TextDelta)]
    assert len(first) == MAX_BEGINNING + 1
    assert set(map(len, others)) == {1}


@pytest.mark.parametrize("said", [("Let me see.", "</think>", "\n\nParis."), ("<think>", "Hm.", "</think>", "Paris.")])
def test_every_choice_has_its_reasoning_and_the_logprobs_of_its_answer(said: Sequence[str]) -> None:
    with serving(saying(*said)) as client:
        for choice in client.ask(n=2, logprobs=True)["choices"]:
            assert choice["message"]["reasoning_content"] in ("Let me see.", "Hm.")
            assert choice["message"]["content"] == "Paris."
            assert "".join(entry["token"] for entry in choice["logprobs"]["content"]) == "Paris."


# ------------------------------------------------------------------------------------------------------- properties

PIECES: list[str | int] = [*"<thin k>\n`", "<think>", "</think>", "[/THINK]", "thought", "Use ", "é", "   ", "x" * 30]
SAID_IN_TOKENS = tokens_of("<think>", "</think>", "[THINK]", "[/THINK]", "<|channel>", "<channel|>")


def split(marks: Marks, thinking: bool | None, said: Iterable[str | int]) -> list[tuple[str, str]]:
    """Return the output of a splitter for texts and tokens, with neighbours of one kind joined."""
    splitter = ReasoningSplitter(marks, "reasoning" if thinking else "normal", undecided=thinking is None)
    pieces = [p for part in said for p in (splitter.read(part) if isinstance(part, str) else splitter.mark(part))]
    found = groupby([*pieces, *splitter.finish()], lambda piece: piece[0])
    joined = [(str(kind), "".join(said for _, said in group)) for kind, group in found]
    return [(kind, said) for kind, said in joined if said]


@settings(max_examples=400, deadline=None)
@example(["x" * 60, "xx", "</think>"], KNOWS, NONE, None)
@example(["   ", "<think>", "x" * 30], KNOWS, NONE, None)
@given(
    st.lists(st.sampled_from(PIECES + SAID_IN_TOKENS), max_size=9),
    st.sampled_from(["", KNOWS]),
    st.sampled_from([THINK, MISTRAL, GEMMA, NONE, (*THINK, *MISTRAL[1:], *GEMMA[1:])]),
    st.sampled_from([True, False, None]),
)
def test_splitting_is_independent_of_pieces_and_removes_only_marks(
    said: list[str | int], template: str, known: Sequence[str], thinking: bool | None
) -> None:
    tokenizer = ScriptedTokenizer(marks=known, chat_template=template)
    marks = Marks.of(tokenizer, {number for number, entry in tokenizer.added_tokens_decoder.items() if entry.special})
    said = [part for part in said if isinstance(part, str) or part in marks.tokens]
    # A token's text comes alone; the text between tokens may come as a whole or letter by letter.
    whole: list[str | int] = []
    for part in said:
        if isinstance(part, str) and whole and isinstance(whole[-1], str):
            whole[-1] += part
        else:
            whole.append(part)
    expected = split(marks, thinking, whole)
    letters = [letter for part in whole for letter in (part if isinstance(part, str) else [part])]
    assert split(marks, thinking, letters) == split(marks, thinking, said) == expected
    given_text = "".join(part if isinstance(part, str) else tokenizer.decode([part]) for part in said)
    assert without_marks("".join(text for _, text in expected)) == without_marks(given_text)


def without_marks(said: str) -> str:
    """Return the letters of a text that occur in no mark."""
    return "".join(letter for letter in said if letter in "Usx\u00e9`")


# ---------------------------------------------------------------------------------------------------------- prompts

OPENED = "<|im_start|>assistant\n{% endif"
PROMPTS = {
    "opened": ("<think>", "Hi", True),
    "opened with a line end": ("<think>\n", "Hi", True),
    "opened and continued": ("<think>\nOkay, let me see, step by step, what is asked here: ", "Hi", True),
    "closed": ("<think>\n\n</think>\n\n", "Hi", False),
    "closed and continued": ("<think>\n\n</think>\n\nParis is", "Hi", False),
    "closed alone": ("</think>", "Hi", False),
    "opened after a closed one": ("<think>a</think>\n<think>", "Hi", True),
    "not mentioned": ("", "Hi", None),
    "quoted by the user": ("", "What is <think>?", None),
    "quoted by the user, and closed": ("</think>", "What is <think>?", False),
}


@pytest.mark.parametrize(("end", "question", "thinking"), PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("marks", [("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<thought>", "</thought>")])
def test_the_prompt_shows_whether_reasoning_is_open(
    tmp_path: Path, one_process: Starter, marks: tuple[str, str], end: str, question: str, thinking: bool | None
) -> None:
    def in_marks(said: str) -> str:
        return said.replace("<think>", marks[0]).replace("</think>", marks[1])

    # The first pair are tokens of the vocabulary, the second are special tokens, and only the template has the third.
    template = CHATML.replace(OPENED, in_marks(f"<|im_start|>assistant\n{end}{{% endif")) + "{# </thought> #}"
    write_tokenizer(tmp_path, template=template, special=("[THINK]", "[/THINK]"))
    tokenizer = load_tokenizer(tmp_path, {}, one_process, "model")
    prompt = Prompter(tokenizer, Vocabulary.of(tokenizer)).chat([{"role": "user", "content": in_marks(question)}])
    assert prompt.thinking is thinking


@pytest.fixture(scope="module")
def one_process() -> OneProcess:
    """Return a process for the tokenizers of this file."""
    return OneProcess()
