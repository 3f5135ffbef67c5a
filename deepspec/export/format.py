"""What deepspec asks of a serving format."""

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
        check: (directory) -> its flaws for a reader of the format, one sentence each.
    """

    name: str
    write: Callable[[Path, Path, str], None]
    check: Callable[[Path], list[str]]
