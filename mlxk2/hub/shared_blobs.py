"""The store `blobs` of a cache, where huggingface_hub keeps the content of Xet files (payloads) once for all repos.

`rm` uses this module too. So it imports only the library's module for the store; the rest is slow to import.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub.utils import _shared_blobs as library

from mlxk2.cache import locks, space
from mlxk2.cache.audit import hash_check
from mlxk2.cache.staging import PullPlan, RemoteFile, Staging
from mlxk2.checkpoint.files import BrokenFile
from mlxk2.names import INCOMPLETE

if TYPE_CHECKING:
    from mlxk2.formatting import Advance

_LOCK_WAIT_SECONDS = 0.01


class SharedBlobs:
    """The shared blobs of the cache with this real path."""

    def __init__(self, cache_dir: str) -> None:
        self._cache_dir = Path(cache_dir)

    def released_with(self, blobs: Iterable[str]) -> list[str]:
        """Return the payloads that no repo needs after the removal of these links in the repos' `blobs/`."""
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
        """Return the payload and the list of its references, which are removed together."""
        return [payload, str(library.shared_blob_manifest_path(self._cache_dir, Path(payload).name))]

    def unreferenced(self) -> list[str]:
        """Return the payloads without references, including those of which only the list is left."""
        payloads = set(library.unreferenced_shared_blobs(self._cache_dir))
        lists = (self._cache_dir / "blobs").glob("[0-9a-f][0-9a-f]/*.refs")
        # Operating systems such as macOS add files with other names to these folders; ignore them.
        payloads |= {path.with_suffix("") for path in lists if _is_payload(path.stem) and not path.parent.is_symlink()}
        return sorted(str(payload) for payload in payloads if self._is_unneeded(payload))

    def sweep(self, payload: str) -> None:
        """Remove a payload without references, and the files that a killed removal left of it.

        Keep a payload whose references can't be read. Raise OSError if the disk is too full for the library's lock
        file; the library itself reports nothing in this case, and keeps the payload.
        """
        path = Path(payload)
        library.sweep_shared_blob(path, cache_dir=self._cache_dir)
        if not self._is_unneeded(path) and not _unfinished_lists(path):
            return
        try:
            with library._shared_blob_lock(path):
                _remove_unfinished_lists(path)
                # A process that adds the payload again holds this lock and writes its reference first, so check here.
                if self._is_unneeded(path) and not os.path.lexists(path):
                    os.unlink(self.files_of(payload)[1])
        except OSError as error:
            # Like the library, leave files that can't be removed.
            if error.errno in space.FULL:
                raise

    def tidy(self) -> None:
        """Remove the half-written lists of killed processes, each while holding its payload's lock."""
        for unfinished in sorted((self._cache_dir / "blobs").glob("[0-9a-f][0-9a-f]/*.refs.*.tmp")):
            payload = unfinished.with_name(unfinished.name.partition(".")[0])
            if not payload.parent.is_symlink() and _is_payload(payload.name):
                with suppress(OSError), library._shared_blob_lock(payload):
                    _remove_unfinished_lists(payload)

    def has(self, file: RemoteFile) -> bool:
        """Return whether the store already has the bytes of a file."""
        return file.xet_hash is not None and library.has_shared_blob(
            xet_hash=file.xet_hash, cache_dir=self._cache_dir, expected_size=file.size
        )

    def stage(self, staging: Staging, file: RemoteFile, advance: Advance) -> bool:
        """Stage a file from the store and verify its bytes; return False when it must be fetched instead.

        The hard link keeps the bytes even if the store removes the payload in the meantime.
        """
        assert file.xet_hash is not None
        staged = staging.staged(file)
        staged.unlink(missing_ok=True)
        try:
            os.link(library.shared_blob_path(self._cache_dir, file.xet_hash), staged)
            linked = staging.tree.file(file.name, str(staged))
            if linked is not None and hash_check(advance)(linked, file):
                return True
        except (OSError, BrokenFile):
            pass  # Fetch the file from the hub instead.
        staged.unlink(missing_ok=True)
        return False

    def settle(self, staging: Staging, plan: PullPlan) -> None:
        """Share the files that a pull has moved in, finish a killed sharing, and remove other unfinished files."""
        from mlxk2.hub import private  # noqa: PLC0415 - it imports an HTTP client, which `rm` does not need

        for file in plan.missing:
            self._share(staging, file)
        orphans = [path.name for path in staging.orphans()]
        for file in plan.files:
            # Such an orphan is the spare name itself, or a temporary link of the library for that name.
            if any(_spare(staging.blob(file)).name in name for name in orphans):
                self._share(staging, file)
        folder = self._cache_dir / locks.FOLDER / staging.model.name
        for path in list(staging.orphans()):
            lock = folder / f"{path.name.lstrip('.').partition('.')[0]}.lock"
            try:
                # A running download of the library holds this lock.
                with private.WeakFileLock(lock, timeout=_LOCK_WAIT_SECONDS):
                    path.unlink(missing_ok=True)
            except private.Timeout:
                continue

    def _share(self, staging: Staging, file: RemoteFile) -> None:
        """Put a file that was fetched into the store, and add the model to the payload's references.

        The library first moves the file, and then puts a link in its place. A kill in between would leave the model
        without the file. So the library gets a second hard link of the file instead.
        """
        from mlxk2.hub import private  # noqa: PLC0415 - as in `settle`

        if file.xet_hash is None or not library.shared_blobs_enabled() or not private.is_xet_available():
            return
        blob, payload = staging.blob(file), library.shared_blob_path(self._cache_dir, file.xet_hash)
        if blob.is_symlink():
            return  # It is already shared; sharing the link again would replace the payload by a link.
        if os.path.lexists(payload):
            links = library._read_valid_manifest_references(payload, self._cache_dir)
            if links is None or not {link.name.removesuffix(INCOMPLETE) for link in links} <= {file.blob}:
                return  # The hub uses this Xet hash for different bytes, and the store has those of another model.
        spare = _spare(blob)
        spare.unlink(missing_ok=True)
        try:
            os.link(blob, spare)
        except OSError:
            return  # The file system has no hard links, so the file stays in the model's folder.
        size = file.size
        try:
            # Replace the bytes in the store: they can be damaged, and the fetched bytes are verified.
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
            # The library has also noted the second name; remove this reference.
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
