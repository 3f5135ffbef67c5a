"""Planning a run: the flow is called, and each stage is only looked up."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepspec.inputs import local
from deepspec.store import Store
from tasks.runtime.display import Display, Sayings
from tasks.runtime.records import StageRecord
from tasks.runtime.result import Flow, Steps
from tasks.runtime.run import Run

if TYPE_CHECKING:
    from deepspec.recipe import Recipe


def plan_all(flow: Flow, recipes: "Sequence[Recipe]", store: Store, home: Path, *, before: Steps) -> list[StageRecord]:
    """The stages of the run that `execute` would make of the same arguments; nothing is written."""
    run: Run[Any] = Run(recipes[0], store, home, plan=True, dry=True)
    for step, recipe in [*before, *((flow, recipe) for recipe in recipes)]:
        run.algorithm = algorithm_among(recipes, recipe)
        for record in plan(step, recipe, store, home).records:
            run.record(record)
    return run.records


def plan(flow: Flow, recipe: Any, store: Store, home: Path, *, display: Display | None = None) -> Run[Any]:
    """What a run would do now: its stages, each `hit` or `would_run`.

    Args:
        flow, recipe, store, home: see `execute`.
        display: of the run that follows; None: none does, and nothing is written.
    """
    run = Run(local(recipe, home), store, home, plan=True, dry=display is None)
    if display is not None:
        run.display = Sayings(display)
    run.outcome = flow(run)
    return run


def algorithm_among(recipes: "Sequence[Recipe]", recipe: Any) -> str | None:
    """Whose the stages of a recipe are, where a run makes the drafts of several; inputs are nobody's."""
    return str(recipe.draft.algorithm) if len(recipes) > 1 and recipe in recipes else None
