"""The room on a disk, asked for before anything is written to it."""

from __future__ import annotations

import errno
import os
import shutil

from mlxk2.errors import OperationError
from mlxk2.sizes import human_size

# What the operating system says where it was not asked before, or something else took the room meanwhile.
FULL = (errno.ENOSPC, errno.EDQUOT)


def check(what: str, needed: int, folder: str | os.PathLike[str], *, gained: int = 0, alternative: str) -> None:
    """OperationError with both numbers when what is needed does not fit on the folder's disk.

    All numbers are bytes; `gained` is what will come free before. `alternative` is what the user may do instead.
    """
    available = shutil.disk_usage(folder).free + gained
    if needed > available:
        raise OperationError(
            f"Not enough disk space for {what}: {human_size(needed)} needed, {human_size(available)} available.",
            hint=f"Free some space, for instance with `mlxk2 rm`, or {alternative}.",
        )
