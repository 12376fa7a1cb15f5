"""Progress bars for people, on stderr."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from mlxk2.formatting import Advance


@contextmanager
def bar(stream: IO[str], is_shown: bool, title: str, total: int) -> Iterator[Advance]:
    """Show a bar of `total` bytes while the block runs; yield the function that advances it."""
    if not is_shown:
        yield lambda _: None
        return
    from rich import progress  # noqa: PLC0415 - takes 50 ms, and most commands show no bar
    from rich.console import Console  # noqa: PLC0415

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(file=stream), transient=True) as bars:
        task = bars.add_task(title, total=total)
        yield lambda count: bars.advance(task, count)
