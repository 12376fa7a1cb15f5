"""Weather tools in the forms in which people declare them, and results in the forms that such tools return."""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from typing import Any

from texts import phrases, world
from texts.heldout import HELD_OUT
from texts.wording import expand
from turns import DONT_KNOW, Turn, ask

_NAMES = [
    "(get|fetch|find|check|read|query|show|see|tell|current|local|the|my)_(weather|forecast|temperature)",
    "(get|fetch|find|check|query)_(current|local|city|todays|live)_(weather|forecast)",
    ("(weather|forecast|temperature)(|_api|_now|_today|_report|_info|_tool|_service|_for|_at|_in|_data|_check)"),
    "(weather|forecast|temperature)_(by|of|in|for)_(city|place|name|location|town)",
    "(get|fetch|find|check|current)(Weather|Forecast|Temperature)",
    "get_weather",
]
_PARAMETERS = (
    "(city|city|city|location|location|place|town|name|city_name|where|query|address|location_name|q|destination)"
)
_EXTRA = "(unit|units|format|language|days|date|country|lang|temperature_unit)"
_DESCRIPTIONS = [
    (
        "(Get|Fetch|Return|Returns|Gives|Look up|Find|Gets|Tells|Reads|Shows) the (current |present |"
        "latest |)(weather|temperature|conditions|weather report|forecast) (in|for|of|at) (a|the|a "
        "given|one|any|the given) (city|place|location|town)"
    ),
    (
        "(Weather|Current weather|Temperature and conditions|Weather report|Forecast) (for|in|of|at) "
        "(a|the|any) (city|place|location|town)"
    ),
    "(The weather|Weather|Current weather|Weather now|Weather data|Weather service)",
    "(Call this|Use this|A tool|Use) (for|to get|to see|to learn) (the |)weather( in a city| somewhere|)",
    "",
]
#: Name, parameters and description of tools that have nothing to do with the weather.
_OTHER_TOOLS = [
    (
        "get_(time|date|stock_price|news|user|population|map|capital)",
        "(city|name|query|country)",
        "Get something",
    ),
    ("(search|search_web|web_search|lookup|find|browse)", "(query|text|q)", "Search the web"),
    ("(calculate|calculator|add|compute|evaluate)", "(expression|a, b|formula)", "Evaluate a sum"),
    (
        "(send_email|send_message|create_event|set_alarm|set_timer)",
        "(to, text|text|title|minutes)",
        "Send a message",
    ),
    (
        "(translate|summarize|open|play_music|run_code|read_file)",
        "(text|path|code|title)",
        "Work on a text",
    ),
]
_RESULTS = [
    '{{"temperature": {t}, "condition": "{d}"}}',
    '{{"temperature": {t}, "conditions": "{d}"}}',
    '{{"condition": "{d}", "temperature": {t}}}',
    '{{"temp": {t}, "sky": "{d}"}}',
    '{{"temperature_c": {t}, "weather": "{d}"}}',
    '{{"weather": "{d}", "temperature": {t}}}',
    '{{"temp": {t}, "description": "{d}"}}',
    '{{"location": "{p}", "temperature": {t}, "condition": "{d}"}}',
    '{{"city": "{p}", "temp": {t}, "weather": "{d}"}}',
    '{{"city": "{p}", "weather": {{"condition": "{d}", "temperature": {t}}}}}',
    '{{"temperature": {t}, "unit": "celsius", "condition": "{d}"}}',
    '{{"temperature": {t}, "unit": "C", "description": "{d}"}}',
    '{{"place": "{p}", "condition": "{d}", "degrees": {t}}}',
    '{{"temperature": "{t}°C", "condition": "{d}"}}',
    '{{"temperature": {t}, "humidity": {h}, "condition": "{d}"}}',
    '{{"temperature": {t}, "condition": "{d}", "wind": {h}}}',
    '{{"status": "ok", "temperature": {t}, "condition": "{d}"}}',
    "{t} degrees and {d}",
    "{d}, {t} degrees",
    "{t}°C, {d}",
    "{d} and {t}°C",
    "{d} {t}",
    "{t} {d}",
    "{p}: {t} degrees, {d}",
    "{p}: {d}, {t}°C",
    "It is {t} degrees and {d}.",
    "{t} C and {d}",
    "Weather in {p}: {d}, {t} C",
    "The weather in {p} is {d} with {t} degrees.",
    "temperature: {t}\ncondition: {d}",
    "condition={d} temperature={t}",
    "The temperature is {t} degrees. It is {d}.",
    "{t} degrees, sky {d}",
]
_FAILURES = [
    '{"error": "not found"}',
    "error",
    "Error: timeout",
    '{"error": "timeout"}',
    "unknown city",
    "{}",
    "",
    "null",
    '{"status": "error"}',
    '{"error": "unknown city"}',
    "not available",
    "no data",
]
_KEPT_NAMES = {tool["name"] for tool in HELD_OUT["tools"]} - {"get_weather"}
_KEPT_DESCRIPTIONS = {tool["description"].rstrip(".") for tool in HELD_OUT["tools"]}
_KEPT_RESULTS = set(HELD_OUT["tool_results"])
_KEPT_KEYS = {tuple(re.findall(r'"(\w+)":', text)) for text in _KEPT_RESULTS if text[0] == "{"}
assert not _KEPT_RESULTS.intersection(_RESULTS)


@dataclass(frozen=True)
class WeatherTool:
    """A tool with one parameter for the name of a city, and perhaps an optional one."""

    name: str
    parameter: str
    description: str
    extra: str = ""

    def declaration(self) -> dict[str, Any]:
        """Return the tool as the OpenAI API declares it."""
        parameters = [self.parameter, self.extra] if self.extra else [self.parameter]
        return declaration(self.name, parameters, self.description)

    def call(self, city: str) -> dict[str, Any]:
        """Return the call for `city` as a message of the OpenAI API carries it."""
        return {"type": "function", "function": {"name": self.name, "arguments": {self.parameter: city}}}

    def call_text(self, city: str) -> str:
        """Return the call for `city` as the model writes it."""
        body = json.dumps({"name": self.name, "arguments": {self.parameter: city}}, ensure_ascii=False)
        return f"<tool_call>{body}</tool_call>"


def declaration(name: str, parameters: list[str], description: str) -> dict[str, Any]:
    """Return a function tool whose parameters are required strings."""
    properties = {parameter: {"type": "string"} for parameter in parameters}
    schema = {"type": "object", "properties": properties, "required": parameters}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


def draw_tool(rng: random.Random) -> WeatherTool:
    """Return a weather tool with one of many names; none of them is held out."""
    while (name := expand(rng, rng.choice(_NAMES))) in _KEPT_NAMES:
        pass
    while (description := expand(rng, rng.choice(_DESCRIPTIONS))).rstrip(".") in _KEPT_DESCRIPTIONS:
        pass
    description += rng.choice(["", "."])
    extra = expand(rng, _EXTRA) if rng.random() < 0.15 else ""
    return WeatherTool(name, expand(rng, _PARAMETERS), description, extra)


def draw_other(rng: random.Random) -> dict[str, Any]:
    """Return a tool that has nothing to do with the weather."""
    name, parameters, description = rng.choice(_OTHER_TOOLS)
    return declaration(expand(rng, name), expand(rng, parameters).split(", "), description)


def answer(city: str, temperature: str, condition: str) -> str:
    """Return the sentence that reports a tool's result."""
    return f"It is {temperature} degrees and {condition} in {city}."


def weather(rng: random.Random) -> tuple[Turn, str]:
    """Ask for the weather in a known city; also return the city."""
    city = rng.choice(world.CITIES)
    user = ask(rng, phrases.WEATHER, 0.08, p=city)
    return Turn(user, "", f"The user asks for the weather in {city}. I use the tool.", "tool"), city


def weather_follow_up(rng: random.Random) -> tuple[Turn, str]:
    """Name another city after a question for the weather; also return the city."""
    city = rng.choice(world.CITIES)
    user = ask(rng, phrases.WEATHER_FOLLOW_UP, p=city)
    return Turn(user, "", f"The user asks for the weather in {city}. I use the tool.", "tool"), city


def _report(rng: random.Random, city: str, temperature: str, condition: str) -> str:
    """Return a result as JSON; its keys and their order vary, and it can have additional keys."""
    degrees = rng.choice(["temperature", "temperature", "temp", "degrees", "temperature_c"])
    sky = rng.choice(["condition", "conditions", "weather", "sky", "description"])
    named = f'"{city}"'
    extras = {"city": named, "location": named, "unit": '"celsius"', "humidity": "40", "wind": "7"}
    extras["status"] = '"ok"'
    fields = {degrees: temperature, sky: f'"{condition}"'}
    fields |= {key: extras[key] for key in rng.sample(list(extras), rng.choice([0, 0, 1, 1, 2]))}
    order = list(fields)
    rng.shuffle(order)
    return "{" + ", ".join(f'"{key}": {fields[key]}' for key in order) + "}"


def _is_held_out(text: str) -> bool:
    """Return whether a JSON result has the same keys in the same order as a held-out one."""
    return tuple(re.findall(r'"(\w+)":', text)) in _KEPT_KEYS


def result(rng: random.Random, city: str) -> tuple[str, str]:
    """Return a result of the tool for `city`, and the right answer."""
    kind = rng.random()
    if kind < 0.05:
        return rng.choice(_FAILURES), DONT_KNOW
    condition = rng.choice(world.CONDITIONS)
    fraction = rng.choice([".5", ".2", ".0", ".8"]) if rng.random() < 0.06 else ""
    temperature = f"{rng.randint(-20, 45)}{fraction}"
    if kind < 0.1:
        return f'{{"temperature": {temperature}}}', f"It is {temperature} degrees in {city}."
    if kind < 0.15:
        shape = rng.choice(['{"condition": "%s"}', "%s", '{"weather": "%s"}'])
        return shape % condition, f"It is {condition} in {city}."
    shown = condition.capitalize() if rng.random() < 0.2 else condition
    if rng.random() < 0.5:
        while _is_held_out(text := _report(rng, city, temperature, shown)):
            pass
        return text, answer(city, temperature, condition)
    text = rng.choice(_RESULTS).format(p=city, t=temperature, d=shown, h=rng.randint(0, 99))
    return text, answer(city, temperature, condition)
