"""One file from the hub: over Xet where it is offered, else over HTTP, continued where an earlier attempt stopped."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, cast

import httpx2
from huggingface_hub import hf_hub_url
from huggingface_hub.errors import HfHubHTTPError

from mlxk2.cache.staging import Wanted
from mlxk2.errors import DownloadFailedError
from mlxk2.formatting import human_size
from mlxk2.hub import private
from mlxk2.hub.client import Connection
from mlxk2.hub.errors import nonsense
from mlxk2.hub.limits import LimitExceeded, receiving_file
from mlxk2.hub.partial import Partial
from mlxk2.hub.repos import Revision

if TYPE_CHECKING:
    from mlxk2.formatting import Advance

# Seconds before each further attempt after a fault that may pass.
PAUSES = (1, 2, 4)
FIRST_SERVER_ERROR = 500
DAMAGED = "The hub sent other bytes than it promised for {} (their hash is wrong)."

Receive = Callable[["Source", Wanted, Partial], None]


class Source(NamedTuple):
    """A revision on the hub, and the way to it."""

    connection: Connection
    revision: Revision


def fetch(source: Source, wanted: Wanted, partial: Path, advance: Advance, stop: Event) -> int:
    """Complete the partial file of a wanted one and verify it by its hash; how many bytes need not be fetched again.

    DownloadFailedError when the bytes are wrong twice; the partial file is gone then.
    """
    with Partial(partial, wanted, advance, stop) as file:
        resumed = file.resumed
        for receive in (_receive_xet if uses_xet(wanted) else _receive_http, _receive_http):
            _complete(source, wanted, file, receive)
            if file.is_whole():
                return resumed
            file.truncate()
            resumed = 0
        os.unlink(partial)
    raise DownloadFailedError(DAMAGED.format(wanted.name), hint="Try again; if it stays, tell the model's author.")


def _complete(source: Source, wanted: Wanted, file: Partial, receive: Receive) -> None:
    """Fetch what is missing; after a fault that may pass again, as long as that brings further or a few times more."""
    pauses = iter(PAUSES)
    while (before := file.tell()) < wanted.size:
        try:
            receive(source, wanted, file)
            return
        # The library calls itself after each broken connection, so that many of them are too many for it.
        except (httpx2.TransportError, OSError, RecursionError) as fault:
            pauses = iter(PAUSES) if file.tell() > before else pauses
            pause = next(pauses, None)
            if pause is None or not _may_pass(fault):
                raise
            time.sleep(pause)


def _may_pass(fault: Exception) -> bool:
    """Whether the same request may do better soon; a fault of the disk, which has a number, does not pass."""
    if isinstance(fault, HfHubHTTPError):
        return fault.response.status_code >= FIRST_SERVER_ERROR
    # These the library has tried five times more, already.
    if isinstance(fault, (LimitExceeded, httpx2.ConnectError, httpx2.TimeoutException, httpx2.RemoteProtocolError)):
        return False
    return isinstance(fault, (httpx2.TransportError, ConnectionError)) or getattr(fault, "errno", None) is None


def uses_xet(wanted: Wanted) -> bool:
    """Whether a file comes over Xet."""
    return wanted.xet_hash is not None and private.is_xet_available()


def _receive_http(source: Source, wanted: Wanted, file: Partial) -> None:
    connection, revision = source
    endpoint = connection.api.endpoint
    url = hf_hub_url(revision.repo_id, wanted.name, revision=revision.commit, endpoint=endpoint)
    offset = file.tell()
    if wanted.size > private.constants.MAX_HTTP_DOWNLOAD_SIZE and not offset:
        limit = human_size(private.constants.MAX_HTTP_DOWNLOAD_SIZE)
        raise DownloadFailedError(f"{wanted.name} is larger than {limit}, so that it comes only over Xet (hf_xet).")
    # A range of a compressed answer would not continue the bytes that are there. The client itself keeps the token
    # from the other hosts that the hub redirects to.
    headers = connection.headers | ({"accept-encoding": "identity"} if offset else {})
    try:
        with receiving_file(wanted.size):
            private.http_get(url, cast(BinaryIO, file), resume_size=offset, headers=headers, expected_size=wanted.size)
    except (ValueError, httpx2.InvalidURL) as fault:
        # Headers that are no numbers, or an address that is none.
        raise DownloadFailedError(nonsense(wanted.name, fault)) from fault


def _receive_xet(source: Source, wanted: Wanted, file: Partial) -> None:
    """Receive a file over Xet; what is missing then, because a hub offers what it has not, over HTTP."""
    try:
        # Its client opens a log file as soon as it is imported.
        import_module("mlxk2.hub.xet").receive(*source, wanted, file)
    except (OSError, RuntimeError, ValueError) as fault:
        if getattr(fault, "errno", None) is not None:
            raise
    if file.tell() < wanted.size:
        _receive_http(source, wanted, file)
