"""Facts and lists for people, fitted to the width of their terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console, ConsoleOptions, JustifyMethod, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mlxk2.formatting import printable

Row = Sequence[str]

_STYLES = {"healthy": "green", "healthy*": "yellow", "unhealthy": "red", "yes": "green", "no": "yellow"}
# The columns that may be folded, and the width at which they can still be read.
_FOLDED = {"Name": 32, "Model": 32, "File": 24, "Reason": 24}
_GAP = 2


def facts(values: Mapping[str, str]) -> Table:
    """One fact a line, with its name in front."""
    table = Table(box=None, show_header=False, padding=(0, _GAP, 0, 0), pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in values.items():
        table.add_row(name, _cell(value))
    return table


class Listing:
    """One row a line, under headings; on a terminal too narrow for that, the first cell of a row above its others."""

    def __init__(self, columns: Sequence[str], rows: Sequence[Row]) -> None:
        self._headings = [Text(name, style="bold") for name in columns]
        self._rows = [[_cell(value) for value in row] for row in rows]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self._least_width() <= options.max_width:
            yield self._table()
        else:
            yield from self._stacked()

    def _least_width(self) -> int:
        columns: Iterator[tuple[Text, ...]] = zip(self._headings, *self._rows, strict=True)
        widths = ((str(column[0]), max(cell.cell_len for cell in column)) for column in columns)
        return sum(min(width, _FOLDED.get(name, width)) + _GAP for name, width in widths) - _GAP

    def _table(self) -> Table:
        table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False)
        for heading in self._headings:
            name = str(heading)
            justify: JustifyMethod = "right" if name == "Size" else "left"
            table.add_column(heading, overflow="fold", no_wrap=name not in _FOLDED, justify=justify)
        for row in self._rows:
            table.add_row(*row)
        return table

    def _stacked(self) -> Iterator[Text | Padding]:
        for first, *others in (self._headings, *self._rows):
            yield first
            yield Padding(Text(" " * _GAP).join(filter(None, others)), (0, 0, 0, _GAP))


def _cell(value: str) -> Text:
    return Text(printable(value), style=_STYLES.get(value, ""), overflow="fold")
