"""Every error that a user can meet, and what each one becomes in the envelope and in HTTP.

    MlxkError                       exit 1
    ├── CommandError                wrong usage of the command line, exit 2
    ├── ValidationError             an argument that can't be right, found before any disk or network access
    ├── OperationError              the machine can't do what was asked: a file can't be read, a disk is full
    │   ├── CachePermissionError    the cache may not be written
    │   └── InvalidTargetError      the folder to be written is not empty, or can't hold a model
    ├── ConfirmationRequiredError   the user did not confirm a removal
    ├── LocksPresentError           a download of the model is running
    ├── HubError                    the hub did not give what was asked for
    │   ├── AccessDeniedError       gated, private, unauthorised, or not there at all
    │   ├── DownloadFailedError     the hub responded, but not with what was asked for
    │   ├── NetworkError            the hub could not be reached
    │   └── UploadFailedError       the hub refused an upload, or could not be reached for it
    ├── PushError                   a folder can't be pushed
    │   ├── DependencyMissingError  the hub's client library is not installed
    │   ├── AuthError               there is no token, or it can't be sent, or the hub does not know it
    │   ├── WorkspaceNotFoundError  there is no such folder
    │   ├── RepoNotFoundError       there is no such repo, and --create is missing
    │   └── PushFailedError         anything else that stops a push
    ├── NotFoundError               what was named is not in the cache
    │   ├── ModelNotFoundError      no model goes by this name
    │   ├── HashNotFoundError       the model is in the cache, the revision is not
    │   └── AmbiguousMatchError     several models match
    ├── ModelError                  the model was found but can't be used
    │   ├── ModelUnhealthyError     the files are damaged or incomplete
    │   ├── ModelNotRunnableError   the files are whole, but MLX can't run them here
    │   └── InsufficientMemoryError the weights are larger than the memory
    ├── ContextLengthError          the prompt does not fit the model's context
    ├── ServerBusyError             too many requests are waiting
    ├── ServerStoppingError         the server is shutting down
    └── InterruptedByUser           Ctrl-C, exit 130

An error knows its `type` (the `error.type` of the JSON envelope), its `exit_code` and its `http_status`. `details` are
further keys of the envelope's `error` object (`matches`, `available_hashes`, `hint`). `param` is the field of a request
to the server that it is about. An error is complete when it is raised: its attributes are never set afterwards.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Mapping, Sequence
from typing import Final, Self

# What helps against a refusal of the operating system, in words that follow its own.
_REMEDIES = {
    errno.EACCES: "check its owner and its mode",
    errno.EIO: "check the disk that it is on",
    errno.ENOTCONN: "its disk is not connected; connect it again",
    errno.ESTALE: "its disk is not connected; connect it again",
    errno.EHOSTDOWN: "its disk is not connected; connect it again",
    errno.ETIMEDOUT: "its disk is not connected; connect it again",
}
# macOS protects some folders and disks from programs, and keeps some files in iCloud alone.
_REMEDIES_OF_MACOS = {
    errno.EPERM: "allow the terminal in System Settings › Privacy & Security › Files and Folders",
}
IN_ICLOUD = "is in iCloud only; open it in Finder to download it"


def cause(error: OSError, platform: str | None = None) -> str:
    """Return why the operating system refused: its own words, and what the user can do where that is known."""
    return "; ".join(filter(None, (words(error, platform), remedy(error, platform))))


def words(error: OSError, platform: str | None = None) -> str:
    """Return the operating system's own words for an error, or clearer ones where its own do not help."""
    if _is_macos(platform) and error.errno == errno.EDEADLK:
        return f"it {IN_ICLOUD}"
    return error.strerror or str(error) or type(error).__name__


def remedy(error: OSError, platform: str | None = None) -> str | None:
    """Return what the user can do against an error; None where that is not known."""
    remedies = _REMEDIES | _REMEDIES_OF_MACOS if _is_macos(platform) else _REMEDIES
    return remedies.get(error.errno or 0)


def _is_macos(platform: str | None) -> bool:
    return (platform or sys.platform) == "darwin"


class MlxkError(Exception):
    """An error with a message for the user: what happened, to which thing, and what to do next."""

    type = "OperationError"
    exit_code = 1
    http_status = 500

    def __init__(self, message: str, *, hint: str | None = None, param: str | None = None, **details: object) -> None:
        super().__init__(message)
        self.message: Final = message
        self.details: Final[Mapping[str, object]] = ({} if hint is None else {"hint": hint}) | details
        self.param: Final = param

    def about(self, param: str) -> Self:
        """Return the same error for a field of a request; an error that names its field already stays as it is."""
        if self.param is not None:
            return self
        # Constructors differ, so the new error takes the attributes instead of calling one.
        twin = type(self).__new__(type(self), *self.args)
        twin.__dict__.update(self.__dict__, param=param)
        return twin


class CommandError(MlxkError):
    """The command line is wrong; nothing was tried. `usage` is what argparse says of its form."""

    type = "CommandError"
    exit_code = 2
    http_status = 400

    def __init__(self, message: str, *, hint: str | None = None, usage: str = "") -> None:
        super().__init__(message, hint=hint)
        self.usage: Final = usage


class ValidationError(MlxkError):
    """An argument that can't be right, found before any disk or network access."""

    type = "ValidationError"
    http_status = 400


class OperationError(MlxkError):
    """The machine can't do what was asked: a file can't be read, a disk is full."""

    type = "OperationError"


class CachePermissionError(OperationError):
    """The operating system does not let the user write to the cache."""

    type = "PermissionError"


class InvalidTargetError(OperationError):
    """The folder to be written exists and is not empty, or can't hold a model."""

    type = "InvalidTargetError"


class ConfirmationRequiredError(MlxkError):
    """The user did not confirm the removal, so nothing was deleted."""

    type = "confirmation_required"


class LocksPresentError(MlxkError):
    """A running download holds locks of the model; `lock_files` are their names, relative to the cache's folder."""

    type = "locks_present"

    def __init__(self, message: str, lock_files: Sequence[str], *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.lock_files: Final = tuple(lock_files)


class HubError(MlxkError):
    """The hub did not give what was asked for."""


class AccessDeniedError(HubError):
    """The repo is gated, private or not there, or the token does not open it; the hub's response is the same."""

    type = "access_denied"


class DownloadFailedError(HubError):
    """The hub responded, but not with the file, the revision or the bytes that it promised."""

    type = "download_failed"


class NetworkError(HubError):
    """The hub could not be reached, or the connection broke and did not come back."""

    type = "NetworkError"


class UploadFailedError(HubError):
    """The hub refused an upload, or could not be reached for it; nothing of it is on the hub."""

    type = "upload_failed"


class PushError(MlxkError):
    """A folder can't be pushed, for a reason on this side."""


class DependencyMissingError(PushError):
    """The library that speaks to the hub is not installed."""

    type = "dependency_missing"


class AuthError(PushError):
    """There is no token, or it can't be sent, or the hub does not know it."""

    type = "auth_error"


class WorkspaceNotFoundError(PushError):
    """There is no such folder to push."""

    type = "workspace_not_found"


class RepoNotFoundError(PushError):
    """The repo is not on the hub, and the user did not ask to create it."""

    type = "repo_not_found"

    def __init__(self, repo_id: str) -> None:
        super().__init__(
            f"{repo_id} is not on the hub, or your token may not see it.",
            hint="Add --create to have it made, as a private repo.",
        )


class PushFailedError(PushError):
    """Something else stands in the way: a file that can't be uploaded, a hub that sends nonsense."""

    type = "push_operation_failed"


class NotFoundError(MlxkError):
    """What was named is not in the cache."""

    http_status = 404


class ModelNotFoundError(NotFoundError):
    """No model in the cache goes by this name."""

    type = "model_not_found"


class HashNotFoundError(NotFoundError):
    """The model is in the cache, the revision is not."""

    type = "hash_not_found"

    def __init__(self, message: str, available_hashes: Sequence[str], *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint, available_hashes=list(available_hashes))


class AmbiguousMatchError(NotFoundError):
    """Several models match; `matches` are their names, sorted."""

    type = "ambiguous_match"

    def __init__(self, message: str, matches: Sequence[str]) -> None:
        super().__init__(message, matches=sorted(matches))


class ModelError(MlxkError):
    """The model was found but can't be used."""


class ModelUnhealthyError(ModelError):
    """The model's files are damaged or incomplete."""

    type = "ModelUnhealthyError"
    http_status = 400


class ModelNotRunnableError(ModelError):
    """The model's files are whole, but MLX can't run them here."""

    type = "ModelNotRunnableError"
    http_status = 400


class InsufficientMemoryError(ModelError):
    """The model's weights are larger than the memory of this machine."""

    type = "InsufficientMemoryError"
    http_status = 400


class ContextLengthError(MlxkError):
    """The prompt does not fit the model's context; the message gives both numbers, in tokens."""

    type = "context_length_exceeded"
    http_status = 400


class ServerBusyError(MlxkError):
    """As many requests wait already as may; one that comes a little later can be served."""

    type = "server_busy"
    http_status = 503

    def __init__(self, waiting: int) -> None:
        super().__init__(f"The server is busy: {waiting} requests wait already. Try again in a moment.")


class ServerStoppingError(MlxkError):
    """The server is shutting down: it takes no more requests, and ends the responses under way."""

    type = "shutting_down"
    http_status = 503

    def __init__(self) -> None:
        super().__init__("The server is shutting down.")


class InterruptedByUser(MlxkError):
    """Ctrl-C ended the command before it had a result."""

    type = "interrupted"
    exit_code = 130
