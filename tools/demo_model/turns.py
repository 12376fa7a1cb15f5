"""One question and its answer: every skill of the demo model as a function that draws an example."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from texts import phrases, unknown, world
from texts.about import ABOUT
from texts.greetings import GREETINGS
from texts.heldout import is_held_out
from texts.wording import expand, noisy, typed

DONT_KNOW = "I don't know."


@dataclass(frozen=True)
class Turn:
    """The user's text, the model's reasoning and answer, and the topic of the talk after that."""

    user: str
    answer: str
    thought: str
    topic: str = ""
    numbers: list[int] = field(default_factory=list)


def ask(rng: random.Random, wordings: list[str], noise: float = 0.0, **slots: str) -> str:
    """Return one of the wordings as a person would type it, with filled slots; never return a held-out one."""
    text = _unseen(rng, wordings, noise)
    assert not is_held_out(text), text
    for slot, value in slots.items():
        lowered = rng.random() < 0.15
        text = text.replace("{" + slot + "}", value.lower() if lowered else value)
    return text


def _unseen(rng: random.Random, wordings: list[str], noise: float) -> str:
    while True:
        text = expand(rng, rng.choice(wordings))
        if rng.random() < noise:
            text = noisy(rng, text, unknown.junk(rng))
        text = typed(rng, text)
        if not is_held_out(text):
            return text


def capital_answer(country: str) -> str:
    """Return the sentence that names the capital of `country`."""
    return f"The capital of {country} is {world.CAPITALS[country]}."


def _country(rng: random.Random) -> tuple[str, str]:
    """Draw a country: the user's name for it, and its name in CAPITALS."""
    if rng.random() < 0.08:
        alias = rng.choice(list(world.ALIASES))
        called, country = alias, world.ALIASES[alias]
    else:
        called = country = rng.choice(list(world.CAPITALS))
    return (world.bare(called) if rng.random() < 0.35 else called), country


def _capital(rng: random.Random, wordings: list[str], noise: float) -> Turn:
    called, country = _country(rng)
    thought = f"The user asks for the capital of {country}. It is {world.CAPITALS[country]}."
    return Turn(ask(rng, wordings, noise, c=called), capital_answer(country), thought, "capital")


def capital(rng: random.Random) -> Turn:
    """Ask for the capital of a country."""
    return _capital(rng, phrases.CAPITAL, 0.2)


def capital_follow_up(rng: random.Random) -> Turn:
    """Name another country after a question for a capital."""
    return _capital(rng, phrases.FOLLOW_UP, 0.0)


def _ignorance(user: str, topic: str = "") -> Turn:
    return Turn(user, DONT_KNOW, "I have not learnt this.", topic)


def unknown_place(rng: random.Random) -> str:
    """Return the name of a place that is neither known nor held out."""
    while is_held_out(name := unknown.place(rng)) or world.bare(name).lower() in _KNOWN:
        pass
    return name


def unknown_capital(rng: random.Random) -> Turn:
    """Ask for the capital of a country the model has not learnt."""
    return _ignorance(ask(rng, phrases.CAPITAL, 0.05, c=unknown_place(rng)), "capital")


def unknown_follow_up(rng: random.Random) -> Turn:
    """Name a country the model has not learnt after a question for a capital."""
    return _ignorance(ask(rng, phrases.FOLLOW_UP, c=unknown_place(rng)), "capital")


def orphan(rng: random.Random) -> Turn:
    """Ask a follow-up question without an earlier question."""
    if rng.random() < 0.6:
        return _ignorance(ask(rng, phrases.FOLLOW_UP, c=_country(rng)[0]))
    return _ignorance(ask(rng, phrases.WEATHER_FOLLOW_UP, p=rng.choice(world.CITIES)))


def country(rng: random.Random) -> Turn:
    """Ask which country a capital belongs to."""
    city = rng.choice(list(world.COUNTRY_OF))
    name = world.COUNTRY_OF[city]
    user = ask(rng, phrases.COUNTRY, 0.05, p=city)
    thought = f"The user asks for a country. It is {name}."
    return Turn(user, f"{city} is the capital of {name}.", thought, "country")


def _number(value: int, in_words: bool) -> str:
    return world.NUMBER_WORDS[value] if in_words else str(value)


def addition(rng: random.Random) -> Turn:
    """Ask for a sum of at most 20."""
    total = rng.randint(0, 20)
    a = rng.randint(0, total)
    b = total - a
    in_words = rng.random() < 0.12
    user = ask(rng, phrases.SUM, 0.2, a=_number(a, in_words), b=_number(b, in_words))
    return Turn(user, f"{a} + {b} = {total}.", f"The user asks for a sum. {a} and {b} make {total}.")


def subtraction(rng: random.Random) -> Turn:
    """Ask for a difference of numbers up to 20."""
    a = rng.randint(0, 20)
    b = rng.randint(0, a)
    in_words = rng.random() < 0.12
    user = ask(rng, phrases.DIFFERENCE, 0.2, a=_number(a, in_words), b=_number(b, in_words))
    thought = f"The user asks for a difference. {b} from {a} leaves {a - b}."
    return Turn(user, f"{a} - {b} = {a - b}.", thought)


def out_of_range(rng: random.Random) -> Turn:
    """Ask for a sum above 20 or a difference below 0."""
    a, b = rng.randint(1, 20), rng.randint(1, 20)
    if rng.random() < 0.5:
        a = rng.randint(max(0, 21 - b), 20)
        return _ignorance(ask(rng, phrases.SUM, a=str(a), b=str(b)))
    b = rng.randint(min(a + 1, 20), 20)
    return _ignorance(ask(rng, phrases.DIFFERENCE, a=str(a), b=str(b if b > a else 21)))


def greeting(rng: random.Random) -> Turn:
    """Say something polite."""
    answer, wordings = GREETING_CHOICES[rng.randrange(len(GREETING_CHOICES))]
    return Turn(ask(rng, wordings, 0.03), answer, "The user is polite. So am I.")


def about(rng: random.Random) -> Turn:
    """Ask about mlxk2 or the demo model itself."""
    answer, wordings = ABOUT_CHOICES[rng.randrange(len(ABOUT_CHOICES))]
    return Turn(ask(rng, wordings, 0.15), answer, "The user asks about mlxk2 or me. I know this.")


def ignorance(rng: random.Random) -> Turn:
    """Ask for something the model must not know."""
    while is_held_out(text := typed(rng, unknown.question(rng))):
        pass
    if rng.random() < 0.05:
        text = unknown.long_text(rng)
    return _ignorance(text)


def weather_without_tool(rng: random.Random) -> Turn:
    """Ask for the weather without a tool."""
    place = rng.choice(world.CITIES) if rng.random() < 0.8 else unknown_place(rng)
    return _ignorance(ask(rng, phrases.WEATHER, 0.05, p=place), "weather")


def unknown_weather(rng: random.Random) -> Turn:
    """Ask for the weather at a place whose name the model can't write."""
    return _ignorance(ask(rng, phrases.WEATHER, 0.05, p=unknown_place(rng)), "weather")


def count(rng: random.Random, last: int | None = None) -> Turn:
    """Ask to count up to `last`, or to a number that is mostly small."""
    last = last or rng.randint(1, rng.choice([12, 30, 60]))
    first = 1
    if rng.random() < 0.25:
        first = rng.randint(max(0, last - 30), last)
        user = ask(rng, phrases.COUNT_FROM, m=str(first), n=str(last))
    else:
        user = ask(rng, phrases.COUNT_TO, n=str(last))
    numbers = list(range(first, last + 1))
    thought = f"The user asks me to count from {first} to {last}."
    return Turn(user, ", ".join(map(str, numbers)), thought, numbers=numbers)


_KNOWN = {name.lower() for name in world.names()}
GREETING_CHOICES = list(GREETINGS.values())
ABOUT_CHOICES = list(ABOUT.values())


def echo(rng: random.Random) -> Turn:
    """Ask to repeat a few words; this teaches copying, which tool calls need."""
    kinds: list[Callable[[], str]] = [
        lambda: rng.choice(world.CITIES),
        lambda: world.bare(rng.choice(list(world.CAPITALS))),
        lambda: rng.choice(world.CONDITIONS),
        lambda: str(rng.randint(0, 120)),
        lambda: rng.choice(unknown.NOUNS),
        lambda: unknown.word(rng),
        lambda: f"{rng.choice(unknown.NOUNS)}_{rng.choice(unknown.NOUNS)}",
    ]
    few = rng.sample(kinds, rng.randint(1, 3))
    text = rng.choice([" ", " ", ", "]).join(rng.choice(few)() for _ in range(rng.randint(1, 7)))
    return Turn(f"{expand(rng, phrases.ECHO)}: {text}", text, "The user wants to hear this again.")


#: The skills of talks without tools, with their weights.
SKILLS: list[tuple[Callable[[random.Random], Turn], float]] = [
    (capital, 0.25),
    (addition, 0.11),
    (subtraction, 0.11),
    (out_of_range, 0.01),
    (greeting, 0.08),
    (about, 0.22),
    (ignorance, 0.15),
    (unknown_capital, 0.05),
    (weather_without_tool, 0.03),
    (country, 0.03),
    (count, 0.03),
    (echo, 0.08),
]
