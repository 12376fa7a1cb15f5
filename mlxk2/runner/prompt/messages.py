"""The forms that a conversation takes for a chat template: templates differ in the roles and the contents they know.

A template that gets a form it does not know either refuses it or silently leaves out texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from jinja2.exceptions import TemplateError

# What a template raises about a conversation.
FAULTS = (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TemplateError, TypeError, ValueError)

_SIGNS_OF_PARTS = ("'type': 'text'", '"type": "text"')
# Stands in the place of a text, to find out whether the template uses the text at all.
_MARK = "mlxk2 text {} of this conversation"

Messages = Sequence[dict[str, Any]]
Rendered = TypeVar("Rendered")


def render_any(render: Callable[[Messages], Rendered], messages: Messages) -> Rendered:
    """Render a conversation in the first form of which the template leaves out no text of a user or of the system.

    If the template leaves out some text of every form, return the first form that it takes. If it takes none, raise
    what it raised for the first form.
    """
    refusal: Exception | None = None
    taken: list[Rendered] = []
    for form in _forms(messages):
        try:
            rendered = render(form)
        except FAULTS as fault:
            refusal = refusal or fault
            continue
        if not isinstance(rendered, str) or _is_complete(render, form, rendered):
            return rendered
        taken.append(rendered)
    if taken:
        return taken[0]
    assert refusal is not None
    raise refusal


def _forms(messages: Messages) -> Iterator[Messages]:
    """Yield the conversation as it came, with one system message at its beginning, and without any system message.

    Without a system message, its text comes before that of the first user's message. After these forms, yield them
    again with contents in parts.
    """
    system = "\n\n".join(_text(message) for message in messages if message["role"] == "system")
    others = [message for message in messages if message["role"] != "system"]
    forms = [messages]
    if system:
        variants = [[{"role": "system", "content": system}, *others]]
        first = next((index for index, message in enumerate(others) if message["role"] == "user"), None)
        if first is not None:
            folded = {**others[first], "content": f"{system}\n\n{_text(others[first])}"}
            variants.append([*others[:first], folded, *others[first + 1 :]])
        forms += [form for form in variants if form != messages]
    yield from forms
    yield from ([_in_parts(message) for message in form] for form in forms)


def _in_parts(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message whose content is a list of parts, as for models that also see."""
    return {**message, "content": [{"type": "text", "text": _text(message)}]}


def _is_complete(render: Callable[[Messages], Any], messages: Messages, rendered: str) -> bool:
    """Whether the text of each user and of the system is in what was rendered.

    A text may be there by chance, or changed: escaped, or trimmed. So the conversation is rendered with marks, too.
    """
    # Templates leave out the reasoning in what the model said before.
    counted = [
        number
        for number, message in enumerate(messages)
        if message["role"] in ("system", "user") and _text(message).strip()
    ]
    marked = list(messages)
    for number in counted:
        message = {**messages[number], "content": _MARK.format(number)}
        marked[number] = _in_parts(message) if isinstance(messages[number]["content"], list) else message
    try:
        text: str = render(marked)
    except FAULTS:
        # The template checks the texts: then the texts themselves decide.
        return _has_all(rendered, (_text(messages[number]).strip() for number in counted))
    # A template that knows only texts writes a list as Python does.
    return _has_all(text, map(_MARK.format, counted)) and not any(sign in text for sign in _SIGNS_OF_PARTS)


def _has_all(rendered: str, texts: Iterable[str]) -> bool:
    position = 0
    for text in texts:
        # Most follow each other; a search from the beginning each time would take the square of the time.
        found = rendered.find(text, position)
        found = rendered.find(text) if found < 0 else found
        if found < 0:
            return False
        position = found + len(text)
    return True


def _text(message: dict[str, Any]) -> str:
    content = message.get("content")
    text = content[0]["text"] if isinstance(content, list) else content
    return text if isinstance(text, str) else ""
