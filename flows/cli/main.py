"""The `deepspec` command: where its groups are put together, and where errors become a sentence and an exit code.

Exit codes: 0 done, 1 a run failed, 2 the input is wrong, 3 a gate refused, 130 interrupted. The commands stand in
one file per group; everything heavy is imported by those that need it.
"""

import logging
import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from deepspec import __version__
from deepspec.errors import DeepspecError
from deepspec.network import ask_this_machine_directly
from flows.cli import (
    artifacts,
    backup,
    bench,
    consumers,
    cost,
    dashboard,
    data,
    drafts,
    guide,
    heartbeat,
    models,
    monitoring,
    nights,
    runs,
)
from flows.cli.terminal import flush, note, prepare_streams, print_text

app = typer.Typer(
    name="deepspec",
    help="Retrain, judge and ship draft models for speculative decoding.\n\n"
    "Example: deepspec demo\n\nThe manual: deepspec guide",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    # In the order of the help.
    runs.demo,
    runs.run,
    runs.import_,
    runs.plan,
    runs.explain,
    guide.guide,
    models.promote,
    models.rollback,
    drafts.compare,
    drafts.export,
    drafts.publish,
    consumers.pull,
    consumers.serve,
    drafts.measure,
    drafts.serve_check,
    monitoring.monitor,
    cost.cost,
    dashboard.dashboard,
    backup.backup,
):
    app.command(command.__name__.removesuffix("_").replace("_", "-"))(command)
for name, group in (
    ("data", data.app),
    ("artifacts", artifacts.app),
    ("models", models.app),
    ("nights", nights.app),
    ("bench", bench.app),
):
    app.add_typer(group, name=name)


@app.callback(invoke_without_command=True)
def _main(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and all log lines.")] = False,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE", help="Whose store.url `artifacts`, `models` … look into; default: the last run's."
        ),
    ] = None,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        print_text(f"{__version__}\n")
        raise typer.Exit
    if context.invoked_subcommand is None:
        note(context.get_help())
        raise typer.Exit(2)
    os.environ["DEEPSPEC_HOME"] = str(Path(os.environ.get("DEEPSPEC_HOME", ".deepspec")).absolute())
    if recipe is not None:
        from deepspec.recipe import load_recipe

        store = load_recipe(recipe).store
        os.environ["DEEPSPEC_STORE"] = store.url or str(Path(os.environ["DEEPSPEC_HOME"]) / "store")
        context.obj = store
    ask_this_machine_directly(os.environ)
    # Read by OpenMP when torch is imported: a waiting thread that spins long takes the core from the one it waits for.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if debug:
        os.environ["DEEPSPEC_DEBUG"] = "1"
    level = logging.DEBUG if os.environ.get("DEEPSPEC_DEBUG") else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")


def main() -> NoReturn:
    """Entry point: errors become one sentence and an exit code."""
    prepare_streams()
    heartbeat.start(sys.argv[1:])
    try:
        code = app(standalone_mode=False)
    except typer.Abort:
        sys.exit(130)
    except KeyboardInterrupt:
        note("Interrupted.")
        os._exit(130)
    except DeepspecError as error:
        if os.environ.get("DEEPSPEC_DEBUG"):
            raise
        note(f"deepspec: {error}")
        _end(error.exit_code)
    except Exception as error:
        if hasattr(error, "exit_code") and hasattr(error, "format_message"):  # click's own usage errors
            context = getattr(error, "ctx", None)
            command = context.command_path if context is not None else "deepspec"
            said = error.format_message()
            said += "" if said.endswith((".", "?")) else "."
            note(f"deepspec: {said} `{command} --help` shows what there is.")
            _end(2)
        if os.environ.get("DEEPSPEC_DEBUG"):
            raise
        note(f"deepspec: {type(error).__name__}: {error} (`deepspec --debug …` shows where.)")
        _end(1)
    _end(code if isinstance(code, int) else 0)


def _end(code: int) -> NoReturn:
    """End the process; without waiting for Prefect's threads if the server that they talk to does not answer."""
    prefect = sys.modules.get("tasks.runtime.prefect.flow")
    flush()
    if prefect is not None and prefect.lost:
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
