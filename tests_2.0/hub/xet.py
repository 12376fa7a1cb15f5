"""Xet without a network: a folder serves as the content store, which the real client reads and writes by itself."""

from __future__ import annotations

import time
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import Response
from hf_xet import XetSession
from hub.contents import Contents
from hub.doors import open_repo_of, writable_repo_of

TOKEN_SECONDS = 3600


class Store:
    """A folder of content, addressed by `local://`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.url = f"local://{folder}"

    def put(self, data: bytes) -> str:
        """Store a file and return its Xet hash."""
        with XetSession().new_upload_commit(endpoint=self.url) as commit:
            upload = commit.start_upload_bytes(data)
        return str(upload.result().xet_info.hash)


def routes(contents: Contents, store: Store) -> APIRouter:
    """The routes that hand out the way to the store."""
    router = APIRouter()
    headers = {
        "x-xet-cas-url": store.url,
        "x-xet-access-token": "xet",
        "x-xet-token-expiration": str(int(time.time()) + TOKEN_SECONDS),
    }

    @router.get("/api/models/{owner}/{name}/xet-read-token/{revision:path}")
    def read_token(request: Request, owner: str, name: str) -> Response:
        open_repo_of(contents, request, f"{owner}/{name}")
        return Response("{}", headers=headers)

    @router.get("/api/models/{owner}/{name}/xet-write-token/{revision:path}")
    def write_token(request: Request, owner: str, name: str) -> Response:
        writable_repo_of(contents, request, f"{owner}/{name}")
        return Response("{}", headers=headers)

    return router
