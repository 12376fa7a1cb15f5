"""`rm`: a model, or one revision of it, out of the cache."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Mapping
from typing import Literal

from mlxk2 import names
from mlxk2.cache import removal
from mlxk2.cache.removal import Recovery, Removal
from mlxk2.cache.store import Cache, CachedModel, find_cache_dir
from mlxk2.cache.trash import Freed, Interrupted, SharedStore
from mlxk2.errors import (
    ConfirmationRequiredError,
    HashNotFoundError,
    LocksPresentError,
    ModelNotFoundError,
    OperationError,
    ValidationError,
)
from mlxk2.fence import import_hub
from mlxk2.formatting import human_size, printable
from mlxk2.names import Demo, Folder, Repo, short_hash
from mlxk2.spec import RmData

STRICT_VARIABLE = "MLXK2_STRICT_TEST_DELETE"
SENTINEL = "TEST_SENTINEL"

Action = Literal["deleted", "planned", "requires_confirmation"]


def run(args: Namespace) -> RmData:
    """Delete what the argument names, after what a killed removal left; with --dry-run only say what would go."""
    wanted = _parse(args.model)
    cache = Cache(find_cache_dir(os.environ))
    store = _shared_store(cache.path)
    earlier = _settle(cache.path, store, args.dry_run)
    try:
        plan = _plan(cache, wanted, store)
    except (ModelNotFoundError, HashNotFoundError):
        meant = next((rest for rest in earlier.removals if _is_meant(rest, wanted)), None)
        if meant is None:
            raise
        return _finished(meant, earlier.freed, args.dry_run)
    if args.dry_run:
        return _planned(plan)
    return _deleted(plan, _execute(args, plan, wanted, store), earlier)


def _parse(argument: str) -> Repo:
    """Return the repo that an argument names; raise ValidationError for the demo and for folders."""
    match names.parse(argument):
        case Repo() as repo:
            return repo
        case Demo():
            raise ValidationError("`demo` comes with mlxk2 and is no model of the cache; it can't be removed.")
        case Folder(path):
            raise ValidationError(f"{path!r} is a folder; `rm` removes models of the cache, by their names.")


def _shared_store(cache_dir: str) -> SharedStore | None:
    """The store of shared blobs; without one, the client library is not even imported."""
    if not removal.has_shared_store(cache_dir):
        return None
    store: SharedStore = import_hub("mlxk2.hub.shared_blobs").SharedBlobs(cache_dir)
    return store


def _settle(cache_dir: str, store: SharedStore | None, dry_run: bool) -> Recovery:
    """What killed removals left: finished, or with a dry run only looked at."""
    if not os.path.isdir(cache_dir):
        return Recovery([], Freed(0, 0))
    if dry_run:
        return removal.plan_recovery(cache_dir)
    _check_test_cache(cache_dir, os.environ)
    return removal.recover(cache_dir, store)


def _check_test_cache(cache_dir: str, environment: Mapping[str, str]) -> None:
    """OperationError when only test caches may be deleted from, and this is none."""
    places = (os.path.join(folder, SENTINEL) for folder in (cache_dir, os.path.dirname(cache_dir)))
    if environment.get(STRICT_VARIABLE) == "1" and not any(map(os.path.exists, places)):
        raise OperationError(f"{STRICT_VARIABLE}=1 forbids to delete from a cache without {SENTINEL}.")


def _plan(cache: Cache, wanted: Repo, store: SharedStore | None) -> Removal:
    model = _find(cache, wanted.name)
    removal.check_readable(model)
    snapshot = None if wanted.revision is None else model.snapshot_at(wanted.revision)
    return removal.plan(model, snapshot and os.path.basename(snapshot.path), store)


def _find(cache: Cache, name: str) -> CachedModel:
    """The model that a name means; that of an unfinished download comes before what only contains the name."""
    found = (removal.find_unfinished(cache.path, exact) for exact in names.candidates(name))
    unfinished = next(filter(None, found), None)
    if unfinished and not any(model.name in names.candidates(name) for model in cache.matching(name)):
        return unfinished
    return cache.find(name)


def _is_meant(rest: Interrupted, wanted: Repo) -> bool:
    is_revision = not (wanted.revision and rest.revision) or rest.revision.startswith(wanted.revision)
    return is_revision and wanted.name.lower() in rest.name.lower()


def _execute(args: Namespace, plan: Removal, wanted: Repo, store: SharedStore | None) -> Freed:
    try:
        removal.check_locks(plan, args.force)
        if not args.force and plan.name not in names.candidates(wanted.name):
            _confirm(args, plan, wanted.name)
        return removal.execute(plan, store, force=args.force)
    except LocksPresentError as error:
        described = {"model": plan.name, "message": error.message, "lock_files_cleaned": 0, "freed_bytes": 0}
        error.data = {**described, "locks_detected": True, "lock_files": error.lock_files}
        raise


def _confirm(args: Namespace, plan: Removal, name: str) -> None:
    """Ask on a terminal whether the model is meant; ConfirmationRequiredError without a clear yes."""
    question = f"{name!r} is only part of a name. Delete {_described(plan)}"
    if args.json or not (args.streams.stdin.isatty() and args.streams.stderr.isatty()):
        message = f"{question}? Write the whole name, or confirm with --force."
    else:
        args.streams.stderr.write(f"{printable(question)}? [y/N] ")
        args.streams.stderr.flush()
        if args.streams.stdin.readline().strip().lower() in ("y", "yes"):
            return
        message = "Nothing was deleted."
    error = ConfirmationRequiredError(message)
    error.data = {**_data(plan.name, "requires_confirmation", message, Freed(0, 0))}
    raise error


def _planned(plan: Removal) -> RmData:
    message = f"Would delete {_described(plan)}; {human_size(plan.freed_bytes)} would be freed."
    data = _data(plan.name, "planned", message, Freed(plan.freed_bytes, 0))
    if plan.locks.living:
        data["message"] += " A download of it is at work: that needs --force."
        data |= {"locks_detected": True, "lock_files": list(plan.locks.living)}
    return data


def _deleted(plan: Removal, freed: Freed, earlier: Recovery) -> RmData:
    freed = freed.plus(earlier.freed)
    message = f"Deleted {_described(plan)}; {human_size(freed.bytes)} freed."
    if earlier.problem:
        message += f" What an earlier removal left could not be deleted ({earlier.problem})."
    return _data(plan.name, "deleted", message, freed)


def _finished(rest: Interrupted, freed: Freed, dry_run: bool) -> RmData:
    what = f"the interrupted removal of {rest.name}" + (f"@{short_hash(rest.revision)}" if rest.revision else "")
    if dry_run:
        return _data(rest.name, "planned", f"Would finish {what}.", freed)
    return _data(rest.name, "deleted", f"Finished {what}; {human_size(freed.bytes)} freed.", freed)


def _described(plan: Removal) -> str:
    """What goes, for people: the model and its revisions."""
    hashes = ", ".join(map(short_hash, plan.revisions))
    if plan.is_link:
        return f"the link {plan.name} (what it leads to stays)"
    if plan.revision is not None:
        return f"revision {hashes} of {plan.name} (its other revisions stay)"
    return f"{plan.name} ({f'revision {hashes}' if hashes else 'an unfinished download'})"


def _data(name: str, action: Action, message: str, freed: Freed) -> RmData:
    return {
        "model": name,
        "action": action,
        "message": message,
        "lock_files_cleaned": freed.lock_files,
        "freed_bytes": freed.bytes,
    }
