"""Previewing a run: the flow is called, and each stage is only looked up."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepspec.errors import BudgetExceeded, DeepspecError
from deepspec.store import Store
from tasks.runtime.flow import Flow, Outcome, Status
from tasks.runtime.record.result import Steps
from tasks.runtime.records import StageRecord
from tasks.runtime.run import Run

if TYPE_CHECKING:
    from deepspec.recipe import Recipe


@dataclass(frozen=True)
class Preview:
    """What a run would do now: its stages, each `hit`, `would_run` or `skipped`, and what the flow returned."""

    records: list[StageRecord]
    outcome: Outcome

    @property
    def all_found(self) -> bool:
        """Whether there is nothing to do."""
        return all(record.status in ("hit", "skipped") for record in self.records)


def preview(run: Run[Any], flow: Flow) -> Preview:
    """Look at every stage of a flow; what is found is known to `run` from then on."""
    looking = run.preview()
    outcome = flow(looking)
    return Preview(looking.records, outcome)


def preview_all(flow: Flow, recipes: "Sequence[Recipe]", store: Store, home: Path, *, before: Steps) -> Preview:
    """The run that `execute` would make of the same arguments; nothing is written.

    Returns:
        its stages, and what it would decide, as far as that is known by now: the status is that of a run without news,
        or one that its budget forbids.
    """
    run: Run[Any] = Run(recipes[0], store, home, dry=True)
    notes: list[str] = []
    statuses: list[Status | None] = []
    for step, recipe in [*before, *((flow, recipe) for recipe in recipes)]:
        run.begin(recipe, algorithm_among(recipes, recipe))
        looked = preview(run, step)
        notes += looked.outcome.notes
        if recipe in recipes:
            over = _over_budget(run, looked)
            notes += [over] if over else []
            statuses.append("budget_exhausted" if over else looked.outcome.status if looked.all_found else None)
        for record in looked.records:
            run.record(record)
    status = statuses[0] if len(set(statuses)) == 1 else None
    return Preview(run.records, Outcome({}, status, tuple(notes)))


def _over_budget(run: Run[Any], looked: Preview) -> str | None:
    """Why the run would be refused by its budget; None: it would not, or has none."""
    from deepspec.planning.budget import refuse

    if run.recipe.budget == type(run.recipe.budget)():
        return None
    try:
        refuse(run.recipe, run.home, looked.records)
    except BudgetExceeded as error:
        return str(error)
    except DeepspecError:
        return None  # the run itself says it better
    return None


def algorithm_among(recipes: "Sequence[Recipe]", recipe: Any) -> str | None:
    """Whose the stages of a recipe are, where a run makes the drafts of several; None for inputs."""
    return str(recipe.draft.algorithm) if len(recipes) > 1 and recipe in recipes else None
