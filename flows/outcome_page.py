"""What became of a run, on the page of its flow run: a summary with the verdict, and tags to filter by.

Only on a Prefect server that people have; the temporary one ends with the run.
"""

import logging
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING
from uuid import UUID

import httpx

from deepspec.gates.verdict_text import verdict_lines
from deepspec.reports.formatting import number, times
from deepspec.store.backends.s3_location import shown
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
        _show(flow_runs, record)
    except (httpx.HTTPError, RuntimeError) as error:
        logger.warning("What became of the run is not on Prefect's page: %s", named(error) or error)
    for part in result.parts:
        if part.status in ("promoted", "awaiting_approval"):
            model, became = part.recipe.registered_model, part.status.replace("_", " ")
            try_to_supersede(model, f"Run {record.run_id} of {record.recipe}: {became}.", but=flow_runs)


def sentence(record: "RunRecord") -> str:
    """A run's draft and how the run ended, in a few words."""
    version = next((f"{model.name} version {model.version}" for model in record.models), record.recipe)
    return f"{version}: {record.status.replace('_', ' ')}"


def _show(flow_runs: Iterable[str], record: "RunRecord") -> None:
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
                    data=summary(record),
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


def summary(record: "RunRecord") -> str:
    """The record's essentials as Markdown: the verdict with both drafts, acceptance, stages, where to look."""
    lines = [f"# {sentence(record)}", "", *(f"{note}\n" for note in record.notes)]
    for verdict in record.verdicts:
        lines += verdict_lines(verdict)
    lines += ["## Acceptance and speed", "", "| benchmark | τ | speedup |", "|---|---|---|"]
    for evaluation in record.evaluations:
        measured = {**evaluation.benchmarks, "mean": evaluation.macro}
        rows = ((name, part) for name, part in measured.items() if part is not None)
        lines += [f"| {name} | {number(part.tau, 2)} | {times(part.speedup)} |" for name, part in rows]
    lines += ["", "## Stages", "", "| stage | status | seconds | why |", "|---|---|---|---|"]
    lines += [f"| {s.name} | {s.status} | {s.seconds:.1f} | {s.why} |" for s in record.stages]
    return "\n".join([*lines, "", *_links(record)])


def _links(record: "RunRecord") -> list[str]:
    server = os.environ.get("MLFLOW_TRACKING_URI", "")
    lines = []
    for model in record.models:
        place = f"/#/models/{model.name}/versions/{model.version}"
        link = f" — [in MLflow]({shown(server)}{place})" if server.startswith("http") else ""
        lines.append(f"* `{model.uri}`{link}")
    return [*lines, *([f"* report: `{record.report}`"] if record.report else [])]
