"""`rm`: remove a model, or one revision of it, from the cache."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal, NamedTuple

from mlxk2 import names
from mlxk2.cache import removal
from mlxk2.cache.removal import Recovery, Removal
from mlxk2.cache.store import Cache, find_cache_dir
from mlxk2.cache.trash import Freed, SharedStore
from mlxk2.commands.context import Failed, hub_imports
from mlxk2.errors import (
    ConfirmationRequiredError,
    HashNotFoundError,
    LocksPresentError,
    ModelNotFoundError,
    OperationError,
)
from mlxk2.formatting import human_size, printable
from mlxk2.names import Repo, short_hash
from mlxk2.spec import RmData

if TYPE_CHECKING:
    from mlxk2.commands.context import Context

STRICT_VARIABLE = "MLXK2_STRICT_TEST_DELETE"
SENTINEL = "TEST_SENTINEL"
# A file occupies whole blocks of the disk, so smaller differences mean nothing.
MIN_DIFFERENCE_BYTES = 1_000_000

Action = Literal["deleted", "planned", "requires_confirmation"]


class Options(NamedTuple):
    """The model to remove; with `yes`, do not ask; with `force`, remove it even while a download of it is running.

    With `dry_run`, only plan.
    """

    model: str
    yes: bool
    force: bool
    dry_run: bool


def run(options: Options, context: Context) -> RmData:
    """Finish killed removals, then remove the named model or revision; with `dry_run`, only report the plan."""
    repo = names.require_repo(
        options.model,
        if_demo="`demo` comes with mlxk2 and is not in the cache; it can't be removed.",
        if_folder="`rm` removes models from the cache, by their names.",
    )
    cache = Cache(find_cache_dir(context.environment))
    store: SharedStore | None = None
    if removal.has_shared_store(cache.path):
        with hub_imports():
            from mlxk2.hub.shared_blobs import SharedBlobs  # noqa: PLC0415 - most caches have no shared store
        store = SharedBlobs(cache.path)
    earlier = _settle(cache.path, store, options, context)
    try:
        plan = _plan(cache, repo, store)
    except (ModelNotFoundError, HashNotFoundError):
        for rest in earlier.removals:
            is_revision = not (repo.revision and rest.revision) or rest.revision.startswith(repo.revision)
            if is_revision and repo.name.lower() in rest.name.lower():
                what = f"the interrupted removal of {rest.name}"
                what += f"@{short_hash(rest.revision)}" if rest.revision else ""
                if options.dry_run:
                    return _data(rest.name, "planned", f"Would finish {what}.", earlier.freed)
                message = f"Finished {what}; {human_size(earlier.freed.bytes)} freed."
                return _data(rest.name, "deleted", message, earlier.freed)
        raise
    if options.dry_run:
        message = f"Would delete {_describe(plan)}; {human_size(plan.freed_bytes)} would be freed.{_compare(plan)}"
        data = _data(plan.name, "planned", message, Freed(plan.freed_bytes, 0))
        if plan.locks.living:
            data["message"] += " A download of it is running, so this needs --force."
            data |= {"locks_detected": True, "lock_files": list(plan.locks.living)}
        return data
    return _execute(plan, repo, store, earlier, options, context)


def _settle(cache_dir: str, store: SharedStore | None, options: Options, context: Context) -> Recovery:
    """Finish the killed removals; with `dry_run`, only find them."""
    if not os.path.isdir(cache_dir):
        return Recovery([], Freed(0, 0))
    if options.dry_run:
        return removal.plan_recovery(cache_dir)
    marks = (os.path.join(folder, SENTINEL) for folder in (cache_dir, os.path.dirname(cache_dir)))
    if context.environment.get(STRICT_VARIABLE) == "1" and not any(map(os.path.exists, marks)):
        raise OperationError(f"{STRICT_VARIABLE}=1 forbids deleting from a cache without {SENTINEL}.")
    return removal.recover(cache_dir, store)


def _plan(cache: Cache, repo: Repo, store: SharedStore | None) -> Removal:
    """Find the model of a name and plan its removal; prefer an unfinished download to a model with a longer name."""
    candidates = names.candidates(repo.name)
    unfinished = next(filter(None, (removal.find_unfinished(cache.path, exact) for exact in candidates)), None)
    if unfinished and not any(model.name in candidates for model in cache.find_matches(repo.name)):
        model = unfinished
    else:
        model = cache.find(repo.name)
    removal.check_readable(model)
    revision = None if repo.revision is None else os.path.basename(model.snapshot_at(repo.revision).path)
    return removal.plan(model, revision, store)


def _execute(
    plan: Removal, repo: Repo, store: SharedStore | None, earlier: Recovery, options: Options, context: Context
) -> RmData:
    """Ask the user to confirm if necessary, then execute the plan."""
    try:
        removal.check_locks(plan, options.force)
        if not (options.yes or options.force):
            _confirm(plan, repo, context)
        removed = removal.execute(plan, store, force=options.force)
    except LocksPresentError as error:
        described = {"model": plan.name, "message": error.message, "lock_files_cleaned": 0, "freed_bytes": 0}
        raise Failed(error, {**described, "locks_detected": True, "lock_files": list(error.lock_files)}) from error
    freed = removed.plus(earlier.freed)
    message = f"Deleted {_describe(plan)}; {human_size(freed.bytes)} freed.{_compare(plan)}"
    if earlier.problem:
        message += f" Files of an earlier removal could not be deleted ({earlier.problem})."
    return _data(plan.name, "deleted", message, freed)


def _confirm(plan: Removal, repo: Repo, context: Context) -> None:
    """Ask the user on a terminal to confirm the plan; raise Failed unless the user agrees.

    Without a terminal, a full name needs no confirmation, and a part of a name is refused.
    """
    streams = context.streams
    is_whole = plan.name in names.candidates(repo.name)
    question = f"{'' if is_whole else f'{repo.name!r} is only a part of a name. '}Delete {_describe(plan)}?"
    if not context.is_json and streams.stdin.isatty() and streams.stderr.isatty():
        streams.stderr.write(f"{printable(question)} [y/N] ")
        streams.stderr.flush()
        answer = streams.stdin.readline()
        if answer.strip().lower() in ("y", "yes"):
            return
        if not answer.endswith("\n"):
            streams.stderr.write("\n")  # Ctrl-D leaves the cursor behind the question
        refusal = "Nothing was deleted."
    elif is_whole:
        return
    else:
        refusal = f"{question} Write the full name, or confirm with --yes."
    data = _data(plan.name, "requires_confirmation", refusal, Freed(0, 0))
    raise Failed(ConfirmationRequiredError(refusal), data)


def _describe(plan: Removal) -> str:
    """Describe the model and the revisions that a plan removes."""
    hashes = ", ".join(map(short_hash, plan.revisions))
    if plan.is_link:
        return f"the link {plan.name} (its target stays)"
    if plan.revision is not None:
        return f"revision {hashes} of {plan.name} (its other revisions stay)"
    return f"{plan.name} ({f'revision {hashes}' if hashes else 'an unfinished download'})"


def _compare(plan: Removal) -> str:
    """Return why a removal frees more or less than the size of the model; an empty text where they agree."""
    size, freed, kept = plan.listed_bytes, plan.freed_bytes, plan.kept_bytes
    if plan.is_link or not size or abs(freed - size) < MIN_DIFFERENCE_BYTES or human_size(freed) == human_size(size):
        return ""
    shown = f"{'The revision has' if plan.revision else '`mlxk2 list` shows'} {human_size(size)}"
    if kept >= MIN_DIFFERENCE_BYTES:
        others = "revisions or models" if plan.revision else "models"
        return f" {shown}, of which {human_size(kept)} stay, because other {others} need them."
    if freed < size:
        return f" {shown}, but its files take less room on this disk."
    if len(plan.revisions) > 1:
        return f" {shown}, the size of one revision."
    return f" {shown}; earlier and unfinished downloads left the rest."


def _data(name: str, action: Action, message: str, freed: Freed) -> RmData:
    return {
        "model": name,
        "action": action,
        "message": message,
        "lock_files_cleaned": freed.lock_files,
        "freed_bytes": freed.bytes,
    }
