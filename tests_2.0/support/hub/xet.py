"""Xet without a network: the content store is a folder, which the real client reads and writes directly."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fastapi import APIRouter, Request
from fastapi.responses import Response
from hf_xet import XetFileInfo, XetSession
from support.hub.access import open_repo_of, writable_repo_of
from support.hub.repos import Blob, Hub

TOKEN_SECONDS = 3600
RECORD_BYTES = 48
END_OF_FILES = b"\xff" * 32
HAS_PROOFS = 1 << 31
HAS_SHA256 = 1 << 30


class Store:
    """A folder of content with an address that begins with `local://`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.url = f"local://{folder}"
        self._folder = folder

    def put(self, data: bytes) -> str:
        """Store a file and return its Xet hash."""
        with XetSession().new_upload_commit(endpoint=self.url) as commit:
            upload = commit.start_upload_bytes(data)
        return str(upload.result().xet_info.hash)

    def find(self, sha256: str) -> Blob | None:
        """Return the file with this SHA-256; None if no client has uploaded it."""
        for shard in self._folder.rglob("shards/*.mdb"):
            for file in _files(shard.read_bytes()):
                if file.sha256 == sha256:
                    return Blob(self._get(XetFileInfo(file.xet_hash, file.size)), is_lfs=True, xet_hash=file.xet_hash)
        return None

    def _get(self, info: XetFileInfo) -> bytes:
        with XetSession().new_download_stream_group(endpoint=self.url) as group:
            return b"".join(group.download_stream(info))


class StoredFile(NamedTuple):
    """The entry of a file in a shard."""

    xet_hash: str
    sha256: str
    size: int


def _files(shard: bytes) -> Iterator[StoredFile]:
    """Yield the files of a shard that have a SHA-256.

    After the shard's header come records of 48 bytes; a record of all ones ends them. A file is a head (hash, flags,
    number of segments), its segments, as many proofs if a flag is set, and its SHA-256.
    """
    offset = RECORD_BYTES
    while (head := shard[offset : offset + RECORD_BYTES])[:32] != END_OF_FILES:
        flags, segments = struct.unpack_from("<II", head, 32)
        sizes = (struct.unpack_from("<I", shard, offset + RECORD_BYTES * (1 + i) + 36)[0] for i in range(segments))
        size = sum(sizes)
        offset += RECORD_BYTES * (1 + segments * (2 if flags & HAS_PROOFS else 1))
        if flags & HAS_SHA256:
            yield StoredFile(_hex(head), _hex(shard[offset:]), size)
            offset += RECORD_BYTES


def _hex(record: bytes) -> str:
    """Return a hash as it is printed: four little-endian numbers in hexadecimal."""
    return "".join(f"{number:016x}" for number in struct.unpack_from("<4Q", record))


def routes(hub: Hub, store: Store) -> APIRouter:
    """Return the routes that give clients the address of the store."""
    router = APIRouter()
    expiration = int(time.time()) + TOKEN_SECONDS
    headers = {
        "x-xet-cas-url": store.url,
        "x-xet-access-token": "xet",
        "x-xet-token-expiration": str(expiration),
    }
    # A download reads the headers, an upload the body.
    body = json.dumps({"casUrl": store.url, "accessToken": "xet", "exp": expiration})

    @router.get("/api/models/{owner}/{name}/xet-read-token/{revision}")
    def read_token(request: Request, owner: str, name: str) -> Response:
        open_repo_of(hub, request, f"{owner}/{name}")
        return Response(body, headers=headers)

    @router.get("/api/models/{owner}/{name}/xet-write-token/{revision}")
    def write_token(request: Request, owner: str, name: str) -> Response:
        writable_repo_of(hub, request, f"{owner}/{name}")
        return Response(body, headers=headers)

    return router
