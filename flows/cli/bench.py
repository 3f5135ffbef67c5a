"""The commands `bench …`: what this machine can do."""

from typing import Annotated

import typer

from deepspec.bench.__main__ import BENCHES
from deepspec.units import in_units
from flows.cli.terminal import AsJson, home, print_json, show_lines

app = typer.Typer(help="What this machine can do, measured.\n\nExample: deepspec bench warm", no_args_is_help=True)


@app.command("warm")
def warm(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe that has been run here.")] = "demo",
    repeat: Annotated[int, typer.Option(min=1, help="How many runs; the median counts.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Time a run in which every stage is in the store already.

    Example: deepspec bench warm demo --repeat 5
    """
    from flows.cli.commands import bench as bench_command

    document = bench_command.warm(recipe, home(), repeat=repeat)
    if as_json:
        print_json(document.to_json())
    else:
        ours = document.ours
        show_lines(f"{recipe}: {ours.seconds:.1f} s, median of {repeat}; peak {in_units(ours.peak_rss_bytes)}")


_EXAMPLES = {
    "attention": "--context 2048",
    "decode": "--batch 16 --threads 2",
    "loss": "--anchors 64 --threads 2",
    "sps": "--rows 64",
    "states": "--tokens 32768 --hidden 1024 --layers 5",
    "tokens": "--rows 2000",
    "train-step": "--recipe dspark-qwen3-4b --shrink 8",
}


def _add(name: str, purpose: str) -> None:
    def bench(context: typer.Context) -> None:
        from flows.cli.commands import bench as bench_command

        bench_command.library(name, context.args, home())

    bench.__doc__ = f"Measure {purpose}.\n\nExample: deepspec bench {name} {_EXAMPLES[name]} --json"
    # The bench reads its own options, here as in `python -m deepspec.bench`.
    settings = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
    app.command(name, context_settings=settings)(bench)


for _name, (_purpose, _) in BENCHES.items():
    _add(_name, _purpose)
