"""The recipe by which commands judge drafts: the one that is named, or that of the last run."""

from collections.abc import Sequence
from pathlib import Path

from deepspec.errors import RecipeError
from deepspec.recipe import Recipe, load_recipe, validated
from tasks.runtime.record.run_record import read_record


def chosen_recipe(name: str | None, overrides: Sequence[str], home: Path) -> tuple[str, Recipe]:
    """What a person calls the recipe, and the recipe; by default as the last run in this home resolved it.

    Raises:
        RecipeError: it is none, or none is named and there is no finished run.
    """
    if name is not None:
        return name, load_recipe(name, overrides)
    record = read_record(home)
    remedy = "Name the recipe that the drafts are to be judged by: --recipe NAME."
    if record is None or not record.evaluations:
        raise RecipeError(f"{home} has no finished run whose recipe could be taken.", where="--recipe", remedy=remedy)
    if record.resolved_recipe is None:
        raise RecipeError(
            f"the record of run {record.run_id} has no recipe: an earlier deepspec wrote it.",
            where="--recipe",
            remedy=remedy,
        )
    recipes = record.resolved_recipe if isinstance(record.resolved_recipe, tuple) else (record.resolved_recipe,)
    found = [validated(Recipe, one, overrides, where=f"recipe of run {record.run_id}") for one in recipes]
    # Of several recipes, which have their inputs and evaluation in common, the first that was evaluated.
    first = record.evaluations[0].algorithm
    return record.recipe, next((one for one in found if one.draft.algorithm == first), found[0])
