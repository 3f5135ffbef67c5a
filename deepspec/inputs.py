"""A recipe's inputs as local paths: what lies in object storage is copied into the home folder first."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepspec.errors import RecipeError
from deepspec.evaluation.known_benchmarks import located
from deepspec.store.download_inputs import local_copy

if TYPE_CHECKING:
    from deepspec.recipe import Recipe


def local(recipe: Any, home: Path) -> Any:
    """The recipe with every `s3://` location of an input replaced by its local copy's path.

    A known benchmark's name is replaced by what it stands for: a file in DEEPSPEC_BENCHMARKS, or its id on the hub.

    Locations are no part of keys: the same content is the same input, wherever it lies. Configurations of other flows
    name no such inputs and are returned as they are.

    Raises:
        DataError: a location names nothing, or a known benchmark is not in that folder; other errors of the object
            storage as they come.
    """
    from deepspec.recipe import Recipe

    return (
        _local(recipe, lambda location, field: local_copy(location, home / "cache", where=field))
        if isinstance(recipe, Recipe)
        else recipe
    )


def made_target(recipe: "Recipe", name: str, home: Path) -> Path:
    """The target of a recipe whose inputs are local and made; `name` is the recipe's, for the error.

    Raises:
        RecipeError: the recipe makes its own inputs, and has not yet.
    """
    target = Path(recipe.target.path)
    if recipe.inputs is not None and target.is_relative_to(home) and not target.exists():
        raise RecipeError(
            "the recipe's inputs are not made yet.",
            where=str(target),
            remedy=f"Run `deepspec run {name}` first.",
        )
    return target


def _local(recipe: "Recipe", copy: Callable[[str, str], str]) -> "Recipe":
    benchmarks = {
        name: item.model_copy(update={"path": located(name, item.path, copy)})
        for name, item in recipe.evaluate.benchmarks.items()
    }
    return recipe.model_copy(
        update={
            "target": recipe.target.model_copy(update={"path": copy(recipe.target.path, "target.path")}),
            "data": recipe.data.model_copy(
                update={
                    "source": tuple(
                        item.model_copy(update={"path": copy(item.path, "data.source")}) for item in recipe.data.source
                    )
                }
            ),
            "evaluate": recipe.evaluate.model_copy(update={"benchmarks": benchmarks}),
        }
    )
