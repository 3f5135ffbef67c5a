"""The end of a run in the terminal: what the draft is worth, where it went, where to read more.

It reads without colours, and at 80 columns; wider terminals only give it air. The page (report.py) says the same at
length, with denominators.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from deepspec.evaluation.report import MACRO, NOT_MEASURED, num_draft_tokens, number, times

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
    evaluation = record.get("evaluation")
    if evaluation and evaluation.get("benchmarks"):
        parts += _tables(evaluation)
    else:
        parts.append(Text("Nothing was evaluated in this run."))
    parts += [Text(""), _outcome(record), *_pointers(record, ui_command)]
    return Group(*parts)


def _tables(evaluation: Mapping[str, Any]) -> "list[RenderableType]":
    benchmarks: Mapping[str, Any] = evaluation["benchmarks"]
    slots = num_draft_tokens(benchmarks)
    apart = slots > _MOST_SLOTS
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("", overflow="fold")
    table.add_column("τ [95 % interval]", no_wrap=True)
    if not apart:
        table.add_column(f"accepted at 1…{slots}, %", no_wrap=True)
    table.add_column("speedup", justify="right", no_wrap=True)
    table.add_column("entropy", justify="right", no_wrap=True)
    rows = list(benchmarks.items())
    if len(rows) > 1:
        rows.append((MACRO, evaluation.get("macro") or {}))
    for name, part in rows:
        cells: list[Text | str] = [Text(name), _length(part)]
        if not apart:
            cells.append(_percent(part.get("conditional_acceptance") or ()))
        cells += [times(part.get("speedup")), number(part.get("target_entropy_nats"), 2)]
        table.add_row(*cells, style="bold" if name == MACRO else "")
    parts: list[RenderableType] = [table]
    if apart:
        parts += [Text(""), Text(f"Accepted at 1…{slots}, %:")]
        parts += [
            Text(f"  {name}: {_percent(part.get('conditional_acceptance') or ())}") for name, part in benchmarks.items()
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


def _outcome(record: Mapping[str, Any]) -> Text:
    verdict = record.get("verdict")
    text = Text(f"{str(record.get('status') or 'done').replace('_', ' ').capitalize()}", style="bold")
    if verdict:
        sentences = [str(reason.get("sentence", "")) for reason in verdict.get("reasons") or ()]
        text.append(": " + " ".join(sentences), style="not bold")
    return text


def _pointers(record: Mapping[str, Any], ui_command: str | None) -> "list[RenderableType]":
    model = record.get("model")
    lines = []
    if model:
        aliases = f" ({', '.join(model['aliases'])})" if model.get("aliases") else ""
        lines.append(
            ("Model", f"{model.get('name')} version {model.get('version')}{aliases}  {model.get('uri') or ''}")
        )
    else:
        lines.append(("Model", "nothing was registered"))
    lines.append(("Report", str(record.get("report") or "none was written")))
    if ui_command:
        lines.append(("MLflow", ui_command))
    # Never broken: paths and commands are there to be copied.
    return [
        Text.assemble((name.ljust(8), "bold"), value.rstrip(), no_wrap=True, overflow="ignore") for name, value in lines
    ]
