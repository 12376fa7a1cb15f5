"""The store `blobs` of a cache, in which the client library keeps the payloads of Xet files once for all repos.

`rm` uses this module, too: it needs no more of the library than the store, and must not wait for the rest.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub.utils import _shared_blobs as library

from mlxk2.cache import locks, space
from mlxk2.cache.audit import has_its_hash
from mlxk2.cache.staging import PullPlan, RemoteFile, Staging
from mlxk2.checkpoint.files import BrokenFile
from mlxk2.names import INCOMPLETE

if TYPE_CHECKING:
    from mlxk2.formatting import Advance

_LOCK_WAIT_SECONDS = 0.01


class SharedBlobs:
    """The shared blobs of a cache, given by its real path."""

    def __init__(self, cache_dir: str) -> None:
        self._cache_dir = Path(cache_dir)

    def released_with(self, blobs: Iterable[str]) -> list[str]:
        """Return the payloads that no repo needs once these links in the repos' `blobs/` are gone."""
        links = set(map(Path, blobs))
        payloads = {library.shared_blob_target(link, self._cache_dir) for link in links} - {None}
        return sorted(
            str(payload)
            for payload in payloads
            if payload
            and library.expected_shared_blob_freed_size(payload, blob_paths_to_delete=links, cache_dir=self._cache_dir)
            > 0
        )

    def files_of(self, payload: str) -> list[str]:
        """Return the payload and the list of its references, which is removed with it."""
        return [payload, str(library.shared_blob_manifest_path(self._cache_dir, Path(payload).name))]

    def unreferenced(self) -> list[str]:
        """Return the payloads without references; of some only the list is left."""
        payloads = set(library.unreferenced_shared_blobs(self._cache_dir))
        lists = (self._cache_dir / "blobs").glob("[0-9a-f][0-9a-f]/*.refs")
        # macOS and others put files among the lists that name no payload.
        payloads |= {path.with_suffix("") for path in lists if _is_payload(path.stem) and not path.parent.is_symlink()}
        return sorted(str(payload) for payload in payloads if self._is_unneeded(payload))

    def sweep(self, payload: str) -> None:
        """Remove a payload without references, and what a killed sweep left of it.

        A payload whose references can't be read stays. Raise OSError if the disk is too full for the library's lock:
        the library itself would report nothing, and leave the payload.
        """
        path = Path(payload)
        library.sweep_shared_blob(path, cache_dir=self._cache_dir)
        if not self._is_unneeded(path) and not _unfinished_lists(path):
            return
        try:
            with library._shared_blob_lock(path):
                _remove_unfinished_lists(path)
                # A process that brings a payload back holds the lock, and writes its reference first.
                if self._is_unneeded(path) and not os.path.lexists(path):
                    os.unlink(self.files_of(payload)[1])
        except OSError as error:
            # Like the library's own sweep, leave what can't be removed.
            if error.errno in space.FULL:
                raise

    def tidy(self) -> None:
        """Remove the half-written lists of killed processes, each under its payload's lock."""
        for unfinished in sorted((self._cache_dir / "blobs").glob("[0-9a-f][0-9a-f]/*.refs.*.tmp")):
            payload = unfinished.with_name(unfinished.name.partition(".")[0])
            if not payload.parent.is_symlink() and _is_payload(payload.name):
                with suppress(OSError), library._shared_blob_lock(payload):
                    _remove_unfinished_lists(payload)

    def has(self, file: RemoteFile) -> bool:
        """Return whether the store has the bytes of a file, so that they need not be fetched."""
        return file.xet_hash is not None and library.has_shared_blob(
            xet_hash=file.xet_hash, cache_dir=self._cache_dir, expected_size=file.size
        )

    def stage(self, staging: Staging, file: RemoteFile, advance: Advance) -> bool:
        """Stage a file that the store has, and verify its bytes; return False when it must be fetched instead.

        A hard link keeps the bytes while the store may lose them together with the other models that need them.
        """
        assert file.xet_hash is not None
        staged = staging.staged(file)
        staged.unlink(missing_ok=True)
        try:
            os.link(library.shared_blob_path(self._cache_dir, file.xet_hash), staged)
            linked = staging.tree.file(file.name, str(staged))
            if linked is not None and has_its_hash(advance)(linked, file):
                return True
        except (OSError, BrokenFile):
            pass  # The hub has the file, too.
        staged.unlink(missing_ok=True)
        return False

    def settle(self, staging: Staging, plan: PullPlan) -> None:
        """Share the files that a pull has moved in, finish what a kill interrupted, and remove other remains."""
        from mlxk2.hub import private  # noqa: PLC0415 - `rm` does without the HTTP client that this imports

        for file in plan.missing:
            self._share(staging, file)
        orphans = [path.name for path in staging.orphans()]
        for file in plan.files:
            # Such an orphan is the spare name itself, or the library's link on its way to that name.
            if any(_spare(staging.blob(file)).name in name for name in orphans):
                self._share(staging, file)
        folder = self._cache_dir / locks.FOLDER / staging.model.name
        for path in list(staging.orphans()):
            lock = folder / f"{path.name.lstrip('.').partition('.')[0]}.lock"
            try:
                # A download by the library that is still alive holds this lock.
                with private.WeakFileLock(lock, timeout=_LOCK_WAIT_SECONDS):
                    path.unlink(missing_ok=True)
            except private.Timeout:
                continue

    def _share(self, staging: Staging, file: RemoteFile) -> None:
        """Give the store a file that was fetched, and note the model among those that need it.

        The library moves the file that it publishes, and then puts a link in its place. So it gets a second name of
        the bytes: a kill in between must not leave the model without them.
        """
        from mlxk2.hub import private  # noqa: PLC0415 - as in `settle`

        if file.xet_hash is None or not library.shared_blobs_enabled() or not private.is_xet_available():
            return
        blob, payload = staging.blob(file), library.shared_blob_path(self._cache_dir, file.xet_hash)
        if blob.is_symlink():
            return  # It is shared already; a second name of the link would replace the bytes that it leads to.
        if os.path.lexists(payload):
            links = library._read_valid_manifest_references(payload, self._cache_dir)
            if links is None or not {link.name.removesuffix(INCOMPLETE) for link in links} <= {file.blob}:
                return  # The hub gives other bytes the same Xet hash, and those in the store belong to another model.
        spare = _spare(blob)
        spare.unlink(missing_ok=True)
        try:
            os.link(blob, spare)
        except OSError:
            return  # A file system without hard links: the model keeps the file for itself.
        size = file.size
        try:
            # The bytes in the store may be damaged. Those that were fetched are not, and replace them.
            if library.publish_blob_to_shared_store(
                blob_path=str(spare),
                xet_hash=file.xet_hash,
                cache_dir=self._cache_dir,
                expected_size=size,
                replace_existing=True,
            ):
                library.try_link_from_shared_store(
                    blob_path=str(blob), xet_hash=file.xet_hash, cache_dir=self._cache_dir, expected_size=size
                )
        finally:
            spare.unlink(missing_ok=True)
            # Remove the reference of the second name, which the library has noted, too.
            self.sweep(str(payload))

    def _is_unneeded(self, payload: Path) -> bool:
        return library._read_valid_manifest_references(payload, self._cache_dir) == set()


def _spare(blob: Path) -> Path:
    """Return the second name of a blob that is being shared."""
    return blob.with_name(blob.name + INCOMPLETE)


def _unfinished_lists(payload: Path) -> list[Path]:
    return list(payload.parent.glob(f"{payload.name}.refs.*.tmp"))


def _remove_unfinished_lists(payload: Path) -> None:
    for unfinished in _unfinished_lists(payload):
        unfinished.unlink(missing_ok=True)


def _is_payload(name: str) -> bool:
    return library._XET_HASH_REGEX.fullmatch(name) is not None
