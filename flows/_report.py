"""The report of a run: gathered from its artifacts, written into the run's folder and logged with the tracker."""

import json
from collections.abc import Mapping
from typing import Any

from deepspec.registry import keys
from deepspec.registry.promotions import PromotionLog
from deepspec.registry.tracking import Status
from deepspec.store import Artifact
from deepspec.store.gc import lineage
from flows._execute import Result
from tasks._stage import Reference

_ENDS: Mapping[str, Status] = {"failed": "FAILED"}


def write(result: Result, record: Mapping[str, Any]) -> str | None:
    """Write the page, log it, and end the tracker's run; return the page's path, or None if nothing was evaluated."""
    run = result.run
    page = None
    if record["evaluation"] and result.error is None:
        from deepspec.evaluation.report import write_report

        page = write_report(run.folder / "report", _data(result, record))
    if run.tracking is not None and run.tracking_run is not None:
        if page is not None:
            run.tracking.writer(run.tracking_run).artifact(page.parent, "report")
        outcome = {name: item for name, item in result.outcome.items() if isinstance(item, Artifact)}
        tags = keys.artifact_tags({item.kind: (item.key, item.digest) for item in outcome.values()})
        run.tracking.finish(
            run.tracking_run, _ends(result), tags={**tags, keys.STATUS: result.status, keys.RUN_ID: run.run_id}
        )
    return str(page) if page is not None else None


def _ends(result: Result) -> Status:
    if isinstance(result.error, KeyboardInterrupt):
        return "KILLED"
    return _ENDS.get(result.status, "FINISHED")


def _data(result: Result, record: Mapping[str, Any]) -> dict[str, Any]:
    """What the page shows, in the form that `write_report` takes."""
    run = result.run
    return {
        "run_id": record["run_id"],
        "recipe_name": record["recipe"],
        "recipe": run.recipe.model_dump(mode="json"),
        "evaluation": record["evaluation"],
        "calibration": record["calibration"],
        "verdict": record["verdict"],
        "champion": _champion(result, record),
        "training_metrics": _training(result.outcome.get("draft")),
        "stages": record["stages"],
        "lineage": _lineage(result),
        "model": record["model"],
        "cost": record["cost"],
    }


def _champion(result: Result, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """The champion that the verdict was measured against, by its name in the registry."""
    digest = (record["verdict"] or {}).get("champion")
    if digest is None:
        return None
    name = record["recipe"]
    entries = PromotionLog(result.run.store.backend).history(name)
    version = next((entry.champion.version for entry in entries if entry.champion.digest == digest), None)
    return {"name": name, "version": version, "digest": digest}


def _training(draft: Reference | None) -> list[dict[str, Any]] | None:
    if not isinstance(draft, Artifact):
        return None
    lines = draft.path("metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _lineage(result: Result) -> list[dict[str, str]]:
    registration = result.outcome.get("registration")
    if not isinstance(registration, Artifact):
        return []
    found = lineage(result.run.store, registration)
    return [{"stage": item.kind, "key": item.key, "digest": item.digest} for item in found]
