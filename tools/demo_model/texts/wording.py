"""Wordings with choices: "(Tell|Give) me {x}" stands for two texts; choices can be nested."""

from __future__ import annotations

import random
import re

_CHOICE = re.compile(r"\(([^()]*)\)")
_TOKEN = re.compile(r"\{\w+\}|[^\W_]+(?:'[^\W_]+)*")
_QUESTION = re.compile(r"(what|which|how|who|where|why|can|could|do|does|is|are|when|will|would)\b", re.I)
_BEFORE = (
    "(Please|Hey,|Hi,|Hello,|OK,|So,|Well,|Now|Quick question:|One question:|Tell me:|Question:|Excuse "
    "me,|And|Please tell me:|Hello!|Hi!|I have a question:|Sorry,|Hm,|Good,|Thanks,|Dear model,|"
    "Computer,|Oh,|So|Just|Next,)"
)
_AFTER = [" please", ", please", ", thanks", " now", " for me", " again", " then", ", my friend"]
_SMALL = set(
    """
    a an the is are do does you me to can could please would tell what's it i in for my know give be one
    """.split()
)


def expand(rng: random.Random, wording: str) -> str:
    """Return a random one of the texts that `wording` stands for."""
    while match := _CHOICE.search(wording):
        choice = rng.choice(match.group(1).split("|"))
        wording = wording[: match.start()] + choice + wording[match.end() :]
    return re.sub(r" +", " ", wording).strip()


def skeleton(text: str) -> str:
    """Return `text` without case, articles and punctuation and with equal slots, to compare phrasings."""
    words = _TOKEN.findall(text.lower().replace("’", "'"))
    return " ".join("#" if word[0] == "{" else word for word in words if word not in ("the", "please"))


def typed(rng: random.Random, text: str) -> str:
    """Return `text` as a person could type it: politeness, case and the final punctuation vary."""
    is_question = _QUESTION.match(text)
    if rng.random() < 0.14:
        text = f"{expand(rng, _BEFORE)} {text[0].lower()}{text[1:]}"
    if rng.random() < 0.08:
        text += rng.choice(_AFTER)
    ends = ["?", "?", "?", "?", "", "??", "."] if is_question else ["", ".", "?", ".", "!"]
    if text[-1] not in "?.!=":
        text += rng.choice(ends)
    case = rng.random()
    if case < 0.12:
        return text.lower()
    return text[0].lower() + text[1:] if case < 0.2 else text[0].upper() + text[1:]


def noisy(rng: random.Random, text: str, junk: str) -> str:
    """Return `text` with one small word removed or replaced by `junk`, or with `junk` added."""
    words = text.split(" ")
    small = [i for i, word in enumerate(words) if word.lower() in _SMALL]
    kind = rng.random()
    if kind < 0.3:
        return f"{junk}{rng.choice([':', ',', '!', '.', ' -', ' again:'])} {text}"
    if kind < 0.5 and small and len(words) > 3:
        del words[rng.choice(small)]
    elif kind < 0.7 and small:
        words[rng.choice(small)] = junk
    else:
        words.insert(rng.randrange(len(words) + 1), junk)
    return " ".join(words)
