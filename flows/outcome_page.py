"""What became of a run, on the page of its flow run: a summary with the verdict, and tags to filter by.

Only on a Prefect server that people have; the temporary one ends with the run.
"""

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING
from uuid import UUID

import httpx

from deepspec.errors import DeepspecError
from deepspec.reports.run_markdown import summary
from flows.waiting import AWAITING, try_to_supersede
from tasks.runtime.prefect.server import named

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

    from deepspec.record import RunRecord, RunStatus
    from tasks.runtime.record.result import Result

logger = logging.getLogger(__name__)

_STATUS = "status:"
_CHANGING = (_STATUS, "verdict:", AWAITING)
"""What tags begin with that say how a flow run stands now."""


def show_outcome(result: "Result", record: "RunRecord") -> None:
    """Show a run's outcome on its flow runs' pages, and end those that its outcome supersedes.

    A server that does not answer is no reason for a run to fail that has ended: it is warned of.
    """
    flow_runs = [] if result.run.alive is None else result.run.alive.flow_runs
    try:
        show_on(flow_runs, record, _experiment(result))
    except (httpx.HTTPError, RuntimeError) as error:
        logger.warning("What became of the run is not on Prefect's page: %s", named(error) or error)
    for part in result.parts:
        if part.status in ("promoted", "awaiting_approval"):
            model, became = part.recipe.registered_model, part.status.replace("_", " ")
            try_to_supersede(model, f"Run {record.run_id} of {record.recipe}: {became}.", but=flow_runs)


def _experiment(result: "Result") -> str | None:
    """The id of the tracker's experiment, where the run was tracked."""
    try:
        return None if result.run.tracking is None else result.run.tracking.experiment_id
    except DeepspecError:  # links are the shorter for it
        return None


def show_on(flow_runs: Iterable[str], record: "RunRecord", experiment: str | None = None) -> None:
    """Show a run's outcome on these flow runs' pages.

    Args:
        flow_runs: their ids.
        record: the run's.
        experiment: id of the MLflow experiment that its runs there are in; None: not known.

    Raises:
        httpx.HTTPError, RuntimeError: Prefect's server refuses, or does not answer.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import ArtifactCreate

    with get_client(sync_client=True) as client:
        for flow_run in map(UUID, flow_runs):
            _retag(client, flow_run, _CHANGING, tags_of(record))
            client.create_artifact(
                ArtifactCreate(
                    key="retrain-summary",
                    type="markdown",
                    description=f"What became of {record.recipe}.",
                    data=summary(record, experiment),
                    flow_run_id=flow_run,
                )
            )


def show_status(flow_run: UUID, status: "RunStatus") -> None:
    """Tag a flow run that has waited for a person with how it ended."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        _retag(client, flow_run, (_STATUS, AWAITING), [f"{_STATUS}{status}"])


def _retag(client: "SyncPrefectClient", flow_run: UUID, instead_of: tuple[str, ...], tags: Iterable[str]) -> None:
    kept = [tag for tag in client.read_flow_run(flow_run).tags if not tag.startswith(instead_of)]
    client.update_flow_run(flow_run, tags=sorted({*kept, *tags}))


def tags_of(record: "RunRecord") -> list[str]:
    """What flow runs of this outcome are found by."""
    tags = [f"{_STATUS}{record.status}"]
    tags += [f"verdict:{'accepted' if verdict.accepted else 'refused'}" for verdict in record.verdicts]
    for model in record.models:
        tags += [f"model:{model.name}", f"version:{model.name}/{model.version}"]
        tags += [f"{AWAITING}{model.name}"] if record.status == "awaiting_approval" else []
    return sorted(set(tags))
