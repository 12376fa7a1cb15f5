"""`health`: check whether models are complete and undamaged."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from mlxk2 import names
from mlxk2.cache.store import Cache, absence, find_cache_dir
from mlxk2.checkpoint import health
from mlxk2.checkpoint.checksums import examine, hashed_files
from mlxk2.checkpoint.describe import MAX_LOOKS, look
from mlxk2.checkpoint.snapshot import Contents, Snapshot
from mlxk2.errors import ModelNotFoundError

if TYPE_CHECKING:
    from mlxk2.commands.context import Context
    from mlxk2.formatting import Advance
    from mlxk2.spec import HealthData, HealthEntry

Find = Callable[[], Snapshot]


class Options(NamedTuple):
    """Which model to check, or all of them; with `deep` every file is hashed."""

    pattern: str | None
    deep: bool


class Verdict(NamedTuple):
    """The verdict on a model before its files are hashed; `find` finds the model again."""

    find: Find
    contents: Contents
    entry: HealthEntry


def run(options: Options, context: Context) -> HealthData:
    """Return the verdict on every model of the cache, or on the one that is named; none when nothing has that name."""
    cache, pattern = Cache(find_cache_dir(context.environment)), options.pattern
    finders: list[Find] = []
    if pattern is None:
        finders = [model.snapshot for model in cache.scan()]
    elif not isinstance(ref := names.parse(pattern), names.Demo):  # the demo is no model of the cache
        if isinstance(ref, names.Folder):
            cache.resolve(ref)  # a folder that is not there is an error; a name that is not there is no finding
        finders = [partial(cache.resolve, ref)]
    verdicts = [verdict for find in finders if (verdict := _verdict(find, context))]
    if missing := absence(cache, context.environment):
        context.streams.warn(missing)
    entries = [verdict.entry for verdict in verdicts]
    if options.deep:
        hashed = [file for verdict in verdicts for file in hashed_files(verdict.contents)]
        unknown = sum(not file.problem for verdict in verdicts for file in verdict.contents.files) - len(hashed)
        if unknown and not context.is_json:
            files = "1 file has" if unknown == 1 else f"{unknown} files have"
            context.streams.stderr.write(f"Note: {files} no hash to compare with; the content was not checked.\n")
        with context.progress("Hashing", sum(file.size for file in hashed)) as advance:
            entries = [entry for verdict in verdicts if (entry := _hash(verdict, context, advance))]
    healthy = [entry for entry in entries if entry["status"] == "healthy"]
    unhealthy = [entry for entry in entries if entry["status"] == "unhealthy"]
    return {
        "healthy": healthy,
        "unhealthy": unhealthy,
        "summary": {"total": len(entries), "healthy_count": len(healthy), "unhealthy_count": len(unhealthy)},
    }


def _verdict(find: Find, context: Context) -> Verdict | None:
    """Return the verdict on a model; None when there is no such model, or it was removed."""
    try:
        contents, model = look(find)
    except ModelNotFoundError:
        return None
    entry: HealthEntry = {"name": model["name"], "status": model["health"], "reason": model["reason"] or ""}
    if model["health"] == "healthy":
        for warning in health.warnings(contents):
            context.streams.warn(f"{model['name']}: {warning}.")
        entry["reason"] = health.HEALTHY
    # A new object of the same files: what was read of them goes, or the configs of all models would stay in memory.
    return Verdict(find, Contents(contents.snapshot, contents.files), entry)


def _hash(verdict: Verdict, context: Context, advance: Advance) -> HealthEntry | None:
    """Hash a model's files and return the verdict with every problem; None when the model was removed since.

    Hashing takes time: look again at a model that changed since, and hash it again.
    """
    entry = verdict.entry
    for _ in range(MAX_LOOKS + 1):
        findings = examine(verdict.contents, advance)
        problems = [verdict.entry["reason"]] if verdict.entry["status"] == "unhealthy" else []
        problems += findings.unreadable
        if findings.corrupt:
            problems.append(f"{'c' if problems else 'C'}orrupt content: {', '.join(findings.corrupt)}")
        if not problems:
            return verdict.entry
        entry = {**verdict.entry, "status": "unhealthy", "reason": "; ".join(dict.fromkeys(problems))}
        with suppress(ModelNotFoundError):
            if Contents(verdict.find()).is_unchanged_since(verdict.contents):
                break
        again = _verdict(verdict.find, context)
        if again is None:
            return None
        verdict = again
    return entry
