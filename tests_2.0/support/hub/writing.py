"""The hub's routes for writing: repos, branches, uploads of large files, commits."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from support.hub.access import Refusal, commit_of, user_of, writable_repo_of
from support.hub.repos import Blob, Hub, Repo, is_large

GIT_ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
LFS_TYPE = "application/vnd.git-lfs+json"


MODEL = "/api/models/{owner}/{name}"
LFS = "/{owner}/{name}.git/info/lfs"


class Writing:
    """The routes for writing; large files are uploaded to `cdn_url`."""

    def __init__(self, hub: Hub, hub_url: str, cdn_url: str) -> None:
        self._hub = hub
        self._hub_url = hub_url
        self._cdn_url = cdn_url
        self.router = router = APIRouter()
        router.post("/api/repos/create")(self.create)
        router.post("/api/validate-yaml")(self.validate)
        router.post(MODEL + "/branch/{branch}")(self.branch)
        router.post(MODEL + "/preupload/{revision}")(self.preupload)
        router.post(MODEL + "/commit/{revision}")(self.commit)
        router.post(LFS + "/objects/batch")(self.batch)
        router.post(LFS + "/verify")(self.verify)

    async def create(self, request: Request) -> Response:
        asked = await request.json()
        user = user_of(self._hub, request)
        owner = asked.get("organization") or user
        if user is None or owner != user:
            raise Refusal(401 if user is None else 403, "", "You don't have the rights to create a model here")
        repo_id = f"{owner}/{asked['name']}"
        url = {"url": f"{self._hub_url}/{repo_id}"}
        if repo_id in self._hub.repos:
            return JSONResponse({**url, "error": "You already created this model repo"}, 409)
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        repo = self._hub.repos[repo_id] = Repo(repo_id, private=private, readers={user})
        repo.commit({".gitattributes": Blob(GIT_ATTRIBUTES)}, "main", "initial commit")
        return JSONResponse(url)

    async def validate(self, request: Request) -> Response:
        asked = await request.json()
        is_bad = "!invalid" in asked["content"]
        body = {"errors": [{"message": "Invalid metadata in README.md."}] if is_bad else [], "warnings": []}
        return JSONResponse(body, 400 if is_bad else 200)

    async def branch(self, request: Request, owner: str, name: str, branch: str) -> Response:
        repo = self._repo(request, owner, name)
        asked = json.loads(await request.body() or b"{}")
        branch = unquote(branch)
        if branch in repo.branches:
            return JSONResponse({"error": f"Reference already exists: {branch}"}, 409)
        repo.branches[branch] = commit_of(repo, asked.get("startingPoint", "main")).oid
        return JSONResponse({})

    async def preupload(self, request: Request, owner: str, name: str, revision: str) -> Response:
        present = commit_of(self._repo(request, owner, name), unquote(revision)).files
        asked = await request.json()
        self._hub.ignore_rules.append(asked.get("gitIgnore"))
        return JSONResponse({"files": [_mode(file, present.get(file["path"])) for file in asked["files"]]})

    async def commit(self, request: Request, owner: str, name: str, revision: str) -> Response:
        repo = self._repo(request, owner, name)
        lines = [json.loads(line) for line in (await request.body()).splitlines() if line.strip()]
        header = lines[0]["value"]
        revision = unquote(revision)
        parent = commit_of(repo, revision)
        if header.get("parentCommit") not in (None, parent.oid):
            raise Refusal(412, "", "A commit has happened since. Please refresh and try again.")
        files = _changed(self._hub, dict(parent.files), lines[1:])
        made = repo.commit(files, revision, header["summary"])
        url = f"{self._hub_url}/{repo.repo_id}/commit/{made.oid}"
        return JSONResponse({"success": True, "commitOid": made.oid, "commitUrl": url})

    async def batch(self, request: Request, owner: str, name: str) -> Response:
        repo = self._repo(request, owner, name)
        asked = await request.json()
        found = [self._upload(entry, repo.repo_id) for entry in asked["objects"]]
        return JSONResponse({"transfer": "basic", "objects": found}, media_type=LFS_TYPE)

    async def verify(self, request: Request, owner: str, name: str) -> Response:
        self._repo(request, owner, name)
        asked = await request.json()
        data = self._hub.objects.get(asked["oid"])
        return Response(status_code=200 if data is not None and len(data) == asked["size"] else 404)

    def _repo(self, request: Request, owner: str, name: str) -> Repo:
        return writable_repo_of(self._hub, request, f"{owner}/{name}")

    def _upload(self, entry: dict[str, Any], repo_id: str) -> dict[str, Any]:
        known = {"oid": entry["oid"], "size": entry["size"]}
        if self._hub.object(entry["oid"]) is not None:
            return known
        upload = {"href": f"{self._cdn_url}/upload/{entry['oid']}", "header": {}}
        verify = {"href": f"{self._hub_url}/{repo_id}.git/info/lfs/verify", "header": {}}
        return known | {"actions": {"upload": upload, "verify": verify}}


def uploads(hub: Hub) -> APIRouter:
    """Return the route of the other origin that accepts large files and refuses those with a wrong hash."""
    router = APIRouter()

    @router.put("/upload/{sha256}")
    async def upload(request: Request, sha256: str) -> Response:
        blob = Blob(await request.body(), is_lfs=True)
        if blob.sha256 != sha256:
            return Response(status_code=400)
        hub.objects[sha256] = blob.data
        return Response(status_code=200)

    return router


def _mode(file: dict[str, Any], present: Blob | None) -> dict[str, Any]:
    large = is_large(file["path"], b"") or file["size"] > 10_000_000
    known = {"oid": present.etag} if present is not None else {}
    return {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False} | known


def _changed(hub: Hub, files: dict[str, Blob], lines: Iterable[dict[str, Any]]) -> dict[str, Blob]:
    for line in lines:
        value = line["value"]
        path = value["path"]
        match line["key"]:
            case "file":
                files[path] = Blob(base64.b64decode(value["content"]))
            case "lfsFile":
                files[path] = _large(hub, value["oid"])
            case "deletedFile":
                files.pop(path, None)
            case "deletedFolder":
                prefix = path.rstrip("/") + "/"
                files = {name: blob for name, blob in files.items() if not name.startswith(prefix)}
            case unknown:
                raise Refusal(400, "", f"Unknown operation {unknown}")
    return files


def _large(hub: Hub, sha256: str) -> Blob:
    if blob := hub.in_store(sha256):
        return blob
    data = hub.object(sha256)
    if data is None:
        raise Refusal(400, "", f"LFS object {sha256} was not uploaded")
    return Blob(data, is_lfs=True)
