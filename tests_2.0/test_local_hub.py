"""The local hub has the protocol of the real one: the real client reads from it and writes to it."""

from __future__ import annotations

import io

import httpx
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_hf_file_metadata
from huggingface_hub.errors import (
    BadRequestError,
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils._http import default_client_factory, set_client_factory
from support.hub import Fault, HubServer

# The library itself causes this warning.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

MODEL = "owner/model"
FILES = {"config.json": b"{}", "sub/notes.txt": b"notes", "model.safetensors": b"weights" * 1000}


@pytest.fixture(autouse=True)
def _unguarded() -> None:
    """Reset the library's HTTP client, which an earlier test may have set up for another hub."""
    set_client_factory(default_client_factory)


@pytest.fixture
def api(hub_server: HubServer) -> HfApi:
    """Return the real client with the token of the owner of the repos."""
    return HfApi(endpoint=hub_server.url, token=hub_server.token("owner"))


def lfs_upload(name: str, data: bytes) -> CommitOperationAdd:
    """Return an upload over Git LFS, which the client uses instead of Xet for data that it can't reopen."""
    return CommitOperationAdd(name, io.BytesIO(data))


def read(server: HubServer, name: str, revision: str = "main") -> bytes:
    """Return the bytes of a file, with redirects followed."""
    return httpx.get(f"{server.url}/{MODEL}/resolve/{revision}/{name}", follow_redirects=True).content


def test_the_client_reads_repos_files_and_commits(hub_server: HubServer, api: HfApi) -> None:
    hub_server.hub.page_size = 2
    commit = hub_server.add(MODEL, FILES)
    hub_server.add(MODEL, {"more.txt": b"more"}, branch="dev/x")
    assert api.model_info(MODEL).sha == commit
    assert set(api.list_repo_files(MODEL)) == set(FILES)
    assert set(api.list_repo_files(MODEL, revision="dev/x")) == {*FILES, "more.txt"}
    assert {branch.name for branch in api.list_repo_refs(MODEL).branches} == {"main", "dev/x"}
    assert [entry.commit_id for entry in api.list_repo_commits(MODEL)] == [commit]
    assert api.whoami()["name"] == "owner"
    assert all(read(hub_server, name) == data for name, data in FILES.items())


def test_missing_private_and_gated_repos_are_refused(hub_server: HubServer) -> None:
    hub_server.add("owner/private", FILES, private=True, readers=["owner"])
    hub_server.add("owner/gated", FILES, gated=True)
    hub_server.add(MODEL, FILES)
    stranger = HfApi(endpoint=hub_server.url, token=hub_server.token("stranger"))
    for repo in ("owner/private", "owner/none"):
        with pytest.raises(RepositoryNotFoundError):
            stranger.model_info(repo)
    with pytest.raises(GatedRepoError):
        stranger.auth_check("owner/gated")
    with pytest.raises(RevisionNotFoundError):
        stranger.model_info(MODEL, revision="nowhere")
    with pytest.raises(RemoteEntryNotFoundError):
        get_hf_file_metadata(f"{hub_server.url}/{MODEL}/resolve/main/none")
    with pytest.raises(HfHubHTTPError):
        stranger.create_branch(MODEL, branch="mine")


def test_the_client_creates_repos_branches_and_commits(hub_server: HubServer, api: HfApi) -> None:
    assert api.create_repo(MODEL, private=True).repo_id == MODEL
    api.create_repo(MODEL, exist_ok=True)
    api.create_branch(MODEL, branch="dev")
    hub_server.hub.repos[MODEL].private = False
    operations = [lfs_upload(name, data) for name, data in FILES.items()]
    info = api.create_commit(MODEL, operations, commit_message="first", revision="dev")
    assert info.oid == hub_server.hub.repos[MODEL].branches["dev"]
    assert all(read(hub_server, name, "dev") == data for name, data in FILES.items())
    assert set(api.list_repo_files(MODEL)) == {".gitattributes"}
    api.create_commit(MODEL, [CommitOperationDelete("sub/", is_folder=True)], commit_message="less", revision="dev")
    assert "sub/notes.txt" not in api.list_repo_files(MODEL, revision="dev")
    with pytest.raises(HfHubHTTPError):
        api.create_branch(MODEL, branch="dev")
    with pytest.raises(HfHubHTTPError):
        api.create_commit(MODEL, [lfs_upload("late.txt", b"late")], commit_message="late", parent_commit="0" * 40)


def test_large_files_are_uploaded_once_and_checked(hub_server: HubServer, api: HfApi) -> None:
    api.create_repo(MODEL)
    for _ in range(2):
        api.create_commit(MODEL, [lfs_upload("model.safetensors", b"weights")], commit_message="weights")
    assert hub_server.log.count("PUT", origin="cdn") == 1
    assert hub_server.log.count("POST", "/verify") == 1
    assert len(hub_server.hub.repos[MODEL].commits) == 2  # the first one and the repo's own
    wrong = httpx.put(f"{hub_server.cdn_url}/upload/{'0' * 64}", content=b"other")
    assert wrong.status_code == 400


def test_bad_cards_are_refused(hub_server: HubServer, api: HfApi) -> None:
    api.create_repo(MODEL)
    with pytest.raises((BadRequestError, ValueError)):
        api.create_commit(MODEL, [lfs_upload("README.md", b"---\n!invalid\n---\n")], commit_message="card")
    assert hub_server.log.count("POST", "/commit/") == 0


def test_ranges_of_a_file_are_served(hub_server: HubServer) -> None:
    hub_server.add(MODEL, FILES)
    url = f"{hub_server.url}/{MODEL}/resolve/main/model.safetensors"
    answer = httpx.get(url, headers={"range": "bytes=6990-"}, follow_redirects=True)
    assert (answer.status_code, answer.content) == (206, b"htsweights")
    assert answer.headers["content-range"] == "bytes 6990-6999/7000"
    assert httpx.get(url, headers={"range": "bytes=7000-"}, follow_redirects=True).status_code == 416
    assert hub_server.log.find("GET", origin="cdn")[0].start == 6990


def test_each_planned_fault_affects_the_response(hub_server: HubServer) -> None:
    hub_server.add(MODEL, FILES)
    for fault in (
        Fault("config", status=503),
        Fault("config", flip=True),
        Fault("config", extra=3),
        Fault("config", extra=-1),
    ):
        hub_server.faults.add(fault)
    assert [httpx.get(f"{hub_server.url}/{MODEL}/resolve/main/config.json").content for _ in range(5)] == [
        b"",
        b"{|",
        b"{}xxx",
        b"{",
        b"{}",
    ]
    hub_server.faults.add(Fault("config", cut_after=1))
    with pytest.raises(httpx.RemoteProtocolError):
        read(hub_server, "config.json")
    hub_server.faults.add(Fault("config", cut_after=1, dies=True))
    with pytest.raises(httpx.RemoteProtocolError):
        read(hub_server, "config.json")
    hub_server.stop()
    with pytest.raises(httpx.ConnectError):
        read(hub_server, "config.json")
    hub_server.start()
    assert read(hub_server, "config.json") == b"{}"
