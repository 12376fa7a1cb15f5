"""A cache that changes while it is read: pulls, shared blobs and removals at the worst moment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Protocol

import pytest
from support.layouts import COMMIT, OTHER_COMMIT, CacheDir, chat_model, sharded_model

NAME = "org/model"

# Runs an action once, right before the process opens a file or lists a folder of this name for the n-th time.
BETWEEN = """
import os, shutil, sys
event, name, count, action, *words = sys.argv[1:]
left, came = int(count), False
def hook(seen, args):
    global left, came
    if seen == event and args and isinstance(args[0], str) and args[0].endswith(name):
        left -= 1
        if left == 0:
            came = True
            exec(action, globals())
sys.addaudithook(hook)
from mlxk2.cli.main import main
code = main(words)
assert came, "the moment never came"
sys.exit(code)
"""


class Between(Protocol):
    """Run the program, and an action right before it opens or lists a name for the `count`-th time."""

    def __call__(
        self, event: str, name: str, action: str, *words: str, count: int = 1
    ) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture
def between(isolated_cache: Path) -> Between:  # noqa: ARG001 - isolates
    """Return a function that runs the program with an action at one moment."""

    def run(event: str, name: str, action: str, *words: str, count: int = 1) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", BETWEEN, event, name, str(count), action, *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ)
        assert "Traceback" not in done.stderr, done
        return done

    return run


def share(blob: Path, cache_dir: Path) -> str:
    """Return code that replaces a blob by a link into the shared store, as the library does."""
    payload = cache_dir / "blobs" / "aa" / blob.name
    payload.parent.mkdir(parents=True, exist_ok=True)
    target = os.path.relpath(payload, blob.parent)
    return f"os.rename({str(blob)!r}, {str(payload)!r}); os.symlink({target!r}, {str(blob)!r})"


def verdicts(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the health of the models in the output of a command."""
    data = json.loads(done.stdout)["data"]
    entries = data.get("models") or [data["model"]] if "healthy" not in data else data["healthy"] + data["unhealthy"]
    return [entry.get("health") or entry["status"] for entry in entries]


FILES = ["config.json", "model.safetensors", "tokenizer_config.json", "README.md"]
COMMANDS = [("list",), ("health",), ("show", NAME), ("health", "--deep")]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("name", FILES)
def test_a_blob_replaced_by_a_link_stays_healthy(
    cache_dir: CacheDir, between: Between, words: tuple[str, ...], name: str
) -> None:
    blob = (cache_dir.add(NAME, chat_model()) / name).resolve()
    done = between("open", blob.name, share(blob, cache_dir.path), *words, "--json")
    assert done.returncode == 0
    assert verdicts(done) == ["healthy"], done.stdout
    assert blob.is_symlink()


@pytest.mark.parametrize("count", [1, 2])
def test_a_blob_replaced_by_a_link_while_hashing_stays_healthy(
    cache_dir: CacheDir, between: Between, count: int
) -> None:
    blob = (cache_dir.add(NAME, sharded_model()) / "model-00002-of-00003.safetensors").resolve()
    done = between("open", blob.name, share(blob, cache_dir.path), "health", "--deep", "--json", count=count)
    assert verdicts(done) == ["healthy"], done.stdout


@pytest.mark.parametrize("command", ["list", "health", "show"])
def test_a_replaced_file_is_read_in_its_new_state(cache_dir: CacheDir, between: Between, command: str) -> None:
    """A pull repairs a file by renaming another one over it, which may differ in size."""
    blob = (cache_dir.add(NAME, chat_model()) / "config.json").resolve()
    new = cache_dir.path.parent / "new"
    new.write_bytes(blob.read_bytes() + b" " * 4096)
    action = f"os.replace({str(new)!r}, {str(blob)!r})"
    done = between("open", blob.name, action, command, *([NAME] if command == "show" else []), "--json")
    assert verdicts(done) == ["healthy"], done.stdout


def test_a_file_that_keeps_changing_is_reported(cache_dir: CacheDir, between: Between) -> None:
    blob = (cache_dir.add(NAME, chat_model()) / "config.json").resolve()
    replace = (
        f"left, blob = 99, {str(blob)!r}; new = f'{{blob}}.{{len(os.listdir(os.path.dirname(blob)))}}';"
        "shutil.copyfile(blob, new); os.rename(blob, new + '.old'); os.rename(new, blob); left = 1"
    )
    done = between("open", blob.name, replace, "health", "--json")
    assert "config.json changes while it is read; try again" in done.stdout


MOMENTS = {
    "its snapshots are listed": ("os.scandir", "--model/snapshots"),
    "its files are listed": ("os.scandir", f"--model/snapshots/{COMMIT}"),
    "its ref is read": ("open", "--model/refs/main"),
    "its config is read": ("open", "config.json"),
    "its weights are read": ("open", "model.safetensors"),
}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("words", [("list",), ("health",), ("health", "--deep")], ids=" ".join)
def test_a_model_removed_while_it_is_read_is_not_listed(
    cache_dir: CacheDir, between: Between, words: tuple[str, ...], moment: str
) -> None:
    """The other models are listed."""
    snapshot = cache_dir.add(NAME, chat_model())
    cache_dir.add("org/other", chat_model(model_type="qwen3"))
    event, name = MOMENTS[moment]
    done = between(
        event, (snapshot / name).resolve().name if "/" not in name else name, removal(cache_dir), *words, "--json"
    )
    assert done.returncode == 0
    assert NAME not in done.stdout and "org/other" in done.stdout
    assert "No such file" not in done.stdout


def removal(cache_dir: CacheDir) -> str:
    """Return code that removes the model as `rm` does: rename it away, then delete it step by step."""
    trash = str(cache_dir.path / ".trash")
    return f"os.rename({str(cache_dir.folder(NAME))!r}, {trash!r}); shutil.rmtree({trash!r})"


@pytest.mark.parametrize("command", ["show", "run"])
def test_a_model_removed_during_show_or_run_is_not_found(cache_dir: CacheDir, between: Between, command: str) -> None:
    blob = (cache_dir.add(NAME, chat_model()) / "config.json").resolve()
    done = between(
        "open", blob.name, removal(cache_dir), command, NAME, *(["hi"] if command == "run" else []), "--json"
    )
    assert '"model_not_found"' in done.stdout


def test_a_model_removed_while_it_is_hashed_is_not_listed(cache_dir: CacheDir, between: Between) -> None:
    blob = (cache_dir.add(NAME, chat_model()) / "model.safetensors").resolve()
    done = between("open", blob.name, removal(cache_dir), "health", "--deep", "--json", count=2)
    assert '"total": 0' in done.stdout


@pytest.mark.parametrize("words", [("list",), ("health",), ("health", "--deep")], ids=" ".join)
def test_a_model_updated_while_it_is_read_is_judged_in_its_new_state(
    cache_dir: CacheDir, between: Between, words: tuple[str, ...]
) -> None:
    cache_dir.add(NAME, chat_model())
    cache_dir.add(NAME, chat_model(hidden_size=128), OTHER_COMMIT, ref=None)
    model = cache_dir.folder(NAME)
    (model / "refs" / "main").write_text(COMMIT)
    blob = (model / "snapshots" / COMMIT / "config.json").resolve()
    update = (
        f"open({str(model / 'refs' / 'main')!r}, 'w').write({OTHER_COMMIT!r});"
        f"shutil.rmtree({str(model / 'snapshots' / COMMIT)!r}); os.unlink({str(blob)!r})"
    )
    done = between("open", blob.name, update, *words, "--json")
    assert verdicts(done) == ["healthy"], done.stdout


def test_a_blob_replaced_by_a_link_is_cloned(
    cache_dir: CacheDir, between: Between, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLXK2_ENABLE_ALPHA_FEATURES", "1")
    notes = os.urandom(5000)
    blob = (cache_dir.add(NAME, chat_model() | {"notes.bin": notes}) / "notes.bin").resolve()
    done = between("open", blob.name, share(blob, cache_dir.path), "clone", NAME, str(tmp_path / "mine"), "--json")
    assert done.returncode == 0, done
    assert (tmp_path / "mine" / "notes.bin").read_bytes() == notes


def test_hashing_opens_each_file_once(cache_dir: CacheDir, between: Between) -> None:
    """The file is larger than the buffer, and only hashing opens it."""
    blob = (cache_dir.add(NAME, chat_model() | {"notes.bin": os.urandom(5 << 20)}) / "notes.bin").resolve()
    opens = cache_dir.path.parent / "opens"
    note = f"left = 1; os.write(os.open({str(opens)!r}, os.O_CREAT | os.O_APPEND | os.O_WRONLY), b'.')"
    between("open", blob.name, note, "health", "--deep", "--json")
    assert opens.read_text() == "."
