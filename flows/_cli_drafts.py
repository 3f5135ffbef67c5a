"""The commands about a draft's own files: `export`."""

from pathlib import Path
from typing import Annotated

import typer

from flows._terminal import artifact_store, fail, home, terminal


def export(
    draft: Annotated[
        str | None,
        typer.Argument(metavar="[DRAFT]", help="A directory, train/<key>, models:/<name>/<version> or …@champion."),
    ] = None,
    format_name: Annotated[str, typer.Option("--format", help="The format to write or to check.")] = "deepspec",
    out: Annotated[Path | None, typer.Option(help="New directory to write.")] = None,
    check: Annotated[Path | None, typer.Option(help="Check a directory in that format instead.")] = None,
    target: Annotated[str, typer.Option(help="The target's name, where the format wants it.")] = "",
) -> None:
    """Write a draft in a format that others read, or check such a directory.

    Example: deepspec export models:/demo@champion --format deepspec --out exported
    """
    from flows import _export

    console = terminal()
    if check is not None:
        flaws = _export.check(format_name, check)
        for flaw in flaws:
            console.print(flaw, highlight=False, markup=False, soft_wrap=True)
        console.print(f"{check}: {len(flaws)} flaws." if flaws else f"{check} is fine.", highlight=False)
        if flaws:
            raise typer.Exit(1)
        return
    if draft is None or out is None:
        fail(2, "Name a DRAFT and --out DIR, or --check DIR.")
    _export.write(draft, format_name, out, target, home=home(), store=artifact_store())
    console.print(f"Written: {out}", highlight=False, markup=False, soft_wrap=True)
