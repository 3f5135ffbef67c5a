"""What tables in the terminal have in common: they read without colours, and a value stands with its interval."""

from typing import TYPE_CHECKING

from deepspec.evaluation.results import Interval
from deepspec.reports.formatting import number, signed

if TYPE_CHECKING:
    from rich.table import Table


def plain_table() -> "Table":
    """A table without lines, its columns two spaces apart."""
    from rich.table import Table

    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")


def with_interval(value: float | None, bounds: Interval | None, *, sign: bool = False) -> str:
    """A value, or a difference with its `sign`, and its interval if there is one, as in 4.42 [4.21, 4.63]."""
    shown = signed if sign else number
    ends = f" [{shown(bounds[0], 2)}, {shown(bounds[1], 2)}]" if bounds is not None else ""
    return f"{shown(value, 2)}{ends}"
