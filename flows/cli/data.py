"""The commands `data …`: what drafts are trained on."""

from typing import Annotated

import typer

from flows.cli.runs import Overrides, RecipeName
from flows.cli.terminal import AsJson, home, print_json, results
from flows.cli.terminal import progress as console

app = typer.Typer(
    help="Look at what drafts are trained on.\n\nExample: deepspec data preview demo", no_args_is_help=True
)


@app.command("preview")
def preview(
    recipe: RecipeName,
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option(min=1, help="Most conversations that are shown.")] = 3,
    split: Annotated[str, typer.Option(help="train, validation, calibration or gate.")] = "train",
    private: Annotated[bool, typer.Option("--private", help="Show texts of private sources, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show conversations as the target reads them, and which tokens are supervised.

    From the recipe's tokens if they are made; else from its conversations, with the rows' own answers. What a run
    leaves out is counted by reason; what the recipe says of the draft plays no part. Texts of private sources, as
    served traffic is one, are only shown with --private.

    Example: deepspec data preview dspark-qwen3-4b --set target.path=/models/qwen3-4b --set data.source=chats.jsonl
    """
    from flows.cli.commands import preview as preview_command
    from flows.cli.progress import progress_of

    with progress_of(console(), "preview") as progress:
        document = preview_command.document(
            recipe,
            overrides or [],
            num_rows=rows,
            split=split,
            home=home(),
            show_private=private,
            progress=progress,
        )
    if as_json:
        print_json(document.to_json())
    else:
        preview_command.show(document, results())
