"""Access rules: find a request's user, and return the repo or refuse the request."""

from __future__ import annotations

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from support.hub.repos import Commit, Hub, Repo


class Refusal(Exception):
    """Refuse a request with the status, headers and message of the real hub."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"x-error-code": code, "x-error-message": message} | (headers or {})
        self.message = message


def refuse(_: Request, refusal: Exception) -> Response:
    """Return the response for a refusal."""
    assert isinstance(refusal, Refusal)
    headers = {name: value for name, value in refusal.headers.items() if value}
    return JSONResponse({"error": refusal.message}, refusal.status, headers)


def user_of(hub: Hub, request: Request) -> str | None:
    """Return the user of a request's token, None without a token; raise Refusal for an unknown token."""
    token = request.headers.get("authorization", "").removeprefix("Bearer ")
    if token and token not in hub.tokens:
        raise Refusal(401, "", "Invalid credentials in Authorization header")
    return hub.tokens.get(token)


def repo_of(hub: Hub, request: Request, repo_id: str) -> Repo:
    """Return the repo if the user may know that it exists; refuse a missing and a private one in the same way."""
    user = user_of(hub, request)
    repo = hub.repos.get(repo_id)
    if new := hub.renamed.get(repo_id):
        raise Refusal(307, "", "", {"location": str(request.url.replace(path=request.url.path.replace(repo_id, new)))})
    if repo is None or (repo.private and user not in repo.readers):
        raise Refusal(404 if user else 401, "RepoNotFound", "Repository not found")
    return repo


def open_repo_of(hub: Hub, request: Request, repo_id: str) -> Repo:
    """Return the repo if the user may read its files."""
    repo = repo_of(hub, request, repo_id)
    user = user_of(hub, request)
    if repo.gated and user not in repo.readers:
        raise Refusal(403 if user else 401, "GatedRepo", f"Access to model {repo_id} is restricted.")
    return repo


def writable_repo_of(hub: Hub, request: Request, repo_id: str) -> Repo:
    """Return the repo if the user owns it."""
    repo = repo_of(hub, request, repo_id)
    user = user_of(hub, request)
    if user is None:
        raise Refusal(401, "", "Invalid username or password.")
    if user != repo_id.partition("/")[0] and user not in repo.readers:
        raise Refusal(403, "", "You don't have the rights to push to this repo")
    return repo


def commit_of(repo: Repo, revision: str) -> Commit:
    """Return the commit that a revision names."""
    commit = repo.find(revision)
    if commit is None:
        raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    return commit
