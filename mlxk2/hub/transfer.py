"""Fetch the files of a revision from the hub into a model's staging folder.

Each of a few threads fetches one file after the other, over Xet if the hub offers it, or else over HTTP. A file
continues where an earlier attempt stopped.
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
from mlxk2.hub.errors import describe_invalid_response
from mlxk2.hub.limits import LimitExceeded, receive_file
from mlxk2.hub.partial import Partial
from mlxk2.hub.repos import Source
from mlxk2.hub.shared_blobs import SharedBlobs

if TYPE_CHECKING:
    from mlxk2.formatting import Advance, Progress

MAX_THREADS = 8
PAUSES = (1, 2, 4)  # Seconds before each new attempt after a temporary error.
FIRST_SERVER_ERROR = 500
DAMAGED = "The hub sent wrong bytes for {} (their hash does not match)."

Receive = Callable[[Source, RemoteFile, Partial], None]
Todo = queue.SimpleQueue[RemoteFile]
Done = queue.SimpleQueue[int | BaseException]


def fetch(source: Source, plan: PullPlan, staging: Staging, progress: Progress, *, may_share: bool) -> int:
    """Stage the missing files of a plan; return the number of bytes that earlier attempts had fetched.

    With `may_share`, take bytes from the store of shared blobs instead of fetching them. Raise OperationError if the
    files do not fit on the disk. After an error, the fetched bytes stay for the next attempt.
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
    """Fetch files into staging and verify their hashes; return the number of bytes that earlier attempts had fetched.

    Raise the first error of any thread. After an error, the fetched bytes stay for the next attempt.
    """
    stop, todo, done = Event(), Todo(), Done()
    # Start with the largest file. Otherwise it could be the last one, and only one thread would work.
    largest_first = sorted({file.blob: file for file in files}.values(), key=lambda file: -file.size)
    for file in largest_first:
        todo.put(file)
    # Python does not wait for daemon threads, so Ctrl-C ends the program at once; like a kill, that loses no bytes.
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
    """Fetch one file after the other, until no file is left or one fails."""
    while True:
        try:
            file = todo.get_nowait()
        except queue.Empty:
            return
        try:
            resumed_bytes = fetch_file(source, file, staging.partial(file), advance, stop)
            os.replace(staging.partial(file), staging.staged(file))
        except BaseException as error:  # noqa: BLE001 - any exception, also a panic in Rust: `fetch_files` raises it
            done.put(error)
            return
        done.put(resumed_bytes)


def fetch_file(source: Source, remote: RemoteFile, path: Path, advance: Advance, stop: Event) -> int:
    """Complete a partial file and verify its hash; return the number of bytes that an earlier attempt had fetched.

    If the bytes are wrong twice, remove the partial file and raise DownloadFailedError.
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
    raise DownloadFailedError(DAMAGED.format(remote.name), hint="Try again; if this stays, inform the model's author.")


def _receive_rest(source: Source, remote: RemoteFile, file: Partial, receive: Receive) -> None:
    """Receive the missing bytes; after a temporary error try again, as long as bytes arrive or pauses are left."""
    pauses = iter(PAUSES)
    while (before := file.tell()) < remote.size:
        try:
            receive(source, remote, file)
            return
        # After each broken connection the library calls itself, which can end in RecursionError.
        except (httpx2.TransportError, OSError, RecursionError) as error:
            pauses = iter(PAUSES) if file.tell() > before else pauses
            pause = next(pauses, None)
            if pause is None or not _is_temporary(error):
                raise
            time.sleep(pause)


def _is_temporary(error: Exception) -> bool:
    """Return whether the same request can succeed soon; errors of the disk, which have an `errno`, are permanent."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= FIRST_SERVER_ERROR
    # After these errors the library has already repeated the request five times.
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
        raise DownloadFailedError(f"{remote.name} is larger than {limit}, so it can be fetched only over Xet (hf_xet).")
    # A range of a compressed response would not fit the bytes that were already fetched. The token is safe in these
    # headers: the client sends it to no other host, also after a redirect.
    headers = connection.headers | ({"accept-encoding": "identity"} if offset else {})
    try:
        with receive_file(remote.size):
            private.http_get(url, cast(BinaryIO, file), resume_size=offset, headers=headers, expected_size=remote.size)
    except (ValueError, httpx2.InvalidURL) as error:
        # A header should be a number and is not, or a redirect leads to an invalid address.
        raise DownloadFailedError(describe_invalid_response(error, remote.name)) from error


def _receive_xet(source: Source, remote: RemoteFile, file: Partial) -> None:
    """Receive the missing bytes of a file over Xet; if the store lacks some, receive the rest over HTTP.

    In huggingface_hub, Xet always writes a new file, so a killed download starts from the beginning. Here, one stream
    continues where an earlier attempt stopped. The store gets its own short-lived token, never the user's token.
    """
    assert remote.xet_hash is not None
    revision, api, headers = source.revision, source.connection.api, source.connection.headers
    try:
        from hf_xet import XetFileInfo  # noqa: PLC0415 - importing it opens a log file

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
