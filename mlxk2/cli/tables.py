"""Facts, tables and times for people, fitted to the width of the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from rich.console import Console, ConsoleOptions, JustifyMethod, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mlxk2.formatting import printable

Row = Sequence[str]

_STYLES = {"healthy": "green", "healthy*": "yellow", "unhealthy": "red", "yes": "green", "no": "yellow"}
# The columns that may be folded, and the smallest width at which they are still readable.
_FOLDED = {"Name": 32, "Model": 32, "File": 24, "Reason": 24}
_GAP = 2


def facts(values: Mapping[str, str]) -> Table:
    """Return a table with one fact per line: its name, then its value."""
    table = Table(box=None, show_header=False, padding=(0, _GAP, 0, 0), pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in values.items():
        table.add_row(name, _cell(value))
    return table


class Listing:
    """A table with headings; on a narrow terminal, the first cell of each row is on a line above the others."""

    def __init__(self, columns: Sequence[str], rows: Sequence[Row]) -> None:
        self._headings = [Text(name, style="bold") for name in columns]
        self._rows = [[_cell(value) for value in row] for row in rows]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False)
        min_width = -_GAP
        for heading, *cells in zip(self._headings, *self._rows, strict=True):
            name = str(heading)
            justify: JustifyMethod = "right" if name == "Size" else "left"
            table.add_column(heading, overflow="fold", no_wrap=name not in _FOLDED, justify=justify)
            width = max(cell.cell_len for cell in (heading, *cells))
            min_width += min(width, _FOLDED.get(name, width)) + _GAP
        if min_width <= options.max_width:
            for row in self._rows:
                table.add_row(*row)
            yield table
        else:
            for first, *others in (self._headings, *self._rows):
                yield first
                yield Padding(Text(" " * _GAP).join(filter(None, others)), (0, 0, 0, _GAP))


def _cell(value: str) -> Text:
    return Text(printable(value), style=_STYLES.get(value, ""), overflow="fold")


def ago(timestamp: str, now: datetime) -> str:
    """Return the time from a UTC timestamp to `now`: just now, 5m ago, 3h ago, 2d ago, 4mo ago, 1y ago."""
    then = datetime.strptime(timestamp, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    seconds = (now - then).total_seconds()
    units = (("y", 365 * 86400), ("mo", 30 * 86400), ("d", 86400), ("h", 3600), ("m", 60))
    name, length = next((unit for unit in units if seconds >= unit[1]), ("", 0))
    return f"{int(seconds // length)}{name} ago" if length else "just now"
