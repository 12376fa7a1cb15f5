"""What the hub's library has to say while it works: collected, so that it reaches people and programs as data."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO

LIBRARY = "huggingface_hub"


@contextmanager
def collected(hidden: Sequence[str], echo: IO[str] | None) -> Iterator[list[str]]:
    """The library's log lines and warnings inside the block, less the texts to be hidden; echoed where asked.

    Nothing else prints them meanwhile.
    """
    lines: list[str] = []

    def add(text: str) -> None:
        new = without(hidden, text).splitlines()
        lines.extend(new)
        if echo is not None:
            echo.writelines(f"{line}\n" for line in new)

    with _redirected(logging.getLogger(LIBRARY), _Collector(add)), warnings.catch_warnings():
        # Of warnings only those to users: others are between libraries.
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", category=UserWarning)
        warnings.showwarning = lambda message, *_, **__: add(str(message))
        yield lines


def without(hidden: Sequence[str], text: str) -> str:
    """The text less a token, a path and whatever else is nobody's business."""
    for secret in hidden:
        text = text.replace(secret, "")
    return text


class _Collector(logging.Handler):
    def __init__(self, add: Callable[[str], None]) -> None:
        super().__init__()
        self._add = add

    def emit(self, record: logging.LogRecord) -> None:
        """Add one record."""
        self._add(record.getMessage())


@contextmanager
def _redirected(logger: logging.Logger, handler: logging.Handler) -> Iterator[None]:
    handlers, level, propagates = logger.handlers, logger.level, logger.propagate
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.handlers, logger.propagate = handlers, propagates
        logger.setLevel(level)
