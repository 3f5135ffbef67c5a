"""The flow that a Prefect deployment runs (infra/prefect.yaml): `deepspec run` with a schedule and pages of its own.

The same recipe, preview, stages and record as from the command line; what a person would read there goes to the flow
run's log. Where things are comes from the worker's environment alone.
"""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.runtime import deployment, flow_run

from deepspec.errors import BudgetExceeded, DeepspecError
from deepspec.home import store_of
from deepspec.progress import SILENT, Progress
from deepspec.recipe import load_recipe
from tasks.runtime.prefect.flow import state_of

if TYPE_CHECKING:
    from tasks.runtime.records import StageRecord


def name_of(recipe: str = "demo", overrides: list[str] | None = None) -> str:
    """What a flow run is called: the recipe's name; a recipe that cannot be read fails in the flow, and not here."""
    try:
        return load_recipe(recipe, overrides or []).name
    except DeepspecError:
        return Path(recipe).stem


@flow(name="retrain", flow_run_name=lambda: name_of(**flow_run.parameters), log_prints=False)
def retrain(recipe: str = "demo", overrides: list[str] | None = None) -> State[Any]:
    """Retrain, judge and ship one draft.

    Args:
        recipe: a shipped recipe's name, or the path of a YAML file that the worker can read.
        overrides: `field=value`, as after `--set`.

    Returns:
        a completed state that is called by the outcome: Promoted, Refused, NoChange, or BudgetExhausted if nothing was
        begun. Where a person has to approve, the flow run is suspended, and goes on here when it is resumed. Cache
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
    loaded = load_recipe(recipe, overrides or [])
    given = approval.approved()
    if given is not None:
        return approval.promote(given, home, store_of(home, loaded.store.url))
    result, record, _ = run_recipes([loaded], home, LogDisplay(), name=loaded.name, night=deployment.name)
    if result.error is not None and not isinstance(result.error, BudgetExceeded):
        raise result.error
    if result.status == "awaiting_approval":
        approval.wait_for_person(record, loaded.gates.approval_hours)
    return state_of(result.status, sentence(record))


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
