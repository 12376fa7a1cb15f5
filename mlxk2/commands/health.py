"""`health`: whether models are complete and undamaged."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from mlxk2 import names
from mlxk2.cache.store import Cache, absence, find_cache_dir
from mlxk2.checkpoint import health
from mlxk2.checkpoint.checksums import examine, hashed_files
from mlxk2.checkpoint.describe import MAX_LOOKS, look
from mlxk2.checkpoint.snapshot import Contents, Snapshot
from mlxk2.errors import ModelNotFoundError

if TYPE_CHECKING:
    from mlxk2.progress import Advance
    from mlxk2.spec import HealthData, HealthEntry

Find = Callable[[], Snapshot]


class Verdict(NamedTuple):
    """The verdict on a model before its files are hashed; `find` finds the model again."""

    find: Find
    contents: Contents
    entry: HealthEntry


def run(args: Namespace) -> HealthData:
    """The verdict on every model of the cache, or on the one that is named; none when nothing has that name."""
    cache = Cache(find_cache_dir(os.environ))
    verdicts = [verdict for find in _finders(cache, args.pattern) if (verdict := _verdict(find, args))]
    if missing := absence(cache, os.environ):
        args.streams.warn(missing)
    entries = list(_deepened(args, verdicts)) if args.deep else [verdict.entry for verdict in verdicts]
    healthy = [entry for entry in entries if entry["status"] == "healthy"]
    unhealthy = [entry for entry in entries if entry["status"] == "unhealthy"]
    return {
        "healthy": healthy,
        "unhealthy": unhealthy,
        "summary": {"total": len(entries), "healthy_count": len(healthy), "unhealthy_count": len(unhealthy)},
    }


def _finders(cache: Cache, pattern: str | None) -> list[Find]:
    if pattern is None:
        return [model.snapshot for model in cache.scan()]
    ref = names.parse(pattern)
    if isinstance(ref, names.Demo):
        return []  # it comes with the package and is no model of the cache
    if isinstance(ref, names.Folder):
        cache.resolve(ref)  # a folder that is not there is an error; a name that is not there is no finding
    return [lambda: cache.resolve(ref)]


def _verdict(find: Find, args: Namespace) -> Verdict | None:
    """The verdict on a model; None when there is no such model, or it was removed."""
    try:
        contents, model = look(find)
    except ModelNotFoundError:
        return None
    entry: HealthEntry = {"name": model["name"], "status": model["health"], "reason": model["reason"] or ""}
    if model["health"] == "healthy":
        for warning in health.warnings(contents):
            args.streams.warn(f"{model['name']}: {warning}.")
        entry["reason"] = health.HEALTHY
    # A new object of the same files: what was read of them goes, or the configs of all models would stay in memory.
    return Verdict(find, Contents(contents.snapshot, contents.files), entry)


def _deepened(args: Namespace, verdicts: list[Verdict]) -> Iterator[HealthEntry]:
    """The verdicts after the files of all models were hashed."""
    hashed = [file for verdict in verdicts for file in hashed_files(verdict.contents)]
    unknown = sum(not file.problem for verdict in verdicts for file in verdict.contents.files) - len(hashed)
    if unknown and not args.json:
        files = "1 file has" if unknown == 1 else f"{unknown} files have"
        args.streams.stderr.write(f"Note: {files} no hash to compare with; the content was not checked.\n")
    with args.progress("Hashing", sum(file.size for file in hashed)) as advance:
        for verdict in verdicts:
            if entry := _hashed(verdict, args, advance):
                yield entry


def _hashed(verdict: Verdict, args: Namespace, advance: Advance) -> HealthEntry | None:
    """The verdict after a model's files were hashed; None when the model was removed since.

    Hashing takes time: a model that changed since it was looked at is looked at and hashed anew.
    """
    entry = _hashed_once(verdict, advance)
    for _ in range(MAX_LOOKS):
        if entry["status"] == "healthy" or _is_unchanged(verdict):
            return entry
        again = _verdict(verdict.find, args)
        if again is None:
            return None
        verdict = again
        entry = _hashed_once(verdict, advance)
    return entry


def _is_unchanged(verdict: Verdict) -> bool:
    try:
        return Contents(verdict.find()).is_unchanged_since(verdict.contents)
    except ModelNotFoundError:
        return False


def _hashed_once(verdict: Verdict, advance: Advance) -> HealthEntry:
    """The first problem, and every file that is corrupt or can't be read as well."""
    entry = verdict.entry
    findings = examine(verdict.contents, advance)
    problems = [entry["reason"]] if entry["status"] == "unhealthy" else []
    problems += findings.unreadable
    if findings.corrupt:
        problems.append(f"{'c' if problems else 'C'}orrupt content: {', '.join(findings.corrupt)}")
    if not problems:
        return entry
    return {**entry, "status": "unhealthy", "reason": "; ".join(dict.fromkeys(problems))}
