"""The files of a revision, fetched from the hub into a model's staging folder.

A few threads fetch a file each, over Xet if the hub offers it, else over HTTP, from where an earlier attempt stopped.
"""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, BinaryIO, cast

import httpx2
from huggingface_hub import hf_hub_url
from huggingface_hub.errors import HfHubHTTPError

from mlxk2.cache.staging import PullPlan, RemoteFile, Staging
from mlxk2.errors import DownloadFailedError
from mlxk2.formatting import human_size
from mlxk2.hub import endpoint, private
from mlxk2.hub.errors import describe_nonsense
from mlxk2.hub.limits import LimitExceeded, receive_file
from mlxk2.hub.partial import Partial
from mlxk2.hub.repos import Source
from mlxk2.hub.shared_blobs import SharedBlobs

if TYPE_CHECKING:
    from mlxk2.formatting import Advance, Progress

MAX_THREADS = 8
# Seconds to wait before each further attempt, after a error that may pass.
PAUSES = (1, 2, 4)
FIRST_SERVER_ERROR = 500
DAMAGED = "The hub sent other bytes than it promised for {} (their hash is wrong)."

Receive = Callable[[Source, RemoteFile, Partial], None]
Todo = queue.SimpleQueue[RemoteFile]
Done = queue.SimpleQueue[int | BaseException]


def fetch(source: Source, plan: PullPlan, staging: Staging, progress: Progress, *, may_share: bool) -> int:
    """Stage the missing files of a plan; return how many bytes earlier attempts had left.

    With `may_share`, bytes that the store of shared blobs has are not fetched. Raise OperationError if the files do
    not fit on the disk; what was fetched until an error stays for the next attempt.
    """
    if plan.is_empty:
        return 0
    store = SharedBlobs(str(staging.model.parent))
    bad = {path.name for path in plan.bad_blobs}
    in_store = {file.name: file for file in plan.missing if may_share and file.blob not in bad and store.has(file)}
    to_fetch = [file for file in plan.missing if file.blob not in plan.staged and file.name not in in_store]
    staging.prepare(plan, to_fetch)
    with progress("Hashing", sum(file.size for file in in_store.values())) as advance:
        to_fetch += [file for file in in_store.values() if not store.stage(staging, file, advance)]
    total = sum({file.blob: file.size for file in to_fetch}.values())
    with progress(source.revision.repo_id, total) as advance:
        return fetch_files(source, to_fetch, staging, advance)


def fetch_files(source: Source, files: Iterable[RemoteFile], staging: Staging, advance: Advance) -> int:
    """Fetch files into staging and verify their hashes; return how many bytes earlier attempts had left.

    The first error of a thread is raised as it is; what was fetched until then stays for the next attempt.
    """
    stop, todo, done = Event(), Todo(), Done()
    # The largest file goes first, so that it is not the last one on its way alone.
    largest_first = sorted({file.blob: file for file in files}.values(), key=lambda file: -file.size)
    for file in largest_first:
        todo.put(file)
    # The interpreter does not wait for daemon threads: Ctrl-C ends the program at once, as safely as a kill does.
    for _ in range(min(MAX_THREADS, len(largest_first))):
        Thread(target=_work, args=(source, staging, advance, stop, todo, done), daemon=True).start()
    resumed_bytes = 0
    try:
        for _ in largest_first:
            result = done.get()
            if isinstance(result, BaseException):
                raise result
            resumed_bytes += result
    finally:
        stop.set()
    return resumed_bytes


def _work(source: Source, staging: Staging, advance: Advance, stop: Event, todo: Todo, done: Done) -> None:
    """Fetch one file after the other, until none is left or one fails."""
    while True:
        try:
            file = todo.get_nowait()
        except queue.Empty:
            return
        try:
            resumed_bytes = fetch_file(source, file, staging.partial(file), advance, stop)
            os.replace(staging.partial(file), staging.staged(file))
        except BaseException as error:  # noqa: BLE001 - also a panic in Rust: it is raised where the results are collected
            done.put(error)
            return
        done.put(resumed_bytes)


def fetch_file(source: Source, remote: RemoteFile, path: Path, advance: Advance, stop: Event) -> int:
    """Complete a partial file and verify its hash; return how many bytes an earlier attempt had left.

    Raise DownloadFailedError if the bytes are wrong twice; the partial file is removed then.
    """
    with Partial(path, remote, advance, stop) as file:
        resumed_bytes = file.resumed_bytes
        for receive in (_receive_xet if uses_xet(remote) else _receive_http, _receive_http):
            _receive_rest(source, remote, file, receive)
            if file.is_whole():
                return resumed_bytes
            file.truncate()
            resumed_bytes = 0
        os.unlink(path)
    raise DownloadFailedError(DAMAGED.format(remote.name), hint="Try again; if it stays, tell the model's author.")


def _receive_rest(source: Source, remote: RemoteFile, file: Partial, receive: Receive) -> None:
    """Receive the missing bytes; after a error that may pass, try again while bytes arrive, or a few times more."""
    pauses = iter(PAUSES)
    while (before := file.tell()) < remote.size:
        try:
            receive(source, remote, file)
            return
        # The library calls itself again after each broken connection, which ends in RecursionError.
        except (httpx2.TransportError, OSError, RecursionError) as error:
            pauses = iter(PAUSES) if file.tell() > before else pauses
            pause = next(pauses, None)
            if pause is None or not _may_pass(error):
                raise
            time.sleep(pause)


def _may_pass(error: Exception) -> bool:
    """Return whether the same request may succeed soon; an error of the disk, which has a number, does not pass."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= FIRST_SERVER_ERROR
    # The library has already repeated a request five times after these.
    if isinstance(error, (LimitExceeded, httpx2.ConnectError, httpx2.TimeoutException, httpx2.RemoteProtocolError)):
        return False
    return isinstance(error, (httpx2.TransportError, ConnectionError)) or getattr(error, "errno", None) is None


def uses_xet(remote: RemoteFile) -> bool:
    """Return whether a file is fetched over Xet."""
    return remote.xet_hash is not None and private.is_xet_available()


def _receive_http(source: Source, remote: RemoteFile, file: Partial) -> None:
    """Receive the missing bytes of a file over HTTP."""
    connection, revision = source
    url = hf_hub_url(revision.repo_id, remote.name, revision=revision.commit, endpoint=connection.api.endpoint)
    offset = file.tell()
    if remote.size > private.constants.MAX_HTTP_DOWNLOAD_SIZE and not offset:
        limit = human_size(private.constants.MAX_HTTP_DOWNLOAD_SIZE)
        raise DownloadFailedError(f"{remote.name} is larger than {limit}, so that it comes only over Xet (hf_xet).")
    # A range of a compressed response would not continue the bytes that are there. The client itself sends the token
    # to none of the hosts that the hub redirects to.
    headers = connection.headers | ({"accept-encoding": "identity"} if offset else {})
    try:
        with receive_file(remote.size):
            private.http_get(url, cast(BinaryIO, file), resume_size=offset, headers=headers, expected_size=remote.size)
    except (ValueError, httpx2.InvalidURL) as error:
        # A header is not the number that it should be, or a redirect leads to an invalid address.
        raise DownloadFailedError(describe_nonsense(error, remote.name)) from error


def _receive_xet(source: Source, remote: RemoteFile, file: Partial) -> None:
    """Receive the missing bytes of a file over Xet; if the store does not have them all, the rest over HTTP.

    The library itself lets Xet write to a new file each time, so that a killed download starts again. Here the bytes
    come in one stream from where an earlier attempt stopped. The store gets a short-lived token of its own, never the
    user's.
    """
    assert remote.xet_hash is not None
    revision, api, headers = source.revision, source.connection.api, source.connection.headers
    try:
        from hf_xet import XetFileInfo  # noqa: PLC0415 - its client opens a log file as soon as it is imported

        route = private.xet_connection_info_refresh_url(
            token_type=private.XetTokenType.READ,
            repo_id=revision.repo_id,
            repo_type="model",
            revision=revision.commit,
            endpoint=api.endpoint,
        )
        file_data = private.XetFileData(file_hash=remote.xet_hash, refresh_route=route)
        store = private.refresh_xet_connection_info(file_data=file_data, headers=headers)
        endpoint.check_xet_store(store.endpoint, api.endpoint)
        session = private.get_xet_session()  # type: ignore[no-untyped-call]
        with session.new_download_stream_group(
            endpoint=store.endpoint,
            token=store.access_token,
            token_expiry_unix_secs=store.expiration_unix_epoch,
            token_refresh_url=route,
            token_refresh_headers=headers,
            custom_headers=private.xet_headers_without_auth(headers),
        ) as group:
            for chunk in group.download_stream(XetFileInfo(remote.xet_hash, remote.size), start=file.tell()):
                file.write(chunk)
    except (OSError, RuntimeError, ValueError) as error:
        if getattr(error, "errno", None) is not None:
            raise
    if file.tell() < remote.size:
        _receive_http(source, remote, file)
