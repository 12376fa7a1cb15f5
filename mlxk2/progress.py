"""Progress bars for people, on stderr; and how whoever reads or writes many bytes tells how far it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bars

# Called with the number of bytes that were done since; less than none, when some must be done again.
Advance = Callable[[int], None]
# Called with a title and the total of bytes, around the work.
Progress = Callable[[str, int], AbstractContextManager[Advance]]


@contextmanager
def bar(title: str, total: int, stream: IO[str]) -> Iterator[Advance]:
    """Show a bar of `total` bytes while the block runs; what it yields moves it on by a number of bytes."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Bars(*columns, TimeRemainingColumn(), console=Console(file=stream), transient=True) as bars:
        task = bars.add_task(title, total=total)
        yield lambda count: bars.advance(task, count)
