"""The hub's routes for reading: information on a repo, the listing of its files, and their bytes."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from support.hub.access import Refusal, commit_of, open_repo_of, repo_of, user_of
from support.hub.repos import Blob, Commit, Hub, Repo

DATE = "2026-01-01T00:00:00.000Z"


MODEL = "/api/models/{owner}/{name}"


class Reading:
    """The routes of the hub itself; requests for large files are redirected to `cdn_url`."""

    def __init__(self, hub: Hub, cdn_url: str) -> None:
        self._hub = hub
        self._cdn_url = cdn_url
        self.router = router = APIRouter()
        router.get("/api/whoami-v2")(self.whoami)
        router.get(MODEL)(self.info)
        router.get("/api/models/{name}")(self.no_owner)
        router.get(MODEL + "/revision/{revision}")(self.revision_info)
        router.get(MODEL + "/auth-check")(self.auth_check)
        router.get(MODEL + "/refs")(self.refs)
        router.get(MODEL + "/commits/{revision}")(self.commits)
        router.get(MODEL + "/tree/{revision}")(self.tree)
        router.get(MODEL + "/tree/{revision}/{folder:path}")(self.tree)
        router.api_route("/{owner}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])(self.resolve)

    def _repo(self, request: Request, owner: str, name: str) -> Repo:
        return repo_of(self._hub, request, f"{owner}/{name}")

    def whoami(self, request: Request) -> Any:
        user = user_of(self._hub, request)
        if user is None:
            raise Refusal(401, "", "Invalid username or password.")
        return {"type": "user", "name": user, "orgs": [], "auth": {"type": "access_token"}}

    def info(self, request: Request, owner: str, name: str) -> Any:
        return self.revision_info(request, owner, name, "main")

    def no_owner(self, request: Request, name: str) -> Any:
        return _info(repo := repo_of(self._hub, request, name), commit_of(repo, "main"))

    def revision_info(self, request: Request, owner: str, name: str, revision: str) -> Any:
        repo = self._repo(request, owner, name)
        return _info(repo, commit_of(repo, unquote(revision)))

    def auth_check(self, request: Request, owner: str, name: str) -> Any:
        open_repo_of(self._hub, request, f"{owner}/{name}")
        return {}

    def refs(self, request: Request, owner: str, name: str) -> Any:
        branches = self._repo(request, owner, name).branches.items()
        listed = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": oid} for n, oid in branches]
        return {"branches": listed, "converts": [], "tags": []}

    def commits(self, request: Request, owner: str, name: str, revision: str) -> Any:
        repo = self._repo(request, owner, name)
        history = repo.history(commit_of(repo, unquote(revision)))
        return [{"id": c.oid, "title": c.message, "message": "", "date": DATE, "authors": []} for c in history]

    def tree(self, request: Request, owner: str, name: str, revision: str, folder: str = "") -> Any:
        commit = commit_of(self._repo(request, owner, name), unquote(revision))
        listing = self._hub.changed(_tree(commit, unquote(folder)))
        return _page(request, listing, self._hub.page_size)

    def resolve(self, request: Request, owner: str, name: str, revision: str, path: str) -> Response:
        repo = open_repo_of(self._hub, request, f"{owner}/{name}")
        commit = commit_of(repo, unquote(revision))
        blob = commit.files.get(unquote(path))
        if blob is None:
            raise Refusal(404, "EntryNotFound", "Entry not found", {"x-repo-commit": commit.oid})
        return _resolved(request, commit, blob, self._cdn_url, repo.repo_id)


def objects(hub: Hub) -> APIRouter:
    """Return the routes of the other origin, which serves the bytes of large files."""
    router = APIRouter()

    @router.api_route("/objects/{sha256}/{path:path}", methods=["GET", "HEAD"])
    def read(request: Request, sha256: str, path: str) -> Response:  # noqa: ARG001 - it is there to be read in the log
        data = hub.object(sha256)
        return Response(status_code=404) if data is None else ranged(request, data, {"etag": f'"{sha256}"'})

    return router


def ranged(request: Request, data: bytes, headers: dict[str, str]) -> Response:
    """Return the whole file or the range of bytes that a request asks for."""
    wanted = request.headers.get("range", "").removeprefix("bytes=")
    if not wanted:
        return Response(data, headers={**headers, "accept-ranges": "bytes"})
    first, _, last = wanted.partition("-")
    start, end = int(first), min(int(last or len(data) - 1), len(data) - 1)
    if start >= len(data):
        return Response(status_code=416, headers={"content-range": f"bytes */{len(data)}"})
    content_range = {"content-range": f"bytes {start}-{end}/{len(data)}"}
    return Response(memoryview(data)[start : end + 1], status_code=206, headers={**headers, **content_range})


def _resolved(request: Request, commit: Commit, blob: Blob, cdn_url: str, repo_id: str) -> Response:
    headers = {"x-repo-commit": commit.oid}
    if blob.xet_hash:
        route = f"{request.base_url}api/models/{repo_id}/xet-read-token/{commit.oid}"
        headers |= {"x-xet-hash": blob.xet_hash, "x-xet-refresh-route": route}
    if not blob.is_lfs:
        return ranged(request, blob.data, {**headers, "etag": f'"{blob.oid}"'})
    name = request.path_params["path"]
    linked = {"x-linked-etag": f'"{blob.sha256}"', "x-linked-size": str(len(blob.data))}
    location = f"{cdn_url}/objects/{blob.sha256}/{name}"
    return Response(status_code=302, headers={**headers, **linked, "location": location})


def _info(repo: Repo, commit: Commit) -> dict[str, Any]:
    files = [
        {"rfilename": name, "size": blob.size, "blobId": blob.oid} | _lfs(blob, "sha256")
        for name, blob in sorted(commit.files.items())
    ]
    return {
        "_id": "0",
        "id": repo.repo_id,
        "modelId": repo.repo_id,
        "sha": commit.oid,
        "private": repo.private,
        "gated": "manual" if repo.gated else False,
        "disabled": False,
        "lastModified": DATE,
        "createdAt": DATE,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "siblings": files,
    }


def _tree(commit: Commit, folder: str) -> list[dict[str, Any]]:
    prefix = folder.rstrip("/") + "/" if folder else ""
    names = [name for name in sorted(commit.files) if name.startswith(prefix)]
    parents = {name.rpartition("/")[0] for name in names} - {""}
    folders = [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(parents)]
    return folders + [_entry(name, commit.files[name]) for name in names]


def _entry(name: str, blob: Blob) -> dict[str, Any]:
    xet = {"xetHash": blob.xet_hash} if blob.xet_hash else {}
    return {"type": "file", "path": name, "size": blob.size, "oid": blob.oid} | _lfs(blob, "oid") | xet


def _lfs(blob: Blob, key: str) -> dict[str, Any]:
    return {"lfs": {key: blob.sha256, "size": blob.size, "pointerSize": 130}} if blob.is_lfs else {}


def _page(request: Request, entries: list[dict[str, Any]], size: int) -> Response:
    start = int(request.query_params.get("cursor", 0))
    following = start + size
    headers = {}
    if following < len(entries):
        headers["link"] = f'<{request.url.include_query_params(cursor=following)}>; rel="next"'
    return JSONResponse(entries[start:following], headers=headers)
