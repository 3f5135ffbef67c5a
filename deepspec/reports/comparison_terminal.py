"""A comparison in the terminal: who is better, where, how surely; at 80 columns, and without colours."""

from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from deepspec.evaluation.compare.results import Comparison, Difference
from deepspec.evaluation.results import Interval
from deepspec.reports.comparison_page import compared_differences, compared_rows, speedup_of, tendency
from deepspec.reports.formatting import number, signed, times
from deepspec.reports.sections.acceptance import Measured

if TYPE_CHECKING:
    from rich.console import RenderableType


def comparison_table(comparison: Comparison) -> "RenderableType":
    """The drafts side by side, a row per benchmark and draft, for a rich console to print."""
    drafts = comparison.drafts
    found: list[dict[str, Difference]] = [{}, *(compared_differences(part) for part in comparison.differences)]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("", overflow="fold")
    table.add_column("draft", justify="right", no_wrap=True)
    table.add_column("τ [95 % interval]", no_wrap=True)
    table.add_column("speedup", justify="right", no_wrap=True)
    if len(drafts) > 1:
        table.add_column("against 1 [95 % interval]", no_wrap=True)
    for label, parts in compared_rows(drafts):
        for place, part in enumerate(parts):
            cells: list[Text | str] = [
                Text(label if place == 0 else ""),
                str(place + 1),
                _length(part),
                times(speedup_of(part)),
            ]
            if len(drafts) > 1:
                cells.append(_difference(found[place].get(label)) if place else "")
            table.add_row(*cells)
    names = [Text(f"{place:>2}  {draft.name}") for place, draft in enumerate(drafts, start=1)]
    note = "τ: tokens per round, bonus included. Speedup: over plain decoding, batch 1."
    if len(drafts) > 1:
        note += "\nDifferences are paired, prompt by prompt. > and <: clearly higher, lower."
    return Group(*names, Text(""), table, Text(note, style="dim"))


def _length(part: Measured | None) -> str:
    return number(None, 2) if part is None else f"{number(part.tau, 2)}{_bounds(part.tau_ci95)}"


def _difference(part: Difference | None) -> Text:
    found = tendency(part)
    shown = signed(None, 2) if part is None else f"{signed(part.difference, 2)}{_bounds(part.ci95, sign=True)}"
    style = {"higher": "green", "lower": "red"}.get(found, "")
    mark = {"higher": " >", "lower": " <"}.get(found, "")
    return Text(shown + mark, style=style)


def _bounds(bounds: Interval | None, *, sign: bool = False) -> str:
    if bounds is None:
        return ""
    low, high = (signed(bound, 2) if sign else number(bound, 2) for bound in bounds)
    return f" [{low}, {high}]"
