"""One small page about a run of several algorithms: their results side by side, and a link to each one's own report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deepspec.evaluation.compare.results import SeedDifference, SeedStudy, SeedTau
from deepspec.evaluation.results import BenchmarkResult, Evaluation, MeanResult
from deepspec.record import RunRecord
from deepspec.reports.formatting import MACRO, interval, number, signed, times
from deepspec.reports.rendering import render


@dataclass(frozen=True)
class SeedCell:
    """Mean τ over seeds, its interval, and each seed's own."""

    value: str
    interval: str
    by_seed: str


@dataclass(frozen=True)
class SeedRow:
    """An algorithm over seeds, and what its trainings took."""

    algorithm: str
    cells: Sequence[SeedCell]
    cpu: str
    steps: str
    epochs: str


@dataclass(frozen=True)
class DifferenceCell:
    """A paired difference; `clear` where its interval leaves out 0."""

    value: str
    interval: str
    clear: bool


@dataclass(frozen=True)
class DifferenceRow:
    """One algorithm against another."""

    name: str
    cells: Sequence[DifferenceCell]


@dataclass(frozen=True)
class SeedTables:
    """A study over seeds as text."""

    seeds: str
    columns: Sequence[str]
    prompts: str
    rows: Sequence[SeedRow]
    differences: Sequence[DifferenceRow]


@dataclass(frozen=True)
class _Row:
    name: str
    tau: str
    interval: str
    speedup: str


@dataclass(frozen=True)
class _AlgorithmPart:
    algorithm: str
    page: str
    rows: Sequence[_Row]


@dataclass(frozen=True)
class _Page:
    """What the template shows."""

    title: str
    run_id: str
    status: str
    parts: Sequence[_AlgorithmPart]
    study: SeedTables | None


def write_overview(out_dir: Path, record: RunRecord, pages: Mapping[str, str]) -> Path:
    """Write the page.

    Args:
        out_dir: existing folder.
        record: of a run of several recipes.
        pages: algorithm -> its report, relative to `out_dir`.

    Returns:
        The page's path.
    """
    page = out_dir / "report.html"
    content = _Page(
        title=record.recipe,
        run_id=record.run_id,
        status=record.status,
        parts=[
            _AlgorithmPart(part.algorithm, pages[part.algorithm], _rows(part))
            for part in record.evaluations
            if part.algorithm is not None and part.algorithm in pages
        ],
        study=over_seeds(record.seeds),
    )
    page.write_text(render("overview.html.j2", content), encoding="utf-8")
    return page


def over_seeds(study: SeedStudy | None) -> SeedTables | None:
    """The table over seeds, and the paired differences, as text; None for a run with one seed."""
    if study is None:
        return None
    columns = [*study.prompts, "macro"]
    rows = [
        SeedRow(
            algorithm=algorithm,
            cells=[_seed_cell(part[name]) for name in columns],
            cpu=number(sum(study.budget[algorithm].cpu_seconds), 0),
            steps=number(max(study.budget[algorithm].steps), 0),
            epochs=number(study.budget[algorithm].epochs, 0),
        )
        for algorithm, part in study.tau.items()
    ]
    return SeedTables(
        seeds=", ".join(map(str, study.seeds)),
        columns=[MACRO if name == "macro" else name for name in columns],
        prompts=", ".join(f"{count} of {name}" for name, count in study.prompts.items()),
        rows=rows,
        differences=[
            DifferenceRow(
                f"{pair.of} \N{MINUS SIGN} {pair.against}",
                [_difference_cell(pair.benchmarks[name]) for name in columns],
            )
            for pair in study.differences
        ],
    )


def _seed_cell(part: SeedTau) -> SeedCell:
    return SeedCell(number(part.tau, 2), interval(part.ci95), " ".join(number(tau, 2) for tau in part.by_seed))


def _difference_cell(part: SeedDifference) -> DifferenceCell:
    clear = part.ci95 is not None and (part.ci95[0] > 0 or part.ci95[1] < 0)
    return DifferenceCell(signed(part.difference, 2), interval(part.ci95), clear=clear)


def _rows(evaluation: Evaluation) -> list[_Row]:
    macro = {MACRO: evaluation.macro} if evaluation.macro is not None else {}
    parts: dict[str, BenchmarkResult | MeanResult] = {**evaluation.benchmarks, **macro}
    return [
        _Row(name, number(part.tau, 3), interval(part.tau_ci95), times(part.speedup)) for name, part in parts.items()
    ]
