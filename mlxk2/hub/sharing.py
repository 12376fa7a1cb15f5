"""The store `hub/blobs` in which the library keeps Xet files once for all repos, and remains of its own downloads."""

from __future__ import annotations

import os
from pathlib import Path

from mlxk2.cache import locks
from mlxk2.cache.delivery import Delivery, Wanted
from mlxk2.cache.naming import INCOMPLETE
from mlxk2.hub import library

_LOCK_WAIT_SECONDS = 0.01


def has(hub: Path, file: Wanted) -> bool:
    """Whether the store has the bytes of a file, so that they need not be fetched."""
    return file.xet_hash is not None and library.has_shared_blob(
        xet_hash=file.xet_hash, cache_dir=hub, expected_size=file.size
    )


def stage(hub: Path, delivery: Delivery, file: Wanted) -> None:
    """Stage a link to the store in place of a file's bytes; it leads there once it is in the model's folder."""
    assert file.xet_hash is not None
    store = library.shared_blob_path(hub, file.xet_hash)
    staged = delivery.staged(file)
    staged.unlink(missing_ok=True)
    staged.symlink_to(os.path.relpath(store, hub / delivery.model.name / "blobs"))


def share(hub: Path, delivery: Delivery, file: Wanted, *, replace: bool) -> None:
    """Let the store keep a delivered file, and count the model among those that need it; `replace` what it had."""
    if file.xet_hash is None or not library.shared_blobs_enabled() or not library.is_xet_available():
        return
    if delivery.blob(file).is_symlink():
        library.try_link_from_shared_store(
            blob_path=str(delivery.blob(file)), xet_hash=file.xet_hash, cache_dir=hub, expected_size=file.size
        )
    elif library.are_symlinks_supported(hub):
        library.publish_blob_to_shared_store(
            blob_path=str(delivery.blob(file)),
            xet_hash=file.xet_hash,
            cache_dir=hub,
            expected_size=file.size,
            replace_existing=replace,
        )


def remove_orphans(hub: Path, delivery: Delivery) -> None:
    """Remove what killed downloads of the library left of this model, unless one of them is still alive."""
    folder = hub / locks.FOLDER / delivery.model.name
    for path in (delivery.model / "blobs").glob(f"*{INCOMPLETE}"):
        lock = folder / f"{path.name.partition('.')[0]}.lock"
        try:
            with library.WeakFileLock(lock, timeout=_LOCK_WAIT_SECONDS):
                path.unlink(missing_ok=True)
        except library.Timeout:
            continue
