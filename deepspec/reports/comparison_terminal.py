"""A comparison in the terminal: who is better, where, how surely; at 80 columns, and without colours."""

from typing import TYPE_CHECKING

from rich.console import Group
from rich.text import Text

from deepspec.evaluation.compare.results import Comparison, Difference
from deepspec.reports.comparison_page import compared_differences, compared_rows, speedup_of, tendency
from deepspec.reports.formatting import NOT_MEASURED, times
from deepspec.reports.terminal import whole_table, with_interval

if TYPE_CHECKING:
    from rich.console import RenderableType


def comparison_table(comparison: Comparison) -> "RenderableType":
    """The drafts side by side, a row per benchmark and draft, for a rich console to print."""
    drafts = comparison.drafts
    found: list[dict[str, Difference]] = [{}, *(compared_differences(part) for part in comparison.differences)]
    table = whole_table()
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
                with_interval(part.tau, part.tau_ci95) if part is not None else NOT_MEASURED,
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


def _difference(part: Difference | None) -> Text:
    found = tendency(part)
    shown = with_interval(part.difference, part.ci95, sign=True) if part is not None else NOT_MEASURED
    style = {"higher": "green", "lower": "red"}.get(found, "")
    mark = {"higher": " >", "lower": " <"}.get(found, "")
    return Text(shown + mark, style=style)
