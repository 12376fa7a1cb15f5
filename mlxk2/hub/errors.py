"""What the hub's failures mean to a user: one ordered table from exception to error of the tree."""

from __future__ import annotations

import errno
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager

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

from mlxk2 import errors
from mlxk2.cache import space
from mlxk2.errors import (
    AccessDeniedError,
    CachePermissionError,
    DownloadFailedError,
    MlxkError,
    NetworkError,
    OperationError,
    ValidationError,
)
from mlxk2.formatting import cut
from mlxk2.hub.limits import LimitExceeded, Limits, NonsenseError, question
from mlxk2.names import Collision

TOKEN_HINT = "Set HF_TOKEN to a token that has access (https://huggingface.co/settings/tokens), or: hf auth login"
OFFLINE = "Offline mode is on (HF_HUB_OFFLINE)."
OFFLINE_HINT = "Unset HF_HUB_OFFLINE to reach the hub."
LIMITS_HINT = "Try again later. If it stays, the hub, or a proxy before it, does not answer as it should."
AGAIN_HINT = "Try again later; what was fetched so far is kept."

# What the library raises when an answer is no JSON, or lacks what it must have, and for a URL that is none.
NONSENSE = (AttributeError, KeyError, TypeError, ValueError, RecursionError, httpx2.InvalidURL)

MAX_CAUSE = 300
# What a cause may quote of a request: credentials in a URL, and the token.
_SECRETS = re.compile(r"(?<=://)[^/@\s]+@|(?<=Bearer )[^\s'\"]+")

_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_UNAUTHORISED = (401, 403)
_TOO_MANY = 429


@contextmanager
def translated(repo_id: str) -> Iterator[None]:
    """Whatever the library or the disk raises inside the block becomes an error of the tree about this repo."""
    try:
        yield
    except (httpx2.HTTPError, HFValidationError, OSError) as fault:
        raise as_error(fault, repo_id) from fault


@contextmanager
def answered(repo_id: str, limits: Limits) -> Iterator[None]:
    """As `translated`, around one question to the hub: an answer without sense or end is a failure too."""
    try:
        with translated(repo_id), question(limits):
            yield
    except NONSENSE as fault:
        raise DownloadFailedError(nonsense(repo_id, fault)) from fault


def nonsense(repo_id: str, fault: Exception) -> str:
    """What to say of an answer that no hub would give."""
    why = f" ({fault})" if isinstance(fault, NonsenseError) else ""
    return f"The hub's answer for {repo_id} makes no sense{why}; is HF_ENDPOINT the address of a hub?"


def beyond_limits(fault: LimitExceeded, repo_id: str) -> str:
    """What to say of an answer that was given up because of its size or its time."""
    return f"The hub's answer for {repo_id} {fault}."


def one_line(text: str) -> str:
    """Return a text of others on one line, without secrets, full stop and what is longer than `MAX_CAUSE`."""
    return cut(_SECRETS.sub("", " ".join(text.split()).rstrip(".")), MAX_CAUSE)


def as_error(fault: Exception, repo_id: str) -> MlxkError:
    """The error of the tree that an exception of the library, of HTTP or of the disk stands for."""
    if isinstance(fault, HFValidationError):
        return ValidationError(f"Invalid model name {repo_id!r}: letters, digits, '-', '_' and '.' only, as org/model.")
    if isinstance(fault, OfflineModeIsEnabled):
        return NetworkError(OFFLINE, hint=OFFLINE_HINT)
    if isinstance(fault, HfHubHTTPError):
        return _of_answer(fault, repo_id)
    if isinstance(fault, LimitExceeded):
        return LimitsError(beyond_limits(fault, repo_id), hint=LIMITS_HINT)
    if isinstance(fault, httpx2.DecodingError):
        return DownloadFailedError(nonsense(repo_id, fault))
    if isinstance(fault, (httpx2.HTTPError, ConnectionError)):
        return NetworkError(
            f"The hub could not be reached for {repo_id}: {one_line(str(fault)) or type(fault).__name__}.",
            hint="Check the connection (and HF_ENDPOINT, if it is set); what was fetched so far is kept.",
        )
    return _of_disk(fault, repo_id)


def _of_answer(fault: HfHubHTTPError, repo_id: str) -> MlxkError:
    status = fault.response.status_code
    if isinstance(fault, GatedRepoError):
        message = f"{repo_id} is gated: its owner must grant access first, on its page at the hub."
        return AccessDeniedError(message, hint=TOKEN_HINT)
    if isinstance(fault, RepositoryNotFoundError):
        return AccessDeniedError(f"{repo_id} is not on the hub, or is private.", hint=TOKEN_HINT)
    if isinstance(fault, DisabledRepoError):
        return AccessDeniedError(f"The hub has disabled access to {repo_id}.")
    if isinstance(fault, RevisionNotFoundError):
        return RevisionMissingError(f"{repo_id} has no such revision on the hub.")
    if status in _UNAUTHORISED:
        return AccessDeniedError(f"The hub refused access to {repo_id} ({status}).", hint=TOKEN_HINT)
    if status == _TOO_MANY:
        return DownloadFailedError(f"The hub limits the rate of requests (429) for {repo_id}.", hint=AGAIN_HINT)
    said = f": {one_line(fault.server_message)}" if fault.server_message else ""
    return DownloadFailedError(f"The hub failed with {status} for {repo_id}{said}.", hint=AGAIN_HINT)


class LimitsError(DownloadFailedError):
    """An answer was larger, slower or longer than the limits allow; it will be again."""


class RevisionMissingError(DownloadFailedError):
    """The repo is there, the revision is not."""


class NamesCollideError(DownloadFailedError):
    """The repo lists two files that some disk takes for one; to ask again does not help."""

    def __init__(self, repo_id: str, collision: Collision) -> None:
        first, second, reason = collision
        if first == second:
            message, hint = f"The hub lists {first!r} of {repo_id} twice. Nothing was written.", None
        else:
            message = f"{repo_id} has {first!r} and {second!r}, but no place for both: {reason}. Nothing was written."
            hint = f"To leave one out: hf download {repo_id} --exclude {shlex.quote(second)}"
        super().__init__(message, hint=hint or "Is HF_ENDPOINT the address of a hub?")


def _of_disk(fault: Exception, repo_id: str) -> MlxkError:
    number = getattr(fault, "errno", None)
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
    if number in _FORBIDDEN:
        return CachePermissionError(
            f"The cache can't be written ({_cause(fault)}); {repo_id} was not downloaded.",
            hint="Check the owner and the mode of the cache folder, or set HF_HOME to a folder of yours.",
        )
    if number is not None:
        return OperationError(f"The operating system refused, so {repo_id} was not downloaded: {_cause(fault)}.")
    return DownloadFailedError(f"The hub sent fewer bytes of {repo_id} than it promised.", hint=AGAIN_HINT)


def _cause(fault: Exception) -> str:
    return errors.cause(fault) if isinstance(fault, OSError) else str(fault)
