"""The report of a run: gathered from its artifacts, written into the run's folder and logged with the tracker."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from deepspec.errors import ArtifactError, DeepspecError
from deepspec.evaluation.results import Sample
from deepspec.record import RecordedVerdict, RunRecord
from deepspec.registry.identity import IMPORTED
from deepspec.store import Artifact
from deepspec.store.gc import lineage
from tasks.runtime.record.result import RecipeRun, Result
from tasks.runtime.record.run_record import read_record, results_of
from tasks.runtime.record.tracked_end import ENDS, End, track_end
from tasks.runtime.references import Reference

if TYPE_CHECKING:
    from deepspec.reports.run_page import Ancestor, Champion, RunReport, TrainingMetric

SAMPLES = "samples.json"


def write(result: Result, record: RunRecord) -> str | None:
    """Write the page, log it, and end the tracker's runs.

    Returns:
        the page's path: of several recipes the overview's, which leads to a page each; None if nothing was evaluated.
        Of a run without news that of the last run in this home with the same results; None if there is none.
    """
    folder = result.run.folder / "report"
    made = any(stage.status in ("ran", "rebuilt") for stage in record.stages)
    if result.error is None and not made and not any(part.repaired for part in result.parts):
        for part in result.parts:  # it may have begun there, and then found what another run was just making
            _end_tracked(result, part, record)
        return _report_of_the_same(result, record)
    if len(result.parts) == 1:
        page = _write_part(result, result.parts[0], record, folder)
        return str(page) if page is not None else None
    for part in result.parts:
        _write_part(result, part, record, folder / part.recipe.draft.algorithm)
    return write_overview_of(result, record)


def write_overview_of(result: Result, record: RunRecord) -> str | None:
    """Write the page that leads to the reports of a run's several recipes; None if none of them has one."""
    folder = result.run.folder / "report"
    algorithms = [part.recipe.draft.algorithm for part in result.parts]
    pages = {name: f"{name}/report.html" for name in algorithms if (folder / name / "report.html").is_file()}
    if not pages:
        return None
    from deepspec.reports.overview_page import write_overview

    return str(write_overview(folder, record, pages))


def _report_of_the_same(result: Result, record: RunRecord) -> str | None:
    """The page of the newest run in this home that has come to the same."""
    results = _results_in(record)
    for earlier in _records(result.run.home, but=record.run_id):
        if earlier.report is not None and _results_in(earlier) == results and Path(earlier.report).is_file():
            return earlier.report
    return None


def _results_in(record: RunRecord) -> set[tuple[str, str]]:
    return {(stage.kind, stage.key) for stage in record.stages if stage.kind in ("train", "evaluate", "gate")}


def _records(home: Path, *, but: str) -> Iterator[RunRecord]:
    """The records of a home's runs, newest first."""
    for other in sorted((home / "runs").iterdir(), reverse=True):  # a run's id begins with its time
        try:
            record = None if other.name == but else read_record(home, other.name)
        except ArtifactError:  # a newer deepspec's
            continue
        if record is not None:
            yield record


def _write_part(result: Result, part: RecipeRun, record: RunRecord, folder: Path) -> Path | None:
    run = result.run
    page = None
    report: RunReport | None = None
    try:
        report = _report(result, part, record) if part.status not in ENDS else None
    except DeepspecError as error:  # the run itself is done; its tracker's run has to end, too
        result.error = result.error or error
    if report is not None and report.evaluation is not None:
        from deepspec.reports.run_page import write_report

        page = write_report(folder, report, earlier=_earlier(folder, run.folder, run.home))
    if run.tracking is not None and part.tracking_run is not None and page is not None:
        run.tracking.writer(part.tracking_run).artifact(page.parent, "report")
    _end_tracked(result, part, record)
    return page


def _end_tracked(result: Result, part: RecipeRun, record: RunRecord) -> None:
    """End a recipe's run in the tracker, if it has one."""
    if result.run.tracking is None or part.tracking_run is None:
        return
    outcome = [item for item in part.outcome.values() if isinstance(item, Artifact)]
    end = End(
        model=part.recipe.registered_model,
        status=part.status,
        lineage={item.kind: (item.key, item.digest) for item in outcome},
        evaluation=results_of(result, part).evaluation,
        version=part.version,
    )
    track_end(result.run.tracking, part.tracking_run, record, end)


def _earlier(folder: Path, run_folder: Path, home: Path) -> Path | None:
    """The same report of the last run whose record says that it has one; figures that would be equal are its."""
    where = folder.relative_to(run_folder)
    for record in _records(home, but=run_folder.name):
        folder = run_folder.parent / record.run_id / where
        if record.report is not None and folder.is_dir():
            return folder
    return None


def _report(result: Result, part: RecipeRun, record: RunRecord) -> "RunReport":
    """What the page is written from."""
    from deepspec.reports.run_page import RunReport

    found = results_of(result, part)
    whose = (None, part.recipe.draft.algorithm)
    return RunReport(
        run_id=record.run_id,
        recipe_name=part.recipe.name,
        recipe=part.recipe.model_dump(mode="json"),
        evaluation=found.evaluation,
        calibration=found.calibration,
        verdict=found.verdict,
        model=found.model,
        samples=samples_of(part.outcome.get("evaluation")),
        champion=_champion(result, part, found.verdict),
        training_metrics=_training(part.outcome.get("draft")),
        imported=_is_imported(part.outcome.get("draft")),
        stages=tuple(stage for stage in record.stages if stage.algorithm in whose),
        lineage=_lineage(result, part),
        cost=record.cost,
        notes=part.notes,
    )


def samples_of(evaluation: Reference | None) -> tuple[Sample, ...] | None:
    """Answers token by token, with what came of the draft; None of an evaluation that kept none."""
    if not isinstance(evaluation, Artifact) or all(entry.path != SAMPLES for entry in evaluation.manifest.files):
        return None
    where = f"{evaluation.kind}/{evaluation.key[:12]}/{SAMPLES}"
    return tuple(Sample.from_json(one, where=where) for one in evaluation.json(SAMPLES))


def _champion(result: Result, part: RecipeRun, verdict: RecordedVerdict | None) -> "Champion | None":
    """The champion that the verdict was measured against, by its name in the registry."""
    from deepspec.reports.run_page import Champion

    if verdict is None or verdict.champion is None:
        return None
    name = part.recipe.registered_model
    entries = result.run.promotions.history(name)
    version = next((entry.champion.version for entry in entries if entry.champion.digest == verdict.champion), None)
    return Champion(name=name, version=version, digest=verdict.champion)


def _is_imported(draft: Reference | None) -> bool:
    return isinstance(draft, Artifact) and draft.kind == IMPORTED


def _training(draft: Reference | None) -> "tuple[TrainingMetric, ...] | None":
    from deepspec.reports.run_page import TrainingMetric

    if not isinstance(draft, Artifact) or _is_imported(draft):
        return None
    lines = draft.path("metrics.jsonl").read_text(encoding="utf-8").splitlines()
    where = f"{draft.kind}/{draft.key[:12]}/metrics.jsonl"
    return tuple(TrainingMetric.from_json(json.loads(line), where=where) for line in lines)


def _lineage(result: Result, part: RecipeRun) -> "tuple[Ancestor, ...]":
    from deepspec.reports.run_page import Ancestor

    registration = part.outcome.get("registration")
    if not isinstance(registration, Artifact):
        return ()
    found = lineage(registration, result.run.find)
    return tuple(Ancestor(stage=item.kind, key=item.key, digest=item.digest) for item in found)
