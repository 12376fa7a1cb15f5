"""The errors that a user can see, each with its type in JSON, its exit code and its HTTP status.

    MlxkError                       exit 1
    ├── CommandError                wrong usage of the command line, exit 2
    ├── ValidationError             an argument is invalid; no disk or network was used
    ├── OperationError              the machine failed: a file can't be read, a disk is full
    │   ├── CachePermissionError    the user may not write to the cache
    │   └── InvalidTargetError      the target folder is not empty, or can't hold a model
    ├── ConfirmationRequiredError   the user did not confirm a removal
    ├── LocksPresentError           a download of the model is running
    ├── HubError                    a request to the hub failed
    │   ├── AccessDeniedError       the repo is gated, private or missing, or the token gives no access
    │   ├── DownloadFailedError     the hub sent something else than the requested file
    │   ├── NetworkError            the hub could not be reached
    │   └── UploadFailedError       the hub refused an upload, or could not be reached for it
    ├── PushError                   a folder can't be pushed
    │   ├── DependencyMissingError  the hub's client library is not installed
    │   ├── AuthError               the token is missing or invalid
    │   ├── WorkspaceNotFoundError  the folder does not exist
    │   ├── RepoNotFoundError       the repo does not exist, and --create is missing
    │   └── PushFailedError         anything else that stops a push
    ├── NotFoundError               the cache has no such model or revision
    │   ├── ModelNotFoundError      no model has this name
    │   ├── HashNotFoundError       the cache has the model, but not this revision
    │   └── AmbiguousMatchError     several models match
    ├── ModelError                  the model exists but can't be used
    │   ├── ModelUnhealthyError     its files are damaged or incomplete
    │   ├── ModelNotRunnableError   its files are complete, but MLX can't run them here
    │   └── InsufficientMemoryError its weights are larger than the memory
    ├── ContextLengthError          the prompt is longer than the model's context
    ├── ServerBusyError             too many requests are waiting
    ├── ServerStoppingError         the server is shutting down
    └── OperationCancelled          the user pressed Ctrl-C (exit 130), or the client cancelled its request

Each error has a `type` (`error.type` of the JSON envelope), an `exit_code` and an `http_status`. `details` are further
keys of the envelope's `error` object (`matches`, `available_hashes`, `hint`). `param` names the field of a server
request that is wrong. An error is complete when it is raised: its attributes never change afterwards.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Mapping, Sequence
from typing import Final, Self

# What the user can do about an error of the operating system. The text follows the system's own message.
_REMEDIES = {
    errno.EACCES: "check its owner and its mode",
    errno.EIO: "check the disk that it is on",
    errno.ENOTCONN: "its disk is not connected; connect it again",
    errno.ESTALE: "its disk is not connected; connect it again",
    errno.EHOSTDOWN: "its disk is not connected; connect it again",
    errno.ETIMEDOUT: "its disk is not connected; connect it again",
}
# macOS asks for permission before a program may read some folders and disks.
_REMEDIES_OF_MACOS = {
    errno.EPERM: "allow the terminal in System Settings › Privacy & Security › Files and Folders",
}
IN_ICLOUD = "is in iCloud only; open it in Finder to download it"


def cause(error: OSError, platform: str | None = None) -> str:
    """Return the operating system's message for an error, followed by what the user can do if that is known."""
    return "; ".join(filter(None, (system_message(error, platform), remedy(error, platform))))


def system_message(error: OSError, platform: str | None = None) -> str:
    """Return the operating system's message for an error, or a clearer one for a file in iCloud."""
    if _is_macos(platform) and error.errno == errno.EDEADLK:
        return f"it {IN_ICLOUD}"
    return error.strerror or str(error) or type(error).__name__


def remedy(error: OSError, platform: str | None = None) -> str | None:
    """Return what the user can do about an error, or None if that is unknown."""
    remedies = _REMEDIES | _REMEDIES_OF_MACOS if _is_macos(platform) else _REMEDIES
    return remedies.get(error.errno or 0)


def _is_macos(platform: str | None) -> bool:
    return (platform or sys.platform) == "darwin"


class MlxkError(Exception):
    """An error with a message for the user: what failed, why, and what to do next."""

    type = "OperationError"
    exit_code = 1
    http_status = 500

    def __init__(self, message: str, *, hint: str | None = None, param: str | None = None, **details: object) -> None:
        super().__init__(message)
        self.message: Final = message
        self.details: Final[Mapping[str, object]] = ({} if hint is None else {"hint": hint}) | details
        self.param: Final = param

    def about(self, param: str) -> Self:
        """Return a copy of the error with this field of the request; return the error itself if it has a field."""
        if self.param is not None:
            return self
        # The subclasses have different constructors, so copy the attributes instead of calling one.
        copy = type(self).__new__(type(self), *self.args)
        copy.__dict__.update(self.__dict__, param=param)
        return copy


class CommandError(MlxkError):
    """The command line is wrong, and nothing was done. `usage` is argparse's usage line."""

    type = "CommandError"
    exit_code = 2
    http_status = 400

    def __init__(self, message: str, *, hint: str | None = None, usage: str = "") -> None:
        super().__init__(message, hint=hint)
        self.usage: Final = usage


class ValidationError(MlxkError):
    """An argument is invalid; the check ran before any access to disk or network."""

    type = "ValidationError"
    http_status = 400


class OperationError(MlxkError):
    """The machine failed: for example, a file can't be read or a disk is full."""

    type = "OperationError"


class CachePermissionError(OperationError):
    """The operating system does not let the user write to the cache."""

    type = "PermissionError"


class InvalidTargetError(OperationError):
    """The target folder is not empty, or can't hold a model."""

    type = "InvalidTargetError"


class ConfirmationRequiredError(MlxkError):
    """The user did not confirm the removal, so nothing was deleted."""

    type = "confirmation_required"


class LocksPresentError(MlxkError):
    """A running download holds locks of the model; `lock_files` are their paths, relative to the cache folder."""

    type = "locks_present"

    def __init__(self, message: str, lock_files: Sequence[str], *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.lock_files: Final = tuple(lock_files)


class HubError(MlxkError):
    """A request to the hub failed."""


class AccessDeniedError(HubError):
    """The repo is gated, private or missing, or the token gives no access; the hub responds alike to all of these."""

    type = "access_denied"


class DownloadFailedError(HubError):
    """The hub responded with something else than the file, the revision or the bytes that it announced."""

    type = "download_failed"


class NetworkError(HubError):
    """The hub could not be reached, or the connection broke and every retry failed."""

    type = "NetworkError"


class UploadFailedError(HubError):
    """The hub refused an upload, or could not be reached for it; nothing was uploaded."""

    type = "upload_failed"


class PushError(MlxkError):
    """A folder can't be pushed, for a reason on this machine."""


class DependencyMissingError(PushError):
    """The hub's client library is not installed."""

    type = "dependency_missing"


class AuthError(PushError):
    """The token is missing, or it can't be sent in an HTTP header, or the hub does not know it."""

    type = "auth_error"


class WorkspaceNotFoundError(PushError):
    """The folder to push does not exist."""

    type = "workspace_not_found"


class RepoNotFoundError(PushError):
    """The repo is not on the hub, and the user did not ask to create it."""

    type = "repo_not_found"

    def __init__(self, repo_id: str) -> None:
        super().__init__(
            f"{repo_id} is not on the hub, or your token may not see it.",
            hint="Add --create to create it as a private repo.",
        )


class PushFailedError(PushError):
    """Something else stops the push: a file can't be uploaded, or the hub sends an invalid response."""

    type = "push_operation_failed"


class NotFoundError(MlxkError):
    """The cache has no such model or revision."""

    http_status = 404


class ModelNotFoundError(NotFoundError):
    """No model in the cache has this name."""

    type = "model_not_found"


class HashNotFoundError(NotFoundError):
    """The cache has the model, but not this revision."""

    type = "hash_not_found"

    def __init__(self, message: str, available_hashes: Sequence[str], *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint, available_hashes=list(available_hashes))


class AmbiguousMatchError(NotFoundError):
    """Several models match; `matches` are their names, sorted."""

    type = "ambiguous_match"

    def __init__(self, message: str, matches: Sequence[str]) -> None:
        super().__init__(message, matches=sorted(matches))


class ModelError(MlxkError):
    """The model exists but can't be used."""


class ModelUnhealthyError(ModelError):
    """The model's files are damaged or incomplete."""

    type = "ModelUnhealthyError"
    http_status = 400


class ModelNotRunnableError(ModelError):
    """The model's files are complete, but MLX can't run them here."""

    type = "ModelNotRunnableError"
    http_status = 400


class InsufficientMemoryError(ModelError):
    """The model's weights are larger than the memory of this machine."""

    type = "InsufficientMemoryError"
    http_status = 400


class ContextLengthError(MlxkError):
    """The prompt is longer than the model's context; the message gives both numbers of tokens."""

    type = "context_length_exceeded"
    http_status = 400


class ServerBusyError(MlxkError):
    """The queue is full; the same request can succeed a little later."""

    type = "server_busy"
    http_status = 503

    def __init__(self, waiting: int) -> None:
        super().__init__(f"The server is busy (waiting requests: {waiting}). Try again in a moment.")


class ServerStoppingError(MlxkError):
    """The server is shutting down: it refuses new requests and ends the running responses."""

    type = "shutting_down"
    http_status = 503

    def __init__(self) -> None:
        super().__init__("The server is shutting down.")


class OperationCancelled(MlxkError):
    """The user pressed Ctrl-C, or the client cancelled its request, before there was a result."""

    type = "interrupted"
    exit_code = 130
