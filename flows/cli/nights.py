"""The commands about nights: `nights apply`, `ls`, `pause`, `resume`, `run`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.terminal import AsJson, home, print_json, show_lines, show_table

if TYPE_CHECKING:
    from flows.nights.listing import Night, Run

app = typer.Typer(
    help="Nights: models that are retrained by themselves, on a Prefect server.\n\nExample: deepspec nights ls",
    no_args_is_help=True,
)

Model = Annotated[str, typer.Argument(help="Registered model whose night it is.")]


@app.command("apply")
def apply(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file of nights.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change, and change nothing.")] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Remove nights that are not in the file.")] = False,
    page: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the nights into this file, as a Markdown table.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make Prefect's server have the nights of a file; schedules stay switched on or off as they are there.

    Example: deepspec nights apply nights.yaml --dry-run
    """
    from deepspec import nights
    from flows.nights import deployments

    planned = nights.read_nights(file)
    changes = deployments.apply(planned, home(), prune=prune, dry_run=dry_run)
    if page is not None:
        from deepspec.atomic_write import write_text

        write_text(page, nights.page(planned))
    if as_json:
        print_json([{"model": each.model, "done": each.done, "fields": list(each.fields)} for each in changes])
        return
    schedules = {night.model: night.schedule for night in planned.nights}
    rows = [[each.model, schedules.get(each.model, ""), each.done, ", ".join(each.fields)] for each in changes]
    show_table(["model", "schedule", "would be" if dry_run else "is", "what"], rows)


@app.command("ls")
def ls(as_json: AsJson = False) -> None:
    """List the nights: schedule, next start, how the last run ended, what runs now and how far, and what is wrong.

    Example: deepspec nights ls
    """
    from flows.nights import listing

    found = listing.nights(home())
    if as_json:
        print_json([night.to_json() for night in found])
    else:
        show_table(["model", "schedule", "active", "next", "last", "now", "trouble"], [_cells(each) for each in found])


def _cells(night: "Night") -> list[str]:
    return [
        night.model,
        night.schedule,
        "yes" if night.active else "no",
        f"{night.next:%Y-%m-%d %H:%M}" if night.next else "",
        _ended(night.last) if night.last else "never",
        "; ".join(map(_stands, night.now)),
        " ".join(night.trouble),
    ]


def _ended(run: "Run") -> str:
    return f"{run.name.rpartition(' · ')[2]} ({run.state}) {run.at:%Y-%m-%d %H:%M}"


def _stands(run: "Run") -> str:
    percent = "" if run.percent is None else f" {run.percent:.0f} %"
    return f"{run.state} since {run.at:%H:%M}{f', {run.doing}{percent}' if run.doing else ''}"


@app.command("pause")
def pause(model: Model) -> None:
    """Start no more runs by schedule; one that runs goes on.

    Example: deepspec nights pause qwen3-4b
    """
    _switch(model, active=False)


@app.command("resume")
def resume(model: Model) -> None:
    """Start runs by schedule again.

    Example: deepspec nights resume qwen3-4b
    """
    _switch(model, active=True)


def _switch(model: str, *, active: bool) -> None:
    from flows.nights import control

    changed = control.switch(home(), model, active=active)
    show_lines(f"The night of {model} {'is' if changed else 'was'} {'active' if active else 'paused'}.")


@app.command("run")
def run(model: Model) -> None:
    """Start a run of a night now, on a worker; while another one runs, it waits.

    Example: deepspec nights run qwen3-4b
    """
    from flows.nights import control

    flow_run, name = control.run_now(home(), model)
    show_lines(f"flow run {name}: {flow_run}")
