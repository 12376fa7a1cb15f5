"""The environment of a soak: a home folder with its own cache, on a small disk if possible, and a hub."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import models
from support.hub import HubServer
from support.serving import cache_dir_of

# All processes of a soak have this variable, so that processes that are left can be found.
MARK = "MLXK2_SOAK"
_DISK = "48m"
_FREE_BYTES = 1 << 20  # Bytes that stay free on a full disk.


@dataclass(frozen=True)
class World:
    """The folders and the hub of a soak; `is_small` is true if the cache's disk can be filled."""

    folder: Path
    hub: HubServer
    mark: str
    is_small: bool
    tales: tuple[dict[str, bytes], ...]

    @property
    def home(self) -> Path:
        """Return the user's home."""
        return self.folder / "home"

    @property
    def cache(self) -> Path:
        """Return the folder of the cache."""
        return self.home / "hf" / "hub"

    @property
    def temporary(self) -> Path:
        """Return the folder of temporary files."""
        return self.folder / "tmp"

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment of all programs, including the server."""
        kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
        return kept | {
            "LANG": "C.UTF-8",
            "HOME": str(self.home),
            "TMPDIR": str(self.temporary),
            "HF_HOME": str(self.home / "hf"),
            "HF_ENDPOINT": self.hub.url,
            "XDG_CACHE_HOME": str(self.home / "caches"),
            "NO_PROXY": "*",
            "MLXK2_STRICT_TEST_DELETE": "1",
            MARK: self.mark,
        }

    @contextmanager
    def full_disk(self) -> Iterator[None]:
        """Keep the cache's disk full inside the block."""
        filler = self.home / "hf" / "filler"
        free = shutil.disk_usage(filler.parent).free
        try:
            filler.write_bytes(bytes(max(0, free - _FREE_BYTES)))
            yield
        finally:
            filler.unlink(missing_ok=True)

    def processes(self) -> list[int]:
        """Return the other living processes of the soak; none on systems without /proc."""
        mark = f"{MARK}={self.mark}".encode()
        return [int(folder.name) for folder in Path("/proc").glob("[0-9]*") if mark in _environment_of(folder)]


@contextmanager
def world() -> Iterator[World]:
    """Yield a new world with its models on the hub; remove everything afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="mlxk2-soak-"))
    disk = folder / "home" / "hf"
    disk.mkdir(parents=True)
    is_small = _mount_small_disk(disk)
    try:
        (folder / "tmp").mkdir()
        cache_dir_of(folder / "home")
        tales = tuple(models.tale(folder / "models", edition) for edition in range(len(models.EDITIONS)))
        with HubServer(folder / "server") as hub:
            hub.add(models.WALK, models.walk(folder / "models"))
            hub.add(models.HOSTILE, models.hostile(folder / "models"))
            hub.add(models.TALE, tales[0])
            hub.add(models.BULK, models.bulk())
            yield World(folder, hub, secrets.token_hex(8), is_small, tales)
    finally:
        if is_small:
            subprocess.run(["umount", "-l", disk], check=False)
        shutil.rmtree(folder, ignore_errors=True)


def _mount_small_disk(place: Path) -> bool:
    """Mount a small disk in memory, and return whether that was possible; `umount` needs /proc."""
    if shutil.which("mount") is None or not os.path.exists("/proc/self/mountinfo"):
        return False
    words = ["mount", "-t", "tmpfs", "-o", f"size={_DISK}", "tmpfs", str(place)]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def _environment_of(folder: Path) -> bytes:
    # A zombie has no environment, nor has a process that just ended.
    with suppress(OSError):
        return (folder / "environ").read_bytes()
    return b""
