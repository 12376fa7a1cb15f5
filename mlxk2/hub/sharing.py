"""The store `hub/blobs` in which the library keeps Xet files once for all repos, and remains of its own downloads."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxk2.cache import locks
from mlxk2.cache.audit import has_its_hash
from mlxk2.cache.staging import Delivery, Wanted
from mlxk2.checkpoint.files import BrokenFile
from mlxk2.hub import private
from mlxk2.hub.shared_blobs import SharedBlobs
from mlxk2.names import INCOMPLETE

if TYPE_CHECKING:
    from mlxk2.formatting import Advance

_LOCK_WAIT_SECONDS = 0.01


def has(hub: Path, file: Wanted) -> bool:
    """Whether the store has the bytes of a file, so that they need not be fetched."""
    return file.xet_hash is not None and private.has_shared_blob(
        xet_hash=file.xet_hash, cache_dir=hub, expected_size=file.size
    )


def stage(hub: Path, delivery: Delivery, file: Wanted, advance: Advance) -> bool:
    """Whether a file that the store has could be staged, its bytes verified; otherwise it must be fetched.

    It is a hard link: what the store keeps may go with the other models that need it while this one is still coming.
    """
    assert file.xet_hash is not None
    staged = delivery.staged(file)
    staged.unlink(missing_ok=True)
    try:
        os.link(private.shared_blob_path(hub, file.xet_hash), staged)
        found = delivery.tree.file(file.name, str(staged))
        if found is not None and has_its_hash(advance)(found, file):
            return True
    except (OSError, BrokenFile):
        pass  # whatever the store has, the hub has it too
    staged.unlink(missing_ok=True)
    return False


def share(hub: Path, delivery: Delivery, file: Wanted) -> None:
    """Let the store keep a delivered file, and count the model among those that need it.

    The library moves the file that it publishes, and then lays a link in its place. So it is given a second name of the
    bytes: a kill in between must not leave the model without them.
    """
    if file.xet_hash is None or not private.shared_blobs_enabled() or not private.is_xet_available():
        return
    blob = delivery.blob(file)
    if blob.is_symlink():
        return  # it is shared already; a second name of the link would take the place of the bytes that it leads to
    if not _is_alone(hub, file):
        return  # the hub gives other bytes the same name: those that are there belong to another model
    spare = _spare(blob)
    spare.unlink(missing_ok=True)
    try:
        os.link(blob, spare)
    except OSError:
        return  # a file system without links: the model keeps the file for itself
    entry: dict[str, Any] = {"xet_hash": file.xet_hash, "cache_dir": hub, "expected_size": file.size}
    try:
        # What the store has under this name may be damaged. The delivered file is not, and takes its place.
        if private.publish_blob_to_shared_store(blob_path=str(spare), replace_existing=True, **entry):
            private.try_link_from_shared_store(blob_path=str(blob), **entry)
    finally:
        spare.unlink(missing_ok=True)
        # Only to strike out the second name, which was noted too.
        SharedBlobs(str(hub)).sweep(str(private.shared_blob_path(hub, file.xet_hash)))


def _is_alone(hub: Path, file: Wanted) -> bool:
    """Whether all models that need the store's bytes under a file's Xet hash file them under the same blob as it."""
    assert file.xet_hash is not None
    payload = private.shared_blob_path(hub, file.xet_hash)
    if not os.path.lexists(payload):
        return True
    holders = SharedBlobs(str(hub)).holders(str(payload))
    return holders is not None and {name.removesuffix(INCOMPLETE) for name in holders} <= {file.blob}


def _spare(blob: Path) -> Path:
    """The second name of a blob that is being shared."""
    return blob.with_name(blob.name + INCOMPLETE)


def settle(hub: Path, delivery: Delivery, files: Iterable[Wanted]) -> None:
    """Finish the sharing that a kill interrupted, and remove what else killed downloads left of this model."""
    left = [path.name for path in delivery.orphans()]
    for file in files:
        # The second name itself, or the library's link on its way to that name.
        if any(_spare(delivery.blob(file)).name in name for name in left):
            share(hub, delivery, file)
    _remove_orphans(hub, delivery)


def _remove_orphans(hub: Path, delivery: Delivery) -> None:
    """Remove what killed downloads left among the blobs of this model, unless one of them is still alive."""
    folder = hub / locks.FOLDER / delivery.model.name
    for path in list(delivery.orphans()):
        lock = folder / f"{path.name.lstrip('.').partition('.')[0]}.lock"
        try:
            with private.WeakFileLock(lock, timeout=_LOCK_WAIT_SECONDS):
                path.unlink(missing_ok=True)
        except private.Timeout:
            continue
