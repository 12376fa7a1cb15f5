"""The threads of a download end with it, also after a panic."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mlxk2.cache.staging import RemoteFile, Staging
from mlxk2.hub.client import connect
from mlxk2.hub.repos import Revision, Source
from mlxk2.hub.transfer import fetch_files


class Panic(BaseException):
    """The error of a library in another language; it is no Exception."""


@pytest.mark.timeout(20)
def test_a_panic_in_a_download_thread_ends_the_download(tmp_path: Path) -> None:
    staging = Staging.of(tmp_path, "org/model")
    (staging.folder / "blobs").mkdir(parents=True)
    file = RemoteFile("model.safetensors", "a" * 64, 4)
    staging.partial(file).write_bytes(b"half")

    def advance(_: int) -> None:
        raise Panic

    with pytest.raises(Panic):
        fetch_files(Source(connect(os.environ), Revision("org/model", "0" * 40, None)), [file], staging, advance)
