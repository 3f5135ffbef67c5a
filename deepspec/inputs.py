"""A recipe's inputs as local paths: what lies in object storage is copied into the home folder first."""

from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepspec.errors import RecipeError
from deepspec.evaluation.known_benchmarks import located
from deepspec.store.backends.s3_location import SCHEME
from deepspec.store.download_inputs import local_copy, versions

if TYPE_CHECKING:
    from deepspec.data.config import Config, SourceEntry
    from deepspec.recipe import Recipe


def local(recipe: Any, home: Path) -> Any:
    """The recipe with every `s3://` location of an input replaced by its local copy's path.

    A source of traffic is replaced by the folder of its window as it is today: of what its logs have, what may be used.
    A known benchmark's name is replaced by what it stands for: a file in DEEPSPEC_BENCHMARKS, or its id on the hub.

    Locations are no part of keys: the same content is the same input, wherever it lies. Configurations of other flows
    name no such inputs and are returned as they are.

    Raises:
        DataError: a location names nothing, a known benchmark is not in that folder, or nothing of a window of traffic
            may be used; other errors of the object storage as they come.
        RecipeError: there is no such window.
    """
    from deepspec.recipe import Recipe

    return _local(recipe, home / "cache", datetime.now(UTC).date()) if isinstance(recipe, Recipe) else recipe


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


def _local(recipe: "Recipe", cache: Path, today: date) -> "Recipe":
    def copy(location: str, field: str) -> str:
        return local_copy(location, cache, where=field)

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
                        item.model_copy(update={"path": copy(item.path, "data.source")})
                        if item.traffic is None
                        else traffic(item, recipe.data, cache, today)
                        for item in recipe.data.source
                    )
                }
            ),
            "evaluate": recipe.evaluate.model_copy(update={"benchmarks": benchmarks}),
        }
    )


def traffic(entry: "SourceEntry", config: "Config", cache: Path, today: date) -> "SourceEntry":
    """A source of traffic with the folder of its window as its path.

    Args:
        entry: the source.
        config: the recipe's data section.
        cache: folder for copies.
        today: of UTC; where the window's days are counted from.

    Raises:
        DataError, RecipeError: see `taken_up`.
    """
    from deepspec.data.traffic.window import Remote, taken_up

    return taken_up(
        entry,
        cache.absolute() / "traffic",
        today=today,
        remote=Remote(
            versions=lambda location: versions(location, where="data.source"),
            copy=lambda location, folder: local_copy(location, folder, where="data.source"),
        )
        if entry.path.startswith(SCHEME)
        else None,
        max_row_bytes=config.max_row_bytes,
        max_quarantined_share=config.max_quarantined_share,
    )
