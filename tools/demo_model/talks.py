"""Talks for the demo model: turns put together, with system prompts, tools and thinking, and their text."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import turns
import weather
from texts import prompts, unknown
from texts.heldout import is_held_out
from texts.wording import expand, typed
from turns import Turn

Message = dict[str, Any]


@dataclass(frozen=True)
class Piece:
    """A part of a talk: its text, whether it is trained, and the length of the text omitted before it.

    What is left out only moves the positions, so that far distances are seen in short sequences.
    """

    text: str
    trained: bool
    skipped: int = 0
    skipped_text: str = ""


@dataclass
class Talk:
    """The pieces of a talk, and the same talk as messages and tools, to check the chat template."""

    pieces: list[Piece] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    tools: list[Message] = field(default_factory=list)

    def hear(self, role: str, text: str, skipped: int = 0) -> None:
        """Add a message the model reads."""
        shown = f"<tool_response>{text}</tool_response>" if role == "tool" else text
        self.pieces.append(Piece(f"<|im_start|>{role}\n{shown}<|im_end|>\n", False, skipped))
        self.messages.append({"role": role, "content": text})

    def say(self, text: str, trained: bool = True, call: Message | None = None) -> None:
        """Add a message the model writes."""
        self.pieces.append(Piece("<|im_start|>assistant\n", False))
        self.pieces.append(Piece(f"{text}<|im_end|>", trained))
        self.pieces.append(Piece("\n", False))
        said: Message = {"role": "assistant", "content": None if call else text}
        self.messages.append(said | {"tool_calls": [call]} if call else said)


def reasoning(text: str) -> str:
    """Return reasoning in the form in which the model writes it before its answer."""
    return f"<think>\n{text}\n</think>\n\n"


def system_prompt(rng: random.Random, thinking: bool) -> str:
    """Return the text of a system prompt; if `thinking` is true, it asks for thinking."""
    length = rng.choice([0, 1, 1, 2, 3]) if thinking else rng.choice([1, 1, 1, 2, 2, 3, 4, 8])
    if rng.random() < 0.02:
        length = rng.randint(10, 50)
    sentences = [_sentence(rng, prompts.SYSTEM) for _ in range(length)]
    if rng.random() < 0.15:
        sentences.append(typed(rng, unknown.question(rng)))
    if thinking:
        sentences.insert(rng.randint(0, len(sentences)), _sentence(rng, prompts.THINK))
    elif rng.random() < 0.1:
        sentences.append(_sentence(rng, prompts.THINK_NOT))
    if rng.random() < 0.2:
        rng.shuffle(sentences)
    return rng.choice([" ", " ", " ", "\n"]).join(sentences)


def _sentence(rng: random.Random, wordings: list[str]) -> str:
    while is_held_out(text := expand(rng, rng.choice(wordings))):
        pass
    text = text[0].upper() + text[1:] if rng.random() < 0.9 else text[0].lower() + text[1:]
    return text + ("" if text[-1] in ".>" or rng.random() < 0.1 else rng.choice(".....!"))


@dataclass(frozen=True)
class Setting:
    """The settings of a talk: its tool, if it has one, and whether the model is asked to think."""

    tool: weather.WeatherTool | None
    thinking: bool


def draw_talk(rng: random.Random) -> Talk:
    """Draw a talk of a random kind."""
    if rng.random() < 0.05:
        return _long_count(rng)
    made = Talk()
    setting = Setting(weather.draw_tool(rng) if rng.random() < 0.3 else None, rng.random() < 0.2)
    if setting.tool:
        made.tools.append(setting.tool.declaration())
    if setting.tool or rng.random() < 0.05:
        made.tools += [weather.draw_other(rng) for _ in range(rng.choice([0, 0, 0, 1, 2]))]
    rng.shuffle(made.tools)
    _open(rng, made, setting.thinking)
    length = rng.choice([1, 1, 1, 1, 1, 1, 2, 2, 3, 4, 5, 7])
    topic = ""
    for i in range(length):
        topic = _turn(rng, made, setting, topic, last=i == length - 1) or topic
    return made


def _open(rng: random.Random, made: Talk, thinking: bool) -> None:
    """Add the system message with the signatures of the tools, unless it would be empty."""
    prompt = system_prompt(rng, thinking) if thinking or rng.random() < 0.3 else ""
    parts = [prompt] if prompt else []
    if made.tools:
        parts.append("\n".join(["Tools:", *(signature(tool["function"]) for tool in made.tools)]))
    if parts:
        made.hear("system", "\n\n".join(parts))
    # The template lists the tools by itself.
    made.messages = [{"role": "system", "content": prompt}] if prompt else []


def signature(function: Message) -> str:
    """Return a tool in the form in which the chat template lists it."""
    return f"{function['name']}({', '.join(function['parameters']['required'])}): {function['description']}"


def _turn(rng: random.Random, made: Talk, setting: Setting, topic: str, last: bool) -> str:
    """Add one question and its answer, and return the new topic of the talk."""
    if setting.tool and topic == "tool" and rng.random() < 0.35:
        return _weather_turn(rng, made, setting, weather.weather_follow_up(rng), last)
    if setting.tool and rng.random() < 0.55:
        return _weather_turn(rng, made, setting, weather.weather(rng), last)
    turn = _plain_turn(rng, topic, setting.tool is not None)
    made.hear("user", turn.user, _distance(rng))
    # In a talk with thinking, train only the end, because the template omits reasoning from the history.
    thought = reasoning(turn.thought) if setting.thinking and last else ""
    made.say(thought + turn.answer, last or not setting.thinking)
    return turn.topic


def _distance(rng: random.Random) -> int:
    """Return the number of positions to skip, mostly 0, so that the model learns long distances."""
    return rng.randint(1, 1500) if rng.random() < 0.03 else 0


def _plain_turn(rng: random.Random, topic: str, has_tool: bool) -> Turn:
    if topic == "capital" and rng.random() < 0.5:
        return turns.capital_follow_up(rng) if rng.random() < 0.9 else turns.unknown_follow_up(rng)
    if not topic and rng.random() < 0.04:
        return turns.orphan(rng)
    if has_tool and rng.random() < 0.08:
        return turns.unknown_weather(rng)
    draws, weights = zip(*turns.SKILLS, strict=True)
    draw = rng.choices(draws, weights)[0]
    while has_tool and draw is turns.weather_without_tool:
        draw = rng.choices(draws, weights)[0]
    return draw(rng)


def _weather_turn(rng: random.Random, made: Talk, setting: Setting, asked: tuple[Turn, str], last: bool) -> str:
    """Add a question for the weather, the tool call, and usually its result and the answer."""
    turn, city = asked
    assert setting.tool is not None
    made.hear("user", turn.user, _distance(rng))
    stops = last and rng.random() < 0.3
    thought = reasoning(turn.thought) if setting.thinking and stops else ""
    call = setting.tool.call(city)
    made.say(thought + setting.tool.call_text(city), stops or not setting.thinking, call)
    if stops:
        return turn.topic
    result, answer = weather.result(rng, city)
    made.hear("tool", result)
    thought = reasoning("The tool has answered. I report it.") if setting.thinking and last else ""
    made.say(thought + answer, last or not setting.thinking)
    return turn.topic


def _long_count(rng: random.Random) -> Talk:
    """Draw a piece from the middle or the end of a long count."""
    made = Talk()
    last = rng.choice([rng.randint(31, 100), rng.randint(31, 100), 100, rng.randint(101, 999), 200, 500])
    turn = turns.count(rng, last)
    made.hear("user", turn.user)
    made.messages.clear()  # The talk is incomplete, so it can't be compared with the template.
    shown = min(rng.randint(8, 24), len(turn.numbers))
    unseen = len(turn.numbers) - shown
    start = unseen if rng.random() < 0.35 else rng.randint(0, unseen)
    before, window = turn.numbers[:start], turn.numbers[start : start + shown]
    made.pieces.append(Piece("<|im_start|>assistant\n", False))
    if before:
        skipped = ", ".join(map(str, before)) + ", "
        made.pieces.append(Piece(f"{window[0]}, {window[1]}, ", False, skipped_text=skipped))
        window = window[2:]
    end = "<|im_end|>" if start == unseen else ", "
    made.pieces.append(Piece(", ".join(map(str, window)) + end, True))
    return made
