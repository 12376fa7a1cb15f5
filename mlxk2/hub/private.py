"""The undocumented names of huggingface_hub that we import, and the settings of the library inside this process.

`tests_2.0/test_hub_private.py` checks that every name here, the names in `shared_blobs.py` and the private methods of
`HfApi` still exist; when a new version moves one, that test fails with its name.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO

from filelock import Timeout
from huggingface_hub import constants
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import logging as library_logging
from huggingface_hub.utils._fixes import WeakFileLock
from huggingface_hub.utils._http import (
    default_client_factory,
    hf_raise_for_status,
    http_backoff,
    parse_ratelimit_headers,
    set_client_factory,
)
from huggingface_hub.utils._runtime import is_xet_available
from huggingface_hub.utils._xet import (
    XetFileData,
    XetTokenType,
    get_xet_session,
    refresh_xet_connection_info,
    xet_connection_info_refresh_url,
    xet_headers_without_auth,
)
from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars

__all__ = [
    "Timeout",
    "WeakFileLock",
    "XetFileData",
    "XetTokenType",
    "collect_log",
    "constants",
    "default_client_factory",
    "disable_progress_bars",
    "enable_progress_bars",
    "get_xet_session",
    "hf_raise_for_status",
    "http_backoff",
    "http_get",
    "is_xet_available",
    "parse_ratelimit_headers",
    "redact",
    "refresh_xet_connection_info",
    "set_client_factory",
    "show_progress_bars",
    "silence_library",
    "without_xet",
    "xet_connection_info_refresh_url",
    "xet_headers_without_auth",
]

LIBRARY = "huggingface_hub"
CHUNK_BYTES = 1 << 20


def silence_library() -> None:
    """Turn off the library's telemetry, its own requests, progress bars and log lines in this process."""
    # Otherwise the library asks the hub for a list of programs to report in its user agent.
    constants.HF_HUB_DISABLE_TELEMETRY = True
    # The library writes whole chunks, so a killed download loses up to one chunk: 1 MiB instead of 10.
    constants.DOWNLOAD_CHUNK_SIZE = CHUNK_BYTES
    disable_progress_bars()
    library_logging.set_verbosity_error()  # type: ignore[no-untyped-call]


@contextmanager
def show_progress_bars(shows: bool) -> Iterator[None]:
    """Show the library's progress bars inside the block if `shows` is true and the environment allows them."""
    if shows and not constants.HF_HUB_DISABLE_PROGRESS_BARS:
        enable_progress_bars()
    try:
        yield
    finally:
        disable_progress_bars()


@contextmanager
def without_xet() -> Iterator[None]:
    """Make the library use plain HTTP inside the block."""
    before = constants.HF_HUB_DISABLE_XET
    constants.HF_HUB_DISABLE_XET = True
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_XET = before


@contextmanager
def collect_log(hidden: Sequence[str], echo: IO[str] | None) -> Iterator[list[str]]:
    """Collect the library's log lines and warnings inside the block, without the `hidden` texts.

    Also write the lines to `echo`, if it is given. The library prints them nowhere else.
    """
    lines: list[str] = []

    def add(text: str) -> None:
        new = redact(text, hidden).splitlines()
        lines.extend(new)
        if echo is not None:
            echo.writelines(f"{line}\n" for line in new)

    logger = logging.getLogger(LIBRARY)
    handlers, level, propagates = logger.handlers, logger.level, logger.propagate
    logger.handlers, logger.propagate = [_LogCollector(add)], False
    logger.setLevel(logging.INFO)
    try:
        with warnings.catch_warnings():
            # Ignore other categories: those warnings are for developers.
            warnings.simplefilter("ignore")
            warnings.filterwarnings("always", category=UserWarning)
            warnings.showwarning = lambda message, *_, **__: add(str(message))
            yield lines
    finally:
        logger.handlers, logger.propagate = handlers, propagates
        logger.setLevel(level)


class _LogCollector(logging.Handler):
    def __init__(self, add: Callable[[str], None]) -> None:
        super().__init__()
        self._add = add

    def emit(self, record: logging.LogRecord) -> None:
        """Add one record."""
        self._add(record.getMessage())


def redact(text: str, hidden: Sequence[str]) -> str:
    """Return the text without the `hidden` texts, such as a token or a path."""
    for secret in hidden:
        text = text.replace(secret, "")
    return text
