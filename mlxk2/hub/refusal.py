"""What it means to a user that an upload did not go well: from the library's exceptions to errors of the tree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from json import JSONDecodeError

import httpx2
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from mlxk2.errors import AuthError, MlxkError, PushFailedError, RepoNotFoundError, UploadFailedError, cause
from mlxk2.hub.errors import LIMITS_HINT, NONSENSE, OFFLINE, OFFLINE_HINT, as_error, beyond_limits, nonsense, one_line
from mlxk2.hub.limits import LimitExceeded, NonsenseError
from mlxk2.hub.logs import without

TOKEN_HINT = "Set HF_TOKEN to a token that may write there, or log in with one: hf auth login"

_INVALID_REVISION = "invalid rev id"
_UNAUTHORISED, _FORBIDDEN = 401, 403
# Other values that are wrong may be the fault of a file.
_NONSENSE = (NonsenseError, *(kind for kind in NONSENSE if kind is not ValueError))
_CONFLICTS = (409, 412)


class BranchMissingError(UploadFailedError):
    """The repo is there, the branch is not."""


@contextmanager
def understood(repo_id: str, hidden: Sequence[str]) -> Iterator[None]:
    """Whatever the library raises inside the block becomes an error about a push to this repo."""
    try:
        yield
    except _NONSENSE as fault:
        raise PushFailedError(nonsense(repo_id, fault)) from fault
    except (httpx2.HTTPError, OSError, RuntimeError, ValueError) as fault:
        raise as_push_error(_first_cause(fault), repo_id, hidden) from fault


def is_branch_missing(fault: HfHubHTTPError) -> bool:
    """Whether the hub says that there is no such branch."""
    return isinstance(fault, RevisionNotFoundError) or _INVALID_REVISION in (fault.server_message or "").lower()


def as_push_error(fault: BaseException, repo_id: str, hidden: Sequence[str]) -> MlxkError:
    """The error that an exception of the library, of HTTP or of the disk stands for."""
    if isinstance(fault, HFValidationError):
        return as_error(fault, repo_id)
    if isinstance(fault, OfflineModeIsEnabled):
        return UploadFailedError(OFFLINE, hint=OFFLINE_HINT)
    if isinstance(fault, HfHubHTTPError):
        return _of_answer(fault, repo_id, without(hidden, fault.server_message or ""))
    if isinstance(fault, LimitExceeded):
        return UploadFailedError(beyond_limits(fault, repo_id), hint=LIMITS_HINT)
    if isinstance(fault, (JSONDecodeError, httpx2.DecodingError)):
        return UploadFailedError(nonsense(repo_id, fault))
    text = one_line(without(hidden, str(fault))) or type(fault).__name__
    if isinstance(fault, (httpx2.HTTPError, ConnectionError, TimeoutError)):
        return _unreachable(repo_id, text)
    if isinstance(fault, OSError) and fault.strerror:
        return PushFailedError(f"Nothing was pushed to {repo_id}: a file can't be read ({cause(fault)}).")
    return UploadFailedError(f"The upload to {repo_id} failed: {text}")


def _first_cause(fault: BaseException) -> BaseException:
    """Of an exception that only says where another one happened, that other one."""
    while isinstance(fault, RuntimeError) and fault.__cause__ is not None:
        fault = fault.__cause__
    return fault


def _of_answer(fault: HfHubHTTPError, repo_id: str, text: str) -> MlxkError:
    status = fault.response.status_code
    said = f": {one_line(text)}" if text else ""
    if is_branch_missing(fault):
        message = f"{repo_id} has no such branch{said}."
        return BranchMissingError(message, hint="With --create it is made; a new one may take the hub a moment.")
    if isinstance(fault, RepositoryNotFoundError) and not isinstance(fault, GatedRepoError):
        return RepoNotFoundError(repo_id)
    if status == _UNAUTHORISED:
        return AuthError(f"The hub does not accept the token ({status}{said}).", hint=TOKEN_HINT)
    if status == _FORBIDDEN:
        return UploadFailedError(f"The hub forbids the upload to {repo_id} ({status}{said}).", hint=TOKEN_HINT)
    if status in _CONFLICTS:
        message = f"{repo_id} was changed by somebody else meanwhile ({status}{said}); nothing was pushed."
        return UploadFailedError(message, hint="Look at what has changed there, then push again.")
    return UploadFailedError(f"The hub failed with {status} for {repo_id}{said}.", hint="Try again later.")


def _unreachable(repo_id: str, text: str) -> UploadFailedError:
    hint = "Check the connection (and HF_ENDPOINT, if it is set); a push can be repeated."
    if "xet" in text:
        hint += " For a hub without Xet storage, set HF_HUB_DISABLE_XET=1."
    return UploadFailedError(f"The hub could not be reached for {repo_id}: {text}", hint=hint)
