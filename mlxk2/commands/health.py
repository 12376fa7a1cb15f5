"""`health`: whether models are complete and undamaged."""

from __future__ import annotations

import os
from argparse import Namespace
from typing import TYPE_CHECKING

from mlxk2.cache import integrity, naming
from mlxk2.cache.contents import Contents
from mlxk2.cache.describe import describe_contents
from mlxk2.cache.hashes import examine, hashed_files
from mlxk2.cache.store import Cache, Snapshot, hub_folder
from mlxk2.errors import ModelNotFoundError

if TYPE_CHECKING:
    from mlxk2.progress import Advance
    from mlxk2.spec import HealthData, HealthEntry


def run(args: Namespace) -> HealthData:
    """The verdict on every model of the cache, or on the one that is named; none when nothing has that name."""
    cache = Cache(hub_folder(os.environ))
    contents = [Contents(snapshot) for snapshot in _snapshots(cache, args.pattern)]
    entries = [_entry(content, args) for content in contents]
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


def _entry(contents: Contents, args: Namespace) -> HealthEntry:
    model = describe_contents(contents)
    if model["health"] == "healthy":
        for warning in integrity.warnings(contents):
            args.streams.warn(f"{model['name']}: {warning}.")
        return {"name": model["name"], "status": "healthy", "reason": integrity.HEALTHY}
    return {"name": model["name"], "status": "unhealthy", "reason": model["reason"] or ""}


def _deepen(args: Namespace, contents: list[Contents], entries: list[HealthEntry]) -> list[HealthEntry]:
    """The verdicts after the files of all models were hashed."""
    hashed = [file for content in contents for file in hashed_files(content)]
    unknown = sum(not file.problem for content in contents for file in content.files) - len(hashed)
    if unknown and not args.json:
        files = "1 file has" if unknown == 1 else f"{unknown} files have"
        args.streams.stderr.write(f"Note: {files} no hash to compare with; the content was not checked.\n")
    with args.progress("Hashing", sum(file.size for file in hashed)) as advance:
        return [_hashed(content, entry, advance) for content, entry in zip(contents, entries, strict=True)]


def _hashed(contents: Contents, entry: HealthEntry, advance: Advance) -> HealthEntry:
    """The verdict after a model's files were hashed: the first problem, and every file that is corrupt besides."""
    findings = examine(contents, advance)
    problems = [entry["reason"]] if entry["status"] == "unhealthy" else []
    problems += findings.unreadable
    if findings.corrupt:
        problems.append(f"{'c' if problems else 'C'}orrupt content: {', '.join(findings.corrupt)}")
    if not problems:
        return entry
    return {**entry, "status": "unhealthy", "reason": "; ".join(dict.fromkeys(problems))}
