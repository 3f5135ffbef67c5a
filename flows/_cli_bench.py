"""The commands `bench …`: what this machine can do."""

from typing import Annotated

import typer

from flows._terminal import AsJson, home, print_json, terminal

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
    from flows import _bench

    document = _bench.warm(recipe, home(), repeat=repeat)
    if as_json:
        print_json(document)
    else:
        ours = document["ours"]
        text = f"{recipe}: {ours['seconds']:.1f} s, median of {repeat}; peak {ours['peak_rss_bytes'] >> 20} MiB"
        terminal().print(text, highlight=False)


@app.command(
    "loss",
    # The bench reads its own options, here as in `python -m deepspec.bench`.
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def loss(context: typer.Context) -> None:
    """Compare the losses without logits with plain autograd: seconds, peak memory, gradients.

    Example: deepspec bench loss --anchors 64 --threads 2 --json
    """
    from deepspec.bench.__main__ import main as run_bench

    run_bench(["loss", *context.args], command="deepspec bench")


@app.command(
    "states",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def states(context: typer.Context) -> None:
    """Measure files of target states: bytes per codec, reading against cat, capture, what codecs cost.

    Example: deepspec bench states --tokens 32768 --hidden 1024 --layers 5 --json
    """
    from deepspec.bench.__main__ import main as run_bench

    run_bench(["states", *context.args], command="deepspec bench")


@app.command(
    "tokens",
    # The bench reads its own options, here as in `python -m deepspec.bench`.
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def tokens(context: typer.Context) -> None:
    """Compare the tokens stage with `datasets.map` that renders, tokenises and masks each row by itself.

    Example: deepspec bench tokens --rows 2000 --json
    """
    from deepspec.bench.__main__ import main as run_bench

    run_bench(["tokens", *context.args], command="deepspec bench")
