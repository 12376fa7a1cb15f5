"""The store `hub/blobs` that all repos share, as the client library keeps it: who needs a payload is for it to say.

`rm` needs no more of the library than this, and does not wait for the import of the rest.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from huggingface_hub.utils import _shared_blobs as library

from mlxk2.cache import space


class SharedBlobs:
    """The shared blobs of a hub folder, given by its real path."""

    def __init__(self, hub: str) -> None:
        self._hub = Path(hub)

    def released_with(self, blobs: Iterable[str]) -> list[str]:
        """The payloads that nobody needs once these links in the repos' `blobs/` are gone."""
        links = set(map(Path, blobs))
        payloads = {library.shared_blob_target(link, self._hub) for link in links} - {None}
        return sorted(str(payload) for payload in payloads if payload and self._goes_with(links, payload))

    def files_of(self, payload: str) -> list[str]:
        """The payload and the list of its references, which goes with it."""
        return [payload, str(library.shared_blob_manifest_path(self._hub, Path(payload).name))]

    def holders(self, payload: str) -> set[str] | None:
        """The names of the repos' blobs that lead to a payload; None when the list of its references can't be read."""
        found = library._read_valid_manifest_references(Path(payload), self._hub)
        return None if found is None else {link.name for link in found}

    def unreferenced(self) -> list[str]:
        """The payloads to which nothing refers any more; of some only the list is left."""
        payloads = set(library.unreferenced_shared_blobs(self._hub))
        lists = (self._hub / "blobs").glob("[0-9a-f][0-9a-f]/*.refs")
        # What macOS or others lay among the lists names no payload.
        payloads |= {path.with_suffix("") for path in lists if _is_payload(path.stem) and not path.parent.is_symlink()}
        return sorted(str(payload) for payload in payloads if self._is_unneeded(payload))

    def sweep(self, payload: str) -> None:
        """Remove a payload if nothing refers to it any more; one whose references can't be read stays.

        OSError when the disk is too full for the library's lock: the library would say nothing, and the payload stay.
        """
        library.sweep_shared_blob(Path(payload), cache_dir=self._hub)
        if self._is_unneeded(Path(payload)) or self._unfinished_lists(Path(payload)):
            self._finish_sweep(Path(payload))

    def tidy(self) -> None:
        """Remove the half-written lists of killed processes, each under its payload's lock."""
        for unfinished in sorted((self._hub / "blobs").glob("[0-9a-f][0-9a-f]/*.refs.*.tmp")):
            payload = unfinished.with_name(unfinished.name.partition(".")[0])
            if not payload.parent.is_symlink() and _is_payload(payload.name):
                with suppress(OSError), library._shared_blob_lock(payload):
                    self._remove_unfinished_lists(payload)

    def _finish_sweep(self, payload: Path) -> None:
        """Remove what a killed sweep left, and the next one leaves too: half-written lists, the list of no payload."""
        try:
            with library._shared_blob_lock(payload):
                self._remove_unfinished_lists(payload)
                # A process that brings a payload back holds the lock, and writes its reference first.
                if self._is_unneeded(payload) and not os.path.lexists(payload):
                    os.unlink(self.files_of(str(payload))[1])
        except OSError as error:
            # As with the library's own sweep, what can't be removed stays.
            if error.errno in space.FULL:
                raise

    def _is_unneeded(self, payload: Path) -> bool:
        return library._read_valid_manifest_references(payload, self._hub) == set()

    def _unfinished_lists(self, payload: Path) -> list[Path]:
        return list(payload.parent.glob(f"{payload.name}.refs.*.tmp"))

    def _remove_unfinished_lists(self, payload: Path) -> None:
        for unfinished in self._unfinished_lists(payload):
            unfinished.unlink(missing_ok=True)

    def _goes_with(self, links: set[Path], payload: Path) -> bool:
        return library.expected_shared_blob_freed_size(payload, blob_paths_to_delete=links, cache_dir=self._hub) > 0


def _is_payload(name: str) -> bool:
    return library._XET_HASH_REGEX.fullmatch(name) is not None
