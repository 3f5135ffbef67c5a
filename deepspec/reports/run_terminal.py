"""The end of a run in the terminal: what the draft is worth, where it went, where to read more.

It reads without colours, and at 80 columns; wider terminals only give it air. The page (run_page.py) says the same at
length, with denominators.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Group
from rich.text import Text

from deepspec.evaluation.config import GATE
from deepspec.evaluation.results import BenchmarkResult, MeanResult, Rates
from deepspec.gates.verdict import Verdict
from deepspec.record import RecordedEvaluation, RunRecord
from deepspec.reports.formatting import MACRO, NOT_MEASURED, number, times
from deepspec.reports.overview_page import SeedTables, over_seeds
from deepspec.reports.sections.acceptance import means, num_draft_tokens
from deepspec.reports.terminal import whole_table, with_interval

if TYPE_CHECKING:
    from rich.console import RenderableType

_MOST_POSITIONS = 8


def summary_table(record: RunRecord, *, ui_command: str | None = None) -> "RenderableType":
    """The final table of a run.

    Args:
        record: of the run. Parts that are missing are said to be.
        ui_command: how to open the tracking server's pages.

    Returns:
        Something for a rich console to print.
    """
    parts: list[RenderableType] = []
    evaluations = [part for part in record.evaluations if part.benchmarks]
    if evaluations:
        parts += _tables(evaluations)
        study = over_seeds(record.seeds)
        parts += [Text(""), *_over_seeds(study)] if study else []
    else:
        parts.append(Text("Nothing was evaluated in this run."))
    parts += [Text(""), *_outcome(record), *_pointers(record, ui_command)]
    return Group(*parts)


def _over_seeds(study: SeedTables) -> "list[RenderableType]":
    """Mean τ over seeds, and paired differences; only the average has room for its interval."""
    table = whole_table()
    table.add_column("over seeds", no_wrap=True)
    for name in study.columns[:-1]:
        table.add_column(name, overflow="fold")
    table.add_column("average [95 % interval]", no_wrap=True)
    for name, cells in _seed_rows(study):
        *shown, (value, bounds, mark) = cells
        values = [f"{value}{mark}" for value, _, mark in shown]
        table.add_row(name, *values, f"{value} [{bounds.replace(' to ', ', ')}]{mark}")
    note = (
        f"Mean τ over seeds {study.seeds}; intervals are over prompts and seeds, differences are paired.\n"
        "*: the interval leaves out 0. The table above is of the first seed alone."
    )
    return [table, Text(note, style="dim")]


def _seed_rows(study: SeedTables) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """Name, and of each cell value, interval and mark: of every algorithm, then of every difference."""
    for row in study.rows:
        yield row.algorithm, [(cell.value, cell.interval, "") for cell in row.cells]
    for difference in study.differences:
        yield (
            difference.name,
            [(cell.value, cell.interval, " *" if cell.clear else "") for cell in difference.cells],
        )


def _tables(evaluations: Sequence[RecordedEvaluation]) -> "list[RenderableType]":
    positions = max(num_draft_tokens(evaluation.benchmarks) for evaluation in evaluations)
    apart = positions > _MOST_POSITIONS
    several = len(evaluations) > 1
    table = whole_table()
    if several:
        table.add_column("", no_wrap=True)
    table.add_column("", overflow="fold")
    table.add_column("τ [95 % interval]", no_wrap=True)
    if not apart:
        table.add_column(f"accepted at 1…{positions}, %", no_wrap=True)
    table.add_column("speedup", justify="right", no_wrap=True)
    table.add_column("entropy", justify="right", no_wrap=True)
    for evaluation in evaluations:
        rows: list[tuple[str, BenchmarkResult | MeanResult]] = [*evaluation.benchmarks.items(), *means(evaluation)]
        for name, part in rows:
            cells: list[Text | str] = [Text(str(evaluation.algorithm))] if several else []
            # With an algorithm's name, 80 columns have no room for the longer one.
            shown = "average" if several and name == MACRO else name
            cells += [Text(shown), Text(with_interval(part.tau, part.tau_ci95))]
            if not apart:
                cells.append(_percent(part.conditional_acceptance if isinstance(part, BenchmarkResult) else ()))
            entropy = part.target_entropy_nats if isinstance(part, BenchmarkResult) else None
            cells += [times(part.speedup), number(entropy, 2)]
            table.add_row(*cells, style="bold" if name == MACRO else "")
    parts: list[RenderableType] = [table]
    if apart:
        parts += [Text(""), Text(f"Accepted at 1…{positions}, %:")]
        parts += [
            Text(f"  {_algorithm_prefix(evaluation)}{name}: {_percent(part.conditional_acceptance)}")
            for evaluation in evaluations
            for name, part in evaluation.benchmarks.items()
        ]
    note = (
        "τ: tokens per round, bonus included. Accepted at k: given that all before were.\n"
        "Speedup: over plain decoding of the same prompts in this run, batch 1.\n"
        "Entropy: of the target's next token, mean, in nats."
    )
    return [*parts, Text(note, style="dim")]


def _percent(rates: Rates) -> str:
    """Rates as whole percentages, in columns."""
    shown = (f"{100 * rate:.0f}" if rate is not None else NOT_MEASURED for rate in rates)
    return " ".join(f"{text:>2}" for text in shown)


def _algorithm_prefix(part: RecordedEvaluation) -> str:
    """The algorithm in front of what is said of it, where a run has several."""
    return f"{part.algorithm} " if part.algorithm is not None else ""


def _outcome(record: RunRecord) -> "list[RenderableType]":
    verdicts = record.verdicts
    status = Text(record.status.replace("_", " ").capitalize(), style="bold")
    limits = [Text(verdict.limits, style="dim") for verdict in verdicts[:1] if verdict.limits is not None]
    if len(verdicts) <= 1:
        for verdict in verdicts:
            status.append(f": {_sentences(verdict)}", style="not bold")
        return [status, *_against_champion(verdicts), *limits, *map(Text, record.notes)]
    return [
        status,
        *map(Text, record.notes),
        *(Text(f"{verdict.algorithm}: {_sentences(verdict)}") for verdict in verdicts),
        *limits,
    ]


def _against_champion(verdicts: Sequence[Verdict]) -> "list[RenderableType]":
    """Draft and champion side by side, with paired differences; nothing where there was no champion."""
    rows = [row for verdict in verdicts if verdict.champion is not None for row in verdict.comparison]
    if not rows:
        return []
    table = whole_table()
    table.add_column("τ", overflow="fold")
    table.add_column("champion", justify="right", no_wrap=True)
    table.add_column("challenger", justify="right", no_wrap=True)
    table.add_column("difference [95 % interval]", no_wrap=True)
    table.add_column("prompts", justify="right", no_wrap=True)
    for row in rows:
        name = "gate split" if row.name == GATE else row.name
        found = with_interval(row.difference, row.ci95, sign=True)
        table.add_row(Text(name), number(row.champion, 2), number(row.challenger, 2), found, str(row.prompts))
    return [table]


def _sentences(verdict: Verdict) -> str:
    return " ".join(reason.sentence for reason in verdict.reasons)


def _pointers(record: RunRecord, ui_command: str | None) -> "list[RenderableType]":
    lines = []
    for model in record.models:
        aliases = f" ({', '.join(model.aliases)})" if model.aliases else ""
        lines.append(("Model", f"{model.name} version {model.version}{aliases}  {model.uri}"))
    if not lines:
        lines.append(("Model", "nothing was registered"))
    lines.append(("Report", record.report or "none was written"))
    if ui_command:
        lines.append(("MLflow", ui_command))
    # Never broken: paths and commands are there to be copied.
    return [
        Text.assemble((name.ljust(8), "bold"), value.rstrip(), no_wrap=True, overflow="ignore") for name, value in lines
    ]
