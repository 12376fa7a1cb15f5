"""The store `hub/blobs` that all repos share, as the client library keeps it: who needs a payload is for it to say.

`rm` needs no more of the library than this, and does not wait for the import of the rest.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from huggingface_hub.utils import _shared_blobs as library


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

    def sweep(self, payload: str) -> None:
        """Remove a payload if nothing refers to it any more; one whose references can't be read stays."""
        library.sweep_shared_blob(Path(payload), cache_dir=self._hub)
        _, references = self.files_of(payload)
        if os.path.lexists(references) and not os.path.lexists(payload):
            self._remove_references(Path(payload), references)

    def _remove_references(self, payload: Path, references: str) -> None:
        """Remove the list of a payload that is gone: a sweep killed between the two leaves it, and so does the next."""
        # As with the library's own sweep, what can't be removed stays.
        with suppress(OSError), library._shared_blob_lock(payload):
            is_gone = not os.path.lexists(payload)  # whoever brings it back holds the lock, and notes himself first
            if is_gone and library._read_valid_manifest_references(payload, self._hub) == set():
                os.unlink(references)

    def _goes_with(self, links: set[Path], payload: Path) -> bool:
        return library.expected_shared_blob_freed_size(payload, blob_paths_to_delete=links, cache_dir=self._hub) > 0
