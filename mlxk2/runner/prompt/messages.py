"""The forms that a conversation takes for a chat template: templates differ in the roles and the contents they know.

A template that gets a form it does not know either refuses it or leaves out texts without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from jinja2.exceptions import TemplateError

# What a template raises about a conversation.
FAULTS = (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TemplateError, TypeError, ValueError)

_SIGNS_OF_PARTS = ("'type': 'text'", '"type": "text"')
# Stands in the place of a text, to see whether the template uses it at all.
_MARK = "mlxk2 text {} of this conversation"

Messages = Sequence[dict[str, Any]]
Rendered = TypeVar("Rendered")


def render_any(render: Callable[[Messages], Rendered], messages: Messages) -> Rendered:
    """Render a conversation in the first form of which the template leaves out no text of a user or of the system.

    A template that leaves out some text of every form gets the first one that it takes; what it raises of the first
    form is raised where it takes none.
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
    """Yield the conversation as it came, with one system message at its beginning, with none; last, all in parts."""
    joined, folded = _join_system(messages), _fold_system(messages)
    forms = [messages, *(form for form in (joined, folded) if form != messages)]
    yield from forms
    yield from ([_in_parts(message) for message in form] for form in forms)


def _join_system(messages: Messages) -> Messages:
    """Put the text of all system messages into one, which comes first."""
    system, others = _split(messages)
    return [{"role": "system", "content": system}, *others] if system else messages


def _fold_system(messages: Messages) -> Messages:
    """Put the text of all system messages before that of the first user's message."""
    system, others = _split(messages)
    place = next((place for place, message in enumerate(others) if message["role"] == "user"), None)
    if not system or place is None:
        return messages
    first = {**others[place], "content": f"{system}\n\n{_text(others[place])}"}
    return [*others[:place], first, *others[place + 1 :]]


def _split(messages: Messages) -> tuple[str, list[dict[str, Any]]]:
    """Return the text of all system messages, and the other messages."""
    system = [_text(message) for message in messages if message["role"] == "system"]
    return "\n\n".join(system), [message for message in messages if message["role"] != "system"]


def _in_parts(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message whose content is a list of parts, as of models that also see."""
    return {**message, "content": [{"type": "text", "text": _text(message)}]}


def _is_complete(render: Callable[[Messages], Any], messages: Messages, rendered: str) -> bool:
    """Whether the text of each user and of the system is in what was rendered.

    A text may be there by chance, or changed: escaped, or trimmed. So the conversation is rendered with marks, too.
    """
    marks = {number: _MARK.format(number) for number, message in enumerate(messages) if _counts(message)}
    marked = [_marked(message, marks.get(number)) for number, message in enumerate(messages)]
    try:
        text: str = render(marked)
    except FAULTS:
        # The template looks at the texts: those themselves decide.
        return _has_all(rendered, (_text(message).strip() for message in messages if _counts(message)))
    # A template that knows texts alone writes a list as Python does.
    return _has_all(text, marks.values()) and not any(sign in text for sign in _SIGNS_OF_PARTS)


def _has_all(rendered: str, texts: Iterable[str]) -> bool:
    place = 0
    for text in texts:
        # Most follow each other; a search from the beginning each time would take the square of the time.
        found = rendered.find(text, place)
        found = rendered.find(text) if found < 0 else found
        if found < 0:
            return False
        place = found + len(text)
    return True


def _marked(message: dict[str, Any], mark: str | None) -> dict[str, Any]:
    if mark is None:
        return message
    marked = {**message, "content": mark}
    return _in_parts(marked) if isinstance(message["content"], list) else marked


def _counts(message: dict[str, Any]) -> bool:
    """Whether the text of a message must be in the prompt: of what the model said, templates leave out reasoning."""
    return message["role"] in ("system", "user") and bool(_text(message).strip())


def _text(message: dict[str, Any]) -> str:
    content = message.get("content")
    text = content[0]["text"] if isinstance(content, list) else content
    return text if isinstance(text, str) else ""
