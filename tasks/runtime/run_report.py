"""The report of a run: gathered from its artifacts, written into the run's folder and logged with the tracker."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepspec.errors import DeepspecError
from deepspec.registry import keys
from deepspec.registry.mlflow.tracking import Status
from deepspec.registry.promotions import PromotionLog
from deepspec.store import Artifact
from deepspec.store.gc import lineage
from tasks.runtime.references import Reference
from tasks.runtime.result import Part, Result
from tasks.runtime.run_record import part_json

SAMPLES = "samples.json"


def write(result: Result, record: Mapping[str, Any]) -> str | None:
    """Write the page, log it, and end the tracker's runs.

    Returns:
        the page's path: of several recipes the overview's, which leads to a page each; None if nothing was evaluated.
    """
    folder = result.run.folder / "report"
    if len(result.parts) == 1:
        page = _write_part(result, result.parts[0], record, folder)
        return str(page) if page is not None else None
    for part in result.parts:
        _write_part(result, part, record, folder / part.recipe.draft.algorithm)
    return write_overview_of(result, record)


def write_overview_of(result: Result, record: Mapping[str, Any]) -> str | None:
    """Write the page that leads to the reports of a run's several recipes; None if none of them has one."""
    folder = result.run.folder / "report"
    algorithms = [part.recipe.draft.algorithm for part in result.parts]
    pages = {name: f"{name}/report.html" for name in algorithms if (folder / name / "report.html").is_file()}
    if not pages:
        return None
    from deepspec.reports.overview_page import write_overview

    return str(write_overview(folder, record, pages))


def _write_part(result: Result, part: Part, record: Mapping[str, Any], folder: Path) -> Path | None:
    run = result.run
    page = None
    try:
        data = _data(result, part, record) if part.status != "failed" else {}
    except DeepspecError as error:  # the run itself is done; its tracker's run has to end, too
        result.error, data = result.error or error, {}
    if data.get("evaluation"):
        from deepspec.reports.run_page import write_report

        page = write_report(folder, data, earlier=_earlier(folder, run.folder))
    if run.tracking is not None and part.tracking_run is not None:
        if page is not None:
            run.tracking.writer(part.tracking_run).artifact(page.parent, "report")
        outcome = {name: item for name, item in part.outcome.items() if isinstance(item, Artifact)}
        tags = keys.artifact_tags({item.kind: (item.key, item.digest) for item in outcome.values()})
        tags |= {keys.STATUS: part.status, keys.RUN_ID: run.run_id}
        if "currency" in record["cost"]:
            tags[keys.CURRENCY] = str(record["cost"]["currency"])
        run.tracking.writer(part.tracking_run).metrics(keys.cost_metrics(record["cost"]))
        run.tracking.finish(part.tracking_run, _ends(result, part), tags=tags)
    return page


def _earlier(folder: Path, run_folder: Path) -> Path | None:
    """The same report of the run before."""
    where = folder.relative_to(run_folder)
    others = [other for other in run_folder.parent.glob(f"*/{where}") if other != folder]
    return max(others, default=None)  # a run's id begins with its time


def _ends(result: Result, part: Part) -> Status:
    if part.status != "failed":
        return "FINISHED"
    return "KILLED" if isinstance(result.error, KeyboardInterrupt) else "FAILED"


def _data(result: Result, part: Part, record: Mapping[str, Any]) -> dict[str, Any]:
    """What the page shows, in the form that `write_report` takes."""
    content = part_json(result, part)
    whose = (None, part.recipe.draft.algorithm)
    return {
        "run_id": record["run_id"],
        "recipe_name": part.recipe.name,
        "recipe": part.recipe.model_dump(mode="json"),
        **content,
        "samples": samples_of(part.outcome.get("evaluation")),
        "champion": _champion(result, part, content["verdict"]),
        "training_metrics": _training(part.outcome.get("draft")),
        "stages": [stage for stage in record["stages"] if stage.get("algorithm") in whose],
        "lineage": _lineage(result, part),
        "cost": record["cost"],
    }


def samples_of(evaluation: Reference | None) -> list[dict[str, Any]] | None:
    """Answers token by token, with what came of the draft; None of an evaluation that kept none."""
    if not isinstance(evaluation, Artifact) or all(entry.path != SAMPLES for entry in evaluation.manifest.files):
        return None
    return list(evaluation.json(SAMPLES))


def _champion(result: Result, part: Part, verdict: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The champion that the verdict was measured against, by its name in the registry."""
    digest = (verdict or {}).get("champion")
    if digest is None:
        return None
    name = part.recipe.name
    entries = PromotionLog(result.run.store.backend).history(name)
    version = next((entry.champion.version for entry in entries if entry.champion.digest == digest), None)
    return {"name": name, "version": version, "digest": digest}


def _training(draft: Reference | None) -> list[dict[str, Any]] | None:
    if not isinstance(draft, Artifact):
        return None
    lines = draft.path("metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _lineage(result: Result, part: Part) -> list[dict[str, str]]:
    registration = part.outcome.get("registration")
    if not isinstance(registration, Artifact):
        return []
    found = lineage(registration, result.run.artifact)
    return [{"stage": item.kind, "key": item.key, "digest": item.digest} for item in found]
