"""Push a folder to a branch on the hub: read the state of the branch, and change it by one commit.

The files of a commit are uploaded first; only the last request moves the branch. So the branch is at its old commit or
at the complete new one, even if this process dies. A commit names its parent, so that it can't undo another push.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import quote

from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from mlxk2.checkpoint import checksums
from mlxk2.errors import AuthError, PushFailedError, cause
from mlxk2.formatting import reason_of
from mlxk2.hub import endpoint, private
from mlxk2.hub.client import Connection, connect
from mlxk2.hub.errors import WRITE_TOKEN_HINT, BranchMissingError, is_branch_missing, translate_push
from mlxk2.hub.limits import InvalidResponseError, count_call
from mlxk2.hub.repos import check_info, is_commit, list_entries
from mlxk2.workspace.diff import HubFile, Upload

README = "README.md"
# The library's message for a commit that would change nothing.
NO_CHANGES = "No files have been modified"
# A hub that lacks a route responds with one of these and without an error code.
ROUTE_MISSING = (404, 405)
ERROR_CODE_HEADER = "x-error-code"
STORE_HEADER = "x-xet-cas-url"


@dataclass(frozen=True, slots=True)
class BranchState:
    """The commit and the files of a branch; if it does not exist, those of the branch from which it would start."""

    has_repo: bool
    has_branch: bool
    is_public: bool
    commit: str | None
    files: Mapping[str, HubFile]


@dataclass(frozen=True, slots=True)
class PushResult:
    """The new commit of a push and its URL, and the library's log lines.

    If the hub already had all files, there is no commit, and `remark` is the library's message about that.
    """

    commit: str | None
    url: str | None
    log: list[str]
    remark: str | None = None


class Branch:
    """A branch of a repo, accessed with the user's token; messages and log lines omit the `hidden` texts."""

    def __init__(self, connection: Connection, repo_id: str, name: str, hidden: Sequence[str]) -> None:
        self._connection = connection
        self._api = connection.api
        self._headers = connection.headers
        self._repo_id = repo_id
        self._name = name
        self._hidden = hidden

    @classmethod
    def open(cls, environment: Mapping[str, str], repo_id: str, name: str, root: str) -> Branch:
        """Return the branch for a push of the folder `root`, without a request; raise AuthError if no token is set."""
        connection = connect(environment)
        if connection.token is None:
            message = "Pushing needs a token: set HF_TOKEN, or log in with `hf auth login`."
            raise AuthError(message, hint=WRITE_TOKEN_HINT)
        hidden = (connection.token, root + "/", endpoint.credentials_in(connection.api.endpoint))
        return cls(connection, repo_id, name, [*filter(None, hidden)])

    def read(self) -> BranchState:
        """Return the state of the branch; raise AuthError or UploadFailedError if the hub does not send it."""
        with translate_push(self._repo_id, self._hidden), count_call(self._connection.limits):
            timeout = private.constants.HF_HUB_ETAG_TIMEOUT
            try:
                info, has_branch = self._api.model_info(self._repo_id, revision=self._name, timeout=timeout), True
            except HfHubHTTPError as error:
                if isinstance(error, RepositoryNotFoundError) and not isinstance(error, GatedRepoError):
                    return BranchState(has_repo=False, has_branch=False, is_public=False, commit=None, files={})
                if not is_branch_missing(error):
                    raise
                info, has_branch = self._api.model_info(self._repo_id, timeout=timeout), False
            check_info(info)
            entries = list_entries(self._connection, self._repo_id, info.sha)
            return BranchState(
                has_repo=True,
                has_branch=has_branch,
                is_public=info.private is False,
                commit=info.sha,
                files={entry.path: HubFile(entry.size, entry.blob) for entry in entries},
            )

    def create_repo(self) -> None:
        """Create the repo as a private one."""
        with translate_push(self._repo_id, self._hidden):
            self._api.create_repo(self._repo_id, private=True, exist_ok=True)

    def create(self) -> None:
        """Create the branch at the commit of `main`."""
        with translate_push(self._repo_id, self._hidden):
            self._api.create_branch(self._repo_id, branch=self._name, exist_ok=True)

    def push(self, upload: Upload, *, may_create: bool, show_bars: bool, echo: IO[str] | None) -> PushResult:
        """Change the branch by one commit; create the branch if it is missing and `may_create` allows it.

        With `show_bars`, show the library's progress bars on stderr. Write its log lines to `echo`.
        """
        with private.collect_log(self._hidden, echo) as log, private.show_progress_bars(show_bars):
            try:
                commit, url = self._commit(upload)
            except BranchMissingError:
                if not may_create:
                    raise
                self.create()
                commit, url = self._commit(upload)
        remark = next((line for line in log if line.startswith(NO_CHANGES)), None)
        if remark or commit == upload.parent:
            return PushResult(None, None, log, remark or NO_CHANGES)
        return PushResult(commit, url, log)

    def _commit(self, upload: Upload) -> tuple[str, str]:
        """Upload the files that the hub lacks, make one commit, and return the commit and its URL."""
        uploads = upload.changes.uploads
        try:
            additions = [CommitOperationAdd(file.name, file.path) for file in uploads]
        except (ValueError, OSError) as error:
            # The library's own message would show the whole path.
            reason = cause(error) if isinstance(error, OSError) else "one of them is no longer a file"
            message = f"The folder's files changed while they were read ({reason}); push again."
            raise PushFailedError(message) from error
        with translate_push(self._repo_id, self._hidden), ExitStack() as transport:
            deletions = [CommitOperationDelete(path, is_folder=False) for path in upload.changes.deleted]
            self._check_card(additions)
            if additions:
                transport.enter_context(self._choose_transport())
                if not private.is_xet_available():
                    # Save the library from hashing large files again. Over Xet it hashes during the upload anyway.
                    for file, addition in zip(uploads, additions, strict=True):
                        if checksums.is_sha256(file.blob):
                            addition.upload_info.sha256 = bytes.fromhex(file.blob)
                # Without our rules, the hub would apply its .gitignore and skip files without a message.
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
                raise InvalidResponseError("the new commit is not a hash")
        return made.oid, made.commit_url

    def _choose_transport(self) -> AbstractContextManager[None]:
        """Return a context that turns Xet off if the hub lacks it; otherwise the library's error is unclear."""
        if not private.is_xet_available():
            return nullcontext()
        url = private.xet_connection_info_refresh_url(
            token_type=private.XetTokenType.WRITE,
            repo_id=self._repo_id,
            repo_type="model",
            revision=quote(self._name, safe=""),
            endpoint=self._api.endpoint,
        )
        response = private.http_backoff("GET", url, headers=self._headers)
        if response.status_code in ROUTE_MISSING and ERROR_CODE_HEADER not in response.headers:
            return private.without_xet()
        private.hf_raise_for_status(response)
        endpoint.check_xet_store(response.headers.get(STORE_HEADER, endpoint.DEFAULT), self._api.endpoint)
        return nullcontext()

    def _check_card(self, additions: Sequence[CommitOperationAdd]) -> None:
        """Let the hub check the model card before gigabytes are uploaded."""
        for addition in additions:
            if addition.path_in_repo == README:
                try:
                    text = Path(str(addition.path_or_fileobj)).read_text("utf-8")
                except ValueError as error:
                    raise PushFailedError(f"{README} is not UTF-8: {reason_of(error)}.") from error
                self._api._validate_yaml(text, repo_type="model")
