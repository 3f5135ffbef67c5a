"""Previewing a run: the flow is called, and each stage is only looked up."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepspec.store import Store
from tasks.runtime.flow import Flow, Outcome
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


def preview_all(
    flow: Flow, recipes: "Sequence[Recipe]", store: Store, home: Path, *, before: Steps
) -> list[StageRecord]:
    """The stages of the run that `execute` would make of the same arguments; nothing is written."""
    run: Run[Any] = Run(recipes[0], store, home, dry=True)
    for step, recipe in [*before, *((flow, recipe) for recipe in recipes)]:
        run.begin(recipe, algorithm_among(recipes, recipe))
        for record in preview(run, step).records:
            run.record(record)
    return run.records


def algorithm_among(recipes: "Sequence[Recipe]", recipe: Any) -> str | None:
    """Whose the stages of a recipe are, where a run makes the drafts of several; None for inputs."""
    return str(recipe.draft.algorithm) if len(recipes) > 1 and recipe in recipes else None
