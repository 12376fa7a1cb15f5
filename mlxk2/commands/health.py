"""`health`: check whether models are complete and undamaged."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from mlxk2 import names
from mlxk2.cache.store import Cache, describe_missing_cache, find_cache_dir
from mlxk2.checkpoint import health
from mlxk2.checkpoint.checksums import examine, hashed_files
from mlxk2.checkpoint.describe import MAX_ATTEMPTS, find_and_describe
from mlxk2.checkpoint.snapshot import Snapshot
from mlxk2.errors import ModelNotFoundError

if TYPE_CHECKING:
    from mlxk2.commands.context import Context
    from mlxk2.formatting import Advance
    from mlxk2.spec import HealthData, HealthEntry

Find = Callable[[], Snapshot]


class Options(NamedTuple):
    """The model to check, or None for all models; with `deep`, hash every file.

    With `exit_code`, the program's exit code is 1 if a model is unhealthy or missing.
    """

    pattern: str | None
    deep: bool
    exit_code: bool


class Verdict(NamedTuple):
    """The problem of a model's files, or None if they are healthy; `find` finds the model again."""

    find: Find
    snapshot: Snapshot
    problem: str | None


def run(options: Options, context: Context) -> HealthData:
    """Return the verdicts on all models of the cache, or on the named one; return none if no model has that name."""
    cache, pattern = Cache(find_cache_dir(context.environment)), options.pattern
    finders: list[Find] = []
    if pattern is None:
        finders = [model.snapshot for model in cache.scan()]
    elif not isinstance(ref := names.parse(pattern), names.Demo):  # The demo model is not in the cache.
        if isinstance(ref, names.Folder):
            cache.resolve(ref)  # A missing folder is an error; a missing model only gives an empty result.
        finders = [partial(cache.resolve, ref)]
    verdicts = [verdict for find in finders if (verdict := _verdict(find, context))]
    if missing := describe_missing_cache(context.environment):
        context.streams.warn(missing)
    if options.deep:
        hashed = [file for verdict in verdicts for file in hashed_files(verdict.snapshot)]
        unknown = sum(not file.problem for verdict in verdicts for file in verdict.snapshot.files) - len(hashed)
        if unknown and not context.is_json:
            files = "1 file has" if unknown == 1 else f"{unknown} files have"
            context.streams.stderr.write(f"Note: {files} no hash to compare with; the content was not checked.\n")
        with context.progress("Hashing", sum(file.size for file in hashed)) as advance:
            verdicts = [found for verdict in verdicts if (found := _hash(verdict, context, advance))]
    healthy = [_entry(verdict) for verdict in verdicts if verdict.problem is None]
    unhealthy = [_entry(verdict) for verdict in verdicts if verdict.problem is not None]
    return {
        "healthy": healthy,
        "unhealthy": unhealthy,
        "summary": {"total": len(verdicts), "healthy_count": len(healthy), "unhealthy_count": len(unhealthy)},
    }


def exit_code(options: Options, data: HealthData) -> int:
    """With `exit_code`, return 1 if a model is unhealthy, or if no model has the given name; otherwise return 0."""
    is_missing = options.pattern is not None and not data["summary"]["total"]
    return int(options.exit_code and (is_missing or bool(data["unhealthy"])))


def _entry(verdict: Verdict) -> HealthEntry:
    return {
        "name": verdict.snapshot.name,
        "status": "healthy" if verdict.problem is None else "unhealthy",
        "reason": verdict.problem or health.HEALTHY,
    }


def _verdict(find: Find, context: Context) -> Verdict | None:
    """Return the verdict on a model, or None if the model does not exist or was removed."""
    try:
        snapshot, info = find_and_describe(find)
    except ModelNotFoundError:
        return None
    if info.is_healthy:
        for warning in health.warnings(snapshot):
            context.streams.warn(f"{info.name}: {warning}.")
    # Keep only the list of files; otherwise the configs of all models would stay in memory.
    return Verdict(find, snapshot.reset(snapshot.files), info.problem)


def _hash(verdict: Verdict, context: Context, advance: Advance) -> Verdict | None:
    """Hash a model's files and return the verdict with all problems, or None if the model was removed.

    Hashing takes time. If the model changed in the meantime, judge and hash it again.
    """
    hashed = verdict
    for _ in range(MAX_ATTEMPTS + 1):
        findings = examine(verdict.snapshot, advance)
        problems = [*filter(None, [verdict.problem]), *findings.unreadable]
        if findings.corrupt:
            problems.append(f"{'c' if problems else 'C'}orrupt content: {', '.join(findings.corrupt)}")
        hashed = verdict._replace(problem="; ".join(dict.fromkeys(problems)) or None)
        if hashed.problem is None:
            break
        with suppress(ModelNotFoundError):
            if verdict.find().is_unchanged_since(verdict.snapshot):
                break
        again = _verdict(verdict.find, context)
        if again is None:
            return None
        verdict = again
    return hashed
