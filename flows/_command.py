"""What the commands `run`, `demo` and `plan` do, behind the command line's parsing."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepspec.errors import DeepspecError, GateFailed
from deepspec.recipe import Recipe, load_recipe, read_yaml, to_yaml, validated
from flows import _execute, _plan, _record
from flows._display import PlainDisplay, TerminalDisplay, line_of
from flows._execute import Flow, Result
from flows._home import store_of

if TYPE_CHECKING:
    from rich.console import Console

    from tasks._run import Display, Run


def run(name: str, overrides: Sequence[str], *, home: Path, dry_run: bool, as_json: bool, console: "Console") -> int:
    """Run (or only plan) a recipe, show it, and leave its record; return the exit code."""
    from flows.retrain import retrain

    recipe = load_recipe(name, overrides)
    store = store_of(home, recipe.store.url)
    before = inputs_of(recipe)
    if dry_run:
        runs = [_execute.plan(flow, config, store, home) for flow, config in [*before, (retrain, recipe)]]
        _show_plan(recipe, runs, as_json=as_json, console=console)
        return 0
    display: Display = TerminalDisplay(console) if console.is_terminal else PlainDisplay(console)

    def leave_record(result: Result) -> None:
        _record.write_record(_record.run_json(result), home)

    result = _execute.execute(retrain, recipe, store, home, display=display, before=before, interrupted=leave_record)
    record = _record.run_json(result)
    path = _record.write_record(record, home)
    record["report"] = _report(result, record)
    path = _record.write_record(record, home)
    if as_json:
        sys.stdout.write(json.dumps(record, ensure_ascii=False, indent=1) + "\n")
    return _conclude(result, record, path, console)


def inputs_of(recipe: Recipe) -> list[tuple[Flow, Any]]:
    """The flow that makes a demo recipe's own inputs, with its configuration; none for other recipes."""
    if recipe.inputs is None:
        return []
    from deepspec.demo.config import Config
    from flows.demo_inputs import demo_inputs

    return [(demo_inputs, validated(Config, read_yaml(recipe.inputs), (), where=recipe.inputs))]


def _show_plan(recipe: Recipe, runs: "list[Run[Any]]", *, as_json: bool, console: "Console") -> None:
    records = [record for planned in runs for record in planned.records]
    estimate = _plan.of_run(recipe)
    if as_json:
        document = {
            "recipe": recipe.model_dump(mode="json"),
            "stages": [asdict(record) for record in records],
            "estimate": estimate,
        }
        sys.stdout.write(json.dumps(document, ensure_ascii=False, indent=1) + "\n")
        return
    console.print(to_yaml(recipe), markup=False, highlight=False)
    for record in records:
        console.print(line_of(record), markup=False, highlight=False, soft_wrap=True)
    if estimate is None:
        console.print("No estimate: the target or the conversations are not there yet.", highlight=False)
    else:
        _plan.show(estimate, console)


def _conclude(result: Result, record: dict[str, Any], path: Path, console: "Console") -> int:
    """Tell a person how it ended; return the exit code."""
    if isinstance(result.error, KeyboardInterrupt):
        console.print(_execute.INTERRUPTED)
        return 130
    if result.error is not None:
        if os.environ.get("DEEPSPEC_DEBUG"):
            raise result.error
        text = str(result.error)
        if not isinstance(result.error, DeepspecError | OSError):
            text = f"{type(result.error).__name__}: {text} (`deepspec --debug …` shows where.)"
        console.print(f"deepspec: {text}", markup=False, highlight=False, style="red", soft_wrap=True)
        return result.error.exit_code if isinstance(result.error, DeepspecError) else 1
    from deepspec.evaluation.report_terminal import summary_table

    tracking = result.run.tracking
    console.print(summary_table(record, ui_command=tracking.ui_command if tracking else None))
    console.print(f"Record: {path}", markup=False, highlight=False, soft_wrap=True)
    return GateFailed.exit_code if result.status == "refused" else 0


def _report(result: Result, record: dict[str, Any]) -> str | None:
    from flows._report import write

    return write(result, record)
