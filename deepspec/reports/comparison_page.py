"""One self-contained page about several drafts, evaluated on the same prompts: who is better, where, how surely.

    path = write_comparison(folder, comparison)      # folder/report.html, folder/report.json, folder/plots/*.svg|png

It is made of the sections of run_page.py, each draft's own below what compares them. Not here: paired statistics
(evaluation/compare/drafts.py).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deepspec.evaluation.compare.results import ComparedDraft, Comparison, Difference, Differences, PairedDifference
from deepspec.evaluation.results import BenchmarkResult, GateResult
from deepspec.reports.formatting import MACRO, NOT_MEASURED, interval, number, signed, signed_interval, times
from deepspec.reports.plots import acceptance as plots
from deepspec.reports.plots.drawing import Drawing
from deepspec.reports.rendering import Figures, LabelledFigure, write_page
from deepspec.reports.sections.acceptance import DraftSections, Measured, evaluated, means, several
from deepspec.yaml import dumps

if TYPE_CHECKING:
    from markupsafe import Markup

GATE_SPLIT = "gate split"


@dataclass(frozen=True)
class _Cell:
    value: str
    interval: str


@dataclass(frozen=True)
class _Row:
    name: str
    cells: Sequence[_Cell]


@dataclass(frozen=True)
class _DifferenceCell:
    value: str
    interval: str
    tendency: str
    tone: str
    prompts: str


@dataclass(frozen=True)
class _DifferenceRow:
    name: str
    cells: Sequence[_DifferenceCell]


@dataclass(frozen=True)
class _DifferenceTable:
    names: Sequence[str]
    rows: Sequence[_DifferenceRow]
    drawing: "Markup | None"


@dataclass(frozen=True)
class _Draft:
    name: str
    key: str
    digest: str


@dataclass(frozen=True)
class _DraftPart:
    name: str
    sections: DraftSections


@dataclass(frozen=True)
class _Page:
    """What the template shows."""

    title: str
    comparison_id: str
    recipe_name: str
    recipe: str | None
    names: Sequence[str]
    drafts: Sequence[_Draft]
    lengths: Sequence[_Row]
    speeds: Sequence[_Row]
    differences: _DifferenceTable | None
    positions: Sequence[LabelledFigure]
    parts: Sequence[_DraftPart]


def write_comparison(out_dir: Path, comparison: Comparison) -> Path:
    """Write the page, its figures and its data.

    Args:
        out_dir: made if missing; files of an earlier report in it are replaced.
        comparison: the drafts and how they differ.

    Returns:
        The page's path.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    figures = Figures()
    return write_page(out_dir, "comparison.html.j2", _page(comparison, figures), figures, comparison)


def compared_rows(drafts: Sequence[ComparedDraft]) -> Iterator[tuple[str, list[Measured | None]]]:
    """Label and each draft's part, of every benchmark that one of them has, of domains, all together, and the gate."""
    for name in dict.fromkeys(name for draft in drafts for name in draft.evaluation.benchmarks):
        yield name, [draft.evaluation.benchmarks.get(name) for draft in drafts]
    averages = [dict(means(draft.evaluation)) for draft in drafts]
    for label in dict.fromkeys(label for part in averages for label in part):
        yield label, [part.get(label) for part in averages]
    if any(draft.evaluation.gate is not None for draft in drafts):
        yield GATE_SPLIT, [draft.evaluation.gate for draft in drafts]


def compared_differences(found: Differences) -> dict[str, Difference]:
    """A draft's differences under the labels of `compared_rows`."""
    macro = {MACRO: found.macro} if len(found.benchmarks) > 1 else {}
    gate = {GATE_SPLIT: found.gate} if found.gate is not None else {}
    return {**found.benchmarks, **several(found.domains), **macro, **gate}


def tendency(part: Difference | None) -> str:
    """What an interval says of a difference: "higher", "lower" or "no clear difference"; a dash without one."""
    if part is None or part.ci95 is None:
        return NOT_MEASURED
    low, high = part.ci95
    if low > 0:
        return "higher"
    return "lower" if high < 0 else "no clear difference"


def speedup_of(part: Measured | None) -> float | None:
    """The speedup of a row; None where none is measured."""
    return None if part is None or isinstance(part, GateResult) else part.speedup


def _page(comparison: Comparison, figures: Figures) -> _Page:
    drafts = comparison.drafts
    rows = list(compared_rows(drafts))
    return _Page(
        title=comparison.recipe_name or "draft models",
        comparison_id=comparison.comparison_id,
        recipe_name=comparison.recipe_name,
        recipe=dumps(comparison.recipe),
        names=[draft.name for draft in drafts],
        drafts=[_Draft(draft.name, _key(draft), draft.digest or NOT_MEASURED) for draft in drafts],
        lengths=[_Row(label, [_length(part) for part in parts]) for label, parts in rows],
        speeds=[_Row(label, [_speed(part) for part in parts]) for label, parts in rows if label != GATE_SPLIT],
        differences=_differences(comparison, [label for label, _ in rows], figures),
        positions=figures.labelled(_positions(drafts)),
        parts=[
            _DraftPart(
                draft.name,
                evaluated(draft.evaluation, draft.calibration, draft.samples, figures.part(f"draft-{place}-")),
            )
            for place, draft in enumerate(drafts, start=1)
        ],
    )


def _differences(comparison: Comparison, labels: Sequence[str], figures: Figures) -> _DifferenceTable | None:
    if not comparison.differences:
        return None
    found = {part.name: compared_differences(part) for part in comparison.differences}
    rows = [_DifferenceRow(label, [_difference(parts.get(label)) for parts in found.values()]) for label in labels]
    return _DifferenceTable(list(found), rows, figures.add(plots.differences(labels, found)))


def _key(draft: ComparedDraft) -> str:
    return f"{draft.kind}/{draft.key}" if draft.key else "a directory"


def _length(part: Measured | None) -> _Cell:
    if part is None:
        return _Cell(NOT_MEASURED, NOT_MEASURED)
    return _Cell(number(part.tau, 3), interval(part.tau_ci95))


def _speed(part: Measured | None) -> _Cell:
    bounds = part.speedup_ci95 if isinstance(part, BenchmarkResult) else None
    return _Cell(times(speedup_of(part)), interval(bounds))


def _difference(part: Difference | None) -> _DifferenceCell:
    found = tendency(part)
    return _DifferenceCell(
        value=signed(part.difference if part is not None else None, 3),
        interval=signed_interval(part.ci95 if part is not None else None, 3),
        tendency=found,
        tone={"higher": "good", "lower": "bad"}.get(found, ""),
        prompts=number(part.prompts, 0) if isinstance(part, PairedDifference) else "",
    )


def _positions(drafts: Sequence[ComparedDraft]) -> Iterator[tuple[Drawing | None, str]]:
    """Conditional acceptance by draft position on each benchmark, a line per draft."""
    names = dict.fromkeys(name for draft in drafts for name in draft.evaluation.benchmarks)
    for place, name in enumerate(names, start=1):
        lines = {
            draft.name: draft.evaluation.benchmarks[name].conditional_acceptance
            for draft in drafts
            if name in draft.evaluation.benchmarks
        }
        drawing = plots.acceptance_by_position(lines, "conditional", f"positions-{place}", title=name)
        yield drawing, f"Conditional acceptance by position on {name}"
