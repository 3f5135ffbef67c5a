"""What the commands `run` and `demo` do: run recipes, or only preview them, and say how it ended."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deepspec.errors import DeepspecError, GateFailed
from deepspec.home import store_of
from deepspec.inputs import local
from deepspec.planning import before_run
from deepspec.recipe import Recipe, load_recipe, to_yaml
from flows.cli.commands import estimate_text
from flows.cli.progress import display_on
from flows.cli.terminal import print_json, say, show
from flows.retrain import retrain
from flows.runs import check_names_differ, inputs_of, run_recipes
from tasks.runtime import interrupt
from tasks.runtime.flow import Flow
from tasks.runtime.preview import preview_all
from tasks.runtime.record.result import Result
from tasks.runtime.records import lines_of

if TYPE_CHECKING:
    from rich.console import Console

    from deepspec.record import RunRecord
    from tasks.runtime.preview import Preview


@dataclass(frozen=True)
class Shown:
    """What is shown of a run, and where.

    Attributes:
        results: console for what comes of it, or its preview.
        progress: console for how it goes on, and why it failed.
        dry_run: whether it is only previewed.
        as_json: whether its record, or the preview, is printed as one JSON document.
    """

    results: "Console"
    progress: "Console"
    dry_run: bool = False
    as_json: bool = False


def loaded(names: Sequence[str], overrides: Sequence[str]) -> list[Recipe]:
    """The recipes of a run: one; or several, of different algorithms, that have their inputs in common."""
    recipes = [load_recipe(name, overrides) for name in names]
    check_names_differ(recipes)
    return recipes


def run(
    recipes: Sequence[Recipe],
    home: Path,
    shown: Shown,
    *,
    together: str | None = None,
    num_seeds: int = 1,
    flow: Flow = retrain,
) -> int:
    """Run (or only preview) recipes, show it, and leave its record; return the exit code.

    Args:
        recipes: see `loaded`.
        home: where things are.
        shown: what is shown, and where.
        together: what several recipes are called in the record.
        num_seeds: with how many seeds of training several recipes are compared.
        flow: what is run of each; a preview estimates what retraining will take.
    """
    if shown.dry_run:
        store = store_of(home, recipes[0].store.url)
        looked = preview_all(flow, recipes, store, home, before=inputs_of(recipes[0]))
        _show_preview(recipes, looked, home, estimated=flow is retrain, as_json=shown.as_json, console=shown.results)
        return 0
    num_seeds = num_seeds if len(recipes) > 1 else 1
    name = together or recipes[0].name
    with display_on(shown.progress) as display:
        result, record, path = run_recipes(recipes, home, display, name=name, num_seeds=num_seeds, flow=flow)
    if shown.as_json:
        print_json(record.to_json())
    return _conclude(result, record, path, shown)


def _show_preview(
    recipes: Sequence[Recipe],
    looked: "Preview",
    home: Path,
    *,
    estimated: bool,
    as_json: bool,
    console: "Console",
) -> None:
    estimates = [before_run.estimate_run(local(recipe, home), home) if estimated else None for recipe in recipes]
    if as_json:
        resolved = [recipe.model_dump(mode="json") for recipe in recipes]
        written = [estimate and estimate.to_json() for estimate in estimates]
        document = {
            "recipe": resolved if len(recipes) > 1 else resolved[0],
            "stages": [record.entry().to_json() for record in looked.records],
            "status": looked.outcome.status,
            "notes": list(looked.outcome.notes),
            "estimate": written if len(recipes) > 1 else written[0],
        }
        print_json(document)
        return
    for recipe in recipes:
        say(console, to_yaml(recipe))
    say(console, *lines_of(looked.records), *looked.outcome.notes)
    if looked.outcome.status is not None:
        say(console, f"It would end as {looked.outcome.status}.")
    for estimate in estimates if estimated else ():
        if estimate is None:
            say(console, "No estimate: the target is not there yet, or the conversations cannot be counted yet.")
        else:
            estimate_text.show(estimate, console)


def _conclude(result: Result, record: "RunRecord", path: Path, shown: Shown) -> int:
    """Show how it ended; return the exit code."""
    if interrupt.is_interruption(result.error):
        say(shown.progress, interrupt.INTERRUPTED)
        return 130
    if result.error is not None:
        if os.environ.get("DEEPSPEC_DEBUG"):
            raise result.error
        text = str(result.error)
        if not isinstance(result.error, DeepspecError | OSError):
            text = f"{type(result.error).__name__}: {text} (`deepspec --debug …` shows where.)"
        say(shown.progress, f"deepspec: {text}", style="red")
        return result.error.exit_code if isinstance(result.error, DeepspecError) else 1
    if not shown.as_json:
        from deepspec.reports.run_terminal import summary_table

        tracking = result.run.tracking
        show(shown.results, summary_table(record, ui_command=tracking.ui_command if tracking else None))
        say(shown.results, f"Record: {path}")
    return GateFailed.exit_code if record.stands_refused else 0
