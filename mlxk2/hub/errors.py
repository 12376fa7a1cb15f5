"""Translate failures of the hub into errors of `mlxk2.errors`: one ordered table for downloads, one for uploads."""

from __future__ import annotations

import errno
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from json import JSONDecodeError

import httpx2
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from mlxk2.cache import space
from mlxk2.errors import (
    AccessDeniedError,
    AuthError,
    CachePermissionError,
    DownloadFailedError,
    MlxkError,
    NetworkError,
    OperationError,
    PushFailedError,
    RepoNotFoundError,
    UploadFailedError,
    ValidationError,
    cause,
)
from mlxk2.formatting import one_line, reason_of
from mlxk2.hub.limits import InvalidResponseError, LimitExceeded, Limits, count_call
from mlxk2.hub.private import redact
from mlxk2.names import Collision

READ_TOKEN_HINT = "Set HF_TOKEN to a token that has access (https://huggingface.co/settings/tokens), or: hf auth login"
WRITE_TOKEN_HINT = "Set HF_TOKEN to a token that may write to the repo, or log in with one: hf auth login"
OFFLINE = "Offline mode is on (HF_HUB_OFFLINE)."
OFFLINE_HINT = "Unset HF_HUB_OFFLINE to reach the hub."
LIMITS_HINT = "Try again later. If this stays, the hub or a proxy in front of it is faulty."
AGAIN_HINT = "Try again later; the files that were already fetched are kept."

# The library raises these when a response is not JSON or lacks a required field, and for an invalid URL.
INVALID_RESPONSES = (AttributeError, KeyError, TypeError, ValueError, RecursionError, httpx2.InvalidURL)
# During an upload, a ValueError can also come from a file.
INVALID_RESPONSES_OF_PUSH = (InvalidResponseError, *(kind for kind in INVALID_RESPONSES if kind is not ValueError))

_DISK_FORBIDS = (errno.EACCES, errno.EPERM, errno.EROFS)
_UNAUTHORISED, _FORBIDDEN, _TOO_MANY = 401, 403, 429
_CONFLICTS = (409, 412)
_INVALID_REVISION = "invalid rev id"
# The number of an error of the operating system; its text follows and says the same.
_NUMBER = re.compile(r"^\[Errno -?[0-9]+\] ")


class LimitsError(DownloadFailedError):
    """A response was larger, slower or longer than the limits allow; another attempt would fail in the same way."""


class RevisionMissingError(DownloadFailedError):
    """The repo exists, but not the revision."""


class BranchMissingError(UploadFailedError):
    """The repo exists, but not the branch."""


class NamesCollideError(DownloadFailedError):
    """Two files of the repo have names that are the same on some disks; another attempt would fail in the same way."""

    def __init__(self, repo_id: str, collision: Collision) -> None:
        first, second, reason = collision
        if first == second:
            message, hint = f"The hub lists {first!r} of {repo_id} twice. Nothing was written.", None
        else:
            message = (
                f"{repo_id} has {first!r} and {second!r}, which can't be in one folder: {reason}. Nothing was written."
            )
            hint = f"To leave one out: hf download {repo_id} --exclude {shlex.quote(second)}"
        super().__init__(message, hint=hint or "Is HF_ENDPOINT the address of a hub?")


@contextmanager
def translate_download(repo_id: str) -> Iterator[None]:
    """Translate exceptions of the library and the disk inside the block into errors about this repo."""
    try:
        yield
    except (httpx2.HTTPError, HFValidationError, OSError) as error:
        raise as_download_error(error, repo_id) from error


@contextmanager
def call_hub(repo_id: str, limits: Limits) -> Iterator[None]:
    """Count the block as one call and translate its failures, including invalid and endless responses."""
    try:
        with translate_download(repo_id), count_call(limits):
            yield
    except INVALID_RESPONSES as error:
        raise DownloadFailedError(describe_invalid_response(error, repo_id)) from error


@contextmanager
def translate_push(repo_id: str, hidden: Sequence[str]) -> Iterator[None]:
    """Translate exceptions of the library inside the block into errors about a push to this repo."""
    try:
        yield
    except INVALID_RESPONSES_OF_PUSH as error:
        raise PushFailedError(describe_invalid_response(error, repo_id)) from error
    except (httpx2.HTTPError, OSError, RuntimeError, ValueError) as error:
        origin: BaseException = error
        # The library wraps other exceptions in RuntimeError to say where they happened.
        while isinstance(origin, RuntimeError) and origin.__cause__ is not None:
            origin = origin.__cause__
        raise as_push_error(origin, repo_id, hidden) from error


def describe_invalid_response(error: Exception, repo_id: str) -> str:
    """Return the message about an invalid response."""
    why = f" ({error})" if isinstance(error, InvalidResponseError) else ""
    return f"The response for {repo_id} is not that of a hub{why}; is HF_ENDPOINT the address of a hub?"


def is_branch_missing(error: HfHubHTTPError) -> bool:
    """Return whether the hub reports that the branch does not exist."""
    return isinstance(error, RevisionNotFoundError) or _INVALID_REVISION in (error.server_message or "").lower()


def as_download_error(error: Exception, repo_id: str) -> MlxkError:
    """Return the MlxkError for an exception of the library, of HTTP or of the disk during a download."""
    if isinstance(error, HFValidationError):
        return ValidationError(f"Invalid model name {repo_id!r}: letters, digits, '-', '_' and '.' only, as org/model.")
    if isinstance(error, OfflineModeIsEnabled):
        return NetworkError(OFFLINE, hint=OFFLINE_HINT)
    if isinstance(error, HfHubHTTPError):
        return _download_refused(error, repo_id)
    if isinstance(error, LimitExceeded):
        return LimitsError(f"The hub's response for {repo_id} {error}.", hint=LIMITS_HINT)
    if isinstance(error, httpx2.DecodingError):
        return DownloadFailedError(describe_invalid_response(error, repo_id))
    if isinstance(error, (httpx2.HTTPError, ConnectionError)):
        return NetworkError(
            f"The hub could not be reached for {repo_id}: {_NUMBER.sub('', reason_of(error))}.",
            hint="Check the connection (and HF_ENDPOINT, if it is set); the files that were already fetched are kept.",
        )
    return _disk_refused(error, repo_id)


def _download_refused(error: HfHubHTTPError, repo_id: str) -> MlxkError:
    status = error.response.status_code
    if isinstance(error, GatedRepoError):
        message = f"{repo_id} is gated: ask its owner for access, on its page at the hub."
        return AccessDeniedError(message, hint=READ_TOKEN_HINT)
    if isinstance(error, RepositoryNotFoundError):
        return AccessDeniedError(f"{repo_id} is not on the hub, or is private.", hint=READ_TOKEN_HINT)
    if isinstance(error, DisabledRepoError):
        return AccessDeniedError(f"The hub has disabled access to {repo_id}.")
    if isinstance(error, RevisionNotFoundError):
        return RevisionMissingError(f"{repo_id} has no such revision on the hub.")
    if status in (_UNAUTHORISED, _FORBIDDEN):
        return AccessDeniedError(f"The hub refused access to {repo_id} ({status}).", hint=READ_TOKEN_HINT)
    if status == _TOO_MANY:
        return DownloadFailedError(f"The hub limits the rate of requests (429) for {repo_id}.", hint=AGAIN_HINT)
    text = f": {one_line(error.server_message)}" if error.server_message else ""
    return DownloadFailedError(f"The hub failed with {status} for {repo_id}{text}.", hint=AGAIN_HINT)


def _disk_refused(error: Exception, repo_id: str) -> MlxkError:
    number = getattr(error, "errno", None)
    why = cause(error) if isinstance(error, OSError) else str(error)
    if number in space.FULL:
        return OperationError(
            f"The disk is full; {repo_id} was not downloaded.",
            hint="Free some space, for instance with `mlxk2 rm`; the next pull continues where this one stopped.",
        )
    if number == errno.EFBIG:
        return OperationError(
            f"The file system or a limit (ulimit -f) forbids files as large as those of {repo_id}.",
            hint="Raise the limit, or set HF_HUB_CACHE to another file system.",
        )
    if number in _DISK_FORBIDS:
        return CachePermissionError(
            f"The cache can't be written ({why}); {repo_id} was not downloaded.",
            hint="Check the owner and the mode of the cache folder, or set HF_HOME to a folder that you own.",
        )
    if number is not None:
        return OperationError(f"{repo_id} was not downloaded, because the operating system refused: {why}.")
    return DownloadFailedError(f"The hub sent fewer bytes of {repo_id} than it announced.", hint=AGAIN_HINT)


def as_push_error(error: BaseException, repo_id: str, hidden: Sequence[str]) -> MlxkError:
    """Return the MlxkError for an exception of the library, of HTTP or of the disk during an upload."""
    if isinstance(error, HFValidationError):
        return as_download_error(error, repo_id)
    if isinstance(error, OfflineModeIsEnabled):
        return UploadFailedError(OFFLINE, hint=OFFLINE_HINT)
    if isinstance(error, HfHubHTTPError):
        return _upload_refused(error, repo_id, redact(error.server_message or "", hidden))
    if isinstance(error, LimitExceeded):
        return UploadFailedError(f"The hub's response for {repo_id} {error}.", hint=LIMITS_HINT)
    if isinstance(error, (JSONDecodeError, httpx2.DecodingError)):
        return UploadFailedError(describe_invalid_response(error, repo_id))
    text = one_line(redact(str(error), hidden)) or type(error).__name__
    if isinstance(error, (httpx2.HTTPError, ConnectionError, TimeoutError)):
        hint = "Check the connection (and HF_ENDPOINT, if it is set); a push can be repeated."
        if "xet" in text:
            hint += " For a hub without Xet storage, set HF_HUB_DISABLE_XET=1."
        return UploadFailedError(f"The hub could not be reached for {repo_id}: {_NUMBER.sub('', text)}", hint=hint)
    if isinstance(error, OSError) and error.strerror:
        return PushFailedError(f"Nothing was pushed to {repo_id}: a file can't be read ({cause(error)}).")
    return UploadFailedError(f"The upload to {repo_id} failed: {text}")


def _upload_refused(error: HfHubHTTPError, repo_id: str, text: str) -> MlxkError:
    status = error.response.status_code
    why = f": {one_line(text)}" if text else ""
    if is_branch_missing(error):
        message = f"{repo_id} has no such branch{why}."
        return BranchMissingError(
            message, hint="Add --create to create it. The hub can need a moment for a new branch."
        )
    if isinstance(error, RepositoryNotFoundError) and not isinstance(error, GatedRepoError):
        return RepoNotFoundError(repo_id)
    if status == _UNAUTHORISED:
        return AuthError(f"The hub does not accept the token ({status}{why}).", hint=WRITE_TOKEN_HINT)
    if status == _FORBIDDEN:
        return UploadFailedError(f"The hub forbids the upload to {repo_id} ({status}{why}).", hint=WRITE_TOKEN_HINT)
    if status in _CONFLICTS:
        message = f"{repo_id} was changed by somebody else during the push ({status}{why}); nothing was pushed."
        return UploadFailedError(message, hint="Check the new commits on the hub, then push again.")
    return UploadFailedError(f"The hub failed with {status} for {repo_id}{why}.", hint="Try again later.")
