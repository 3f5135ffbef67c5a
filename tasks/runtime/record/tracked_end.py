"""The end of a run in the tracker: its name and note, what it cost, τ, and what its draft was made from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deepspec.evaluation.results import Evaluation
from deepspec.record import RunRecord, RunStatus
from deepspec.registry import keys

if TYPE_CHECKING:
    from deepspec.registry.mlflow.tracking import Status as TrackedStatus
    from deepspec.registry.mlflow.tracking import Tracking
    from deepspec.registry.mlflow.versions import RegisteredVersion

ENDS: Mapping[RunStatus, "TrackedStatus"] = {"failed": "FAILED", "interrupted": "KILLED"}
"""Of a recipe that ended early, what becomes of its run in the tracker; any other is FINISHED."""


@dataclass(frozen=True)
class End:
    """What came of one recipe.

    Attributes:
        model: that it is registered as.
        status: how it ended.
        lineage: stage -> key and digest of what it came to.
        evaluation: of its draft, made or found; None: none.
        version: of its draft; None: none was registered.
    """

    model: str
    status: RunStatus
    lineage: Mapping[str, tuple[str, str]]
    evaluation: Evaluation | None = None
    version: "RegisteredVersion | None" = None


def track_end(tracking: "Tracking", tracking_run: str, record: RunRecord, end: End) -> None:
    """Let a recipe's run in the tracker say what became of it, and end it."""
    from deepspec.registry.mlflow.description import shortened
    from deepspec.reports.run_markdown import summary

    _track_measures(tracking, tracking_run, record, end)
    tags = {
        **keys.lineage_tag(end.lineage),
        keys.STATUS: end.status,
        keys.RUN_ID: record.run_id,
        keys.NOTE: shortened(summary(record, tracking.experiment_id)),
        **({keys.CURRENCY: record.cost.currency} if record.cost.currency is not None else {}),
    }
    version = end.version.version if end.version is not None else None
    name = keys.run_name(end.model, record.run_id, end.status, version)
    if end.status == "promoted" and end.version is not None:
        tracking.name_waiting(end.version)
    tracking.finish(tracking_run, ENDS.get(end.status, "FINISHED"), tags=tags, name=name)


def _track_measures(tracking: "Tracking", tracking_run: str, record: RunRecord, end: End) -> None:
    """τ and cost of a draft: with its run, also where the evaluation was found, and with its version."""
    writer = tracking.writer(tracking_run)
    writer.metrics(keys.cost_metrics(record.cost))
    values = keys.tau_metrics(end.evaluation) if end.evaluation is not None else {}
    values |= keys.version_cost_metrics(record.making_cost) if record.making_cost is not None else {}
    if end.version is None:
        writer.metrics(values)
    elif values:
        tracking.measured(end.version, tracking_run, values)
