"""The questions that measure the demo model, each in a held-out phrasing, with the one right answer."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import weather
from texts import world
from texts.about import ABOUT
from texts.greetings import GREETINGS
from texts.heldout import HELD_OUT
from turns import DONT_KNOW, capital_answer

Message = dict[str, Any]

#: Skills that the model was not made for; the card reports how often they fail.
UNSEEN_TOOLS = "tool calls, names of tools never seen"
COUNTING = "counting to at most 100"


@dataclass(frozen=True)
class Case:
    """A question with its earlier messages and tools, and the text that the model should write."""

    category: str
    messages: list[Message]
    answer: str
    tools: list[Message] = field(default_factory=list)
    thinks: bool = False


Asked = tuple[str, str]


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _exchange(asked: Asked) -> list[Message]:
    return [_user(asked[0]), {"role": "assistant", "content": asked[1]}]


def _system(text: str) -> list[Message]:
    return [{"role": "system", "content": text}]


def _any_system(rng: random.Random) -> list[Message]:
    return _system(rng.choice(HELD_OUT["system"]))


def _capital(rng: random.Random, country: str) -> Asked:
    return rng.choice(HELD_OUT["capitals"]).format(c=country), capital_answer(country)


def _first_capital(rng: random.Random) -> Asked:
    country = rng.choice(list(world.CAPITALS))
    return f"What is the capital of {country}?", capital_answer(country)


def _sum(rng: random.Random, a: int, b: int) -> Asked:
    return rng.choice(HELD_OUT["sums"]).format(a=a, b=b), f"{a} + {b} = {a + b}."


def _difference(rng: random.Random, a: int, b: int) -> Asked:
    return rng.choice(HELD_OUT["differences"]).format(a=a, b=b), f"{a} - {b} = {a - b}."


def _greeting(rng: random.Random) -> Asked:
    kind = rng.choice(list(GREETINGS))
    return rng.choice(HELD_OUT["greetings"][kind]), GREETINGS[kind][0]


def _about(rng: random.Random) -> Asked:
    topic = rng.choice(list(ABOUT))
    return rng.choice(HELD_OUT["about"][topic]), ABOUT[topic][0]


def _unknown(rng: random.Random) -> Asked:
    return rng.choice(HELD_OUT["unknown"]), DONT_KNOW


def _calculation(rng: random.Random) -> Asked:
    a = rng.randint(0, 20)
    if rng.random() < 0.5:
        return _sum(rng, a, rng.randint(0, 20 - a))
    return _difference(rng, a, rng.randint(0, a))


def _anything(rng: random.Random) -> Asked:
    draw = rng.choice([None, _calculation, _greeting, _about, _unknown])
    return draw(rng) if draw else _capital(rng, rng.choice(list(world.CAPITALS)))


def capitals(rng: random.Random) -> Iterator[Case]:
    """Yield each country in four phrasings."""
    for country in world.CAPITALS:
        for wording in rng.sample(HELD_OUT["capitals"], 4):
            yield Case("capitals", [_user(wording.format(c=country))], capital_answer(country))


def follow_ups(rng: random.Random) -> Iterator[Case]:
    """Yield each country as a follow-up: directly, after another one, and with a sum in between."""
    for country in world.CAPITALS:
        second = rng.choice(list(world.CAPITALS))
        between = [[], _exchange((f"And of {second}?", capital_answer(second))), _exchange(_calculation(rng))]
        for middle in between:
            asked = rng.choice(HELD_OUT["follow_ups"]).format(c=country)
            messages = [*_exchange(_first_capital(rng)), *middle, _user(asked)]
            yield Case("follow-ups", messages, capital_answer(country))


def arithmetic(rng: random.Random) -> Iterator[Case]:
    """Yield every sum and every difference once."""
    for a in range(21):
        for b in range(21 - a):
            asked, answer = _sum(rng, a, b)
            yield Case("sums and differences", [_user(asked)], answer)
        for b in range(a + 1):
            asked, answer = _difference(rng, a, b)
            yield Case("sums and differences", [_user(asked)], answer)


def counting(rng: random.Random) -> Iterator[Case]:
    """Yield sixty counts up to at most 100."""
    for last in sorted(rng.sample(range(1, 101), 60)):
        asked = rng.choice(HELD_OUT["counts"]).format(n=last)
        yield Case(COUNTING, [_user(asked)], ", ".join(map(str, range(1, last + 1))))


def greetings(rng: random.Random) -> Iterator[Case]:
    """Yield every greeting alone and under a system prompt."""
    for kind, texts in HELD_OUT["greetings"].items():
        for text in texts:
            yield Case("greetings", [_user(text)], GREETINGS[kind][0])
            yield Case("greetings", [*_any_system(rng), _user(text)], GREETINGS[kind][0])


def about(rng: random.Random) -> Iterator[Case]:
    """Yield every question about mlxk2 alone and under a system prompt."""
    for topic, texts in HELD_OUT["about"].items():
        for text in texts:
            yield Case("about mlxk2", [_user(text)], ABOUT[topic][0])
            yield Case("about mlxk2", [*_any_system(rng), _user(text)], ABOUT[topic][0])


def unknown(rng: random.Random) -> Iterator[Case]:
    """Yield all unknown questions, and capitals and follow-ups of unknown places."""
    for text in HELD_OUT["unknown"]:
        yield Case("unknown things", [_user(text)], DONT_KNOW)
    for place in HELD_OUT["unknown_places"]:
        asked = rng.choice(HELD_OUT["capitals"]).format(c=place)
        yield Case("unknown things", [_user(asked)], DONT_KNOW)
        yield Case("unknown things", [_user(f"What is the capital of {place}?")], DONT_KNOW)
        yield Case("unknown things", [*_exchange(_first_capital(rng)), _user(f"And of {place}?")], DONT_KNOW)


def thinking(rng: random.Random) -> Iterator[Case]:
    """Yield questions of all kinds under system prompts that ask for thinking."""
    for wording in HELD_OUT["thinking"]:
        for _ in range(25):
            asked, answer = _anything(rng)
            yield Case("thinking", [*_system(wording), _user(asked)], answer, thinks=True)


def _tool(rng: random.Random) -> weather.WeatherTool:
    return weather.WeatherTool(**rng.choice(HELD_OUT["tools"]))


def tool_calls(rng: random.Random) -> Iterator[Case]:
    """Yield a question for the weather in each city, with tool names from the training and with others."""
    drawn = [("tool calls", weather.draw_tool), (UNSEEN_TOOLS, _tool)]
    for category, draw in drawn:
        for city in world.CITIES:
            tool = draw(rng)
            asked = rng.choice(HELD_OUT["weather"]).format(p=city)
            yield Case(category, [_user(asked)], tool.call_text(city), [tool.declaration()])


def tool_results(rng: random.Random) -> Iterator[Case]:
    """Yield a tool's result for each city."""
    for city in world.CITIES:
        tool = _tool(rng)
        degrees, condition = str(rng.randint(-10, 39)), rng.choice(world.CONDITIONS)
        result = rng.choice(HELD_OUT["tool_results"]).format(p=city, t=degrees, d=condition)
        asked = _user(rng.choice(HELD_OUT["weather"]).format(p=city))
        called: Message = {"role": "assistant", "content": None, "tool_calls": [tool.call(city)]}
        messages = [asked, called, {"role": "tool", "content": result}]
        answer = weather.answer(city, degrees, condition)
        yield Case("answers from a tool's result", messages, answer, [tool.declaration()])


def other_with_tools(rng: random.Random) -> Iterator[Case]:
    """Yield questions of all other kinds in conversations with a weather tool."""
    for _ in range(150):
        asked, answer = _anything(rng)
        if "weather" not in asked and "warm" not in asked:
            yield Case("other questions with tools", [_user(asked)], answer, [_tool(rng).declaration()])


def long_talks(rng: random.Random) -> Iterator[Case]:
    """Yield the last question of talks of three to seven turns, half of them under a system prompt."""
    for i in range(200):
        messages = _any_system(rng) if i % 2 else []
        for _ in range(rng.randint(2, 6)):
            messages += _exchange(_anything(rng))
        asked, answer = _anything(rng)
        yield Case("long talks", [*messages, _user(asked)], answer)


def cases(seed: int = 7) -> list[Case]:
    """Return all cases, the same at every call."""
    kinds = [
        capitals,
        follow_ups,
        arithmetic,
        counting,
        greetings,
        about,
        unknown,
        thinking,
        tool_calls,
        tool_results,
        other_with_tools,
        long_talks,
    ]
    return [case for kind in kinds for case in kind(random.Random(seed))]
