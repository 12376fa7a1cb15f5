"""`health`: whether models are complete and undamaged."""

from __future__ import annotations

import os
from argparse import Namespace
from typing import TYPE_CHECKING

from mlxk2.cache import naming
from mlxk2.cache.contents import Contents
from mlxk2.cache.describe import describe_contents
from mlxk2.cache.files import BrokenFile
from mlxk2.cache.hashes import corrupt_files, hashed_files
from mlxk2.cache.integrity import HEALTHY
from mlxk2.cache.store import Cache, Snapshot, hub_folder
from mlxk2.errors import ModelNotFoundError

if TYPE_CHECKING:
    from mlxk2.progress import Advance
    from mlxk2.spec import HealthData, HealthEntry


def run(args: Namespace) -> HealthData:
    """The verdict on every model of the cache, or on the one that is named; none when nothing has that name."""
    cache = Cache(hub_folder(os.environ))
    contents = [Contents(snapshot) for snapshot in _snapshots(cache, args.pattern)]
    entries = [_entry(content) for content in contents]
    if args.deep:
        entries = _deepen(args, contents, entries)
    healthy = [entry for entry in entries if entry["status"] == "healthy"]
    unhealthy = [entry for entry in entries if entry["status"] == "unhealthy"]
    return {
        "healthy": healthy,
        "unhealthy": unhealthy,
        "summary": {"total": len(entries), "healthy_count": len(healthy), "unhealthy_count": len(unhealthy)},
    }


def _snapshots(cache: Cache, pattern: str | None) -> list[Snapshot]:
    if pattern is None:
        return [model.snapshot() for model in cache.scan()]
    if pattern == naming.DEMO:
        return []  # it comes with the package and is no model of the cache
    try:
        return [cache.resolve(pattern)]
    except ModelNotFoundError:
        if naming.is_path(pattern):
            raise
        return []


def _entry(contents: Contents) -> HealthEntry:
    model = describe_contents(contents)
    if model["health"] == "healthy":
        return {"name": model["name"], "status": "healthy", "reason": HEALTHY}
    return {"name": model["name"], "status": "unhealthy", "reason": model["reason"] or ""}


def _deepen(args: Namespace, contents: list[Contents], entries: list[HealthEntry]) -> list[HealthEntry]:
    """The verdicts after the files of all models that look healthy were hashed."""
    pairs = list(zip(contents, entries, strict=True))
    intact = [content for content, entry in pairs if _is_healthy(entry)]
    hashed = [file for content in intact for file in hashed_files(content)]
    unknown = sum(len(content.files) for content in intact) - len(hashed)
    if unknown and not args.json:
        files = "1 file has" if unknown == 1 else f"{unknown} files have"
        args.streams.stderr.write(f"Note: {files} no hash to compare with; the content was not checked.\n")
    with args.progress("Hashing", sum(file.size for file in hashed)) as advance:
        return [_hashed(content, entry, advance) if _is_healthy(entry) else entry for content, entry in pairs]


def _hashed(contents: Contents, entry: HealthEntry, advance: Advance) -> HealthEntry:
    try:
        corrupt = list(corrupt_files(contents, advance))
    except BrokenFile as error:
        return {**entry, "status": "unhealthy", "reason": str(error)}
    if not corrupt:
        return entry
    return {**entry, "status": "unhealthy", "reason": f"Corrupt content: {', '.join(corrupt)}"}


def _is_healthy(entry: HealthEntry) -> bool:
    return entry["status"] == "healthy"
