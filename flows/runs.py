"""A run of recipes, from a command or from a schedule: their inputs, the flow, further seeds, record and report."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepspec import history
from deepspec.dashboard.publish import publish_dashboard
from deepspec.errors import DeepspecError, RecipeError, TransientError
from deepspec.home import store_of
from deepspec.recipe import Recipe, read_yaml, validated
from deepspec.record import RunRecord
from flows.retrain import retrain
from tasks.runtime import execute
from tasks.runtime.flow import Flow
from tasks.runtime.record import run_record
from tasks.runtime.record.alive import ended_after
from tasks.runtime.record.result import Result

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from tasks.runtime.display import Display


def run_recipes(
    recipes: Sequence[Recipe],
    home: Path,
    display: "Display",
    *,
    name: str,
    num_seeds: int = 1,
    flow: Flow = retrain,
    night: str | None = None,
) -> tuple[Result, RunRecord, Path]:
    """Run recipes, and leave the run's record and report.

    Args:
        recipes: one, or several of different algorithms.
        home: where things are.
        display: shows the stages.
        name: of the run in its record.
        num_seeds: of training, of several recipes.
        flow: what is run of each.
        night: the Prefect deployment that started it.

    Returns:
        how it ended, the record, and where that is; what ended the run early is in the result, not raised.
    """

    def leave_record(result: Result) -> None:
        # The next run adds it to the history: the store may not answer, and the process has to end.
        run_record.write_record(run_record.record_of(result), home)

    store = store_of(home, recipes[0].store.url)
    before = inputs_of(recipes[0])
    after = {}
    if num_seeds > 1:
        from flows.seeds import further_seeds

        after = further_seeds(recipes, num_seeds)
    result = execute.execute(
        flow,
        recipes,
        store,
        home,
        name=name,
        night=night,
        display=display,
        before=before,
        after=after,
        interrupted=leave_record,
    )
    with ended_after(result.run, failed=lambda: result.status == "failed"):
        record, path = _leave(result, home, num_seeds=num_seeds if after else 1)
        history.publish(store.backend, record)
        if result.run.tracking is not None or result.run.on_shared_server:
            from flows.model_page import show_models

            show_models(result.run)
        if result.run.on_shared_server and result.run.alive is not None:
            from flows.outcome_page import show_outcome

            show_outcome(result, record)
        if not isinstance(result.error, TransientError):  # else what does not answer is not waited for once more
            publish_dashboard(store, but=record.run_id)
        return result, record, path


def _leave(result: Result, home: Path, *, num_seeds: int) -> tuple[RunRecord, Path]:
    """Leave a run's record and its report."""
    record = run_record.record_of(result)
    if num_seeds > 1 and result.error is None:
        from flows.seeds import study

        record = record.model_copy(update={"seeds": study(result, num_seeds)})
    run_record.write_record(record, home)
    try:
        record = record.model_copy(update={"report": _report(result, record)})
    except DeepspecError as error:
        # A run that has failed already shows why, and not also that its end could not be recorded.
        if result.error is None:
            raise
        same = type(error) is type(result.error)
        logger.log(logging.DEBUG if same else logging.WARNING, "The end of the run could not be recorded: %s", error)
    record = run_record.with_error(record, result)
    return record, run_record.write_record(record, home)


def check_names_differ(recipes: Sequence[Recipe]) -> None:
    """Each draft of a run is registered, and recorded, under a name of its own."""
    for field, values in (
        ("name", [recipe.name for recipe in recipes]),
        ("draft.algorithm", [recipe.draft.algorithm for recipe in recipes]),
    ):
        if len(set(values)) < len(values):
            raise RecipeError(
                f"{field} = {values[0]!r} cannot be that of every draft in the run.",
                where="--set",
                remedy="Leave it out, or run the one recipe alone.",
            )


def inputs_of(recipe: Recipe) -> list[tuple[Flow, Any]]:
    """The flow that makes a demo recipe's own inputs, with its configuration; none for other recipes."""
    if recipe.inputs is None:
        return []
    from deepspec.demo.config import Config
    from flows.demo_inputs import demo_inputs

    return [(demo_inputs, validated(Config, read_yaml(recipe.inputs), (), where=recipe.inputs))]


def _report(result: Result, record: RunRecord) -> str | None:
    from tasks.runtime.record.run_report import write

    return write(result, record)
