"""The commands that make copies: `backup`, and `artifacts copy`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deepspec.errors import ArtifactError
from deepspec.units import in_units
from flows.cli.terminal import AsJson, home, print_json, progress, say, show_lines

if TYPE_CHECKING:
    from deepspec.store.copy_store import Copied


def backup(
    out: Annotated[Path, typer.Argument(help="Folder for the copy; an earlier backup there is brought up to date.")],
    as_json: AsJson = False,
) -> None:
    """Copy the home folder: database, tracked files, records of runs, store; a run may go on meanwhile.

    The copy is a home folder: `DEEPSPEC_HOME=OUT deepspec models ls` reads it, and copied back it is the home again.

    Example: deepspec backup /mnt/backup/deepspec
    """
    from deepspec.registry import backup as home_backup
    from flows.cli.progress import progress_of

    console = progress()
    with progress_of(console, "store") as work:
        done = home_backup.backup(out, home(), work, lambda text: say(console, text))
    _tell(done, str(out), as_json=as_json)


def copy(
    to: Annotated[
        str, typer.Argument(metavar="TO", help="The other store: a folder or a URL; may hold a copy already.")
    ],
    source: Annotated[
        str | None, typer.Option("--from", help="Store to copy from; default: DEEPSPEC_STORE, else the last run's.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Copy artifacts and promotion logs into another store: what is missing there, checked; nothing is overwritten.

    Example: deepspec artifacts copy /mnt/backup/store
    """
    from deepspec.registry import backup as home_backup
    from flows.cli.progress import progress_of

    with progress_of(progress(), "store") as work:
        done = home_backup.copy(source, to, home(), work)
    _tell(done, to, as_json=as_json)


def _tell(done: "Copied", to: str, *, as_json: bool) -> None:
    """Say what was copied and what was not.

    Raises:
        ArtifactError: the copy is not whole.
    """
    if as_json:
        print_json({**asdict(done), "complete": done.complete})
    else:
        show_lines(
            f"{done.artifacts} artifacts ({in_units(done.bytes_written)}) and {done.records} promotions copied, "
            f"{done.present} artifacts were there already.",
            *(f"Not copied: {name}: {flaw}" for name, flaw in done.not_whole.items()),
            *(f"Not copied: {name}: other content is there" for name in done.other_content),
        )
    if done.not_whole:
        raise ArtifactError(
            "some artifacts are damaged and were not copied.",
            where=to,
            remedy="Run their recipes again, then copy again.",
        )
    if done.other_content:
        raise ArtifactError(
            "some artifacts are there with other content and were left.",
            where=to,
            remedy="Copy into another place to have these.",
        )
