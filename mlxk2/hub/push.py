"""A branch on the hub as the place that a folder is pushed to: how it stands, and one commit that changes it.

What a commit needs is uploaded first; only the last request moves the branch. So it is at its old commit or at the
whole new one, also when this process dies. A commit names its parent, so that nobody's work is undone unseen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import quote

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, ModelInfo
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from mlxk2.checkpoint import checksums
from mlxk2.errors import AuthError, PushFailedError, cause, reason_of
from mlxk2.hub import endpoint, logs, private
from mlxk2.hub.client import Connection, connect
from mlxk2.hub.limits import NonsenseError, question
from mlxk2.hub.listing import checked, entries, is_commit
from mlxk2.hub.refusal import TOKEN_HINT, BranchMissingError, is_branch_missing, understood
from mlxk2.workspace.diff import Changes, HubFile, Upload

README = "README.md"
# The library's words for a commit that would change nothing.
NO_CHANGES = "No files have been modified"
# What a hub answers that does not know a route; one that knows it names what else is missing.
ROUTE_MISSING = (404, 405)
ERROR_CODE = "x-error-code"
STORE = "x-xet-cas-url"


@dataclass(frozen=True, slots=True)
class Standing:
    """What there is of a branch: its commit and files, or those that it would begin with."""

    has_repo: bool
    has_branch: bool
    is_public: bool
    commit: str | None
    files: Mapping[str, HubFile]


@dataclass(frozen=True, slots=True)
class Pushed:
    """How a push ended: the new commit and its URL, and what the library said meanwhile.

    Where the hub had it all there is no commit, and `remark` is the library's word for it.
    """

    commit: str | None
    url: str | None
    said: list[str]
    remark: str | None = None


class Branch:
    """A branch of a repo, as the user's token sees it; `hidden` are texts that no message and no log line may hold."""

    def __init__(self, connection: Connection, repo_id: str, name: str, hidden: Sequence[str]) -> None:
        self._connection = connection
        self._api = connection.api
        self._headers = connection.headers
        self._repo_id = repo_id
        self._name = name
        self._hidden = hidden

    @classmethod
    def open(cls, repo_id: str, name: str, root: str) -> Branch:
        """The branch to which the folder at `root` goes; AuthError without a token. Nothing is asked of the hub."""
        connection = connect()
        if connection.token is None:
            raise AuthError("Pushing needs a token: set HF_TOKEN, or log in with `hf auth login`.", hint=TOKEN_HINT)
        hidden = (connection.token, root + "/", endpoint.credentials_in(connection.api.endpoint))
        return cls(connection, repo_id, name, [*filter(None, hidden)])

    def look(self) -> Standing:
        """How the branch stands. AuthError, UploadFailedError when the hub does not say."""
        with understood(self._repo_id, self._hidden), question(self._connection.limits):
            try:
                info, has_branch = self._info()
            except GatedRepoError:
                raise
            except RepositoryNotFoundError:
                return Standing(has_repo=False, has_branch=False, is_public=False, commit=None, files={})
            return Standing(
                has_repo=True,
                has_branch=has_branch,
                is_public=info.private is False,
                commit=info.sha,
                files={
                    entry.path: HubFile(entry.size, entry.blob)
                    for entry in entries(self._connection, self._repo_id, info.sha)
                },
            )

    def make_repo(self) -> None:
        """Make the repo, private."""
        with understood(self._repo_id, self._hidden):
            self._api.create_repo(self._repo_id, private=True, exist_ok=True)

    def make(self) -> None:
        """Make the branch, where `main` is."""
        with understood(self._repo_id, self._hidden):
            self._api.create_branch(self._repo_id, branch=self._name, exist_ok=True)

    def push(self, upload: Upload, *, makes: bool, shows: bool, echo: IO[str] | None) -> Pushed:
        """Change the branch in one commit. `makes` allows to make it, should the hub not know it yet.

        `shows` lets the library draw its bars on stderr, `echo` gets its log lines.
        """
        with logs.collected(self._hidden, echo) as said, _bars(shows):
            try:
                commit, url = self._commit(upload)
            except BranchMissingError:
                if not makes:
                    raise
                self.make()
                commit, url = self._commit(upload)
        remark = next((line for line in said if line.startswith(NO_CHANGES)), None)
        if remark or commit == upload.parent:
            return Pushed(None, None, said, remark or NO_CHANGES)
        return Pushed(commit, url, said)

    def _info(self) -> tuple[ModelInfo, bool]:
        timeout = private.constants.HF_HUB_ETAG_TIMEOUT
        try:
            return checked(self._api.model_info(self._repo_id, revision=self._name, timeout=timeout)), True
        except HfHubHTTPError as fault:
            if not is_branch_missing(fault):
                raise
        return checked(self._api.model_info(self._repo_id, timeout=timeout)), False

    def _commit(self, upload: Upload) -> tuple[str, str]:
        additions = _additions(upload.changes)
        with understood(self._repo_id, self._hidden), ExitStack() as transport:
            deletions = [CommitOperationDelete(path, is_folder=False) for path in upload.changes.deleted]
            self._check_card(additions)
            if additions:
                transport.enter_context(self._transport())
                _hand_on_hashes(upload.changes, additions)
                # The rules go along: else the hub would apply its .gitignore and leave files out without a word.
                self._api.preupload_lfs_files(
                    self._repo_id,
                    additions=additions,
                    revision=self._name,
                    free_memory=False,
                    gitignore_content=upload.ignored,
                )
            made = self._api.create_commit(
                self._repo_id,
                operations=[*deletions, *additions],
                commit_message=upload.message,
                revision=self._name,
                parent_commit=upload.parent,
            )
            if not is_commit(made.oid) or not isinstance(made.commit_url, str):
                raise NonsenseError("the new commit is no hash")
        return made.oid, made.commit_url

    def _transport(self) -> AbstractContextManager[None]:
        """Inside it is done without Xet where the hub has none: the library would insist, and not say why it fails."""
        if not private.is_xet_available():
            return nullcontext()
        url = private.xet_connection_info_refresh_url(
            token_type=private.XetTokenType.WRITE,
            repo_id=self._repo_id,
            repo_type="model",
            revision=quote(self._name, safe=""),
            endpoint=self._api.endpoint,
        )
        answer = private.http_backoff("GET", url, headers=self._headers)
        if answer.status_code in ROUTE_MISSING and ERROR_CODE not in answer.headers:
            return private.without_xet()
        private.hf_raise_for_status(answer)
        endpoint.check_store(answer.headers.get(STORE, endpoint.DEFAULT), self._api.endpoint)
        return nullcontext()

    def _check_card(self, additions: Sequence[CommitOperationAdd]) -> None:
        """Let the hub judge the model card before gigabytes are uploaded beside it."""
        for addition in additions:
            if addition.path_in_repo == README:
                self._api._validate_yaml(_text(addition), repo_type="model")


@contextmanager
def _bars(shows: bool) -> Iterator[None]:
    """The library's progress bars inside the block, unless the environment forbids them."""
    if shows and not private.constants.HF_HUB_DISABLE_PROGRESS_BARS:
        private.enable_progress_bars()
    try:
        yield
    finally:
        private.disable_progress_bars()


def _additions(changes: Changes) -> list[CommitOperationAdd]:
    try:
        return [CommitOperationAdd(file.name, file.path) for file in changes.uploads]
    except (ValueError, OSError) as error:
        # The library's own words have the whole path in them.
        reason = cause(error) if isinstance(error, OSError) else "one of them is no longer a file"
        message = f"The folder's files changed while they were looked at ({reason}); push again."
        raise PushFailedError(message) from error


def _hand_on_hashes(changes: Changes, additions: Sequence[CommitOperationAdd]) -> None:
    """Spare the library to read large files once more that were compared already.

    Over Xet it hashes what it uploads while it reads it, which is as cheap, and true even if a file changes meanwhile.
    """
    if private.is_xet_available():
        return
    for file, addition in zip(changes.uploads, additions, strict=True):
        if checksums.is_sha256(file.blob):
            addition.upload_info.sha256 = bytes.fromhex(file.blob)


def _text(addition: CommitOperationAdd) -> str:
    try:
        return Path(str(addition.path_or_fileobj)).read_text("utf-8")
    except ValueError as error:
        raise PushFailedError(f"{addition.path_in_repo} is not UTF-8: {reason_of(error)}.") from error
