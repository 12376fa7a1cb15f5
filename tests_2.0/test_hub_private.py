"""The undocumented parts of huggingface_hub that mlxk2 uses are unchanged."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hf_xet import XetFileInfo, XetSession
from huggingface_hub import HfApi
from huggingface_hub.utils import _shared_blobs

from mlxk2.hub import private

PARAMETERS: list[tuple[Callable[..., Any], set[str]]] = [
    (private.http_get, {"url", "temp_file", "resume_size", "headers", "expected_size"}),
    (private.WeakFileLock, {"lock_file", "timeout"}),
    (private.is_xet_available, set()),
    (_shared_blobs.shared_blobs_enabled, set()),
    (_shared_blobs.shared_blob_path, {"cache_dir", "xet_hash"}),
    (_shared_blobs.has_shared_blob, {"xet_hash", "cache_dir", "expected_size"}),
    (_shared_blobs.try_link_from_shared_store, {"blob_path", "xet_hash", "cache_dir", "expected_size"}),
    (
        _shared_blobs.publish_blob_to_shared_store,
        {"blob_path", "xet_hash", "cache_dir", "expected_size", "replace_existing"},
    ),
    (private.refresh_xet_connection_info, {"file_data", "headers"}),
    (private.xet_connection_info_refresh_url, {"token_type", "repo_id", "repo_type", "revision", "endpoint"}),
    (private.xet_headers_without_auth, {"headers"}),
    (private.XetFileData, {"file_hash", "refresh_route"}),
    (private.get_xet_session, set()),
    (private.http_backoff, {"method", "url", "kwargs"}),
    (private.hf_raise_for_status, {"response"}),
    (private.enable_progress_bars, set()),
    (private.disable_progress_bars, set()),
    (HfApi._build_hf_headers, set()),
    (HfApi._validate_yaml, {"content", "repo_type"}),
    (HfApi.preupload_lfs_files, {"additions", "revision", "free_memory", "gitignore_content"}),
]


@pytest.mark.parametrize(("function", "parameters"), PARAMETERS, ids=lambda value: getattr(value, "__name__", ""))
def test_private_functions_take_the_expected_parameters(function: Callable[..., Any], parameters: set[str]) -> None:
    assert parameters <= set(inspect.signature(function).parameters)


@pytest.mark.parametrize(
    "name",
    [
        "DOWNLOAD_CHUNK_SIZE",
        "HF_HUB_DISABLE_PROGRESS_BARS",
        "HF_HUB_DISABLE_TELEMETRY",
        "HF_HUB_DISABLE_XET",
        "HF_HUB_DOWNLOAD_TIMEOUT",
        "HF_HUB_ETAG_TIMEOUT",
        "HF_TOKEN_PATH",
        "MAX_HTTP_DOWNLOAD_SIZE",
    ],
)
def test_private_constants_exist(name: str) -> None:
    assert hasattr(private.constants, name)


def test_http_get_reads_its_chunk_size_at_call_time() -> None:
    source = inspect.getsource(private.http_get)
    assert "constants.DOWNLOAD_CHUNK_SIZE" in source
    # `Partial` has these methods of a file.
    assert set(re.findall(r"temp_file\.(\w+)\(", source)) == {"write", "tell", "seek", "truncate"}


def test_xet_streams_begin_at_the_given_offset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_XET_CACHE", str(tmp_path / "cache"))
    data = bytes(range(256)) * 1000
    session = XetSession()
    with session.new_upload_commit(endpoint=f"local://{tmp_path}") as commit:
        upload = commit.start_upload_bytes(data)
    xet_hash = upload.result().xet_info.hash
    with session.new_download_stream_group(endpoint=f"local://{tmp_path}") as group:
        got = b"".join(group.download_stream(XetFileInfo(xet_hash, len(data)), start=1234))
    assert got == data[1234:]
