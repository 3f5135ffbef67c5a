"""What every command shares: its common options, where its things are, and the two streams that it writes to.

Results (tables, texts, documents) go to stdout, whole at any width; with `--json` that is exactly one JSON document in
ASCII. Progress, notes, warnings and errors go to stderr. No other file of the command line opens a console, prints, or
touches the streams.
"""

import contextlib
import io
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from flows.cli import heartbeat

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from deepspec.store import Store

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document to stdout.")]
_DRAFT = "models:/<name>/<version>, models:/<name>@champion, train/<key>, import/<key> or a directory."
DraftName = Annotated[str, typer.Argument(metavar="DRAFT", help=_DRAFT)]
DraftNames = Annotated[list[str], typer.Argument(metavar="DRAFT…", help=f"Each {_DRAFT}")]
OptionalDraftName = Annotated[str | None, typer.Argument(metavar="[DRAFT]", help=_DRAFT)]

_UNLIMITED = 1_000_000
"""Characters of a line in a file or pipe: nothing is folded there, so a row is a line."""


def finite(value: float | None) -> float | None:
    """Refuse NaN, which no lower bound does, and infinity."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value


def home() -> Path:
    """The user's home folder, as the command line's callback has settled it."""
    return Path(os.environ["DEEPSPEC_HOME"])


def artifact_store() -> "Store":
    """The artifact store of commands that are about no recipe; see `--recipe` of the command line's callback."""
    from deepspec.home import store_of_last_run

    return store_of_last_run(home())


def prepare_streams() -> None:
    """Let no command end for a character that a stream's encoding cannot hold."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def results() -> "Console":
    """The console for results: stdout. Outside a terminal its lines have no end, and no colours."""
    from rich.console import Console

    class Results(Console):
        def on_broken_pipe(self) -> None:
            _drop(sys.stdout)

    return Results(file=sys.stdout, width=None if sys.stdout.isatty() else _UNLIMITED)


def progress() -> "Console":
    """The console for progress, notes, warnings and errors: stderr."""
    from rich.console import Console

    return Console(stderr=True)


def say(console: "Console", *lines: str, style: str | None = None) -> None:
    """Print lines as they are: no markup, no highlighting, and never broken or cut by us."""
    for line in lines:
        console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)
    heartbeat.said()


def show(console: "Console", renderable: "RenderableType", width: int | None = None) -> None:
    """Print a table, or several things, in `width` columns at most; what has no room runs over and is not cut."""
    console.print(renderable, crop=False, width=width)
    heartbeat.said()


def show_lines(*lines: str) -> None:
    """Print lines of a result."""
    say(results(), *lines)


def show_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows, as a result, under their columns' names; the last column folds where the terminal is narrow."""
    from deepspec.reports.terminal import printable, whole_table

    table = whole_table()
    for column in columns:
        # Names and keys are to be copied whole.
        table.add_column(column, overflow="fold", no_wrap=column != columns[-1])
    for row in rows:
        table.add_row(*map(printable, row))
    show(results(), table)


def print_text(text: str) -> None:
    """Print a text, as a result, exactly as it is."""
    heartbeat.said()
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        _drop(sys.stdout)


def print_json(value: Any) -> None:
    """Print the one document."""
    print_text(json.dumps(value, indent=1) + "\n")


def note(text: str) -> None:
    """Print a line to stderr at once; for where a console would take too long to import."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)
    heartbeat.said()


def flush() -> None:
    """Write out what is still held back; a reader that has gone (`… | head`) changes no command's outcome."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            _drop(stream)


def _drop(stream: TextIO) -> None:
    """Write to nowhere from here on; else Python tries again at its end, and complains."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
