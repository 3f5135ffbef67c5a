"""What a serving format is to the rest of the house."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Format:
    """One format.

    Args:
        name: as on the command line.
        write: (draft, out, target's name) -> None: write the draft directory `draft` to the new directory `out`;
            IncompatibleDraft if the format cannot hold such a draft.
        check: (directory) -> what a reader of the format would stumble over, one sentence each; empty if nothing.
    """

    name: str
    write: Callable[[Path, Path, str], None]
    check: Callable[[Path], list[str]]
