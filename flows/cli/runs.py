"""The commands about runs: `demo`, `run`, `import`, `plan`, `explain`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from deepspec.errors import BadArgument
from flows.cli.terminal import AsJson, finite, home, note, print_json, progress, results, show_lines

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A shipped recipe, or the path of a YAML file.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a field of the recipe; repeatable.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show recipe, stages and estimate; run nothing.")]


def demo(
    overrides: Overrides = None,
    every: Annotated[bool, typer.Option("--all", help="Train a draft of each algorithm, and compare them.")] = False,
    seeds: Annotated[int, typer.Option(min=1, help="With --all: number of training seeds.")] = 3,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Run the whole pipeline on a small target and corpus that it makes itself.

    Example: deepspec demo
    """
    from deepspec.demo.recipes import ALL

    names, num_seeds = (ALL, seeds) if every else (["demo"], 1)
    _say_at_once(names, dry_run=dry_run)
    from flows.cli.commands import run as command

    shown = command.Shown(results(), progress(), dry_run=dry_run, as_json=as_json)
    _end(command.run(command.loaded(names, overrides or []), home(), shown, together="demo", num_seeds=num_seeds))


def run(recipe: RecipeName, overrides: Overrides = None, dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Run a recipe: what is in the store already is reused, the rest is made.

    Example: deepspec run dspark-qwen3-4b --set target.path=/models/qwen3-4b --set data.source=chats.jsonl
    """
    _say_at_once([recipe], dry_run=dry_run)
    from flows.cli.commands import run as command

    shown = command.Shown(results(), progress(), dry_run=dry_run, as_json=as_json)
    _end(command.run(command.loaded([recipe], overrides or []), home(), shown))


def import_(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A draft as others publish it.")],
    recipe: Annotated[
        str | None,
        typer.Option(metavar="RECIPE", help="Target, data, benchmarks, gates, model; default: the last run's recipe."),
    ] = None,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Take over a published draft: evaluated, registered and judged like one that was trained here.

    Its config.json says in which layout it is: DeepSpec, speculators, SpecForge, z-lab, or what `export` writes.
    Without a champion it becomes the baseline to beat, if it passes the gates.

    Example: deepspec import dspark_qwen3_4b_block7 --recipe dspark-qwen3-4b --set target.path=/models/qwen3-4b
    """
    if not dry_run:
        note(f"Importing {directory} in {home()}; what is there already is reused.")
    from flows.cli.commands import import_draft as command
    from flows.cli.commands.run import Shown

    shown = Shown(results(), progress(), dry_run=dry_run, as_json=as_json)
    _end(command.import_draft(directory, recipe, overrides or [], home(), shown))


def plan(
    recipe: RecipeName,
    overrides: Overrides = None,
    conversations: Annotated[int | None, typer.Option(min=1, help="How many; default: counted in data.source.")] = None,
    mean_tokens: Annotated[
        float | None,
        typer.Option(min=1, callback=finite, help="Mean length; default: estimated from the sources."),
    ] = None,
    gpu: Annotated[str | None, typer.Option(help="Estimate hours on this GPU: b200, h200, h100, a100 …")] = None,
    num_gpus: Annotated[int | None, typer.Option(min=1, help="How many; default: run.num_processes.")] = None,
    price_per_gpu_hour: Annotated[
        float | None, typer.Option(min=0, callback=finite, help="In run.currency, for a cost.")
    ] = None,
    usd_per_gpu_hour: Annotated[float | None, typer.Option(min=0, callback=finite, hidden=True)] = None,
    as_json: AsJson = False,
) -> None:
    """Estimate what a run will take: tokens, bytes of states per codec, memory, hours, cost.

    Example: deepspec plan dspark-qwen3-4b --conversations 1300000 --mean-tokens 950 --gpu h200 --num-gpus 8
    """
    from deepspec.planning import before_run
    from flows.cli.commands import estimate_text

    price = usd_per_gpu_hour if price_per_gpu_hour is None else price_per_gpu_hour  # the option's former name
    estimate = before_run.estimate_recipe(
        recipe, overrides or [], conversations, mean_tokens, gpu, num_gpus, price, home=home()
    )
    if as_json:
        print_json(estimate.to_json())
    else:
        estimate_text.show(estimate, results())


def explain(
    run_id: Annotated[str | None, typer.Argument(metavar="[RUN]", help="A run's id; default: the last run.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say for every stage of a run why it ran or was reused, and what ended the run early.

    Example: deepspec explain
    """
    from tasks.runtime.record.run_record import read_record
    from tasks.runtime.records import StageRecord, lines_of

    record = read_record(home(), run_id)
    if record is None:
        raise BadArgument(
            f"there is no run {run_id or 'yet'}.", where=str(home()), remedy="Start one with `deepspec demo`."
        )
    if as_json:
        document: dict[str, object] = {"run_id": record.run_id, "status": record.status}
        document["stages"] = [stage.to_json() for stage in record.stages]
        if record.error is not None:
            document |= {"error": record.error, "failure": record.failure and record.failure.to_json()}
        print_json(document)
        return
    entries = (stage.to_json() for stage in record.stages)
    stages = [StageRecord(**{name: entry[name] for name in entry if name != "cost"}) for entry in entries]
    cause = record.failure.sentence if record.failure is not None else record.error
    ended = [] if cause is None else [f"Ended by {cause}"]
    show_lines(f"Run {record.run_id} of {record.recipe}: {record.status}", *lines_of(stages), *ended)


def _say_at_once(names: Sequence[str], *, dry_run: bool) -> None:
    """Print the first line before the imports, which take a second or two."""
    if not dry_run:
        note(f"Running {', '.join(names)} in {home()}; what is there already is reused.")


def _end(code: int) -> None:
    if code:
        raise typer.Exit(code)
