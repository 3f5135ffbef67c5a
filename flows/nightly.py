"""The flow that the deployment of a night runs: `deepspec run` with a schedule and pages of its own.

The same recipe, preview, stages and record as from the command line; what a person would read there goes to the flow
run's log. Where things are comes from the worker's environment alone. `flows.nights` makes the deployments.

A flow run is called `MODEL · DATE`, and once it has ended `MODEL · DATE · promoted v7`.
"""

import logging
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID
from zoneinfo import ZoneInfo

import httpx
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.runtime import deployment, flow_run

from deepspec.errors import BudgetExceeded, DeepspecError
from deepspec.home import store_of
from deepspec.progress import SILENT, Progress
from deepspec.recipe import load_recipe
from deepspec.record import RunRecord
from tasks.runtime.prefect.flow import STATES, state_of
from tasks.runtime.prefect.server import named

if TYPE_CHECKING:
    from tasks.runtime.records import StageRecord

_SEPARATOR = " · "

logger = logging.getLogger(__name__)


def name_of(recipe: str = "demo", overrides: list[str] | None = None, timezone: str = "UTC") -> str:
    """What a flow run is called while it runs: the registered model and the day on which the run was due.

    A recipe that cannot be read fails in the flow, and not here. A run that goes on after a person's approval keeps
    its day.
    """
    try:
        model = load_recipe(recipe, overrides or []).registered_model
    except DeepspecError:
        model = Path(recipe).stem
    known = str(flow_run.name or "").split(_SEPARATOR)
    if known[0] == model and len(known) > 1:
        return _SEPARATOR.join(known[:2])
    due = flow_run.scheduled_start_time or datetime.now(UTC)
    return f"{model}{_SEPARATOR}{due.astimezone(ZoneInfo(timezone)):%Y-%m-%d}"


def outcome_of(record: RunRecord) -> str:
    """How a run ended, as it stands in the name of its flow run: `promoted v7`, `no change`, `failed in train`."""
    words = record.status.replace("_", " ")
    if record.failure is not None and record.failure.stage:
        return f"{words} in {record.failure.stage}"
    told = record.models if record.status in ("promoted", "refused", "awaiting_approval") else ()
    return " ".join([words, *(f"v{model.version}" for model in told)])


@flow(name="retrain", flow_run_name=lambda: name_of(**flow_run.parameters), log_prints=False)
def retrain(recipe: str = "demo", overrides: list[str] | None = None, timezone: str = "UTC") -> State[Any]:
    """Retrain, judge and ship one draft.

    Args:
        recipe: a shipped recipe's name, or the path of a YAML file that the worker can read.
        overrides: `field=value`, as after `--set`.
        timezone: of the day in the flow run's name.

    Returns:
        a completed state that is called by the outcome: Promoted, Refused, NoChange, or BudgetExhausted; its message
        says why. Where a person has to approve, the flow run is suspended, and goes on here when it is resumed. Cache
        policy: the artifact store's keys; a stage whose artifact is there ends as Cached. Requires: DEEPSPEC_STORE,
        MLFLOW_TRACKING_URI and what they need in the worker's environment, and DEEPSPEC_HOME for what a killed run is
        resumed from.

    Raises:
        DeepspecError: a stage failed; what was finished is kept, and the next run goes on from there.
    """
    from deepspec.reports.run_markdown import sentence
    from flows import approval
    from flows.runs import run_recipes

    home = Path(os.environ.get("DEEPSPEC_HOME", ".deepspec")).absolute()
    os.environ["DEEPSPEC_HOME"] = str(home)
    base = name_of(recipe, overrides, timezone)
    loaded = load_recipe(recipe, overrides or [])
    given = approval.approved()
    if given is not None:
        state = approval.promote(given, home, store_of(home, loaded.store.url))
        status = next(status for status, (name, _) in STATES.items() if name == state.name)
        _call(base, f"{status.replace('_', ' ')} v{given.version.rpartition('/')[2]}")
        return state
    result, record, _ = run_recipes([loaded], home, LogDisplay(), name=loaded.name, night=deployment.name)
    _call(base, outcome_of(record))
    if result.error is not None and not isinstance(result.error, BudgetExceeded):
        raise result.error
    if result.status == "awaiting_approval":
        approval.wait_for_person(record, loaded.gates.approval_hours)
    why = (*record.notes, *([record.error] if record.error else []))
    return state_of(result.status, " ".join((f"{sentence(record)}.", *why)))


def _call(base: str, outcome: str) -> None:
    """Put how a flow run ended behind its name; a server that does not answer is no reason for the run to fail."""
    if flow_run.id is None:
        return
    try:
        with get_client(sync_client=True) as client:
            client.update_flow_run(UUID(flow_run.id), name=f"{base}{_SEPARATOR}{outcome}")
    except (httpx.HTTPError, RuntimeError) as error:
        logger.warning("The flow run keeps its name: %s", named(error) or error)


class LogDisplay:
    """Stages as lines of the flow run's log."""

    def stage(self, name: str) -> Progress:
        """A stage begins; its progress is an artifact of its own."""
        get_run_logger().info("%s begins", name)
        return SILENT

    def done(self, record: "StageRecord") -> None:
        """A stage has ended."""
        from tasks.runtime.records import line_of

        level = logging.ERROR if record.status == "failed" else logging.INFO
        get_run_logger().log(level, "%s", line_of(record))

    def say(self, text: str) -> None:
        """A line for the reader."""
        get_run_logger().info("%s", text)
