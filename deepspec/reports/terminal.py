"""What tables in the terminal have in common: they read without colours, and a value stands with its interval."""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from deepspec.evaluation.results import Interval
from deepspec.reports.formatting import number, signed

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text


def whole_table() -> "Table":
    """A table that loses nothing at any width: no lines, columns two spaces apart, no blanks at a line's end.

    Columns that may fold do so while that makes it fit; beyond that a row runs over the edge, where the terminal
    folds it.
    """
    from rich.console import Console, ConsoleOptions
    from rich.segment import Segment
    from rich.table import Table

    class Whole(Table):
        def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
            endless = options.update(max_width=sys.maxsize)
            for column in self.columns:
                if column.no_wrap:
                    column.min_width = self._measure_column(console, endless, column).maximum - sum(self.padding[1::2])
            least = self.__rich_measure__(console, endless).minimum
            wide = options.update(width=max(least, options.max_width))
            for line in Segment.split_lines(super().__rich_console__(console, wide)):  # type: ignore[arg-type]
                while line and not line[-1].text.strip():
                    line.pop()
                if line:
                    text, style, control = line.pop()
                    line.append(Segment(text.rstrip(), style, control))
                yield from line
                yield Segment.line()

    return Whole(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")


def printable(text: str) -> "Text":
    """A text on one line that changes neither cursor nor colour: control characters and line ends are named."""
    from rich.text import Text

    return Text("".join(one if one.isprintable() else ascii(one)[1:-1] for one in text))


def with_interval(value: float | None, bounds: Interval | None, *, sign: bool = False) -> str:
    """A value, or a difference with its `sign`, and its interval if there is one, as in 4.42 [4.21, 4.63]."""
    shown = signed if sign else number
    ends = f" [{shown(bounds[0], 2)}, {shown(bounds[1], 2)}]" if bounds is not None else ""
    return f"{shown(value, 2)}{ends}"
