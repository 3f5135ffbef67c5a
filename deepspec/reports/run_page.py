"""One self-contained page about one run: what the draft is worth, against whom, made from what, at what cost.

    path = write_report(folder, report)        # folder/report.html, folder/report.json, folder/plots/*.svg|png

The page needs no network and no script (a policy in it forbids both), shows the text of recipes and names escaped, and
says what is missing instead of leaving it out. Every rate stands with the number of rounds it was measured on.
Not here: measuring (evaluation/metrics.py, evaluation/calibration/fit.py) and drawing (plots/acceptance.py).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepspec.evaluation.calibration.results import CalibrationResult
from deepspec.evaluation.config import GATE
from deepspec.evaluation.results import FEWEST_PROMPTS, Evaluation, Number, Sample
from deepspec.gates.verdict import Comparison
from deepspec.record import Cost, RecordedModel, RecordedVerdict, StageEntry
from deepspec.reports.formatting import NOT_MEASURED, number, quantity, signed, signed_interval, spelled
from deepspec.reports.plots import acceptance as plots
from deepspec.reports.rendering import CaptionedFigure, Figures, write_page
from deepspec.reports.sections.acceptance import DraftSections, evaluated
from deepspec.store.records import JsonRecord
from deepspec.yaml import dumps

_CURVES = (
    ("training-loss", re.compile(r"loss"), "loss", "Loss"),
    (
        "training-tau",
        re.compile(r"tau"),
        "tokens per round",
        "Acceptance length: tau is decoded, tau_probabilistic what the loss expects",
    ),
    ("training-acceptance", re.compile(r"accept"), "rate", "Expected conditional acceptance, from the distributions"),
)


class Champion(JsonRecord):
    """The champion that a verdict was measured against.

    Attributes:
        name, version: in the registry; None: it is not known there any more.
        digest: of its artifact.
    """

    name: str
    version: str | None
    digest: str


class TrainingMetric(JsonRecord):
    """One line of the trainer's stream."""

    step: int
    name: str
    value: Number
    unit: str


class Ancestor(JsonRecord):
    """An artifact that the registered draft was made from or measured by."""

    stage: str
    key: str
    digest: str


class RunReport(JsonRecord):
    """What the page about a run, or about one recipe of it, is written from; None: there is nothing to tell.

    Attributes:
        run_id: the run.
        recipe_name, recipe: its name, and the recipe with every default.
        evaluation, calibration, verdict, model: as in the run's record.
        samples: answers with what came of the draft.
        champion: that the verdict was measured against.
        training_metrics: the trainer's stream.
        imported: the draft was trained elsewhere; there is no such stream.
        stages: of this recipe, and those that recipes share.
        lineage: of the registered version.
        cost: of the whole run.
        notes: why a draft is blocked, what was repaired in MLflow.
    """

    run_id: str
    recipe_name: str | None = None
    recipe: dict[str, Any] | None = None
    evaluation: Evaluation | None = None
    calibration: CalibrationResult | None = None
    verdict: RecordedVerdict | None = None
    model: RecordedModel | None = None
    samples: tuple[Sample, ...] | None = None
    champion: Champion | None = None
    training_metrics: tuple[TrainingMetric, ...] | None = None
    imported: bool = False
    stages: tuple[StageEntry, ...] = ()
    lineage: tuple[Ancestor, ...] = ()
    cost: Cost | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _LastValue:
    name: str
    step: int
    value: str
    unit: str


@dataclass(frozen=True)
class _Training:
    figures: Sequence[CaptionedFigure]
    last: Sequence[_LastValue]


@dataclass(frozen=True)
class _Stage:
    name: str
    status: str
    seconds: str
    why: str


@dataclass(frozen=True)
class _Quantity:
    name: str
    value: str


@dataclass(frozen=True)
class _Compared:
    name: str
    prompts: int
    champion: str
    challenger: str
    difference: str
    interval: str


@dataclass(frozen=True)
class _Page:
    """What the template shows."""

    title: str
    run_id: str
    recipe_name: str | None
    recipe: str | None
    model: RecordedModel | None
    verdict: RecordedVerdict | None
    champion: Champion | None
    compared: Sequence[_Compared]
    fewest_prompts: int
    part: DraftSections
    training: _Training | None
    imported: bool
    stages: Sequence[_Stage]
    cost: Sequence[_Quantity]
    lineage: Sequence[Ancestor]
    notes: Sequence[str]


def write_report(out_dir: Path, report: RunReport, *, earlier: Path | None = None) -> Path:
    """Write the page, its figures and its data.

    Args:
        out_dir: made if missing; files of an earlier report in it are replaced.
        report: what it is written from.
        earlier: the folder of another report: figures that would be equal are taken from it.

    Returns:
        The page's path.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    figures = Figures(earlier=None if earlier is None else earlier / "plots")
    return write_page(out_dir, "report.html.j2", _page(report, figures), figures, report)


def _page(report: RunReport, figures: Figures) -> _Page:
    """What the template shows; every figure drawn is added to `figures`."""
    used = report.cost.to_json() if report.cost is not None else {}
    return _Page(
        title=report.recipe_name or "draft model",
        run_id=report.run_id or NOT_MEASURED,
        recipe_name=report.recipe_name,
        recipe=dumps(report.recipe) if report.recipe is not None else None,
        model=report.model,
        verdict=report.verdict,
        champion=_champion(report),
        compared=[_compared(row) for row in report.verdict.comparison] if report.verdict is not None else [],
        fewest_prompts=FEWEST_PROMPTS,
        part=evaluated(report.evaluation, report.calibration, report.samples, figures),
        training=_training(report.training_metrics, figures) if report.training_metrics else None,
        imported=report.imported,
        stages=[_Stage(stage.name, stage.status, number(stage.seconds, 1), stage.why) for stage in report.stages],
        cost=[_Quantity(spelled(name), quantity(name, value)) for name, value in used.items()],
        lineage=report.lineage,
        notes=report.notes,
    )


def _champion(report: RunReport) -> Champion | None:
    """The champion the verdict is bound to, by whatever names are known."""
    if report.champion is not None:
        return report.champion
    digest = report.verdict.champion if report.verdict is not None else None
    return Champion(name="", version=None, digest=digest) if digest is not None else None


def _compared(row: Comparison) -> _Compared:
    return _Compared(
        name="gate split" if row.name == GATE else row.name,
        prompts=row.prompts,
        champion=number(row.champion, 3),
        challenger=number(row.challenger, 3),
        difference=signed(row.difference, 3) if row.difference is not None else NOT_MEASURED,
        interval=signed_interval(row.ci95, 3),
    )


def _training(metrics: Sequence[TrainingMetric], figures: Figures) -> _Training:
    series: dict[str, list[tuple[int, float]]] = {}
    units: dict[str, str] = {}
    for metric in metrics:
        series.setdefault(metric.name, []).append((metric.step, metric.value))
        units[metric.name] = metric.unit
    drawn = []
    for name, pattern, label, title in _CURVES:
        chosen = {metric: points for metric, points in series.items() if pattern.search(metric)}
        drawing = plots.curves(chosen, name, label)
        if drawing is not None:
            thinned = max(plots.thinning(points) for points in chosen.values())
            kept = f" Of long curves one point in {thinned} is drawn." if thinned > 1 else ""
            drawn.append(CaptionedFigure(figures.add(drawing), f"{title}, by training step.{kept}"))
    last = [
        _LastValue(name, points[-1][0], f"{points[-1][1]:.5g}", units[name]) for name, points in sorted(series.items())
    ]
    return _Training(drawn, last)
