"""What every command shares: its common options, where its things are, and how it talks to people and to scripts.

People read stderr; with `--json` exactly one JSON document goes to stdout.
"""

import json
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from deepspec.store import Store

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document to stdout.")]


def finite(value: float | None) -> float | None:
    """Refuse NaN, which no lower bound does, and infinity."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value


def home() -> Path:
    """The user's home folder, as the command line's callback has settled it."""
    return Path(os.environ["DEEPSPEC_HOME"])


def artifact_store() -> "Store":
    """The artifact store of that home."""
    from deepspec.home import store_of

    return store_of(home())


def terminal() -> "Console":
    """The console for people: stderr."""
    from rich.console import Console

    return Console(stderr=True)


def show_table(columns: list[str], rows: list[list[str]]) -> None:
    """Print rows under their columns' names."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in columns:
        # The last one gives way: names and keys are to be copied whole.
        table.add_column(column, overflow="fold", no_wrap=column != columns[-1])
    for row in rows:
        table.add_row(*row)
    terminal().print(table)


def print_json(value: Any) -> None:
    """Print the one document; escaped where stdout's encoding, or any, cannot hold its texts."""
    text = json.dumps(value, ensure_ascii=False, indent=1)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, indent=1)
    sys.stdout.write(text + "\n")
