"""What the command `import` does: a published draft, judged and shipped by a recipe."""

from collections.abc import Sequence
from pathlib import Path

from deepspec.drafts.files.public_files import public_files
from deepspec.drafts.layouts import published_config
from deepspec.errors import RecipeError
from deepspec.recipe import Recipe
from flows.cli.commands import run as run_command
from flows.cli.commands.chosen_recipe import chosen_recipe
from flows.cli.terminal import say
from flows.import_draft import import_draft as flow


def import_draft(
    directory: Path, recipe_name: str | None, overrides: Sequence[str], home: Path, shown: run_command.Shown
) -> int:
    """Import a draft, judge and ship it (or only preview that), show it, and leave its record; return the exit code.

    Args:
        directory: in one of the layouts of `deepspec.drafts.layouts`.
        recipe_name, overrides: target, data, benchmarks, gates and model; None: the recipe of the last run.
        home: where things are.
        shown: what is shown, and where.

    Raises:
        IncompatibleDraft: the directory cannot be read safely, or is no draft that can be run here.
        RecipeError: there is no such recipe, or a field of its draft section is set.
    """
    own = next((override for override in overrides if override.split("=")[0].split(".")[0].strip() == "draft"), None)
    if own is not None:
        raise RecipeError(
            "what the draft is stands in its own config.json.",
            where=f"--set {own}",
            remedy="Leave it out; the recipe says target, data, benchmarks, gates and registry.model.",
        )
    directory = directory.absolute()
    public_files(directory)
    name, recipe = chosen_recipe(recipe_name, overrides, home)
    found = _with_its_draft(recipe, directory)
    if found.draft.algorithm != recipe.draft.algorithm:
        said = f"{directory.name} is a draft of algorithm {found.draft.algorithm}; {name}'s draft section is not used."
        say(shown.progress, said)
    return run_command.run([found], home, shown, flow=flow.with_arguments(directory=directory))


def _with_its_draft(recipe: Recipe, directory: Path) -> Recipe:
    """The recipe with the directory's draft section: what the run's record says of the draft is what it is."""
    _, config = published_config(directory)
    return recipe.model_copy(update={"draft": config})
