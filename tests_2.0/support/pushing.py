"""Helpers for tests of `push`: a folder, a hub to push it to, and the program between them."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from support import starting
from support.conformance import assert_envelope, validator
from support.hub import HubServer, Request
from support.hub.fixtures import PROGRAM, WAIT_SECONDS, Client, Outcome
from support.hub.repos import Blob, Repo
from support.previous_api import is_as_before

from mlxk2.cli.main import main

MODEL = "org/model"
FOLDER = "./my-model"


class Pusher:
    """Pushes `folder` to `org/model` on the local hub, as its owner.

    The program runs beside the folder and names it by a relative path, so its output must contain no absolute path.
    `run` uses this process, which saves the imports; `start` and `spawn` use a separate one.
    """

    def __init__(
        self,
        server: HubServer,
        client: Client,
        beside: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        self.server = server
        self.client = client
        self.beside = beside
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        self.folder = beside / FOLDER
        self.folder.mkdir(parents=True)
        self.token = server.token("org")

    def write(self, files: Mapping[str, bytes]) -> None:
        """Put files into the folder."""
        for name, content in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def add(self, files: Mapping[str, bytes], **settings: Any) -> str:
        """Put files into a private repo on the hub and return the new commit."""
        defaults: dict[str, Any] = {"private": True, "readers": ["org"]}
        return self.server.add(MODEL, files, **defaults | settings)

    def start(self, *words: str, **settings: str) -> subprocess.Popen[str]:
        """Start the program; an empty setting removes a variable."""
        return starting.Popen(
            [*PROGRAM, "push", FOLDER, MODEL, *words],
            cwd=self.beside,
            env={name: value for name, value in self._environment(settings).items() if value},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def spawn(self, *words: str, **settings: str) -> Outcome:
        """Run the program as a separate process."""
        process = self.start(*words, **settings)
        out, err = process.communicate(timeout=WAIT_SECONDS)
        return self._without_secrets(Outcome(process.returncode, out, err))

    def run(self, *words: str, **settings: str) -> Outcome:
        """Run the program in this process."""
        self._capsys.readouterr()
        with self._monkeypatch.context() as patch:
            patch.chdir(self.beside)
            for name, value in self._environment(settings).items():
                patch.setenv(name, value)
            code = main(("push", FOLDER, MODEL, *words))
        return self._without_secrets(Outcome(code, *self._capsys.readouterr()))

    def _environment(self, settings: Mapping[str, str]) -> dict[str, str]:
        return {**self.client.environment, "HF_TOKEN": self.token, **settings}

    def _without_secrets(self, outcome: Outcome) -> Outcome:
        """Return the outcome; fail if it contains the token or an absolute path."""
        for secret in (self.token, str(self.beside)):
            assert secret not in outcome.out + outcome.err
        return outcome

    def data(self, *words: str, **settings: str) -> dict[str, Any]:
        """Push and return the data; fail unless the push succeeds."""
        return push_data(self.run(*words, "--json", **settings))

    def error(self, *words: str, **settings: str) -> dict[str, Any]:
        """Push and return the error; fail unless the push fails."""
        return push_error(self.run(*words, "--json", **settings))

    @property
    def repo(self) -> Repo:
        """Return the repo on the hub."""
        return self.server.hub.repos[MODEL]

    def remote_files(self, branch: str = "main") -> dict[str, bytes]:
        """Return the files of a branch, without the one that the hub creates."""
        commit = self.repo.find(branch)
        assert commit is not None
        return {name: blob.data for name, blob in commit.files.items() if name != ".gitattributes"}

    def local_files(self) -> dict[str, bytes]:
        """Return the files of the folder."""
        paths = (path for path in self.folder.rglob("*") if path.is_file())
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in paths}

    def write_requests(self) -> list[Request]:
        """Return the requests that could change something on the hub."""
        harmless = ("validate-yaml", "preupload")
        found = [request for request in self.server.log.requests if request.method not in ("GET", "HEAD")]
        return [request for request in found if not any(word in request.path for word in harmless)]


class UnnamedBlob(Blob):
    """A file whose hash is missing from the hub's listing and present in its response to an upload."""

    @property
    def oid(self) -> str:
        return ""

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else Blob(self.data).oid


def push_data(outcome: Outcome) -> dict[str, Any]:
    """Return the data of a push; fail unless it succeeded."""
    assert (outcome.code, outcome.err) == (0, ""), outcome
    assert_push_document(outcome.json, "success")
    data: dict[str, Any] = outcome.json["data"]
    return data


def push_error(outcome: Outcome) -> dict[str, Any]:
    """Return the error of a push; fail unless it failed."""
    assert (outcome.code, outcome.err) == (1, ""), outcome
    assert_push_document(outcome.json, "error")
    error: dict[str, Any] = outcome.json["error"]
    return error


def assert_push_document(document: Any, status: str) -> None:
    """Fail unless the document conforms to the schema, the types and the API 0.1.5."""
    assert [error.message for error in validator().iter_errors(document)] == []
    assert_envelope(document, "push", status)
    assert is_as_before(document)


@pytest.fixture
def pusher(
    hub_server: HubServer,
    hub_client: Client,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Pusher:
    """Return a pusher with an empty folder and an empty hub."""
    return Pusher(hub_server, hub_client, tmp_path.resolve() / "work", monkeypatch, capsys)
