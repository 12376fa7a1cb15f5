"""Render a conversation in a form that the chat template accepts: templates support different roles and contents.

A template that gets an unsupported form either refuses it or silently omits texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from jinja2.exceptions import TemplateError

# The exceptions of a template that does not accept a conversation.
TEMPLATE_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    TemplateError,
    TypeError,
    ValueError,
)

_SIGNS_OF_PARTS = ("'type': 'text'", '"type": "text"')
# Replaces a text, to find out whether the template uses the text at all.
_MARK = "mlxk2 text {} of this conversation"

Messages = Sequence[dict[str, Any]]
Rendered = TypeVar("Rendered")


def render_any(render: Callable[[Messages], Rendered], messages: Messages) -> Rendered:
    """Render a conversation in the first form of which the template omits no text of the user or the system.

    If the template omits some text of every form, return the first form that it accepts. If it accepts none, raise its
    exception for the first form.
    """
    refusal: Exception | None = None
    taken: list[Rendered] = []
    for form in _forms(messages):
        try:
            rendered = render(form)
        except TEMPLATE_ERRORS as error:
            refusal = refusal or error
            continue
        if not isinstance(rendered, str) or _is_complete(render, form, rendered):
            return rendered
        taken.append(rendered)
    if taken:
        return taken[0]
    assert refusal is not None
    raise refusal


def _forms(messages: Messages) -> Iterator[Messages]:
    """Yield the conversation unchanged, then with one system message at its beginning, then without system messages.

    In the last form, the system's text is at the beginning of the first user message. Then yield these forms again with
    contents in parts.
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
    """Return a message whose content is a list of parts, as for models that also read images."""
    return {**message, "content": [{"type": "text", "text": _text(message)}]}


def _is_complete(render: Callable[[Messages], Any], messages: Messages, rendered: str) -> bool:
    """Return whether the rendered text contains the text of each user and system message.

    A text can be there by chance, or in another form (escaped or trimmed). So render the conversation again with marks
    instead of texts.
    """
    # Assistant messages don't count, because templates omit the reasoning in them.
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
    except TEMPLATE_ERRORS:
        # The template checks the texts and refuses the marks; so search for the texts themselves.
        return _has_all(rendered, (_text(messages[number]).strip() for number in counted))
    # A template that supports only texts prints a list of parts in Python's or JSON's form.
    return _has_all(text, map(_MARK.format, counted)) and not any(sign in text for sign in _SIGNS_OF_PARTS)


def _has_all(rendered: str, texts: Iterable[str]) -> bool:
    position = 0
    for text in texts:
        # Most texts follow each other; to search from the beginning each time would take quadratic time.
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
