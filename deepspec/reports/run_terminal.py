"""The end of a run in the terminal: what the draft is worth, where it went, where to read more.

It reads without colours, and at 80 columns; wider terminals only give it air. The page (run_page.py) says the same at
length, with denominators.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from deepspec.reports.formatting import MACRO, NOT_MEASURED, number, times
from deepspec.reports.overview_page import over_seeds
from deepspec.reports.sections.acceptance import means, num_draft_tokens

if TYPE_CHECKING:
    from rich.console import RenderableType

_MOST_SLOTS = 8


def summary_table(record: Mapping[str, Any], *, ui_command: str | None = None) -> "RenderableType":
    """The final table of a run.

    Args:
        record: the run's record in the form of `run.json`, with the gate's `verdict` if there is one. Parts that are
            missing are said to be.
        ui_command: how to open the tracking server's pages.

    Returns:
        Something for a rich console to print.
    """
    parts: list[RenderableType] = []
    evaluations = [part for part in _each(record.get("evaluation")) if part.get("benchmarks")]
    if evaluations:
        parts += _tables(evaluations)
        study = over_seeds(record.get("seeds"))
        parts += [Text(""), *_over_seeds(study)] if study else []
    else:
        parts.append(Text("Nothing was evaluated in this run."))
    parts += [Text(""), *_outcome(record), *_pointers(record, ui_command)]
    return Group(*parts)


def _over_seeds(study: Mapping[str, Any]) -> "list[RenderableType]":
    """Mean τ over seeds, and paired differences; only the average has room for its interval."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("over seeds", no_wrap=True)
    for name in study["columns"][:-1]:
        table.add_column(name, overflow="fold")
    table.add_column("average [95 % interval]", no_wrap=True)
    rows = [(row["algorithm"], row["cells"]) for row in study["rows"]]
    rows += [(row["name"], row["cells"]) for row in study["differences"]]
    for name, cells in rows:
        marks = [" *" if cell.get("clear") else "" for cell in cells]
        shown = [f"{cell['value']}{mark}" for cell, mark in zip(cells, marks, strict=True)]
        bounds = cells[-1]["interval"].replace(" to ", ", ")
        table.add_row(name, *shown[:-1], f"{cells[-1]['value']} [{bounds}]{marks[-1]}")
    note = (
        f"Mean τ over seeds {study['seeds']}; intervals resample prompts and seeds, differences are paired.\n"
        "*: the interval leaves out 0. The table above is of the first seed alone."
    )
    return [table, Text(note, style="dim")]


def _each(value: Any) -> list[Mapping[str, Any]]:
    """What a record says of its recipe, or of each of several."""
    if not value:
        return []
    return list(value) if isinstance(value, list) else [value]


def _tables(evaluations: Sequence[Mapping[str, Any]]) -> "list[RenderableType]":
    slots = max(num_draft_tokens(evaluation["benchmarks"]) for evaluation in evaluations)
    apart = slots > _MOST_SLOTS
    several = len(evaluations) > 1
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    if several:
        table.add_column("", no_wrap=True)
    table.add_column("", overflow="fold")
    table.add_column("τ [95 % interval]", no_wrap=True)
    if not apart:
        table.add_column(f"accepted at 1…{slots}, %", no_wrap=True)
    table.add_column("speedup", justify="right", no_wrap=True)
    table.add_column("entropy", justify="right", no_wrap=True)
    for evaluation in evaluations:
        rows = [*evaluation["benchmarks"].items(), *means(evaluation)]
        for name, part in rows:
            cells: list[Text | str] = [Text(str(evaluation["algorithm"]))] if several else []
            # Beside an algorithm's name 80 columns have no room for the longer one.
            cells += [Text("average" if several and name == MACRO else name), _length(part)]
            if not apart:
                cells.append(_percent(part.get("conditional_acceptance") or ()))
            cells += [times(part.get("speedup")), number(part.get("target_entropy_nats"), 2)]
            table.add_row(*cells, style="bold" if name == MACRO else "")
    parts: list[RenderableType] = [table]
    if apart:
        parts += [Text(""), Text(f"Accepted at 1…{slots}, %:")]
        parts += [
            Text(f"  {_whose(evaluation)}{name}: {_percent(part.get('conditional_acceptance') or ())}")
            for evaluation in evaluations
            for name, part in evaluation["benchmarks"].items()
        ]
    note = (
        "τ: tokens per round, bonus included. Accepted at k: given that all before were.\n"
        "Speedup: over plain decoding of the same prompts in this run, batch 1.\n"
        "Entropy: of the target's next token, mean, in nats."
    )
    return [*parts, Text(note, style="dim")]


def _length(part: Mapping[str, Any]) -> Text:
    tau, bounds = number(part.get("tau"), 2), part.get("tau_ci95")
    if not bounds:
        return Text(tau)
    return Text(f"{tau} [{number(bounds[0], 2)}, {number(bounds[1], 2)}]")


def _percent(rates: Any) -> str:
    """Rates as whole percentages, in columns."""
    shown = (f"{100 * rate:.0f}" if isinstance(rate, int | float) else NOT_MEASURED for rate in rates)
    return " ".join(f"{text:>2}" for text in shown)


def _whose(part: Mapping[str, Any]) -> str:
    """The algorithm in front of what is said of it, where a run has several."""
    return f"{part['algorithm']} " if "algorithm" in part else ""


def _outcome(record: Mapping[str, Any]) -> list[Text]:
    verdicts = _each(record.get("verdict"))
    status = Text(f"{str(record.get('status') or 'done').replace('_', ' ').capitalize()}", style="bold")
    if len(verdicts) <= 1:
        for verdict in verdicts:
            status.append(f": {_sentences(verdict)}", style="not bold")
        return [status]
    return [status, *(Text(f"{verdict['algorithm']}: {_sentences(verdict)}") for verdict in verdicts)]


def _sentences(verdict: Mapping[str, Any]) -> str:
    return " ".join(str(reason.get("sentence", "")) for reason in verdict.get("reasons") or ())


def _pointers(record: Mapping[str, Any], ui_command: str | None) -> "list[RenderableType]":
    lines = []
    for model in _each(record.get("model")):
        aliases = f" ({', '.join(model['aliases'])})" if model.get("aliases") else ""
        lines.append(
            ("Model", f"{model.get('name')} version {model.get('version')}{aliases}  {model.get('uri') or ''}")
        )
    if not lines:
        lines.append(("Model", "nothing was registered"))
    lines.append(("Report", str(record.get("report") or "none was written")))
    if ui_command:
        lines.append(("MLflow", ui_command))
    # Never broken: paths and commands are there to be copied.
    return [
        Text.assemble((name.ljust(8), "bold"), value.rstrip(), no_wrap=True, overflow="ignore") for name, value in lines
    ]
