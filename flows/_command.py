"""What the commands `run`, `demo` and `plan` do, behind the command line's parsing."""

import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepspec.errors import DeepspecError, GateFailed, RecipeError
from deepspec.home import store_of
from deepspec.inputs import local
from deepspec.planning import before_run
from deepspec.recipe import Recipe, load_recipe, read_yaml, to_yaml, validated
from flows.cli.commands import plan_text
from flows.cli.progress import display_on
from tasks.runtime import execute, interrupt, plan, run_record
from tasks.runtime.records import lines_of
from tasks.runtime.result import Flow, Result

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from rich.console import Console

    from tasks.runtime.display import Display
    from tasks.runtime.records import StageRecord


def run(
    names: Sequence[str],
    overrides: Sequence[str],
    *,
    home: Path,
    dry_run: bool,
    as_json: bool,
    console: "Console",
    together: str | None = None,
    num_seeds: int = 1,
) -> int:
    """Run (or only plan) recipes, show it, and leave its record; return the exit code.

    Args:
        names: a recipe; or several, of different algorithms, that have their inputs in common.
        overrides: of each of them.
        home, console: where things are, where people are told.
        dry_run, as_json: the command line's options.
        together: what several recipes are called in the record.
        num_seeds: with how many seeds of training several recipes are compared.
    """
    from flows.retrain import retrain

    recipes = [load_recipe(name, overrides) for name in names]
    _check_apart(recipes)
    if dry_run:
        store = store_of(home, recipes[0].store.url)
        records = plan.plan_all(retrain, recipes, store, home, before=inputs_of(recipes[0]))
        _show_plan(recipes, records, home, as_json=as_json, console=console)
        return 0
    display = display_on(console)
    num_seeds = num_seeds if len(recipes) > 1 else 1
    result, record, path = carry_out(recipes, home, display, name=together or recipes[0].name, num_seeds=num_seeds)
    if as_json:
        sys.stdout.write(json.dumps(record, ensure_ascii=False, indent=1) + "\n")
    return _conclude(result, record, path, console)


def carry_out(
    recipes: Sequence[Recipe], home: Path, display: "Display", *, name: str, num_seeds: int = 1
) -> tuple[Result, dict[str, Any], Path]:
    """Run recipes, and leave the run's record and report.

    Returns:
        how it ended, the record, and where that is; what ended the run early is in the result, not raised.
    """
    from flows.retrain import retrain

    def leave_record(result: Result) -> None:
        run_record.write_record(run_record.run_json(result), home)

    store = store_of(home, recipes[0].store.url)
    before = inputs_of(recipes[0])
    after = {}
    if num_seeds > 1:
        from flows._seeds import further_seeds

        after = further_seeds(recipes, num_seeds)
    result = execute.execute(
        retrain, recipes, store, home, name=name, display=display, before=before, after=after, interrupted=leave_record
    )
    record = run_record.run_json(result)
    if after and result.error is None:
        from flows._seeds import study

        record["seeds"] = study(result, num_seeds)
    run_record.write_record(record, home)
    try:
        record["report"] = _report(result, record)
    except DeepspecError as error:
        # Of a run that has failed already the reader is told why, not that the end could not be recorded either.
        if result.error is None:
            raise
        same = type(error) is type(result.error)
        logger.log(logging.DEBUG if same else logging.WARNING, "The end of the run could not be recorded: %s", error)
    if result.error is not None:
        record["error"] = str(result.error) or type(result.error).__name__
    return result, record, run_record.write_record(record, home)


def _check_apart(recipes: Sequence[Recipe]) -> None:
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


def _show_plan(
    recipes: Sequence[Recipe], records: "Sequence[StageRecord]", home: Path, *, as_json: bool, console: "Console"
) -> None:
    estimates = [before_run.of_run(local(recipe, home), home) for recipe in recipes]
    if as_json:
        document = {
            "recipe": [recipe.model_dump(mode="json") for recipe in recipes],
            "stages": [record.to_json() for record in records],
            "estimate": estimates,
        }
        if len(recipes) == 1:
            document |= {"recipe": recipes[0].model_dump(mode="json"), "estimate": estimates[0]}
        sys.stdout.write(json.dumps(document, ensure_ascii=False, indent=1) + "\n")
        return
    for recipe in recipes:
        console.print(to_yaml(recipe), markup=False, highlight=False)
    for line in lines_of(records):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for estimate in estimates:
        if estimate is None:
            console.print("No estimate: the target or the conversations are not there yet.", highlight=False)
        else:
            plan_text.show(estimate, console)


def _conclude(result: Result, record: dict[str, Any], path: Path, console: "Console") -> int:
    """Tell a person how it ended; return the exit code."""
    if isinstance(result.error, KeyboardInterrupt):
        console.print(interrupt.INTERRUPTED)
        return 130
    if result.error is not None:
        if os.environ.get("DEEPSPEC_DEBUG"):
            raise result.error
        text = str(result.error)
        if not isinstance(result.error, DeepspecError | OSError):
            text = f"{type(result.error).__name__}: {text} (`deepspec --debug …` shows where.)"
        console.print(f"deepspec: {text}", markup=False, highlight=False, style="red", soft_wrap=True)
        return result.error.exit_code if isinstance(result.error, DeepspecError) else 1
    from deepspec.reports.run_terminal import summary_table

    tracking = result.run.tracking
    # Paths and commands are longer than some terminals are wide.
    console.print(summary_table(record, ui_command=tracking.ui_command if tracking else None), crop=False)
    console.print(f"Record: {path}", markup=False, highlight=False, soft_wrap=True)
    return GateFailed.exit_code if result.status == "refused" else 0


def _report(result: Result, record: dict[str, Any]) -> str | None:
    from tasks.runtime.run_report import write

    return write(result, record)
